"""A real git client through the real gateway to a git server; the hub is a real JupyterHub."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from gateway_real_hub import CLIENT, RealHub
from gateway_stage import GatewayProcess, launch, running_gateway, stop

from notebooks_service.platform.proxy import install_proxy, proxy_directory
from ports import free_port
from small_forge import (
    SmallForgeProcess,
    git,
    git_environment,
    running_command,
    running_small_forge,
    try_git,
    wait_until,
)

PROJECT = "group/sub/analysis"
FORGE_TOKEN = "canary-forge-token-of-ada"
_ids = itertools.count(100)


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallForgeProcess]:
    with running_small_forge(tmp_path_factory.mktemp("small-forge")) as small:
        yield small


@pytest.fixture(scope="module")
def gateway(
    forge: SmallForgeProcess, real_hub: RealHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    with running_gateway(real_hub, forge.url, log) as process:
        yield process


@dataclass
class Stage:
    """A server of ada's for ``project``, and where its git goes."""

    hub: RealHub
    forge: SmallForgeProcess
    gateway: GatewayProcess
    project: str
    project_id: int
    bare: Path
    server: str
    token: str

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/{self.project}.git"

    @property
    def login(self) -> dict[str, str]:
        """git configuration that a server has through its credential helper."""
        helper = f"!f() {{ echo username=server; echo password={self.token}; }}; f"
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"credential.{self.gateway.url}.helper",
            "GIT_CONFIG_VALUE_0": helper,
        }

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"token {token or self.token}"}
        return CLIENT.get(f"{self.gateway.url}/{path}", headers=headers)


REFS = "info/refs?service=git-upload-pack"


