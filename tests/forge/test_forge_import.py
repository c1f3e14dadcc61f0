"""Imports of existing repositories: everything arrives, the source stays as it is, nothing of it runs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from forge_fixtures import ForgeProcess, make_repository, run_git
from notebooks_service.errors import Conflict, InvalidRequest, NotFound
from notebooks_service.forge.administration import Administration


@pytest.fixture
def administration(tmp_path: Path) -> Iterator[Administration]:
    made = Administration(tmp_path / "data")
    made.ensure_owner("ada", "Ada", "ada@example.org")
    yield made
    made.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "My Thing"
    make_repository(path, {"a.txt": "1\n"}, {"a.txt": "2\n"})
    run_git("branch", "feat/x", "HEAD~1", cwd=path)
    run_git("tag", "-a", "v1", "-m", "one", cwd=path)
    run_git("tag", "light", cwd=path)
    return path


def state(path: Path) -> dict[str, str]:
    """Every file under ``path`` with its hash."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def refs(administration: Administration, project_id: int) -> dict[str, str]:
    listed = run_git(
        "for-each-ref",
        "--format=%(refname) %(objectname)",
        "refs/heads",
        "refs/tags",
        cwd=administration.config.repository(project_id),
    )
    return dict(line.split(" ") for line in listed.splitlines())


def bring(administration: Administration, source: Path | str, path: str | None = None):
    return administration.import_repository(source, path, "private", "ada")


def test_branches_and_tags_arrive_and_the_source_stays(
    administration: Administration, source: Path
) -> None:
    before = state(source)
    result = bring(administration, source)
    assert state(source) == before
    assert (result.path, result.default_branch, result.new) == ("ada/my-thing", "main", True)
    assert set(result.created) == {"main", "feat/x", "v1", "light"}
    ours = refs(administration, result.project_id)
    theirs = run_git("for-each-ref", "--format=%(refname) %(objectname)", cwd=source)
    assert ours == dict(line.split(" ") for line in theirs.splitlines())
    again = bring(administration, source)
    assert (again.project_id, again.new) == (result.project_id, False)
    assert not (again.created or again.updated or again.forced or again.kept)
    assert state(source) == before


def test_importing_again_fetches_what_is_new(administration: Administration, source: Path) -> None:
    first = bring(administration, source)
    [sha] = make_repository(source, {"a.txt": "3\n"})
    run_git("branch", "-D", "feat/x", cwd=source)
    run_git("branch", "new", cwd=source)
    again = bring(administration, source)
    assert again.updated == ("main",) and again.created == ("new",)
    ours = refs(administration, first.project_id)
    assert ours["refs/heads/main"] == ours["refs/heads/new"] == sha
    assert "refs/heads/feat/x" in ours
    assert "updated: main" in again.sentence


def push(administration: Administration, project_id: int, tmp_path: Path) -> str:
    """Somebody's work that only the forge has: a commit on main and a branch."""
    clone = tmp_path / "clone"
    run_git("clone", "--quiet", str(administration.config.repository(project_id)), str(clone))
    [sha] = make_repository(clone, {"work.txt": "of a notebook\n"})
    run_git("push", "--quiet", "origin", "main", "HEAD:refs/heads/mine", cwd=clone)
    return sha


def test_work_that_was_pushed_here_is_never_lost(
    administration: Administration, source: Path, tmp_path: Path
) -> None:
    first = bring(administration, source)
    work = push(administration, first.project_id, tmp_path)
    again = bring(administration, source)
    assert refs(administration, first.project_id)["refs/heads/main"] == work
    assert not again.kept
    make_repository(source, {"a.txt": "elsewhere\n"})
    diverged = bring(administration, source)
    assert diverged.kept == ("main",)
    ours = refs(administration, first.project_id)
    assert ours["refs/heads/main"] == ours["refs/heads/mine"] == work


