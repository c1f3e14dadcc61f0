"""Large files at the forge, with Debian's git-lfs as the client: it knows nothing of us."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_fixtures import ForgeProcess, StartForge, make_repository, run_git
from notebooks_service.forge import deploy_tokens, lfs_import, lfs_remote
from notebooks_service.forge.lfs import LfsRefused, answer_batch, read_batch
from notebooks_service.forge.lfs_store import DirectoryStore, Receiver, WrongContent, open_store
from notebooks_service.forge.models import Project
from notebooks_service.forge.routes_lfs import read_range

CLIENT = httpx.Client(timeout=30, trust_env=False)
LFS_TYPE = "application/vnd.git-lfs+json"


@dataclass
class Repository:
    """A project of ``owner`` and ways to talk to its LFS server."""

    forge: ForgeProcess
    id: int
    path: str
    owner: str
    token: str

    @property
    def url(self) -> str:
        return f"{self.forge.url}/{self.path}.git"

    def auth(self, token: str | None = None) -> tuple[str, str]:
        return ("oauth2", token or self.token)

    def batch(self, operation: str, *objects: tuple[str, int], token: str | None = "") -> Any:
        answer = CLIENT.post(
            f"{self.url}/info/lfs/objects/batch",
            json={
                "operation": operation,
                "transfers": ["basic"],
                "ref": {"name": "refs/heads/main"},
                "hash_algo": "sha256",
                "objects": [{"oid": oid, "size": size} for oid, size in objects],
            },
            headers={"Accept": LFS_TYPE, "Content-Type": LFS_TYPE},
            auth=None if token is None else self.auth(token),
        )
        assert answer.headers["content-type"] == LFS_TYPE
        return answer

    def put(self, content: Any, oid: str, size: int, token: str = "") -> httpx.Response:
        address = f"{self.url}/gitlab-lfs/objects/{oid}/{size}"
        return CLIENT.put(address, content=content, auth=self.auth(token))

    def store(self, content: bytes) -> str:
        oid = oid_of(content)
        assert self.put(content, oid, len(content)).status_code == 200
        return oid

    def get(self, oid: str, token: str = "", **headers: str) -> httpx.Response:
        address = f"{self.url}/gitlab-lfs/objects/{oid}"
        return CLIENT.get(address, auth=self.auth(token), headers=headers)

    def member(self, level: str) -> str:
        """A token of a new member."""
        name = self.forge.user()
        self.forge.administration.add_member(self.path, name, level)
        return self.forge.token(name)


def oid_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made(forge: ForgeProcess, directory: Path, visibility: str = "private") -> Repository:
    owner = forge.user()
    path = f"group-of-{owner}/sub/thing"
    make_repository(directory / "source")
    number = forge.project(directory / "source", path, owner, visibility=visibility)
    return Repository(forge, number, path, owner, forge.token(owner))


@pytest.fixture
def project(forge: ForgeProcess, tmp_path: Path) -> Repository:
    return made(forge, tmp_path)


def lfs_git(*arguments: str, cwd: Path, check: bool = True) -> str:
    """git with git-lfs installed for it, and a home of its own."""
    home = cwd.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "Ada",
        "GIT_AUTHOR_EMAIL": "ada@example.org",
        "GIT_COMMITTER_NAME": "Ada",
        "GIT_COMMITTER_EMAIL": "ada@example.org",
    }
    if not (home / ".gitconfig").exists():
        subprocess.run(
            ["git", "lfs", "install", "--skip-repo"], env=environment, check=True, stdout=-3
        )
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def clone(project: Repository, directory: Path, token: str = "") -> Path:
    directory.parent.mkdir(parents=True, exist_ok=True)
    address = project.forge.git_url(project.path, "oauth2", token or project.token)
    lfs_git("clone", "--quiet", address, str(directory), cwd=directory.parent)
    return directory


def test_git_lfs_pushes_and_another_clone_has_the_files(
    project: Repository, tmp_path: Path
) -> None:
    work = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=work)
    contents = {f"data {number} é.bin": os.urandom(40_000 * number) for number in range(1, 5)}
    for name, content in contents.items():
        (work / name).write_bytes(content)
    (work / "empty.bin").write_bytes(b"")
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=work)
    lfs_git("push", "origin", "HEAD", cwd=work)
    other = clone(project, tmp_path / "two" / "work")
    for name, content in contents.items():
        assert (other / name).read_bytes() == content
    assert lfs_git("lfs", "fsck", cwd=other).strip().endswith("OK")
    plain = run_git("show", "HEAD:data 1 é.bin", cwd=other)
    assert plain.startswith("version https://git-lfs.github.com/spec/v1")


def test_a_push_whose_files_are_missing_is_refused_in_gitlabs_words(
    project: Repository, tmp_path: Path
) -> None:
    work = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=work)
    (work / "a.bin").write_bytes(b"large")
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=work)
    refused = lfs_git("push", "--no-verify", "origin", "HEAD", cwd=work, check=False)
    assert "remote: GitLab: LFS objects are missing." in refused
    assert "[rejected]" in refused or "[remote rejected]" in refused
    # Another project has it: that is not enough.
    other = made(project.forge, tmp_path / "other")
    other.store(b"large")
    assert "missing" in lfs_git("push", "--no-verify", "origin", "HEAD", cwd=work, check=False)
    lfs_git("lfs", "push", "--all", "origin", cwd=work)
    lfs_git("push", "--no-verify", "origin", "HEAD", cwd=work)
    # What is there already needs no second look; text that only speaks of LFS is no pointer.
    make_repository(work, {"notes.txt": "version https://git-lfs.github.com/spec/v1\nno more\n"})
    lfs_git("push", "--no-verify", "origin", "HEAD:refs/heads/more", cwd=work)


def test_an_import_brings_large_files_and_says_which_are_missing(
    forge: ForgeProcess, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    make_repository(source)
    lfs_git("lfs", "track", "*.bin", cwd=source)
    contents = {f"{n}.bin": os.urandom(2000) for n in range(4)}
    for name, content in contents.items():
        (source / name).write_bytes(content)
    lfs_git("add", "--all", cwd=source)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=source)

    def stored(name: str) -> Path:
        oid = oid_of(contents[name])
        return source / ".git" / "lfs" / "objects" / oid[:2] / oid[2:4] / oid

    stored("1.bin").unlink()
    stored("2.bin").chmod(0o600)
    stored("2.bin").write_bytes(os.urandom(2000))
    stored("3.bin").unlink()
    os.mkfifo(stored("3.bin"))
    owner = forge.user()
    result = forge.administration.import_repository(source, f"{owner}/large", "private", owner)
    assert result.large_files == 1
    lacking = {oid_of(contents[name]) for name in ("1.bin", "2.bin", "3.bin")}
    assert set(result.large_files_missing) == lacking
    assert "3 large files (Git LFS) are not in the source" in result.sentence
    project = Repository(forge, result.project_id, result.path, owner, forge.token(owner))
    assert project.get(oid_of(contents["0.bin"])).content == contents["0.bin"]
    stored("3.bin").unlink()
    for name in ("1.bin", "2.bin", "3.bin"):
        stored(name).write_bytes(contents[name])
    again = forge.administration.import_repository(source, f"{owner}/large", "private", owner)
    assert (again.large_files, again.large_files_missing) == (3, ())
    assert "missing" not in again.sentence
    work = clone(project, tmp_path / "one" / "work")
    assert {name: (work / name).read_bytes() for name in contents} == contents


def test_an_import_from_an_address_brings_large_files(forge: ForgeProcess, tmp_path: Path) -> None:
    """What git-lfs sent to one project another one has, brought from that one's address."""
    source = made(forge, tmp_path, visibility="public")
    work = clone(source, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=work)
    contents = {f"{n}.bin": os.urandom(2000) for n in range(3)}
    for name, content in contents.items():
        (work / name).write_bytes(content)
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=work)
    lfs_git("push", "origin", "HEAD:main", cwd=work)
    gone = oid_of(contents["2.bin"])
    (forge.data / "forge" / "lfs" / gone[:2] / gone[2:4] / gone).unlink()
    owner = forge.user()
    bring = forge.administration.import_repository
    result = bring(f"{forge.url}/{source.path}.git", f"{owner}/large", "private", owner)
    assert (result.large_files, result.large_files_missing) == (2, (gone,))
    assert "1 large files (Git LFS) are not in the source" in result.sentence
    source.store(contents["2.bin"])
    # The address may also come without its ending.
    again = bring(f"{forge.url}/{source.path}", f"{owner}/large", "private", owner)
    assert (again.large_files, again.large_files_missing) == (1, ())
    brought = Repository(forge, result.project_id, result.path, owner, forge.token(owner))
    have = clone(brought, tmp_path / "two" / "work")
    assert {name: (have / name).read_bytes() for name in contents} == contents


