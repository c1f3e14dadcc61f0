"""git over HTTP with git itself as the client."""

from __future__ import annotations

import gzip
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from forge_fixtures import ForgeProcess, living, make_repository, run_git


@pytest.fixture
def owner(forge: ForgeProcess) -> str:
    return forge.user()


@pytest.fixture
def path(forge: ForgeProcess, owner: str, tmp_path: Path) -> str:
    """A private project of ``owner`` in nested groups, with three commits and a tag."""
    source = tmp_path / "source"
    make_repository(source, {"a.txt": "1\n"}, {"a.txt": "2\n"}, {"b/c.txt": "3\n"})
    run_git("tag", "-a", "v1", "-m", "first", cwd=source)
    path = f"group-of-{owner}/sub/deeper/thing"
    forge.project(source, path, owner)
    return path


@pytest.fixture
def clone(forge: ForgeProcess, owner: str, path: str, tmp_path: Path) -> Path:
    target = tmp_path / "clone"
    run_git("clone", "--quiet", forge.git_url(path, "oauth2", forge.token(owner)), str(target))
    return target


def member(forge: ForgeProcess, path: str, level: str) -> str:
    """The address of the project for a new person of this level."""
    user = forge.user()
    forge.administration.add_member(path, user, level)
    return forge.git_url(path, user, forge.token(user))


def test_clone_commit_push_fetch(forge: ForgeProcess, clone: Path, path: str, owner: str) -> None:
    assert run_git("tag", cwd=clone).split() == ["v1"]
    assert run_git("rev-parse", "--abbrev-ref", "HEAD", cwd=clone).strip() == "main"
    [sha] = make_repository(clone, {"new.txt": "4\n"})
    run_git("push", "origin", "main", "HEAD:refs/heads/wip/ü", cwd=clone)
    listed = run_git("ls-remote", forge.git_url(path, "x", forge.token(owner)))
    assert f"{sha}\trefs/heads/main" in listed
    assert f"{sha}\trefs/heads/wip/ü" in listed
    assert "refs/imported" not in listed


def test_every_way_to_say_who_one_is(forge: ForgeProcess, path: str, owner: str) -> None:
    token = forge.token(owner, "read_repository")
    for name in (owner, "oauth2", "anything"):
        assert "refs/heads/main" in run_git("ls-remote", forge.git_url(path, name, token))
    password = forge.administration.set_password(owner)
    assert "refs/heads/main" in run_git("ls-remote", forge.git_url(path, owner, password))
    bearer = {"Authorization": f"Bearer {token}"}
    address = f"{forge.url}/{path}.git/info/refs?service=git-upload-pack"
    assert httpx.get(address, headers=bearer).status_code == 401
    assert httpx.get(address, auth=("", token)).status_code == 200
    other = forge.token(owner, "read_user")
    assert httpx.get(address, auth=("oauth2", other)).status_code == 401


@pytest.mark.parametrize(
    ("level", "pull", "push_branch", "push_default"),
    [
        ("guest", False, False, False),
        ("reporter", True, False, False),
        ("developer", True, True, False),
        ("maintainer", True, True, True),
        ("owner", True, True, True),
    ],
)
def test_levels(
    forge: ForgeProcess,
    clone: Path,
    path: str,
    level: str,
    pull: bool,
    push_branch: bool,
    push_default: bool,
) -> None:
    address = member(forge, path, level)
    pulled = run_git("ls-remote", address, check=False)
    assert ("refs/heads/main" in pulled) is pull
    if not pull:
        assert "remote: You are not allowed to download code from this project." in pulled
    make_repository(clone, {"x": level})
    branch = run_git("push", address, f"HEAD:refs/heads/{level}", check=False, cwd=clone)
    assert ("new branch" in branch) is push_branch
    if pull and not push_branch:
        assert "remote: You are not allowed to push code to this project." in branch
    default = run_git("push", address, "HEAD:main", check=False, cwd=clone)
    assert ("HEAD -> main" in default and "rejected" not in default) is push_default
    if push_branch and not push_default:
        assert (
            "remote: GitLab: You are not allowed to push code to protected branches on this project."
            in default
        )


def test_the_level_of_a_group_is_inherited(forge: ForgeProcess, clone: Path, path: str) -> None:
    user = forge.user()
    forge.administration.add_member(path.split("/")[0], user, "developer")
    address = forge.git_url(path, user, forge.token(user))
    make_repository(clone, {"x": "inherited"})
    assert "new branch" in run_git("push", address, "HEAD:refs/heads/mine", check=False, cwd=clone)