@pytest.fixture
async def stage(
    real_hub: RealHub,
    forge: SmallForgeProcess,
    gateway: GatewayProcess,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Stage:
    project_id = next(_ids)
    project = f"{PROJECT}-{project_id}"
    bare = forge.repository(project)
    seed = tmp_path / "seed"
    git("init", "-q", "--initial-branch=main", str(seed))
    (seed / "README.md").write_text("# Analysis\n")
    git("add", ".", cwd=seed)
    git("commit", "-qm", "First", cwd=seed)
    git("push", "-q", str(bare), "main", cwd=seed)
    forge.save(
        answer=None,
        api_answer=None,
        stall=None,
        cut=None,
        redirects={},
        ids={str(project_id): project},
    )
    forge.allow(FORGE_TOKEN, project)
    server, token = await launch(real_hub, "ada", FORGE_TOKEN, project, project_id)
    request.addfinalizer(
        lambda: CLIENT.request(
            "DELETE",
            f"{real_hub.api_url}/users/ada/servers/{server}",
            headers={"Authorization": f"token {real_hub.user('ada', FORGE_TOKEN)}"},
            json={"remove": True},
        )
    )
    return Stage(real_hub, forge, gateway, project, project_id, bare, server, token)


def test_clone_commit_push_and_fetch(stage: Stage, tmp_path: Path) -> None:
    work, other = tmp_path / "work", tmp_path / "other"
    git("clone", "-q", stage.url, str(work), **stage.login)
    git("clone", "-q", stage.url, str(other), **stage.login)
    assert (work / "README.md").read_text() == "# Analysis\n"
    (work / "new.txt").write_text("new\n")
    git("add", ".", cwd=work)
    git("commit", "-qm", "Second", cwd=work)
    git("push", "-q", "origin", "HEAD:main", "HEAD:refs/heads/feature", cwd=work, **stage.login)
    tip = git("rev-parse", "HEAD", cwd=work)
    assert git("rev-parse", "main", "feature", cwd=stage.bare).split() == [tip, tip]
    git("pull", "-q", "--ff-only", cwd=other, **stage.login)
    assert git("rev-parse", "HEAD", cwd=other) == tip
    asked = [entry["headers"] for entry in stage.forge.requests() if stage.project in entry["path"]]
    assert any(headers.get("git-protocol") == "version=2" for headers in asked)
    assert all(
        set(headers) & {"cookie", "x-forwarded-for", "connection"} <= {"connection"}
        for headers in asked
    )


def test_a_compressed_request_passes_as_it_is(stage: Stage, tmp_path: Path) -> None:
    # Enough refs make git's list of wants larger than a kilobyte, which it then compresses.
    seed = tmp_path / "many"
    git("clone", "-q", str(stage.bare), str(seed))
    tips = []
    for number in range(40):
        tips.append(git("commit-tree", "HEAD^{tree}", "-m", f"{number}", cwd=seed))
        git("update-ref", f"refs/heads/b{number}", tips[-1], cwd=seed)
    git("push", "-q", "origin", "--all", cwd=seed)
    work = tmp_path / "work"
    git("clone", "-q", stage.url, str(work), **stage.login)
    assert git("rev-parse", "origin/b39", cwd=work) == tips[-1]
    posts = [entry for entry in stage.forge.requests() if stage.project in entry.get("path", "")]
    assert any(entry["headers"].get("content-encoding") == "gzip" for entry in posts)


def test_a_refused_push_shows_the_forges_own_message(stage: Stage, tmp_path: Path) -> None:
    work = tmp_path / "work"
    git("clone", "-q", stage.url, str(work), **stage.login)
    git("commit", "-q", "--allow-empty", "-m", "Mine", cwd=work)
    stage.forge.allow(FORGE_TOKEN, stage.project, "read")
    done = try_git("push", "origin", "main", cwd=work, **stage.login)
    assert done.returncode != 0
    assert "remote: You are not allowed to push code to this project." in done.stderr
    assert "403" in done.stderr


def test_another_project_is_the_same_as_a_missing_one(stage: Stage, tmp_path: Path) -> None:
    other = stage.project + "-other"
    stage.forge.repository(other)
    stage.forge.save(
        tokens={FORGE_TOKEN: {stage.project: "write", other: "write"}},
    )
    before = len(stage.forge.requests())
    hidden = stage.get(f"{other}.git/{REFS}")
    missing = stage.get(f"{stage.project}-none.git/{REFS}")
    case = stage.get(f"{stage.project.upper()}.git/{REFS}")
    assert (hidden.status_code, hidden.text) == (404, missing.text) == (404, case.text)
    assert dict(hidden.headers, date="") == dict(missing.headers, date="")
    assert len(stage.forge.requests()) == before
    assert stage.get(f"{stage.project}/{REFS}").status_code == 200
    done = try_git("clone", f"{stage.gateway.url}/{other}.git", str(tmp_path / "x"), **stage.login)
    assert done.returncode != 0
    assert "not found" in done.stderr


@pytest.mark.parametrize(
    "path",
    [
        "{p}/../x.git/info/refs",
        "{p}%2f..%2f..%2fx.git/info/refs",
        "{p}%252f..%252fx.git/info/refs",
        "%2e%2e/{p}.git/info/refs",
        "{p}.git/HEAD",
        "{p}.git/../../api/v4/user",
        "api/v4/user",
    ],
)
def test_no_way_leads_elsewhere(stage: Stage, path: str) -> None:
    before = len(stage.forge.requests())
    where = urlsplit(f"{stage.gateway.url}/{path.format(p=stage.project)}?service=git-upload-pack")
    with socket.create_connection((where.hostname, where.port), 10) as raw:
        raw.sendall(
            f"GET {where.path}?{where.query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: token {stage.token}\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert len(stage.forge.requests()) == before


async def test_one_servers_token_does_not_open_anothers_project(stage: Stage) -> None:
    stage.forge.allow("canary-forge-token-of-bob", stage.project)
    name, token = await launch(stage.hub, "bob", "canary-forge-token-of-bob", "bob/own")
    assert stage.get(f"{stage.project}.git/{REFS}", token).status_code == 404
    await stop(stage.hub, "bob", "canary-forge-token-of-bob", name)


def test_only_a_servers_token_will_do(stage: Stage) -> None:
    refs = f"{stage.project}.git/{REFS}"
    person = stage.hub.user("ada", FORGE_TOKEN)
    refused = stage.get(refs, person)
    assert refused.status_code == 403
    assert "not the token of one" in refused.text
    service = stage.get(refs, stage.hub.service_token)
    assert service.status_code == 403
    nobody = stage.get(refs, "0" * 32)
    assert nobody.status_code == 401
    anonymous = CLIENT.get(f"{stage.gateway.url}/{refs}")
    assert anonymous.status_code == 401
    assert anonymous.headers["www-authenticate"] == 'Basic realm="Notebooks", charset="UTF-8"'
    forge_token = stage.get(refs, FORGE_TOKEN)
    assert forge_token.status_code == 401


async def test_a_stopped_servers_token_opens_nothing(stage: Stage) -> None:
    refs = f"{stage.project}.git/{REFS}"
    assert stage.get(refs).status_code == 200
    await stop(stage.hub, "ada", FORGE_TOKEN, stage.server)
    # Who it was is still remembered for some seconds: the server's state is asked for each time.
    refused = stage.get(refs)
    assert refused.status_code in (401, 403)


def test_a_refreshed_forge_token_is_used_at_once(stage: Stage, tmp_path: Path) -> None:
    work = tmp_path / "work"
    git("clone", "-q", stage.url, str(work), **stage.login)
    stage.forge.save(tokens={"canary-second-token": {stage.project: "write"}})
    stage.hub.user("ada", "canary-second-token")
    git("commit", "-q", "--allow-empty", "-m", "After", cwd=work)
    git("push", "-q", "origin", "main", cwd=work, **stage.login)
    assert git("rev-parse", "main", cwd=stage.bare) == git("rev-parse", "HEAD", cwd=work)


def test_an_expired_sign_in_is_said_in_words(stage: Stage, tmp_path: Path) -> None:
    stage.forge.save(tokens={})
    answer = stage.get(f"{stage.project}.git/{REFS}")
    assert answer.status_code == 403
    assert "www-authenticate" not in answer.headers
    assert "set-cookie" not in answer.headers
    done = try_git("clone", stage.url, str(tmp_path / "x"), **stage.login)
    assert "remote: Your sign-in at the forge has expired" in done.stderr
    stage.hub.user("ada", None)
    none = stage.get(f"{stage.project}.git/{REFS}")
    assert (none.status_code, none.text) == (403, answer.text)


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ([503, "text/html", "<html>maintenance"], 503, "The forge does not answer"),
        ([502, "text/html", "<html>bad gateway"], 503, "The forge does not answer"),
        ([503, "text/plain", "GitLab is in maintenance mode."], 503, "GitLab is in maintenance"),
        ([500, "text/html", "<html>oops"], 503, "The forge does not answer"),
        ([429, "text/html", "<html>slow down"], 429, "asked too much"),
        ([403, "text/html", "<html>no"], 403, "without a reason"),
        ([429, "text/plain", "Retry later"], 429, "Retry later"),
        ([404, "text/html", "<html>sign in"], 404, "nothing that you may see"),
        ([200, "text/html", "<html>sign in"], 503, "not git"),
        ([302, "text/html", ""], 503, "not git"),
        ([403, "text/plain", "your TOKEN is bad"], 403, "your [removed] is bad"),
        ([403, "text/plain", "x" * 100_000], 403, "x" * 100),
    ],
)
def test_what_the_forge_refuses_reaches_the_person(
    stage: Stage, answer: list[object], status: int, says: str
) -> None:
    stage.forge.save(answer=answer)
    got = stage.get(f"{stage.project}.git/{REFS}")
    assert got.status_code == status
    assert says in got.text
    assert got.headers["content-type"] == "text/plain; charset=utf-8"
    assert "set-cookie" not in got.headers
    assert FORGE_TOKEN not in got.text
    assert len(got.text) < 20_000