ADDRESS = "https://code.example/a/b"
CONTENT = b"what the pointer says"
OID = oid_of(CONTENT)


def brought(
    answer: Any, *, content: bytes = CONTENT, status: int = 200
) -> tuple[bytes | None, list[Any]]:
    """What is had of a server that answers a batch with ``answer``, and what it was asked."""
    asked: list[httpx.Request] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if not request.url.path.endswith("/objects/batch"):
            return streamed(status, content)
        if isinstance(answer, tuple):
            return streamed(*answer)
        return streamed(200, json.dumps(answer).encode())

    remote = lfs_remote.RemoteObjects(ADDRESS, httpx.MockTransport(respond))
    places = remote.places({OID: len(CONTENT)})
    try:
        return b"".join(remote.read(places[OID])), asked
    except (lfs_remote.NotHad, KeyError):
        return None, asked


def streamed(status: int, content: bytes) -> httpx.Response:
    headers = {"Location": "https://127.0.0.1/"} if status == 302 else {}
    return httpx.Response(status, stream=httpx.ByteStream(content), headers=headers)


def offer(href: object, **more: Any) -> dict[str, Any]:
    return {"objects": [{"oid": OID, "actions": {"download": {"href": href, **more}}}]}


def test_where_an_import_takes_large_files_from() -> None:
    found, asked = brought(offer(f"{ADDRESS}.git/x", header={"X-Sig": "s", "Host": "evil"}))
    assert found == CONTENT
    assert [one.url.path for one in asked] == ["/a/b.git/info/lfs/objects/batch", "/a/b.git/x"]
    assert asked[1].headers["x-sig"] == "s" and asked[1].headers["host"] == "code.example"
    assert not any({"authorization", "cookie"} & set(one.headers) for one in asked)
    # Storage elsewhere: connected to at the address that was checked, by the name's certificate.
    found, asked = brought(offer("https://8.8.8.8:444/x"))
    assert found == CONTENT and str(asked[1].url) == "https://8.8.8.8:444/x"
    assert asked[1].extensions["sni_hostname"] == "8.8.8.8"


