"""Repositories that are broken or made to harm: what a clone says of each, and that nothing is left."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from singleuser_server import TOKEN, Server

from small_forge import SmallForgeProcess, git, try_git


def put(project: Any, kind: str, content: bytes) -> str:
    """An object in the forge's repository, however wrong it is."""
    command = ["git", "hash-object", "-t", kind, "-w", "--stdin", "--literally"]
    done = subprocess.run(command, cwd=project.bare, input=content, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def tree(project: Any, *entries: tuple[str, str, str]) -> str:
    """A tree of (mode, name, object), unchecked."""
    rows = [f"{mode} {name}\0".encode() + bytes.fromhex(oid) for mode, name, oid in entries]
    return put(project, "tree", b"".join(rows))


def at(project: Any, tree_id: str, branch: str = "made") -> str:
    """A commit of that tree on a branch of its own."""
    sha = git("commit-tree", tree_id, "-m", "Made", cwd=project.bare)
    git("update-ref", f"refs/heads/{branch}", sha, cwd=project.bare)
    return sha


def text(project: Any, content: str = "x\n") -> str:
    return put(project, "blob", content.encode())


def dot_git(name: str) -> Callable[[Any, Path], str]:
    """A tree with a ``.git`` under another name, which holds a hook."""

    def make(project: Any, witness: Path) -> str:
        hook = text(project, f"#!/bin/sh\ntouch {witness}\n")
        hooks = tree(project, ("40000", "hooks", tree(project, ("100755", "post-checkout", hook))))
        return at(project, tree(project, ("40000", name, hooks)))

    return make


def up(project: Any, _witness: Path) -> str:
    return at(
        project, tree(project, ("40000", "..", tree(project, ("100644", "x", text(project)))))
    )


def through_a_link(project: Any, _witness: Path) -> str:
    """A link and a directory of one name: what lies in the directory would go where the link leads."""
    inside = tree(project, ("100644", "escaped", text(project)))
    return at(project, tree(project, ("120000", "a", text(project, "..")), ("40000", "a", inside)))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (dot_git(".git"), "unsafe_path"),
        (dot_git(".GIT"), "unsafe_path"),
        (dot_git("git~1"), "unsafe_path"),
        (dot_git(".git "), "unsafe_path"),
        (dot_git(".git."), "unsafe_path"),
        (dot_git(".g\u200cit"), "unsafe_path"),
        (up, "unsafe_path"),
        (lambda p, w: at(p, tree(p, ("100644", "n" * 300, text(p)))), "unsafe_path"),
    ],
    ids=[".git", ".GIT", "git~1", ".git-space", ".git-dot", "hfs", "up", "long"],
)
def test_a_path_that_could_harm_is_not_written(
    server: Server, project: Any, tmp_path: Path, make: Callable[..., str], kind: str
) -> None:
    witness = tmp_path / "was-run"
    server.variables["NOTEBOOKS_COMMIT"] = make(project, witness)
    ended = server.clone()
    assert ended.last.get("error") == kind, ended.errors
    assert "holds a path that is not written" in ended.last["message"]
    assert list(server.work.iterdir()) == []
    assert not witness.exists()


def test_nothing_is_written_through_a_link(server: Server, project: Any, tmp_path: Path) -> None:
    server.variables["NOTEBOOKS_COMMIT"] = through_a_link(project, tmp_path)
    server.clone()
    assert [path.name for path in server.work.iterdir() if path.name != server.folder.name] == []
    assert not (server.directory / "escaped").exists()


# Names that are only odd, here: they are written as they are.
ODD = [
    "aux",
    "con.txt",
    "trailing.",
    "File",
    "file",
    "FILE",
    "a:b",
    "new\nline",
    "-rf",
    "größe",
    "%2F",
]