def test_hidden_is_as_missing(forge: ForgeProcess, path: str) -> None:
    stranger = forge.user()
    credentials = (stranger, forge.token(stranger))
    answers = []
    for name in (path, path + "-none", "nobody/nothing"):
        for service in ("git-upload-pack", "git-receive-pack"):
            address = f"{forge.url}/{name}.git/info/refs?service={service}"
            known, anonymous = httpx.get(address, auth=credentials), httpx.get(address)
            answers.append((known.status_code, known.text, anonymous.status_code, anonymous.text))
            assert anonymous.headers["www-authenticate"] == 'Basic realm="GitLab"'
    assert len(set(answers)) == 1
    assert answers[0][0] == 404 and answers[0][2] == 401
    assert "could not be found or you don't have permission to view it" in answers[0][1]


def test_public_projects_need_no_name(forge: ForgeProcess, owner: str, tmp_path: Path) -> None:
    make_repository(tmp_path / "open")
    forge.project(tmp_path / "open", f"{owner}/open", owner, visibility="public")
    address = f"{forge.url}/{owner}/open.git"
    assert "refs/heads/main" in run_git("ls-remote", address)
    # GitLab sends addresses without .git on.
    assert "refs/heads/main" in run_git("ls-remote", f"{forge.url}/{owner}/open")
    push = httpx.get(f"{address}/info/refs?service=git-receive-pack")
    assert push.status_code == 401
    dumb = httpx.get(f"{address}/info/refs")
    assert dumb.status_code == 403
    for rest in ("HEAD", "config", "objects/info/packs", "../forge.sqlite"):
        assert httpx.get(f"{address}/{rest}").status_code in (302, 404)
    wanted = {"operation": "download", "objects": [{"oid": "0" * 64, "size": 1}]}
    lfs = httpx.post(f"{address}/info/lfs/objects/batch", json=wanted)
    assert (lfs.status_code, lfs.json()["objects"][0]["error"]["code"]) == (200, 404)


def test_protected_branches(forge: ForgeProcess, clone: Path, path: str) -> None:
    address = member(forge, path, "maintainer")
    run_git("commit", "--quiet", "--amend", "-m", "rewritten", cwd=clone)
    forced = run_git("push", "--force", address, "HEAD:main", check=False, cwd=clone)
    assert "not allowed to force push code to a protected branch" in forced
    deleted = run_git("push", address, ":main", check=False, cwd=clone)
    assert "default branch of a project cannot be deleted" in deleted
    run_git("push", address, "HEAD:refs/heads/other", cwd=clone)
    run_git("commit", "--quiet", "--amend", "-m", "again", cwd=clone)
    run_git("push", "--force", address, "HEAD:refs/heads/other", cwd=clone)
    run_git("push", address, ":refs/heads/other", cwd=clone)
    sha_name = run_git("push", address, f"HEAD:refs/heads/{'ab' * 20}", check=False, cwd=clone)
    assert "40-character hexadecimal branch name" in sha_name
    odd = run_git("push", address, "HEAD:refs/imported/heads/x", check=False, cwd=clone)
    assert "rejected" in odd or "hidden" in odd


def test_a_refused_ref_refuses_the_whole_push(forge: ForgeProcess, clone: Path, path: str) -> None:
    address = member(forge, path, "developer")
    make_repository(clone, {"x": "both"})
    answer = run_git("push", address, "HEAD:main", "HEAD:refs/heads/both", check=False, cwd=clone)
    assert "protected branches" in answer
    assert "refs/heads/both" not in run_git("ls-remote", address)