@pytest.mark.parametrize(
    "answer",
    [
        offer("https://127.0.0.1/x"),
        offer("https://169.254.169.254/latest/meta-data"),
        offer("https://10.0.0.1/x"),
        offer("https://[::ffff:127.0.0.1]/x"),
        offer("http://code.example/x"),
        offer("http://8.8.8.8/x"),
        offer("file:///etc/passwd"),
        offer(3),
        offer(f"{ADDRESS}/x", header={"A\r\nB": "c"}),
        offer(f"{ADDRESS}/x", header={"A": "c\r\nAuthorization: x"}),
        offer(f"{ADDRESS}/x", header=["A"]),
        {"objects": [{"oid": "b" * 64, "actions": {"download": {"href": f"{ADDRESS}/x"}}}]},
        {"objects": [{"oid": OID, "error": {"code": 404}}, 3, {"oid": 4}]},
        {"objects": {}},
        [],
        (302, b""),
        (200, b"<html>"),
        (200, b" " * (lfs_remote.MOST_JSON + 1) + b"{}"),
    ],
)
def test_an_import_goes_nowhere_else_for_large_files(answer: Any) -> None:
    found, asked = brought(answer)
    assert found is None
    assert [one.url.path for one in asked] == ["/a/b.git/info/lfs/objects/batch"]


@pytest.mark.parametrize("status", [302, 403, 500])
def test_an_import_follows_no_redirect_of_large_files(status: int) -> None:
    found, asked = brought(offer(f"{ADDRESS}/x"), status=status)
    assert (found, len(asked)) == (None, 2)