def test_odd_names_and_links_are_files_like_others(
    server: Server, project: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    entries = [("100644", name, text(project, name)) for name in ODD]
    entries.append(("120000", "link-out", text(project, str(secret))))
    entries.append(("120000", "link-up", text(project, "../../..")))
    ordered = sorted(entries, key=lambda each: each[1].encode())
    server.variables["NOTEBOOKS_COMMIT"] = at(project, tree(project, *ordered))
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert all((server.folder / name).read_text() == name for name in ODD)
    # A link is what the repository says it is, and nothing was written through it.
    assert (server.folder / "link-out").is_symlink()
    assert server.git("status", "--porcelain") == ""
    assert secret.read_text() == "secret"


def test_a_bare_repository_among_the_files_runs_nothing(
    server: Server, project: Any, tmp_path: Path
) -> None:
    witness = tmp_path / "was-run"
    evil = project.seed / "evil"
    git("init", "-q", "--bare", str(evil))
    (evil / "config").write_text(
        f"[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = /tmp\n"
        f"\tfsmonitor = touch {witness}\n"
    )
    for name in ("refs/keep", "objects/keep"):
        (evil / name).write_text("")
    (project.seed / ".gitconfig").write_text(f"[core]\n\tfsmonitor = touch {witness}\n")
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    ended = server.clone()
    assert ended.code == 0, ended.errors
    done = subprocess.run(
        ["git", "status"],
        cwd=server.folder / "evil",
        env=server.environment,
        capture_output=True,
        text=True,
    )
    assert "safe.bareRepository" in done.stderr
    assert not witness.exists()


def test_fifty_thousand_files_in_one_directory(server: Server, project: Any) -> None:
    blob = text(project)
    lines = "".join(f"100644 blob {blob}\tf{number:05}\n" for number in range(50_000))
    made = subprocess.run(
        ["git", "mktree"], cwd=project.bare, input=lines.encode(), capture_output=True
    )
    tree_id = made.stdout.decode().strip()
    server.variables["NOTEBOOKS_COMMIT"] = at(project, tree(project, ("40000", "many", tree_id)))
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert sum(1 for _ in (server.folder / "many").iterdir()) == 50_000
    assert server.git("status", "--porcelain") == ""


# -- commits and refs ------------------------------------------------------------------------------


def force_pushed(project: Any) -> str:
    sha = project.commit("moving", more="x")
    git("update-ref", "refs/heads/moving", project.shas[0], cwd=project.bare)
    return sha


def collected(project: Any) -> str:
    sha = force_pushed(project)
    git("reflog", "expire", "--expire=now", "--all", cwd=project.bare)
    git("gc", "-q", "--prune=now", cwd=project.bare)
    return sha


def a_tree(project: Any) -> str:
    return git("rev-parse", "main^{tree}", cwd=project.bare)


def no_default_branch(project: Any) -> str:
    git("symbolic-ref", "HEAD", "refs/heads/nowhere", cwd=project.bare)
    return str(project.shas[-1])


def ambiguous(project: Any) -> str:
    """A tag and branches with names that git could take for one another, and for the commit."""
    sha = str(project.shas[-1])
    for ref in (
        "tags/main",
        "tags/origin/main",
        f"heads/{sha}",
        "heads/origin/main",
        "heads/FETCH_HEAD",
    ):
        git("update-ref", f"refs/{ref}", project.shas[0], cwd=project.bare)
    return sha


@pytest.mark.parametrize(
    ("make", "code"),
    [(force_pushed, 0), (collected, 14), (a_tree, 14), (no_default_branch, 0), (ambiguous, 0)],
)
@pytest.mark.parametrize("partial", [True, False], ids=["partial", "full"])
def test_commits_that_moved_or_are_gone_and_refs_that_could_be_others(
    server: Server, project: Any, make: Callable[[Any], str], code: int, partial: bool
) -> None:
    git("config", "uploadpack.allowFilter", str(partial).lower(), cwd=project.bare)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=project.bare)
    sha = make(project)
    server.variables["NOTEBOOKS_COMMIT"] = sha
    ended = server.clone()
    assert ended.code == code, ended.errors
    if code:
        assert sha in ended.last["message"]
        assert list(server.work.iterdir()) == []
        return
    assert ended.last["head"] == sha
    tip = make is not force_pushed
    assert ended.last["upstream"] == ("origin/main" if tip else None)
    if tip:
        server.git("commit", "-q", "--allow-empty", "-m", "Mine")
        server.git("push", "-q", "origin", "HEAD:refs/heads/main")


# -- submodules ------------------------------------------------------------------------------------


@pytest.fixture
def library(small_forge: SmallForgeProcess, project: Any, tmp_path: Path) -> dict[str, str]:
    """A second project, as the hub would plan it at ``libs/one`` of a new commit of the first."""
    path = f"{project.path}-library"
    bare = small_forge.repository(path)
    seed = tmp_path / "library"
    git("init", "-q", "--initial-branch=main", str(seed))
    (seed / "code.py").write_text("print(1)\n")
    git("add", ".", cwd=seed)
    git("commit", "-q", "-m", "Library", cwd=seed)
    git("push", "-q", str(bare), "main", cwd=seed)
    sha = git("rev-parse", "HEAD", cwd=seed)
    small_forge.save(tokens={TOKEN: {project.path: "write", path: "read"}})
    return {"at": "libs/one", "parent": "", "name": "libs/one", "project": path, "commit": sha}


