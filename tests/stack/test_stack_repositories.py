"""Repositories as they really are, through the whole stack: submodules, large files, long histories."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from notebooks_service.domain import server_name
from notebooks_service.singleuser.lfs_objects import Pointer, Remote, Store
from small_forge import git
from stack_fixtures import Stack, wait_for

pytestmark = pytest.mark.stack

LAUNCH_SECONDS = 300
COMMITS, FILES = 100_000, 10_000


class Person:
    """Somebody at the forge, who makes projects and pushes to them from outside."""

    def __init__(self, stack: Stack, name: str) -> None:
        self.stack, self.name = stack, name
        administration = stack.administration()
        try:
            self.token = administration.personal_token(name, "tests", ["api", "write_repository"])
        finally:
            administration.close()

    def api(self, method: str, path: str, **more: Any) -> Any:
        answer = httpx.request(
            method,
            f"{self.stack.forge_url}/api/v4{path}",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=60,
            trust_env=False,
            **more,
        )
        assert answer.is_success, answer.text
        return answer.json()

    def project(self, name: str) -> str:
        body = {"name": name, "visibility": "private"}
        return str(self.api("POST", "/projects", json=body)["path_with_namespace"])

    def push(self, repository: Path, project: str) -> str:
        address = self.stack.forge_url.replace("://", f"://oauth2:{self.token}@")
        git("push", "-q", f"{address}/{project}.git", "HEAD:refs/heads/main", cwd=repository)
        return git("rev-parse", "HEAD", cwd=repository)

    def large_file(self, project: str, content: bytes, directory: Path) -> str:
        """Bring an object to the forge's LFS; its pointer."""
        store = Store(directory)
        pointer = store.take([content])
        given = {
            "NOTEBOOKS_GATEWAY_URL": self.stack.forge_url,
            "JUPYTERHUB_API_TOKEN": self.token,
        }
        Remote(project, given).send([pointer], store)
        return pointer.text().decode()


def repository(directory: Path, **files: str) -> Path:
    git("init", "-q", "--initial-branch=main", str(directory))
    for name, content in files.items():
        (directory / name).write_text(content)
    git("add", ".", cwd=directory)
    git("commit", "-q", "--allow-empty", "-m", "First", cwd=directory)
    return directory


def launch(stack: Stack, project: str, sha: str, **more: Any) -> dict[str, Any]:
    namespace, _, name = project.rpartition("/")
    body = {"namespace": namespace, "project": name, "commit_sha": sha, **more}
    answer = stack.api("POST", "servers", json=body)
    assert answer.status_code in (200, 201), answer.text
    found = answer.json()["name"]

    def settled() -> dict[str, Any] | None:
        server: dict[str, Any] = stack.api("GET", f"servers/{found}").json()
        return server if server["status"]["state"] in ("running", "failed") else None

    return wait_for(settled, LAUNCH_SECONDS, every=0.3)


def inside(stack: Stack, server: dict[str, Any], command: str, *, fails: bool = False) -> str:
    done = stack.inside(stack.owner, server["name"], "sh", "-c", command, seconds=180)
    assert (done.returncode != 0) is fails, done.stdout
    return done.stdout.strip()


def delete(stack: Stack, server: dict[str, Any]) -> None:
    assert stack.api("DELETE", f"servers/{server['name']}?forced=true").status_code == 204