def test_wrong_bytes_are_not_imported(forge: ForgeProcess, tmp_path: Path) -> None:
    source = tmp_path / "source"
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize {len(CONTENT)}\n"
    make_repository(source, {"a.bin": pointer})
    owner = forge.user()
    result = forge.administration.import_repository(source, f"{owner}/large", "private", owner)
    config = forge.administration.config

    def bring(content: bytes) -> lfs_import.LargeFiles:
        def respond(request: httpx.Request) -> httpx.Response:
            batch = request.url.path.endswith("/batch")
            body = json.dumps(offer(f"{ADDRESS}/x")).encode() if batch else content
            return streamed(200, body)

        return lfs_import.bring(
            forge.administration.database,
            open_store(config.lfs, config.large_files),
            result.project_id,
            config.repository(result.project_id),
            ADDRESS,
            httpx.MockTransport(respond),
        )

    for wrong in (b"x" * len(CONTENT), CONTENT + b"x", CONTENT[:-1], b""):
        assert bring(wrong) == lfs_import.LargeFiles(0, (OID,))
    assert OID not in files_of(forge)
    assert bring(CONTENT) == lfs_import.LargeFiles(1)
    assert bring(b"not asked for") == lfs_import.LargeFiles()


@pytest.mark.parametrize("scope", ["read_repository", "read_registry"])
def test_git_lfs_with_a_deploy_token(project: Repository, tmp_path: Path, scope: str) -> None:
    """It reads, and sends nothing: GitLab has no deploy token that may write to a repository."""
    with project.forge.administration.database.write() as session:
        row, token = deploy_tokens.create(
            session, session.get_one(Project, project.id), "d", [scope]
        )
        name = row.username
    mine = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=mine)
    (mine / "a.bin").write_bytes(CONTENT)
    lfs_git("add", "--all", cwd=mine)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=mine)
    lfs_git("push", "origin", "HEAD:main", cwd=mine)
    address = project.forge.git_url(project.path, name, token)
    theirs = tmp_path / "two" / "work"
    theirs.parent.mkdir()
    said = lfs_git("clone", address, str(theirs), cwd=theirs.parent, check=False)
    if scope == "read_registry":
        assert "403" in said and not theirs.exists()
        return
    assert (theirs / "a.bin").read_bytes() == CONTENT
    (theirs / "b.bin").write_bytes(b"theirs")
    lfs_git("add", "--all", cwd=theirs)
    lfs_git("commit", "--quiet", "-m", "More", cwd=theirs)
    refusal = lfs_git("lfs", "push", "origin", "HEAD", cwd=theirs, check=False)
    assert "Access forbidden. Check your access level." in refusal, refusal
    assert oid_of(b"theirs") not in files_of(project.forge)
    assert "403" in lfs_git("push", "--no-verify", "origin", "HEAD:x", cwd=theirs, check=False)


def test_locks_are_kept_by_clients_and_by_the_forge(project: Repository, tmp_path: Path) -> None:
    work = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "--lockable", "*.bin", cwd=work)
    (work / "a.bin").write_bytes(b"1")
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "One", cwd=work)
    lfs_git("push", "origin", "HEAD:main", cwd=work)
    lfs_git("lfs", "lock", "a.bin", cwd=work)
    bob = clone(project, tmp_path / "two" / "work", project.member("maintainer"))
    assert "a.bin" in lfs_git("lfs", "locks", cwd=bob)
    assert "already locked" in lfs_git("lfs", "lock", "a.bin", cwd=bob, check=False).lower()
    (bob / "a.bin").chmod(0o600)
    (bob / "a.bin").write_bytes(b"2")
    lfs_git("commit", "--quiet", "-am", "Two", cwd=bob)
    lfs_git("lfs", "push", "--all", "origin", cwd=bob, check=False)
    project.store(b"2")
    refused = lfs_git("push", "--no-verify", "origin", "HEAD:main", cwd=bob, check=False)
    assert "The path 'a.bin' is locked in Git LFS by" in refused
    refused = lfs_git("lfs", "unlock", "a.bin", cwd=bob, check=False)
    assert "a.bin is locked by" in refused or "locked" in refused
    lfs_git("lfs", "unlock", "--force", "a.bin", cwd=bob)
    lfs_git("push", "--no-verify", "origin", "HEAD:main", cwd=bob)