def pin(project: Any, entry: dict[str, str], **more: str) -> str:
    """A commit that has the submodule, with an address that must never be used."""
    values = {"path": entry["at"], "url": "ext::sh -c 'touch /tmp/never'", **more}
    lines = "".join(f"\t{key} = {value}\n" for key, value in values.items())
    (project.seed / ".gitmodules").write_text(f'[submodule "{entry["name"]}"]\n{lines}')
    link = f"160000,{entry['commit']},{entry['at']}"
    git("update-index", "--add", "--cacheinfo", link, cwd=project.seed)
    (project.seed / entry["at"]).mkdir(parents=True)
    return str(project.commit())


def test_a_submodule_is_at_its_commit_and_like_any_other(
    server: Server, project: Any, library: dict[str, str], tmp_path: Path
) -> None:
    server.variables["NOTEBOOKS_COMMIT"] = pin(project, library)
    server.variables["NOTEBOOKS_SUBMODULES"] = json.dumps([library])
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert ended.last["notes"] == []
    inside = server.folder / "libs/one"
    assert (inside / "code.py").read_text() == "print(1)\n"
    assert (inside / ".git").is_file()
    assert (server.folder / ".git/modules/libs/one/HEAD").is_file()
    assert server.git("status", "--porcelain") == ""
    assert (
        server.git("submodule", "status", "--cached").split()[0].lstrip("-+") == library["commit"]
    )
    assert server.git("-C", "libs/one", "rev-parse", "HEAD") == library["commit"]
    server.git("-C", "libs/one", "fetch", "-q")
    assert server.unsaved()["clean"] is True


def test_a_submodule_that_names_a_program_is_left_out_and_runs_nothing(
    server: Server, project: Any, library: dict[str, str], tmp_path: Path
) -> None:
    witness = tmp_path / "was-run"
    server.variables["NOTEBOOKS_COMMIT"] = pin(project, library, update=f"!touch {witness}")
    server.variables["NOTEBOOKS_SUBMODULES"] = json.dumps([library])
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert "git does not take what" in ended.last["notes"][0]
    assert list((server.folder / "libs/one").iterdir()) == []
    server.try_git("submodule", "update", "--init")
    assert not witness.exists()
    # git itself works on: as it was cloned it would refuse every one of these.
    assert "names a program to run for the submodule `libs/one`" in ended.last["notes"][1]
    assert server.git("status", "--porcelain") == ""
    assert server.unsaved()["clean"] is True
    (server.folder / "mine.txt").write_text("mine")
    server.git("add", "--all")
    assert server.git("diff", "--cached", "--name-only") == "mine.txt"
    server.git("commit", "-q", "-a", "-m", "Mine")
    assert f"!touch {witness}" in server.git("show", "HEAD:.gitmodules")
    server.git("checkout", "-q", "-b", "other")
    server.git("push", "-q", "origin", "HEAD:refs/heads/other")
    assert not witness.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"commit": "d" * 40}, "something else there"),
        ({"at": "data.txt"}, "something else there"),
        ({"at": "nowhere"}, "something else there"),
        ({"project": "group/hidden"}, "no such repository"),
    ],
)
def test_a_submodule_that_is_not_what_the_hub_saw_is_left_out(
    server: Server, project: Any, library: dict[str, str], change: dict[str, str], says: str
) -> None:
    server.variables["NOTEBOOKS_COMMIT"] = pin(project, library)
    server.variables["NOTEBOOKS_SUBMODULES"] = json.dumps([{**library, **change}])
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert len(ended.last["notes"]) == 1 and says in ended.last["notes"][0]
    assert list((server.folder / "libs/one").iterdir()) == []
    assert server.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    "change",
    [
        {"at": "../out"},
        {"at": "/tmp/out"},
        {"at": "a/.git/b"},
        {"name": "../../hooks"},
        {"name": "-x"},
        {"project": "group/../x"},
        {"commit": "main"},
        {"parent": "other"},
        {"at": "a\nb"},
        {"at": "a\x1bb"},
        {"at": None},
    ],
)
def test_a_plan_that_leads_elsewhere_is_not_followed(
    server: Server, library: dict[str, str], change: dict[str, Any]
) -> None:
    server.variables["NOTEBOOKS_SUBMODULES"] = json.dumps([{**library, **change}])
    ended = server.clone()
    assert (ended.code, ended.last["error"]) == (2, "environment")
    assert not server.work.exists()


def test_git_itself_would_have_refused_the_address(
    server: Server, project: Any, library: dict[str, str]
) -> None:
    """A terminal is the person's; still, no program in ``.gitmodules`` is run by git there."""
    server.variables["NOTEBOOKS_COMMIT"] = pin(project, library)
    assert server.clone().code == 0
    done = server.try_git("submodule", "update", "--init")
    assert done.returncode != 0 and "not allowed" in done.stderr
    assert try_git("ls-remote", "ext::sh -c id").returncode != 0