def test_submodules_large_files_and_a_clone_in_part(stack: Stack, tmp_path: Path) -> None:
    owner = Person(stack, stack.owner)
    library, app = owner.project("library"), owner.project("app")
    pinned = owner.push(repository(tmp_path / "library", **{"code.py": "print(1)\n"}), library)

    # A history with 60 MB that are gone again, a large file, three submodules.
    work = repository(tmp_path / "app", **{"README.md": "App\n"})
    (work / "old.bin").write_bytes(os.urandom(60_000_000))
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "Big", cwd=work)
    old = git("rev-parse", "HEAD", cwd=work)
    (work / "old.bin").unlink()
    content = os.urandom(400_000)
    (work / ".gitattributes").write_text("*.dat filter=lfs diff=lfs merge=lfs -text\n")
    (work / "data.dat").write_text(owner.large_file(app, content, tmp_path / "store"))
    (work / ".gitmodules").write_text(
        '[submodule "one"]\n\tpath = libs/one\n\turl = ../library.git\n'
        f'[submodule "two"]\n\tpath = libs/two\n\turl = {stack.forge_url}/nobody/hidden.git\n'
        '[submodule "three"]\n\tpath = libs/three\n\turl = ext::sh -c "touch /tmp/never-run"\n'
    )
    git("add", "-A", cwd=work)
    for place, commit in (("one", pinned), ("two", pinned), ("three", pinned)):
        link = f"160000,{commit},libs/{place}"
        git("update-index", "--add", "--cacheinfo", link, cwd=work)
    git("commit", "-q", "-m", "Now", cwd=work)
    sha = owner.push(work, app)

    server = launch(stack, app, sha)
    assert server["status"]["state"] == "running", f"{server}\n{stack.said()}"
    said = {each["path"]: each for each in server["submodules"]}
    assert (said["libs/one"]["project"], said["libs/one"]["left_out"]) == (library, None)
    assert "no such project" in said["libs/two"]["left_out"]
    assert said["libs/two"]["project"] is None
    assert "not on this forge" in said["libs/three"]["left_out"]

    assert inside(stack, server, "git status --porcelain --branch") == "## main...origin/main"
    assert inside(stack, server, "cat libs/one/code.py; ls libs/two libs/three").startswith(
        "print(1)"
    )
    assert (
        inside(stack, server, "sha256sum data.dat").split()[0]
        == hashlib.sha256(content).hexdigest()
    )
    # The 60 MB are not here, and come when they are needed.
    missing = "git rev-list --objects --all --missing=print | grep -c '^?'"
    assert int(inside(stack, server, missing)) > 0
    assert inside(stack, server, f"git cat-file blob {old}:old.bin | wc -c") == "60000000"
    # The submodule's project can be read and not pushed to; any other is not there at all.
    inside(stack, server, "git -C libs/one fetch -q")
    refused = inside(stack, server, "git -C libs/one push origin HEAD:refs/heads/mine", fails=True)
    assert "may read it, not push" in refused
    for other in ("nobody/hidden", f"{stack.owner}/nile"):
        inside(stack, server, f"git ls-remote {stack.forge_url}/{other}.git", fails=True)
    # A new large file goes to the forge with a push.
    inside(
        stack,
        server,
        "printf fresh > new.dat && git add new.dat && git commit -qm New && git push -q",
    )
    path = f"/projects/{quote(app, safe='')}/repository/files/new.dat/raw"
    raw = httpx.get(
        f"{stack.forge_url}/api/v4{path}",
        params={"ref": "main"},
        headers={"Authorization": f"Bearer {owner.token}"},
        trust_env=False,
    )
    assert raw.text == Pointer(hashlib.sha256(b"fresh").hexdigest(), 5).text().decode()

    delete(stack, server)