def test_lists_of_locks_have_pages_and_filters(project: Repository) -> None:
    url = f"{project.url}/info/lfs/locks"
    for number in range(5):
        answer = CLIENT.post(url, json={"path": f"{number}.bin"}, auth=project.auth())
        assert answer.status_code == 201
        assert answer.json()["lock"]["owner"]["name"]
    taken = CLIENT.post(url, json={"path": "3.bin"}, auth=project.auth())
    assert (taken.status_code, taken.json()["message"]) == (409, "already locked")
    assert taken.json()["lock"]["path"] == "3.bin"
    first = CLIENT.get(url, params={"limit": 2}, auth=project.auth()).json()
    assert [lock["path"] for lock in first["locks"]] == ["0.bin", "1.bin"]
    second = CLIENT.get(
        url, params={"limit": 9, "cursor": first["next_cursor"]}, auth=project.auth()
    ).json()
    assert [lock["path"] for lock in second["locks"]] == ["2.bin", "3.bin", "4.bin"]
    assert "next_cursor" not in second
    for query in ({"path": "4.bin"}, {"id": second["locks"][-1]["id"]}):
        [found] = CLIENT.get(url, params=query, auth=project.auth()).json()["locks"]
        assert found["path"] == "4.bin"
    assert CLIENT.get(url, params={"id": "x"}, auth=project.auth()).json() == {"locks": []}
    token = project.member("developer")
    sides = CLIENT.post(f"{url}/verify", json={"limit": 3}, auth=project.auth(token)).json()
    assert (len(sides["ours"]), len(sides["theirs"])) == (0, 3)
    assert sides["next_cursor"]
    one = second["locks"][0]["id"]
    for body in ({}, {"force": True}):
        refused = CLIENT.post(f"{url}/{one}/unlock", json=body, auth=project.auth(token))
        assert refused.status_code == 403
    gone = CLIENT.post(f"{url}/{one}/unlock", json={}, auth=project.auth())
    assert (gone.status_code, gone.json()["lock"]["id"]) == (200, one)
    assert CLIENT.post(f"{url}/{one}/unlock", json={}, auth=project.auth()).status_code == 404
    reader = project.auth(project.member("reporter"))
    assert CLIENT.get(url, auth=reader).status_code == 200
    assert CLIENT.post(url, json={"path": "x"}, auth=reader).status_code == 403
    for body in ({}, [], {"path": ""}, {"path": "\ud800"}, {"path": "x" * 5000}, {"path": 7}):
        raw = json.dumps(body).encode()
        assert CLIENT.post(url, content=raw, auth=project.auth()).status_code == 422, body


def test_a_batch_is_answered_as_gitlab_does(project: Repository) -> None:
    content = b"some content"
    oid = oid_of(content)
    answer = project.batch("upload", (oid, len(content))).json()
    [one] = answer["objects"]
    header = one["actions"]["upload"]["header"]
    login = base64.b64encode(f"oauth2:{project.token}".encode()).decode()
    assert header == {
        "Authorization": f"Basic {login}",
        "Content-Type": "application/octet-stream",
        "Transfer-Encoding": "chunked",
    }
    assert one["actions"]["upload"]["href"] == f"{project.url}/gitlab-lfs/objects/{oid}/12"
    assert (one["authenticated"], answer["transfer"]) == (True, "basic")
    verify = one["actions"]["verify"]["href"]
    asked = {"json": {"oid": oid, "size": 12}, "auth": project.auth()}
    assert CLIENT.post(verify, **asked).status_code == 404
    project.store(content)
    assert CLIENT.post(verify, **asked).status_code == 200
    [there] = project.batch("upload", (oid, len(content))).json()["objects"]
    assert "actions" not in there
    [down] = project.batch("download", (oid, len(content))).json()["objects"]
    assert down["actions"]["download"]["href"] == f"{project.url}/gitlab-lfs/objects/{oid}"
    mixed = project.batch("download", ("0" * 64, 5), (oid, 13), ("nonsense", 1), (oid, -1))
    codes = [item["error"]["code"] for item in mixed.json()["objects"]]
    assert codes == [404, 422, 422, 422]
    large = project.batch("upload", ("1" * 64, 1 << 50)).json()["objects"]
    assert large[0]["error"]["code"] == 413
    assert project.put(b"x", "1" * 64, 1 << 50).status_code == 413
    assert CLIENT.get(f"{project.url}/info/lfs/objects").status_code == 501