def test_git_shows_that_the_forge_is_away(stage: Stage, tmp_path: Path) -> None:
    stage.forge.save(answer=[503, "text/html", "<html>"])
    done = try_git("clone", stage.url, str(tmp_path / "x"), **stage.login)
    assert "remote: The forge does not answer at the moment." in done.stderr


def test_a_forge_that_does_not_listen_is_away(
    real_hub: RealHub, stage: Stage, tmp_path: Path, unused_port: int
) -> None:
    with running_gateway(real_hub, f"http://127.0.0.1:{unused_port}", tmp_path / "log") as away:
        answer = CLIENT.get(
            f"{away.url}/{stage.project}.git/{REFS}",
            headers={"Authorization": f"token {stage.token}"},
        )
    assert answer.status_code == 503
    assert "The forge does not answer" in answer.text


def moved_project(stage: Stage) -> Path:
    """The launched project's repository after the project was renamed, and its new path's rule."""
    moved = f"elsewhere/moved-{stage.server}"
    target = stage.forge.directory / f"{moved}.git"
    target.parent.mkdir(exist_ok=True)
    stage.bare.rename(target)
    stage.forge.save(
        ids={str(stage.project_id): moved},
        tokens={FORGE_TOKEN: {stage.project: "write", moved: "write"}},
    )
    return target