@pytest.mark.skipif(os.getuid() != 0, reason="Not tested here: a second person needs root.")
def test_a_hidden_submodule_is_a_missing_one_and_a_forged_one_is_refused(
    stack: Stack, tmp_path: Path
) -> None:
    # The owner is the forge's administrator, who sees everything; so somebody else asks.
    heron = Person(stack, stack.add_user("heron"))
    book = heron.project("book")
    hidden = f"{stack.owner}/nile"
    work = repository(tmp_path / "book", **{"README.md": "Book\n"})
    (work / ".gitmodules").write_text(
        f'[submodule "gone"]\n\tpath = gone\n\turl = {stack.forge_url}/nobody/nothing.git\n'
        f'[submodule "nile"]\n\tpath = nile\n\turl = {stack.forge_url}/{hidden}.git\n'
    )
    git("add", ".", cwd=work)
    for place in ("gone", "nile"):
        link = f"160000,{stack.commits()[0]},{place}"
        git("update-index", "--add", "--cacheinfo", link, cwd=work)
    git("commit", "-q", "-m", "Refer to others", cwd=work)
    sha = heron.push(work, book)
    numbers = [
        Person(stack, who).api("GET", f"/projects/{quote(project, safe='')}")["id"]
        for who, project in ((heron.name, book), (stack.owner, hidden))
    ]

    page = stack.client(heron.name).get(f"{stack.service_url}{book}/{sha}")
    assert page.status_code == 200, page.text
    why = dict(re.findall(r"<li><code>(\w+)</code>: (.*?)</li>", page.text))
    assert "no such project" in why["gone"]
    assert why == {"gone": why["gone"], "nile": why["gone"]}
    assert hidden not in page.text

    # Past the page, at the hub itself: refused, and nothing is there for it.
    name = server_name(numbers[0], sha, "main")
    path = f"users/{heron.name}/servers/{name}"

    def seen() -> Any:
        return stack.api("GET", f"servers/{name}", heron.name)

    for forged in (numbers[1], 999_999):
        asked = {"project": book, "commit": sha, "branch": "main", "submodules": [forged]}
        body = {"display_name": "x", "user_options": {"notebooks": asked}}
        answer = stack.hub_api("POST", path, heron.name, json=body)
        assert answer.status_code in (202, 403), answer.text
        found = wait_for(lambda: (each := seen().json()).get("failure") and each, 60)
        assert found["failure"]["code"] == "launch_refused", found
        assert "no submodule of this commit" in found["status"]["message"]
        assert not (stack.data / "servers" / heron.name / name).exists()
        mark = f"/servers/{heron.name}/{name}"
        assert not [one for one in stack.processes() if mark in " ".join(one.cmdline())]
        stack.hub_api("DELETE", path, heron.name, json={"remove": True})
        wait_for(lambda: seen().status_code == 404)

    # Asked for as one should: the record leaves both out, in the same words.
    namespace, _, project = book.rpartition("/")
    body = {"namespace": namespace, "project": project, "commit_sha": sha}
    assert stack.api("POST", "servers", heron.name, json=body).status_code == 201
    gone, nile = wait_for(lambda: seen().json()["submodules"], 60)
    assert gone["project"] is None and "no such project" in gone["left_out"]
    assert nile == {**gone, "path": "nile"}
    assert stack.api("DELETE", f"servers/{name}?forced=true", heron.name).status_code == 204


def test_a_hundred_thousand_commits_and_ten_thousand_files(stack: Stack, tmp_path: Path) -> None:
    bare = tmp_path / "long.git"
    git("init", "-q", "--bare", "--initial-branch=main", str(bare))
    with subprocess.Popen(
        ["git", "fast-import", "--quiet"], cwd=bare, stdin=subprocess.PIPE
    ) as importing:
        assert importing.stdin is not None
        for number in range(COMMITS):
            # A file changes with every tenth commit only, so that the test's own part is quick.
            files = range(FILES) if number == 0 else [number % FILES] if number % 10 == 0 else []
            lines = "".join(
                f"M 100644 inline d{file % 100}/f{file}.txt\ndata {len(str(number))}\n{number}\n"
                for file in files
            )
            text = f"Commit {number}"
            importing.stdin.write(
                f"commit refs/heads/main\ncommitter Ada <ada@example.org> {1_600_000_000 + number} +0000\n"
                f"data {len(text)}\n{text}\n{lines}".encode()
            )
    assert importing.returncode == 0
    project = f"{stack.owner}/long"
    began = time.monotonic()
    done = stack.command("forge", "import", str(bare), "--as", project)
    assert done.returncode == 0, done.stderr
    imported = time.monotonic() - began
    owner = Person(stack, stack.owner)
    number = owner.api("GET", f"/projects/{quote(project, safe='')}")["id"]

    began = time.monotonic()
    page = stack.api("GET", f"projects/{number}/commits")
    first = time.monotonic() - began
    assert page.status_code == 200, page.text
    began = time.monotonic()
    last = stack.api("GET", f"projects/{number}/commits", params={"page": 4000})
    deep = time.monotonic() - began
    assert last.status_code == 200, last.text
    sha = git("rev-parse", "main", cwd=bare)

    began = time.monotonic()
    server = launch(stack, project, sha)
    launched = time.monotonic() - began
    assert server["status"]["state"] == "running", f"{server}\n{stack.said()}"
    began = time.monotonic()
    assert int(inside(stack, server, "git log --format=%h | wc -l")) == COMMITS
    logged = time.monotonic() - began
    assert int(inside(stack, server, "git ls-files | wc -l")) == FILES
    assert inside(stack, server, "git status --porcelain") == ""
    delete(stack, server)
    print(
        f"import {imported:.1f} s, page 1 {first:.2f} s, page 4000 {deep:.2f} s,"
        f" launch {launched:.1f} s, git log {logged:.2f} s"
    )
    # Seconds, not minutes, also on a busy machine.
    assert first < 10 and deep < 20, (first, deep)