def test_rights_are_those_of_the_code(
    forge: ForgeProcess, project: Repository, tmp_path: Path
) -> None:
    content = os.urandom(500)
    oid = project.store(content)
    what = (oid, len(content))
    assert project.batch("download", what, token=None).status_code == 401
    challenged = project.batch("download", what, token="wrong")
    assert challenged.status_code == 401
    assert challenged.headers["lfs-authenticate"] == 'Basic realm="GitLab"'
    stranger = forge.token(forge.user())
    for operation in ("download", "upload"):
        hidden = project.batch(operation, what, token=stranger)
        absent = Repository(forge, 0, "no/such", "", "").batch(operation, what, token=stranger)
        assert (hidden.status_code, hidden.json()) == (404, absent.json())
    assert project.get(oid, stranger).status_code == 404
    assert project.batch("download", what, token=project.member("guest")).status_code == 404
    reporter = project.member("reporter")
    assert project.get(oid, reporter).content == content
    refused = project.batch("upload", what, token=reporter)
    assert refused.status_code == 403
    assert refused.json()["message"] == "Access forbidden. Check your access level."
    assert project.put(b"new", oid_of(b"new"), 3, reporter).status_code == 403
    developer = project.member("developer")
    assert project.put(b"new", oid_of(b"new"), 3, developer).status_code == 200
    reads = forge.token(project.owner, "read_repository")
    assert project.get(oid, reads).content == content
    assert project.put(b"x", oid_of(b"x"), 1, reads).status_code == 403
    public = made(forge, tmp_path / "public", "public")
    public.store(content)
    assert public.batch("download", what, token=None).status_code == 200
    assert public.batch("upload", what, token=None).status_code == 401
    assert CLIENT.get(f"{public.url}/gitlab-lfs/objects/{oid}").content == content


def test_an_object_of_another_project_is_not_had_by_its_name(
    forge: ForgeProcess, project: Repository, tmp_path: Path
) -> None:
    content = os.urandom(70_000)
    oid = project.store(content)
    other = made(forge, tmp_path / "other")
    assert other.get(oid).status_code == 404
    [one] = other.batch("download", (oid, len(content))).json()["objects"]
    assert one["error"]["code"] == 404
    [one] = other.batch("upload", (oid, len(content))).json()["objects"]
    assert "upload" in one["actions"]
    # The store has it; who only knows its name and size still does not get it.
    assert other.put(b"\0" * len(content), oid, len(content)).status_code == 422
    assert other.put(b"", oid, len(content)).status_code == 422
    assert other.get(oid).status_code == 404
    assert other.put(content, oid, len(content)).status_code == 200
    assert other.get(oid).content == content


def files_of(forge: ForgeProcess, directory: str = "lfs") -> set[str]:
    root = forge.data / "forge" / directory
    return {path.name for path in root.rglob("*") if path.is_file()}


def test_wrong_broken_and_repeated_uploads(project: Repository) -> None:
    content = os.urandom(200_000)
    oid, size = oid_of(content), len(content)
    before = files_of(project.forge)

    def chunks(*parts: bytes) -> Iterator[bytes]:
        yield from parts

    wrong = project.put(content[:-1] + bytes([content[-1] ^ 1]), oid, size)
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, LFS_TYPE)
    assert "SHA-256" in wrong.json()["message"]
    for body in (content[:-1], content + b"x", chunks(content, b"x"), chunks(content[:9])):
        assert project.put(body, oid, size).status_code == 422
    assert project.put(chunks(content), oid, size + 1).status_code == 422
    for name in (oid.upper(), oid[:-1], "../../../../etc/passwd", oid + "/.."):
        assert project.put(content, name, size).status_code in (404, 405, 501)
    # The client goes away half-way.
    with socket.create_connection(("127.0.0.1", project.forge.port)) as client:
        login = base64.b64encode(f"oauth2:{project.token}".encode()).decode()
        head = (
            f"PUT /{project.path}.git/gitlab-lfs/objects/{oid}/{size} HTTP/1.1\r\n"
            f"Host: x\r\nAuthorization: Basic {login}\r\nContent-Length: {size}\r\n\r\n"
        )
        client.sendall(head.encode() + content[:100_000])
        wait_until(lambda: files_of(project.forge, "lfs/incoming"))
    wait_until(lambda: files_of(project.forge) == before)
    assert project.get(oid).status_code == 404
    assert project.put(chunks(content[:70_000], content[70_000:]), oid, size).status_code == 200
    assert project.put(content, oid, size).status_code == 200
    assert project.get(oid).content == content
    assert files_of(project.forge) == before | {oid}
    assert project.store(b"") == oid_of(b"")
    assert project.get(oid_of(b"")).content == b""


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_downloads_in_ranges(project: Repository) -> None:
    content = os.urandom(3_000_000)
    oid = project.store(content)
    size = len(content)
    for asked, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=1000000-", 1_000_000, size - 1),
        ("bytes=-5", size - 5, size - 1),
        (f"bytes=2999999-{size * 2}", size - 1, size - 1),
    ):
        part = project.get(oid, Range=asked)
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.content == content[first : last + 1]
    for asked in (f"bytes={size}-", "bytes=-0"):
        beyond = project.get(oid, Range=asked)
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
    changed = project.get(oid, Range="bytes=5-", **{"If-Range": '"another"'})
    assert (changed.status_code, len(changed.content)) == (200, size)
    address = f"{project.url}/gitlab-lfs/objects/{oid}"
    head = CLIENT.head(address, auth=project.auth())
    assert (head.status_code, head.headers["content-length"]) == (200, str(size))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-3", (0, 4)),
        ("bytes=3-2", None),
        ("bytes=10-", (0, 0)),
        ("bytes=-99", (0, 10)),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=٣-", None),
        (f"bytes={10**30}-", None),
    ],
)
def test_ranges_as_they_are_read(header: str, expected: tuple[int, int] | None) -> None:
    assert read_range(header, 10) == expected