def test_a_rewritten_source_is_followed(administration: Administration, source: Path) -> None:
    first = bring(administration, source)
    run_git("commit", "--quiet", "--amend", "-m", "rewritten", cwd=source)
    again = bring(administration, source)
    assert again.forced == ("main",)
    tip = run_git("rev-parse", "main", cwd=source).strip()
    assert refs(administration, first.project_id)["refs/heads/main"] == tip


def test_worktrees_bare_ones_and_subdirectories(
    administration: Administration, source: Path, tmp_path: Path
) -> None:
    (source / "deep" / "down").mkdir(parents=True)
    assert bring(administration, source / "deep" / "down").path == "ada/my-thing"
    run_git("clone", "--quiet", "--bare", str(source), str(tmp_path / "bare.git"))
    assert bring(administration, tmp_path / "bare.git").path == "ada/bare"
    run_git("worktree", "add", "--quiet", str(tmp_path / "tree"), "feat/x", cwd=source)
    # A worktree is the repository that it belongs to.
    assert bring(administration, tmp_path / "tree").path == "ada/my-thing"
    result = bring(administration, tmp_path / "tree", "ada/of-tree")
    assert result.default_branch == "feat/x"
    assert set(result.created) == {"main", "feat/x", "v1", "light"}


def test_a_detached_head(administration: Administration, source: Path) -> None:
    run_git("checkout", "--quiet", "--detach", "HEAD~1", cwd=source)
    assert bring(administration, source).default_branch == "main"


def test_the_branch_of_the_source_is_the_default(
    administration: Administration, source: Path
) -> None:
    run_git("checkout", "--quiet", "feat/x", cwd=source)
    result = bring(administration, source)
    assert result.default_branch == "feat/x"
    head = administration.config.repository(result.project_id) / "HEAD"
    assert head.read_text() == "ref: refs/heads/feat/x\n"


def test_a_repository_without_commits(administration: Administration, tmp_path: Path) -> None:
    run_git("init", "--quiet", "--initial-branch=trunk", str(tmp_path / "empty"))
    result = bring(administration, tmp_path / "empty")
    assert (result.default_branch, result.created) == ("trunk", ())
    make_repository(tmp_path / "empty", branch="trunk")
    assert bring(administration, tmp_path / "empty").created == ("trunk",)


def test_two_folders_of_one_name(administration: Administration, tmp_path: Path) -> None:
    for place in ("one", "two"):
        make_repository(tmp_path / place / "thing")
    assert bring(administration, tmp_path / "one" / "thing").path == "ada/thing"
    assert bring(administration, tmp_path / "two" / "thing").path == "ada/thing-2"
    assert bring(administration, tmp_path / "one" / "thing").path == "ada/thing"
    assert bring(administration, tmp_path / "two" / "thing").path == "ada/thing-2"


def test_a_folder_that_is_named_like_an_address(
    administration: Administration, tmp_path: Path
) -> None:
    make_repository(tmp_path / "tree")
    assert bring(administration, tmp_path / "tree").path == "ada/tree-project"


def test_groups_are_made(administration: Administration, source: Path) -> None:
    result = administration.import_repository(source, "lab/sub/deeper/thing", "public", "ada")
    assert result.path == "lab/sub/deeper/thing"
    again = administration.import_repository(source, "lab/sub/deeper/thing", "private", "ada")
    assert (again.project_id, again.new) == (result.project_id, False)


def test_a_project_named_like_a_sha(administration: Administration, source: Path) -> None:
    name = "0123456789abcdef0123456789abcdef01234567"
    assert bring(administration, source, f"ada/{name}").path == f"ada/{name}"