def test_a_renamed_project_is_still_reached(stage: Stage, tmp_path: Path) -> None:
    work = tmp_path / "work"
    git("clone", "-q", stage.url, str(work), **stage.login)
    target = moved_project(stage)
    git("commit", "-q", "--allow-empty", "-m", "After", cwd=work)
    git("push", "-q", "origin", "main", cwd=work, **stage.login)
    assert git("rev-parse", "main", cwd=target) == git("rev-parse", "HEAD", cwd=work)


def test_another_project_at_the_old_path_is_never_reached(stage: Stage, tmp_path: Path) -> None:
    tip = git("rev-parse", "main", cwd=stage.bare)
    moved_project(stage)
    stage.forge.repository(stage.project)
    work = tmp_path / "work"
    before = len(stage.forge.requests())
    git("clone", "-q", stage.url, str(work), **stage.login)
    assert git("rev-parse", "HEAD", cwd=work) == tip
    git("push", "-q", "origin", "main:refs/heads/mine", cwd=work, **stage.login)
    assert git("for-each-ref", cwd=stage.bare) == ""
    # Between the first request of an operation and its pack, the project is deleted.
    stage.forge.save(ids={})
    pack = CLIENT.post(
        f"{stage.url}/git-upload-pack", headers={"Authorization": f"token {stage.token}"}
    )
    assert pack.status_code == 404
    assert stage.get(f"{stage.project}.git/{REFS}").status_code == 404
    asked = [entry["path"] for entry in stage.forge.requests()[before:] if "path" in entry]
    assert not [path for path in asked if path.startswith(f"/{stage.project}.git")]


def test_a_redirect_of_git_is_not_followed(stage: Stage) -> None:
    stage.forge.save(redirects={stage.project: "http://127.0.0.2:1/else.git/info/refs"})
    got = stage.get(f"{stage.project}.git/{REFS}")
    assert (got.status_code, got.text) == (
        503,
        "The forge answered with something that is not git.\n",
    )


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        ([200, "text/html", "<html>sign in"], 503, "The forge does not answer"),
        ([200, "application/json", "[1]"], 503, "The forge does not answer"),
        ([200, "application/json", "{}"], 503, "The forge does not answer"),
        ([200, "application/json", '{"path_with_namespace": 5}'], 503, "The forge does not answer"),
        ([200, "application/json", '{"path_with_namespace": "a/../b/c"}'], 404, "nothing that"),
        ([302, "text/html", ""], 503, "The forge does not answer"),
        ([401, "application/json", "{}"], 403, "Your sign-in at the forge has expired"),
        ([403, "application/json", "{}"], 404, "nothing that you may see"),
        ([429, "text/plain", "Retry later"], 429, "Wait a minute"),
        ([500, "application/json", "{}"], 503, "The forge does not answer"),
    ],
)
def test_a_forge_that_cannot_say_which_project_it_is_opens_none(
    stage: Stage, answer: list[object], status: int, says: str
) -> None:
    stage.forge.save(api_answer=answer)
    before = len(stage.forge.requests())
    got = stage.get(f"{stage.project}.git/{REFS}")
    assert (got.status_code, says in got.text) == (status, True), got.text
    assert got.headers.get("retry-after") == ("7" if status == 429 else None)
    assert all(".git" not in entry["path"] for entry in stage.forge.requests()[before:])