def test_git_lfs_goes_on_with_a_broken_download(project: Repository, tmp_path: Path) -> None:
    content = os.urandom(500_000)
    work = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=work)
    (work / "a.bin").write_bytes(content)
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=work)
    lfs_git("push", "origin", "HEAD:main", cwd=work)
    other = tmp_path / "two" / "work"
    other.parent.mkdir()
    address = project.forge.git_url(project.path, "oauth2", project.token)
    lfs_git(
        "-c", "filter.lfs.smudge=git-lfs smudge --skip -- %f",
        "-c", "filter.lfs.process=git-lfs filter-process --skip",
        "clone", "--quiet", address, str(other), cwd=other.parent,
    )  # fmt: skip
    part = other / ".git" / "lfs" / "incomplete" / f"{oid_of(content)}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content[:300_000])
    said = lfs_git("lfs", "pull", cwd=other)
    assert (other / "a.bin").read_bytes() == content, said
    log = project.forge.log.read_text()
    assert f"GET /{project.path}.git/gitlab-lfs/objects/{oid_of(content)} 206" in log


def test_a_job_reads_large_files_of_its_project_and_sends_none(
    forge: ForgeProcess, tmp_path: Path
) -> None:
    from notebooks_service.forge.ci_models import Job
    from notebooks_service.forge.credentials import token_hash

    project = made(forge, tmp_path)
    oid = project.store(b"for jobs")
    # A push makes a pipeline with a job, which this takes as its runner would.
    work = clone(project, tmp_path / "one" / "work")
    make_repository(work, {"requirements.txt": ""})
    lfs_git("push", "origin", "HEAD:main", cwd=work)
    token = f"job-{project.id}"
    with forge.administration.database.write() as session:
        job = session.query(Job).filter_by(project_id=project.id).first()
        assert job is not None
        job.status, job.token_hash = "running", token_hash(token)
    auth = ("gitlab-ci-token", token)
    address = f"{project.url}/gitlab-lfs/objects"
    assert CLIENT.get(f"{address}/{oid}", auth=auth).content == b"for jobs"
    assert CLIENT.put(f"{address}/{oid_of(b'x')}/1", content=b"x", auth=auth).status_code == 403


def test_objects_of_a_deleted_project_go_after_a_while(
    start_forge: StartForge, tmp_path: Path
) -> None:
    forge = start_forge()
    project, other = made(forge, tmp_path / "a"), made(forge, tmp_path / "b")
    shared, own = project.store(b"shared"), project.store(b"own")
    other.store(b"shared")
    auth = {"PRIVATE-TOKEN": project.token}
    gone = CLIENT.delete(f"{forge.url}/api/v4/projects/{project.id}", headers=auth)
    assert gone.status_code == 202
    forge.stop()
    forge.start()
    assert files_of(forge) == {shared, own}
    with forge.administration.database.write() as session:
        from datetime import timedelta

        from notebooks_service.forge.database import now
        from notebooks_service.forge.lfs_models import LfsObject

        session.query(LfsObject).update({"touched_at": now() - timedelta(days=2)})
    forge.stop()
    forge.start()
    assert files_of(forge) == {shared}
    assert other.get(shared).content == b"shared"


# In an S3-compatible store