def test_sentences_for_what_cannot_be_imported(
    administration: Administration, source: Path, tmp_path: Path
) -> None:
    for wrong, word in ((tmp_path / "nowhere", "no directory"), (tmp_path, "no git repository")):
        with pytest.raises(NotFound, match=word):
            bring(administration, wrong)
    run_git("clone", "--quiet", "--depth=1", f"file://{source}", str(tmp_path / "shallow"))
    with pytest.raises(InvalidRequest, match="unshallow"):
        bring(administration, tmp_path / "shallow")
    for wrong_address in ("ssh://host/x", "ext::sh -c id://", "file:///etc"):
        with pytest.raises(InvalidRequest, match="no source"):
            bring(administration, wrong_address)
    with pytest.raises(InvalidRequest, match="password"):
        bring(administration, "https://me:hunter2@127.0.0.1:9/x.git")
    with pytest.raises(NotFound, match="cannot be read"):
        bring(administration, "http://127.0.0.1:9/x.git")
    for path in ("alone", "-/x", "ada/x.git", "api/x", "ada/a b"):
        with pytest.raises(InvalidRequest):
            bring(administration, source, path)
    with pytest.raises(NotFound, match="no user"):
        administration.import_repository(source, None, "private", "nobody")
    with pytest.raises((InvalidRequest, Conflict)):
        administration.import_repository(source, None, "secret", "ada")


def test_a_failed_import_leaves_no_project(
    administration: Administration, source: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    for pack in broken.glob(".git/objects/??/*"):
        pack.chmod(0o600)
        pack.write_bytes(b"broken")
    with pytest.raises(InvalidRequest, match="Nothing was imported"):
        bring(administration, broken)
    assert bring(administration, source, "ada/broken").new


def test_a_repository_of_somebody_else(administration: Administration, source: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for file in [source, *source.rglob("*")]:
        os.chown(file, 65534, 65534)
    assert bring(administration, source).new


def test_nothing_of_the_source_runs(
    administration: Administration, source: Path, tmp_path: Path
) -> None:
    """Hooks and every setting of a repository that names a command."""
    trace = tmp_path / "ran"
    command = f"sh -c 'echo $0 >> {trace}; cat'"
    for hook in ("post-checkout", "pre-push", "post-upload-pack", "reference-transaction"):
        file = source / ".git" / "hooks" / hook
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/sh\necho {hook} >> {trace}\n")
        file.chmod(0o755)
    for key, value in {
        "core.fsmonitor": command,
        "core.sshCommand": command,
        "core.gitProxy": command,
        "core.alternateRefsCommand": command,
        "core.pager": command,
        "core.editor": command,
        "core.askPass": command,
        "credential.helper": f"!{command}",
        "uploadpack.packObjectsHook": command,
        "diff.external": command,
        "gpg.program": command,
        "filter.x.clean": command,
        "filter.x.smudge": command,
        "remote.origin.url": f"ext::{command}",
        "remote.origin.uploadpack": command,
        "remote.origin.promisor": "true",
        "remote.origin.partialclonefilter": "blob:none",
        "extensions.partialClone": "origin",
        "protocol.ext.allow": "always",
    }.items():
        run_git("config", key, value, cwd=source)
    run_git("config", "core.repositoryformatversion", "1", cwd=source)
    assert bring(administration, source).new
    # A promisor remote's missing object would be fetched by its command.
    blob = run_git("rev-parse", "HEAD:a.txt", cwd=source).strip()
    (source / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(InvalidRequest):
        bring(administration, source, "ada/second")
    assert not trace.exists(), trace.read_text()


def test_from_another_forge_and_while_ours_runs(
    forge: ForgeProcess, source: Path, tmp_path: Path
) -> None:
    owner = forge.user()
    forge.project(source, f"{owner}/open", owner, visibility="public")
    result = forge.administration.import_repository(
        f"{forge.url}/{owner}/open.git", f"{owner}/copy", "private", owner
    )
    assert result.default_branch == "main"
    assert set(result.created) == {"main", "feat/x", "v1", "light"}
    address = forge.git_url(f"{owner}/copy", owner, forge.token(owner))
    assert "refs/tags/v1^{}" in run_git("ls-remote", address)