def test_a_forge_without_lfs_is_said_in_lfs_own_words(stage: Stage) -> None:
    url = f"{stage.url}/info/lfs/objects/batch"
    body = {"operation": "download", "objects": [{"oid": "a" * 64, "size": 1}]}
    stage.forge.save(answer=[404, "text/html", "<html>no such page"])
    answer = CLIENT.post(url, auth=("server", stage.token), json=body)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/vnd.git-lfs+json"
    assert "The forge" in answer.json()["message"]
    assert CLIENT.post(url, json={}).status_code == 401


def test_a_killed_client_ends_the_request_at_the_forge(stage: Stage, tmp_path: Path) -> None:
    stage.forge.save(stall=True)
    seen, logged = len(stage.forge.requests()), len(stage.gateway.log_lines())
    process = subprocess.Popen(
        ["git", "clone", "-q", stage.url, str(tmp_path / "x")],
        env=git_environment(**stage.login),
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    wait_until(lambda: any(entry.get("stalled") for entry in stage.forge.requests()[seen:]))
    assert not any(entry.get("gone") for entry in stage.forge.requests()[seen:])
    os.killpg(process.pid, 9)
    process.wait()
    wait_until(lambda: any(entry.get("gone") for entry in stage.forge.requests()[seen:]))
    wait_until(lambda: any("client left" in line for line in stage.gateway.log_lines()[logged:]))


def test_a_client_killed_while_it_sends_ends_the_request_at_the_forge(stage: Stage) -> None:
    stage.forge.save(stall=True)
    before = len(stage.forge.requests())
    where = urlsplit(f"{stage.url}/git-receive-pack")
    with socket.create_connection((where.hostname, where.port), 10) as raw:
        raw.sendall(
            f"POST {where.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: application/x-git-receive-pack-request\r\n"
            f"Authorization: token {stage.token}\r\n\r\n4\r\n0000\r\n".encode()
        )
        wait_until(lambda: any(e.get("stalled") for e in stage.forge.requests()[before:]))
    wait_until(lambda: any(e.get("gone") for e in stage.forge.requests()[before:]))


@pytest.mark.parametrize("after", [1, 70_000, 500_000])
def test_a_forge_that_breaks_off_breaks_the_fetch(stage: Stage, tmp_path: Path, after: int) -> None:
    seed = tmp_path / "seed"
    (seed / "big").write_bytes(os.urandom(2_000_000))
    git("add", ".", cwd=seed)
    git("commit", "-qm", "Big", cwd=seed)
    git("push", "-q", str(stage.bare), "main", cwd=seed)
    stage.forge.save(cut=after)
    before = len(stage.gateway.log_lines())
    done = try_git("clone", stage.url, str(tmp_path / "x"), **stage.login)
    assert done.returncode != 0
    assert "fatal: " in done.stderr
    assert not (tmp_path / "x").exists()
    # git may be gone before the gateway has written its line.
    wait_until(lambda: "forge broke off" in "".join(stage.gateway.log_lines()[before:]))


def push_in_constant_memory(stage: Stage, tmp_path: Path, megabytes: int) -> int:
    """Pushes that many incompressible megabytes; returns by how many bytes the gateway grew at most."""
    work = tmp_path / "work"
    git("clone", "-q", stage.url, str(work), **stage.login)
    with (work / "big.bin").open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    git("config", "core.bigFileThreshold", "1m", cwd=work)
    git("config", "core.compression", "0", cwd=work)
    git("config", "pack.compression", "0", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "-qm", "Big", cwd=work)
    gateway = psutil.Process(stage.gateway.pid)
    before = most = gateway.memory_info().rss
    process = subprocess.Popen(
        ["git", "push", "-q", "origin", "main"], cwd=work, env=git_environment(**stage.login)
    )
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
        most = max(most, gateway.memory_info().rss)
        if process.returncode is not None:
            break
    assert process.returncode == 0
    assert git("rev-parse", "main", cwd=stage.bare) == git("rev-parse", "HEAD", cwd=work)
    sent = max(int(n) for line in stage.gateway.log_lines() for n in re.findall(r" in=(\d+)", line))
    assert sent > megabytes << 20
    return most - before


def test_a_large_push_needs_no_memory(stage: Stage, tmp_path: Path) -> None:
    assert push_in_constant_memory(stage, tmp_path, 100) < 16 << 20


@pytest.mark.stack
def test_a_push_of_a_gigabyte_needs_no_memory(stage: Stage, tmp_path: Path) -> None:
    assert push_in_constant_memory(stage, tmp_path, 1024) < 16 << 20


def test_no_secret_is_ever_logged_or_answered(stage: Stage, tmp_path: Path) -> None:
    work = tmp_path / "work"
    done = try_git(
        "clone", stage.url, str(work), GIT_CURL_VERBOSE="1", GIT_TRACE_REDACT="0", **stage.login
    )
    assert done.returncode == 0
    assert "forge-cookie" not in done.stderr
    assert "forge-realm" not in done.stderr
    assert "canary" not in done.stderr
    log = stage.gateway.log.read_text()
    lines = stage.gateway.log_lines()
    assert f"server=ada/{stage.server} status=200" in lines[-1]
    assert re.search(r"in=\d+ out=\d+ seconds=\d+\.\d+ end='done'", lines[-1])
    for secret in ("canary", stage.token, stage.hub.service_token, "forge-cookie", "Basic "):
        assert secret not in log


@pytest.mark.stack
def test_through_the_proxy_that_servers_go_through(stage: Stage, tmp_path: Path) -> None:
    """A broken answer must not leave git waiting there, nor a killed git the forge."""
    where = urlsplit(stage.gateway.url)
    port, api = free_port(), free_port()
    command = install_proxy(proxy_directory(tmp_path))
    command += ["--ip", "127.0.0.1", "--port", str(port), "--api-port", str(api)]
    command += ["--default-target", f"http://{where.netloc}"]
    url = f"http://127.0.0.1:{port}{where.path}/{stage.project}.git"
    login = {
        key: value.replace(where.netloc, f"127.0.0.1:{port}") for key, value in stage.login.items()
    }
    work = tmp_path / "work"
    with running_command(command, port, tmp_path / "proxy.log"):
        git("clone", "-q", url, str(work), **login)
        (work / "big").write_bytes(os.urandom(3_000_000))
        git("add", ".", cwd=work)
        git("commit", "-qm", "Big", cwd=work)
        git("push", "-q", cwd=work, **login)

        stage.forge.save(cut=500_000)
        assert try_git("clone", url, str(tmp_path / "x"), **login).returncode != 0

        stage.forge.save(cut=None, stall=True)
        before = len(stage.forge.requests())
        process = subprocess.Popen(
            ["git", "clone", "-q", url, str(tmp_path / "y")],
            env=git_environment(**login),
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: any(e.get("stalled") for e in stage.forge.requests()[before:]))
        os.killpg(process.pid, 9)
        process.wait()
        wait_until(lambda: any(e.get("gone") for e in stage.forge.requests()[before:]))