@dataclass
class Bucket:
    endpoint: str

    def keys(self) -> dict[str, int]:
        import boto3

        answer = self.client(boto3).list_objects_v2(Bucket="large")
        return {item["Key"]: item["Size"] for item in answer.get("Contents", ())}

    def unfinished(self) -> int:
        import boto3

        return len(self.client(boto3).list_multipart_uploads(Bucket="large").get("Uploads", ()))

    def client(self, boto3: Any) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="s3-canary-secret",
        )


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    made = Bucket(f"http://{host}:{port}")
    made.client(boto3).create_bucket(Bucket="large")
    yield made
    server.stop()


def test_objects_in_an_s3_store(
    bucket: Bucket, start_forge: StartForge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "NOTEBOOKS_LFS_STORE": "s3://large/objects",
        "NOTEBOOKS_LFS_STORE_ENDPOINT": bucket.endpoint,
        "NOTEBOOKS_LFS_STORE_KEY": "key",
        "NOTEBOOKS_LFS_STORE_SECRET": "s3-canary-secret",
    }.items():
        monkeypatch.setenv(name, value)
    forge = start_forge()
    project = made(forge, tmp_path)
    contents = [b"", b"small", os.urandom(20 << 20)]
    for content in contents:
        oid = project.store(content)
        assert project.get(oid).content == content
        assert bucket.keys()[f"objects/{oid[:2]}/{oid[2:4]}/{oid}"] == len(content)
    assert project.get(oid, Range="bytes=17000000-").content == contents[-1][17_000_000:]
    assert project.put(contents[-1], oid, len(contents[-1])).status_code == 200
    before = bucket.keys()
    wrong = os.urandom(18 << 20)
    refused = project.put(wrong, oid_of(b"other"), len(wrong))
    assert refused.status_code == 422
    assert bucket.keys() == before
    assert bucket.unfinished() == 0
    work = clone(project, tmp_path / "one" / "work")
    lfs_git("lfs", "track", "*.bin", cwd=work)
    (work / "a.bin").write_bytes(b"by git-lfs")
    lfs_git("add", "--all", cwd=work)
    lfs_git("commit", "--quiet", "-m", "Large", cwd=work)
    lfs_git("push", "origin", "HEAD:main", cwd=work)
    assert (clone(project, tmp_path / "two" / "work") / "a.bin").read_bytes() == b"by git-lfs"
    assert "s3-canary-secret" not in forge.log.read_text()
    assert not (forge.data / "forge" / "lfs").exists()


# Bodies of any shape

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
odd = json_values | st.sampled_from(["a" * 64, "A" * 64, "download", "upload", 2**70, -1, 5])
objects = st.fixed_dictionaries({}, optional={"oid": odd, "size": odd, "extra": odd})
bodies = (
    st.fixed_dictionaries(
        {},
        optional={
            "operation": odd,
            "objects": st.lists(objects | odd, max_size=4) | odd,
            "transfers": odd,
            "hash_algo": odd,
            "ref": odd,
        },
    )
    | odd
)


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_a_batch_of_any_shape_is_answered_or_refused(body: Any) -> None:
    try:
        asked = read_batch(body)
    except LfsRefused as refused:
        assert 400 <= refused.status < 500
        return
    answer = answer_batch(asked, {"a" * 64: 5}, "http://f/p.git", "", largest=100, free=10)
    json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    for one in answer["objects"]:
        assert "error" in one or len(one["oid"]) == 64


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    body=bodies | st.binary(max_size=50),
    path=st.sampled_from(
        ["objects/batch", "objects/verify", "locks", "locks/verify", "locks/1/unlock"]
    ),
)
def test_no_body_makes_the_forge_fail(project: Repository, body: Any, path: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = CLIENT.post(f"{project.url}/info/lfs/{path}", content=raw, auth=project.auth())
    assert answer.status_code < 500, answer.text
    assert answer.headers["content-type"] == LFS_TYPE


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300), said=st.binary(max_size=300), cut=st.integers(1, 50))
def test_only_the_right_content_is_kept(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, said: bytes, cut: int
) -> None:
    root = tmp_path_factory.mktemp("store")
    store = DirectoryStore(root)
    oid = oid_of(said)
    receiver = Receiver(store, oid, len(said))
    kept = True
    try:
        for start in range(0, len(content), cut):
            receiver.write(content[start : start + cut])
        receiver.finish()
    except WrongContent:
        kept = False
    finally:
        receiver.give_up()
    assert kept == (content == said)
    assert (store.size(oid) == len(said)) == kept
    assert not list((root / "incoming").iterdir())
    if kept:
        assert b"".join(store.read(oid, 0, len(said))) == content