def test_the_first_push_to_an_empty_project(
    forge: ForgeProcess, owner: str, tmp_path: Path
) -> None:
    token = forge.token(owner)
    headers = {"PRIVATE-TOKEN": token}
    made = httpx.post(f"{forge.url}/api/v4/projects", headers=headers, json={"name": "Empty One"})
    project = made.json()
    assert project["empty_repo"] is True and project["path"] == "empty-one"
    developer = member(forge, project["path_with_namespace"], "developer")
    make_repository(tmp_path / "work", branch="trunk")
    refused = run_git("push", developer, "trunk", check=False, cwd=tmp_path / "work")
    assert "remote: GitLab: A default branch (e.g. main) does not yet exist for" in refused
    assert "Ask a project Owner or Maintainer to create a default branch" in refused
    mine = forge.git_url(project["path_with_namespace"], owner, token)
    run_git("push", mine, "trunk", cwd=tmp_path / "work")
    now = httpx.get(f"{forge.url}/api/v4/projects/{project['id']}", headers=headers).json()
    assert now["empty_repo"] is False and now["default_branch"] == "trunk"
    run_git("clone", "--quiet", mine, str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").exists()


def test_an_exact_commit_and_a_partial_clone(
    forge: ForgeProcess, path: str, owner: str, tmp_path: Path
) -> None:
    address = forge.git_url(path, owner, forge.token(owner))
    run_git("clone", "--quiet", "--filter=blob:none", "--no-checkout", address, str(tmp_path / "p"))
    missing = run_git("rev-list", "--objects", "--all", "--missing=print", cwd=tmp_path / "p")
    assert "?" in missing
    old = run_git("rev-list", "--max-parents=0", "main", cwd=tmp_path / "p").strip()
    run_git("init", "--quiet", str(tmp_path / "one"))
    run_git("fetch", "--quiet", "--depth=1", address, old, cwd=tmp_path / "one")
    assert run_git("rev-parse", "FETCH_HEAD", cwd=tmp_path / "one").strip() == old


def test_protocol_version_two_and_gzip(forge: ForgeProcess, path: str, owner: str) -> None:
    credentials = (owner, forge.token(owner))
    address = f"{forge.url}/{path}.git"
    answer = httpx.get(
        f"{address}/info/refs?service=git-upload-pack",
        auth=credentials,
        headers={"Git-Protocol": "version=2"},
    )
    assert b"version 2" in answer.content
    assert answer.headers["cache-control"].startswith("no-cache")
    body = b"0014command=ls-refs\n0016object-format=sha10001001bref-prefix refs/heads/\n0000"
    listed = httpx.post(
        f"{address}/git-upload-pack",
        auth=credentials,
        content=gzip.compress(body),
        headers={
            "Content-Type": "application/x-git-upload-pack-request",
            "Content-Encoding": "gzip",
            "Git-Protocol": "version=2",
        },
    )
    assert b"refs/heads/main" in listed.content


def pipelines(forge: ForgeProcess, path: str, token: str) -> list[dict[str, object]]:
    quoted = path.replace("/", "%2F")
    answer = httpx.get(
        f"{forge.url}/api/v4/projects/{quoted}/pipelines", headers={"PRIVATE-TOKEN": token}
    )
    found: list[dict[str, object]] = answer.json()
    return found


def test_a_push_makes_a_pipeline_for_its_tip(
    forge: ForgeProcess, clone: Path, path: str, owner: str
) -> None:
    token = forge.token(owner)
    assert pipelines(forge, path, token) == []
    shas = make_repository(clone, *({"n": str(number)} for number in range(5)))
    run_git("push", cwd=clone)
    assert [one["sha"] for one in pipelines(forge, path, token)] == [shas[-1]]
    make_repository(clone, {"n": "skip"})
    run_git("push", "-o", "ci.skip", cwd=clone)
    active = [one for one in pipelines(forge, path, token) if one["status"] != "skipped"]
    assert len(active) == 1


def test_a_client_that_dies_in_a_push_leaves_nothing(
    forge: ForgeProcess, clone: Path, path: str, owner: str
) -> None:
    (clone / "big.bin").write_bytes(os.urandom(40_000_000))
    make_repository(clone, {"x": "dies"})
    repository = max((forge.data / "forge" / "repositories").glob("*.git"), key=os.path.getmtime)
    quarantines = lambda: list(repository.glob("objects/*incoming*"))  # noqa: E731
    process = subprocess.Popen(
        ["git", "-c", "http.postBuffer=65536", "push", "origin", "main"],
        cwd=clone,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"},
        start_new_session=True,
    )
    end = time.monotonic() + 90
    while not quarantines() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    os.killpg(process.pid, 9)
    process.wait()
    assert forge.process is not None
    children = psutil.Process(forge.process.pid).children
    while quarantines() or living(children(recursive=True)):
        assert time.monotonic() < end
        time.sleep(0.02)
    address = forge.git_url(path, owner, forge.token(owner))
    local = run_git("rev-parse", "HEAD~1", cwd=clone).strip()
    remote = run_git("ls-remote", address, "refs/heads/main").split()[0]
    # Killed before or just after the end: the branch is at the old or the new commit, never between.
    assert remote in (local, run_git("rev-parse", "HEAD", cwd=clone).strip())
    run_git("fsck", "--no-progress", cwd=repository)


def test_a_large_push_in_constant_memory(
    start_forge: Callable[..., ForgeProcess], tmp_path: Path
) -> None:
    forge = start_forge()
    owner = forge.user("ada")
    source = tmp_path / "large"
    make_repository(source)
    forge.project(source, "ada/large", owner)
    block = os.urandom(1 << 20)
    with (source / "large.bin").open("wb") as file:
        for number in range(200):
            file.write(block[number:] + block[:number])
    run_git("config", "core.compression", "0", cwd=source)
    run_git("config", "core.bigFileThreshold", "1m", cwd=source)
    make_repository(source, {"x": "large"})
    assert forge.process is not None
    process = psutil.Process(forge.process.pid)
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    address = forge.git_url("ada/large", owner, forge.token(owner))
    try:
        run_git("push", address, "main", cwd=source)
        run_git("clone", "--quiet", "--bare", address, str(tmp_path / "back.git"))
    finally:
        done.set()
        watcher.join()
    size = sum(file.stat().st_size for file in tmp_path.glob("back.git/objects/pack/*.pack"))
    assert size > 200_000_000
    assert peak - before < 60_000_000
