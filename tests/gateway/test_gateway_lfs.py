"""Large files through the gateway: git-lfs → gateway → the embedded forge, and forges that mean harm."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gateway_real_hub import RealHub
from gateway_stage import GatewayProcess, launch, running_gateway, stop
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.errors import NotebooksError, NotFound
from notebooks_service.gateway.access import Admission
from notebooks_service.gateway.lfs_messages import (
    Action,
    BatchAsked,
    lock_answer,
    lock_request,
    read_batch,
    rewrite_batch,
)
from notebooks_service.gateway.lfs_seal import GOOD_FOR, TicketExpired, Tickets
from notebooks_service.gateway.lfs_storage import Storage
from notebooks_service.settings import Settings
from small_forge import wait_until

PROJECT = "large/sub/thing"
LFS_TYPE = "application/vnd.git-lfs+json"
CLIENT = httpx.Client(timeout=30, trust_env=False)


def oid_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Server:
    """A notebook server's view of its project's large files."""

    gateway: GatewayProcess
    name: str
    token: str
    project: str = PROJECT

    @property
    def url(self) -> str:
        return f"{self.gateway.url}/{self.project}.git/info/lfs"

    def batch(self, operation: str, *objects: tuple[str, int]) -> httpx.Response:
        body = {
            "operation": operation,
            "objects": [{"oid": oid, "size": size} for oid, size in objects],
        }
        return CLIENT.post(f"{self.url}/objects/batch", json=body, auth=("server", self.token))

    def action(self, operation: str, content: bytes, kind: str = "") -> dict[str, Any]:
        answer = self.batch(operation, (oid_of(content), len(content)))
        assert answer.status_code == 200, answer.text
        [one] = answer.json()["objects"]
        found: dict[str, Any] = one["actions"][kind or operation]
        return found

    def do(
        self, method: str, action: dict[str, Any], content: Any = None, **headers: str
    ) -> httpx.Response:
        return CLIENT.request(
            method, action["href"], headers={**action["header"], **headers}, content=content
        )

    def send(self, content: bytes) -> None:
        action = self.action("upload", content)
        assert self.do("PUT", action, content).status_code == 200


# With the embedded forge


@pytest.fixture(scope="module")
def project_id(forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A private project of ada's in which bob is a reporter."""
    source = tmp_path_factory.mktemp("source") / "thing"
    make_repository(source)
    for name in ("ada", "bob", "carol"):
        if not _known(forge, name):
            forge.user(name)
    number = forge.project(source, PROJECT, "ada")
    forge.administration.add_member(PROJECT, "bob", "reporter")
    return number


def _known(forge: ForgeProcess, name: str) -> bool:
    from notebooks_service.forge import namespaces

    with forge.administration.database.read() as session:
        return namespaces.find_user(session, name) is not None


@pytest.fixture(scope="module")
def gateway(
    real_hub: RealHub, forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    with running_gateway(real_hub, forge.url, log) as process:
        yield process


@dataclass
class Person:
    server: Server
    forge_token: str


@pytest.fixture(scope="module")
def ada(real_hub: RealHub, forge: ForgeProcess, gateway: GatewayProcess, project_id: int) -> Person:
    forge_token = forge.token("ada")
    name, token = asyncio.run(launch(real_hub, "ada", forge_token, PROJECT, project_id))
    return Person(Server(gateway, name, token), forge_token)


def server_git(home: Path, forge: ForgeProcess, server: Server) -> Callable[..., str]:
    """git as in a server: the forge's address means the gateway, its password is the hub token."""
    home.mkdir()
    origin = urlsplit(server.gateway.url)
    (home / ".gitconfig").write_text(
        f'[url "{server.gateway.url}/"]\n\tinsteadOf = {forge.url}/\n'
        f'[credential "{origin.scheme}://{origin.netloc}"]\n'
        '\thelper = "!echo username=server; echo password=$SERVER_TOKEN; true"\n'
        "[credential]\n\tuseHttpPath = true\n"
        "[user]\n\tname = Ada\n\temail = ada@example.org\n"
        '[filter "lfs"]\n\tclean = git-lfs clean -- %f\n\tsmudge = git-lfs smudge -- %f\n'
        "\tprocess = git-lfs filter-process\n\trequired = true\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "SERVER_TOKEN": server.token,
    }

    def act(*arguments: str, cwd: Path | None = None, check: bool = True) -> str:
        done = subprocess.run(
            ["git", *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return act


async def test_git_lfs_pushes_and_pulls_and_nothing_of_the_forge_stays(
    ada: Person, forge: ForgeProcess, tmp_path: Path
) -> None:
    act = server_git(tmp_path / "one", forge, ada.server)
    work = tmp_path / "work"
    act("clone", "--quiet", f"{forge.url}/{PROJECT}.git", str(work))
    act("lfs", "install", "--local", cwd=work)
    act("lfs", "track", "*.bin", cwd=work)
    contents = {f"{number}.bin": os.urandom(100_000 + number) for number in range(3)}
    for name, content in contents.items():
        (work / name).write_bytes(content)
    act("add", "--all", cwd=work)
    act("commit", "--quiet", "-m", "Large files", cwd=work)
    act("push", "origin", "HEAD", cwd=work)
    act("lfs", "lock", "0.bin", cwd=work)
    assert "0.bin" in act("lfs", "locks", cwd=work)
    act("lfs", "unlock", "0.bin", cwd=work)
    again = server_git(tmp_path / "two", forge, ada.server)
    other = tmp_path / "other"
    again("clone", "--quiet", f"{forge.url}/{PROJECT}.git", str(other))
    for name, content in contents.items():
        assert (other / name).read_bytes() == content
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or ada.forge_token.encode() not in path.read_bytes(), path
    log = ada.server.gateway.log.read_text()
    assert ada.forge_token not in log
    assert ada.server.token not in log


async def test_no_credential_and_no_host_of_the_forge_in_what_a_server_gets(
    ada: Person, forge: ForgeProcess
) -> None:
    content = os.urandom(1000)
    login = base64.b64encode(f"oauth2:{ada.forge_token}".encode()).decode()
    secrets = (ada.forge_token, login, f":{forge.port}", "oauth2")
    for operation in ("upload", "download"):
        answer = ada.server.batch(operation, (oid_of(content), len(content)))
        [one] = answer.json()["objects"]
        for action in one["actions"].values():
            assert action["href"].startswith(f"{ada.server.url}/objects/transfer?ticket=")
            own = base64.b64encode(f"server:{ada.server.token}".encode()).decode()
            assert action["header"] == {"Authorization": f"Basic {own}"}
            ticket = action["href"].partition("ticket=")[2].encode()
            opened = base64.urlsafe_b64decode(ticket + b"==")
            assert not any(secret.encode() in opened for secret in secrets)
        assert not any(secret in answer.text or secret in str(answer.headers) for secret in secrets)
        if operation == "upload":
            ada.server.send(content)
    got = ada.server.do("GET", ada.server.action("download", content))
    assert got.content == content
    assert not any(secret in str(got.headers) for secret in secrets)


async def test_transfers_plain_chunked_and_in_ranges(ada: Person) -> None:
    plain, chunked = os.urandom(300_000), os.urandom(200_000)
    ada.server.send(plain)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(chunked), 7000):
            yield chunked[start : start + 7000]

    action = ada.server.action("upload", chunked)
    assert ada.server.do("PUT", action, pieces()).status_code == 200
    verify = ada.server.action("upload", os.urandom(10), "verify")
    assert ada.server.do("POST", verify, b"{}").status_code == 404
    for content in (plain, chunked):
        action = ada.server.action("download", content)
        whole = ada.server.do("GET", action)
        assert (whole.status_code, whole.content) == (200, content)
        part = ada.server.do("GET", action, Range="bytes=100000-")
        assert (part.status_code, part.content) == (206, content[100_000:])
        size = len(content)
        assert part.headers["content-range"] == f"bytes 100000-{size - 1}/{size}"
        beyond = ada.server.do("GET", action, Range=f"bytes={size}-")
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{size}")
        head = ada.server.do("HEAD", action)
        assert (head.status_code, head.headers["content-length"]) == (200, str(size))


async def test_wrong_content_is_refused_in_words_and_leaves_nothing(ada: Person) -> None:
    content = os.urandom(50_000)
    action = ada.server.action("upload", content)
    changed = content[:-1] + bytes([content[-1] ^ 1])
    refused = ada.server.do("PUT", action, changed)
    assert refused.status_code == 422
    assert "not the file" in refused.json()["message"]
    assert ada.server.do("PUT", action, content[:-1]).status_code == 422

    def too_much() -> Iterator[bytes]:
        yield content
        yield b"more"

    assert ada.server.do("PUT", action, too_much()).status_code == 422

    def too_little() -> Iterator[bytes]:
        yield content[:-5]

    assert ada.server.do("PUT", action, too_little()).status_code == 422
    [one] = ada.server.batch("download", (oid_of(content), len(content))).json()["objects"]
    assert one["error"]["code"] == 404
    ada.server.send(content)


async def test_an_address_is_for_one_server_and_one_operation(
    ada: Person,
    real_hub: RealHub,
    forge: ForgeProcess,
    gateway: GatewayProcess,
    project_id: int,
    tmp_path: Path,
) -> None:
    content = os.urandom(5000)
    upload = ada.server.action("upload", content)
    ada.server.send(content)
    download = ada.server.action("download", content)
    name, token = await launch(real_hub, "ada", ada.forge_token, PROJECT, project_id)
    other = Server(gateway, name, token)
    stolen = {"href": download["href"], "header": {"Authorization": f"token {token}"}}
    assert other.do("GET", stolen).status_code == 404
    assert other.do("GET", other.action("download", content)).content == content
    for method in ("PUT", "POST", "DELETE"):
        assert ada.server.do(method, download, b"{}").status_code in (404, 405), method
    assert ada.server.do("GET", upload).status_code == 404
    assert CLIENT.get(download["href"]).status_code == 401
    for wrong in (
        download["href"][:-9] + "AAAAAAAA=",
        download["href"][:-40],
        f"{ada.server.url}/objects/transfer",
    ):
        assert ada.server.do("GET", {**download, "href": wrong}).status_code == 404
    # Another process of the service opens it: nothing was remembered.
    with running_gateway(real_hub, forge.url, tmp_path / "second.log") as second:
        moved = download["href"].replace(gateway.url, second.url)
        assert ada.server.do("GET", {**download, "href": moved}).content == content
    await stop(real_hub, "ada", ada.forge_token, name)


async def test_rights_are_the_forges(
    ada: Person,
    real_hub: RealHub,
    forge: ForgeProcess,
    gateway: GatewayProcess,
    project_id: int,
) -> None:
    content = os.urandom(5000)
    ada.server.send(content)
    forge_token = forge.token("bob")
    name, token = await launch(real_hub, "bob", forge_token, PROJECT, project_id)
    bob = Server(gateway, name, token)
    action = bob.action("download", content)
    assert bob.do("GET", action).content == content
    refused = bob.batch("upload", (oid_of(b"new"), 3))
    assert refused.status_code == 403
    assert refused.headers["content-type"] == LFS_TYPE
    assert "does not let you" in refused.json()["message"]
    elsewhere = Server(gateway, name, token, "large/sub/other")
    assert elsewhere.batch("download", (oid_of(content), len(content))).status_code == 404
    # Bob is removed: the addresses that he has stop at once.
    with forge.administration.database.write() as session:
        from notebooks_service.forge.models import Member, User

        user = session.query(User).filter_by(username="bob").one()
        session.query(Member).filter_by(user_id=user.id, project_id=project_id).delete()
    assert bob.do("GET", action).status_code == 404
    assert bob.batch("download", (oid_of(content), len(content))).status_code == 404
    forge.administration.add_member(PROJECT, "bob", "reporter")
    await stop(real_hub, "bob", forge_token, name)
    assert bob.do("GET", action).status_code in (401, 403)


async def test_a_broken_upload_reaches_the_forge_as_broken(
    ada: Person, forge: ForgeProcess
) -> None:
    content = os.urandom(3_000_000)
    action = ada.server.action("upload", content)

    def half() -> Iterator[bytes]:
        yield content[:2_000_000]
        raise ConnectionError("the server is gone")

    with pytest.raises(ConnectionError):
        ada.server.do("PUT", action, half())
    incoming = forge.data / "forge" / "lfs" / "incoming"
    await asyncio.to_thread(wait_until, lambda: not any(incoming.iterdir()))
    [one] = ada.server.batch("download", (oid_of(content), len(content))).json()["objects"]
    assert one["error"]["code"] == 404


async def test_requests_of_any_shape(ada: Person) -> None:
    url = f"{ada.server.url}/objects/batch"
    for body in (b"", b"[]", b"{", b"[" * 100_000, b'{"operation": "download"}', b"\xff", b"1"):
        answer = CLIENT.post(url, content=body, auth=("server", ada.server.token))
        assert answer.status_code == 422, body[:20]
        assert answer.headers["content-type"] == LFS_TYPE
        assert answer.json()["message"]
    long = CLIENT.post(url, content=b" " * (5 << 20), auth=("server", ada.server.token))
    assert long.status_code == 413
    anonymous = CLIENT.post(url, json={})
    assert anonymous.status_code == 401
    assert anonymous.headers["lfs-authenticate"].startswith("Basic")
    for path in ("objects", "objects/batch/x", "locks/1", "locks/x/unlock", "verify"):
        answer = CLIENT.post(f"{ada.server.url}/{path}", json={}, auth=("server", ada.server.token))
        assert answer.status_code == 404, path


# With a forge that answers what it likes


@dataclass
class Script:
    """A forge, or a storage, whose answers a test writes; it notes what it is asked."""

    port: int = 0
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def say(self, path: str, body: Any, status: int = 200, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[path] = (status, {"Content-Type": LFS_TYPE, **headers}, raw)


@pytest.fixture(scope="module")
def scripts() -> Iterator[Callable[[], Script]]:
    servers: list[ThreadingHTTPServer] = []

    def make() -> Script:
        script = Script()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.asked.append((self.command, self.path, headers, body))
                status, given, raw = script.answers.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in given.items():
                    self.send_header(name, value)
                if "Content-Length" not in given:
                    self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)
                self.close_connection = given.get("Connection") == "close"

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        script.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return script

    yield make
    for server in servers:
        server.shutdown()


@dataclass
class HostileStage:
    forge: Script
    storage: Script
    stranger: Script
    server: Server
    content: bytes = b"what is asked for"

    @property
    def oid(self) -> str:
        return oid_of(self.content)

    def offer(self, *objects: Any, **more: Any) -> None:
        self.forge.say(f"/{PROJECT}.git/info/lfs/objects/batch", {"objects": list(objects), **more})

    def offered(self, href: str, header: Any = None, **more: Any) -> None:
        action = {"href": href, "header": header or {}}
        one = {"oid": self.oid, "size": len(self.content), "actions": {"download": action}, **more}
        self.offer(one)

    def ask(self) -> httpx.Response:
        return self.server.batch("download", (self.oid, len(self.content)))

    def get(self) -> httpx.Response:
        return self.server.do("GET", self.server.action("download", self.content))


FORGE_TOKEN = "forge-canary-5a5a5a5a"


@pytest.fixture(scope="module")
def hostile_gateway(
    real_hub: RealHub,
    scripts: Callable[[], Script],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[GatewayProcess, Script, Script, Script]]:
    forge, storage, stranger = scripts(), scripts(), scripts()
    with running_gateway(
        real_hub,
        forge.url,
        tmp_path_factory.mktemp("hostile") / "gateway.log",
        NOTEBOOKS_LFS_HOSTS=json.dumps([f"127.0.0.1:{storage.port}"]),
    ) as gateway:
        yield gateway, forge, storage, stranger


@pytest.fixture(scope="module")
def hostile_server(
    real_hub: RealHub, hostile_gateway: tuple[GatewayProcess, Script, Script, Script]
) -> Server:
    gateway = hostile_gateway[0]
    name, token = asyncio.run(launch(real_hub, "carol", FORGE_TOKEN, PROJECT, 7))
    return Server(gateway, name, token)


@pytest.fixture
def stage(
    hostile_gateway: tuple[GatewayProcess, Script, Script, Script], hostile_server: Server
) -> HostileStage:
    _, *made = hostile_gateway
    for script in made:
        script.answers.clear()
        script.asked.clear()
    made[0].say("/api/v4/projects/7", {"id": 7, "path_with_namespace": PROJECT})
    return HostileStage(*made, hostile_server)


def test_storage_that_is_named_gets_its_own_headers_and_no_token(stage: HostileStage) -> None:
    signed = f"{stage.storage.url}/bucket/x?X-Signature=canary-signature"
    stage.offered(signed, {"X-Store": "canary-header", "Host": "other", "Cookie": "a=b"})
    stage.storage.say("/bucket/x?X-Signature=canary-signature", stage.content)
    answer = stage.ask()
    for canary in ("canary-signature", "canary-header", FORGE_TOKEN, str(stage.storage.port)):
        assert canary not in answer.text
    got = stage.get()
    assert got.content == stage.content
    [(_, _, headers, _)] = stage.storage.asked
    assert headers["x-store"] == "canary-header"
    assert headers["host"] == f"127.0.0.1:{stage.storage.port}"
    assert "authorization" not in headers
    assert "cookie" not in headers
    assert FORGE_TOKEN not in str(stage.storage.asked)


def test_a_redirect_to_named_storage_loses_the_token(stage: HostileStage) -> None:
    address = f"/{PROJECT}.git/gitlab-lfs/objects/{stage.oid}"
    stage.offered(f"{stage.forge.url}{address}", {"Authorization": "Basic Zm9yZ2U6Y2FuYXJ5"})
    stage.forge.say(address, b"", 302, Location=f"{stage.storage.url}/signed?a=1")
    stage.storage.say("/signed?a=1", stage.content)
    got = stage.get()
    assert got.content == stage.content
    assert "location" not in got.headers
    login = base64.b64encode(f"oauth2:{FORGE_TOKEN}".encode()).decode()
    assert stage.forge.asked[-1][2]["authorization"] == f"Basic {login}"
    assert FORGE_TOKEN not in str(stage.storage.asked)
    assert "authorization" not in stage.storage.asked[-1][2]
    # The same to a host that nobody named:
    stage.forge.say(address, b"", 302, Location=f"{stage.stranger.url}/signed")
    assert stage.get().status_code == 503
    stage.forge.say(address, b"", 302, Location=f"{stage.forge.url}/api/v4/user")
    assert stage.get().status_code == 503
    stage.forge.say(address, b"", 302, Location=address)
    assert stage.get().status_code == 503
    assert stage.stranger.asked == []
    assert not [one for one in stage.forge.asked if one[1] == "/api/v4/user"]


HOSTILE_HREFS = [
    "http://{stranger}/x",
    "http://{stranger}@{storage}/x",
    "http://{storage}@{stranger}/x",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:127.0.0.1]:{storage_port}/x",
    "http://localhost:{stranger_port}/x",
    "file:///etc/passwd",
    "//{storage}/x",
    "/x",
    "http://{storage}/x\r\nX-Evil: 1",
    "http://{storage}/\x00",
    "http://{storage}:notaport/",
    "http://{storage}/a/../b",
    "http://{storage}/a/%2e%2e/b",
    "http://{storage}/" + "a" * 5000,
    "http://{forge}/api/v4/user",
    "http://{forge}/other/project.git/gitlab-lfs/objects/1",
    "http://{forge}/large/sub/thing.git/../../other.git/x",
    "http://{forge}/large/sub/thing.git/%2e%2E/x",
    "http://{forge}/large/sub/thingX.git/x",
    "",
    "http://",
    7,
    None,
    ["http://{storage}/x"],
]


def test_a_forge_that_sends_elsewhere_is_not_followed(stage: HostileStage) -> None:
    names: dict[str, object] = {
        name: f"127.0.0.1:{script.port}"
        for name, script in (
            ("forge", stage.forge),
            ("storage", stage.storage),
            ("stranger", stage.stranger),
        )
    }
    names |= {"storage_port": stage.storage.port, "stranger_port": stage.stranger.port}
    for href in HOSTILE_HREFS:
        written = href.format(**names) if isinstance(href, str) else href
        stage.offered(written)  # type: ignore[arg-type]
        answer = stage.ask()
        assert answer.status_code == 503, (href, answer.text)
        assert set(answer.json()) == {"message"}
    assert stage.stranger.asked == []
    assert stage.storage.asked == []


def test_answers_that_were_not_asked_for_fail_closed(stage: HostileStage) -> None:
    place = f"{stage.storage.url}/x"
    good = {"oid": stage.oid, "size": 17, "actions": {"download": {"href": place}}}
    other = {**good, "oid": "f" * 64}
    refused: list[Any] = [
        {"objects": [other]},
        {"objects": [good, other]},
        {"objects": [good, good]},
        {"objects": [{**good, "actions": {"upload": {"href": place}}}]},
        {"objects": [{**good, "actions": [place]}]},
        {
            "objects": [
                {**good, "actions": {"download": {"href": place, "header": {"A\r\nB": "c"}}}}
            ]
        },
        {
            "objects": [
                {**good, "actions": {"download": {"href": place, "header": {"A": "b\r\nC: d"}}}}
            ]
        },
        {"objects": [{**good, "actions": {"download": {"href": place, "header": {"A": 7}}}}]},
        {
            "objects": [
                {
                    **good,
                    "actions": {
                        "download": {"href": place, "header": {f"h{n}": "" for n in range(99)}}
                    },
                }
            ]
        },
        {"objects": [good], "transfer": "lfs-standalone-file"},
        {"objects": {"oid": stage.oid}},
        {"objects": "x"},
        {},
        [],
        None,
        b"<html>",
        b"[" * 200_000,
        b'{"objects": [' + b" " * (9 << 20) + b"]}",
    ]
    for body in refused:
        stage.forge.say(f"/{PROJECT}.git/info/lfs/objects/batch", body)
        answer = stage.ask()
        assert answer.status_code == 503, (str(body)[:80], answer.text)
    stage.offer()
    [one] = stage.ask().json()["objects"]
    assert one["error"]["code"] == 502
    words = f"see {stage.forge.url}/x?token={FORGE_TOKEN}"
    stage.offer({"oid": stage.oid, "error": {"code": 404, "message": words}, "actions": {}})
    answer = stage.ask()
    assert FORGE_TOKEN not in answer.text
    assert answer.json()["objects"][0]["error"]["code"] == 404
    for status in (301, 302, 400, 401, 403, 404, 413, 429, 500, 501, 502, 507):
        stage.forge.say(
            f"/{PROJECT}.git/info/lfs/objects/batch",
            {"message": words},
            status,
            Location=f"{stage.stranger.url}/",
            **{"Set-Cookie": "a=b", "Retry-After": "7\t"},
        )
        answer = stage.ask()
        assert answer.status_code >= 400
        assert FORGE_TOKEN not in answer.text
        assert "set-cookie" not in answer.headers
        assert answer.headers["content-type"] == LFS_TYPE
    assert stage.stranger.asked == []


def test_a_file_that_is_another_one_is_not_passed_on(stage: HostileStage) -> None:
    stage.offered(f"{stage.storage.url}/x")
    size = len(stage.content)
    for body, status, headers in (
        (stage.content + b"more", 200, {}),
        (stage.content[:-1], 200, {}),
        (stage.content[:5], 206, {"Content-Range": f"bytes 0-4/{size + 1}"}),
        (stage.content[:5], 206, {"Content-Range": "bytes 0-4/*"}),
        (stage.content[:5], 206, {}),
        (stage.content, 200, {"Content-Encoding": "gzip"}),
        (b"", 204, {}),
        (b"<html>", 500, {}),
    ):
        stage.storage.say("/x", body, status, **headers)
        assert stage.get().status_code == 503, (status, headers)
    stage.storage.say("/x", stage.content, **{"Set-Cookie": "a=b", "X-Amz-Id": "canary"})
    got = stage.get()
    assert got.content == stage.content
    assert "set-cookie" not in got.headers
    assert "x-amz-id" not in got.headers
    # One that breaks off stays unfinished, so that git-lfs goes on where it ended.
    broken = {"Content-Length": str(size), "Connection": "close"}
    stage.storage.say("/x", stage.content[:9], **broken)
    with pytest.raises(httpx.RemoteProtocolError):
        stage.get()


def test_uploads_go_plain_to_storage_with_their_length(stage: HostileStage) -> None:
    upload = {"href": f"{stage.storage.url}/put", "header": {"Transfer-Encoding": "chunked"}}
    stage.offer({"oid": stage.oid, "size": 17, "actions": {"upload": upload}})
    stage.storage.say("/put", b"")
    action = stage.server.action("upload", stage.content)

    def pieces() -> Iterator[bytes]:
        yield stage.content[:3]
        yield stage.content[3:]

    assert stage.server.do("PUT", action, pieces()).status_code == 200
    [(method, _, headers, body)] = stage.storage.asked
    assert (method, body) == ("PUT", stage.content)
    assert headers["content-length"] == "17"
    assert "transfer-encoding" not in headers
    assert "authorization" not in headers
    stage.storage.say("/put", b"", 307, Location=f"{stage.stranger.url}/put")
    assert stage.server.do("PUT", action, stage.content).status_code == 503
    assert stage.stranger.asked == []


def test_names_that_lead_to_this_machine_are_refused() -> None:
    """A name in ``lfs_hosts`` whose address is a metadata service's, or this machine's."""
    from notebooks_service.gateway import lfs_storage

    async def address(url: str) -> object:
        return await lfs_storage._checked_address(urlsplit(url))

    for url in (
        "http://169.254.169.254/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://ip6-localhost.invalid/",
    ):
        with pytest.raises(NotebooksError):
            asyncio.run(address(url))
    assert str(asyncio.run(address("http://127.0.0.1:9000/"))) == "127.0.0.1"


# Bodies of any shape

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
OIDS = ("a" * 64, "b" * 64)
STORAGE = Storage(Settings(forge_url="http://forge.example"))
odd = json_values | st.sampled_from(
    [
        *OIDS,
        "download",
        "upload",
        "http://forge.example/large/sub/thing.git/x",
        "http://canary.example/secret",
        {
            "href": "http://forge.example/large/sub/thing.git/x",
            "header": {"Authorization": "canary"},
        },
    ]
)


def objects_with(key: str) -> st.SearchStrategy[Any]:
    actions = st.fixed_dictionaries(
        {},
        optional={
            kind: st.fixed_dictionaries(
                {}, optional={"href": odd, "header": odd, "expires_in": odd}
            )
            | odd
            for kind in ("download", "upload", "verify")
        },
    )
    one = st.fixed_dictionaries(
        {}, optional={"oid": odd, "size": odd, "actions": actions | odd, "error": odd, "extra": odd}
    )
    return st.fixed_dictionaries(
        {},
        optional={
            key: st.lists(one | odd, max_size=3) | odd,
            "transfer": odd,
            "operation": odd,
            "ref": odd,
            "hash_algo": odd,
        },
    )


@examples(max_examples=150, deadline=None)
@given(objects_with("objects") | odd)
def test_a_batch_request_of_any_shape_is_read_or_refused(body: Any) -> None:
    try:
        asked = read_batch(body)
    except NotebooksError as error:
        assert error.status == 422
    else:
        assert json.dumps(asked.body)
        assert asked.sizes


@examples(max_examples=300, deadline=None)
@given(objects_with("objects") | odd, st.sampled_from(["download", "upload"]))
def test_a_batch_answer_of_any_shape_shows_nothing_of_the_forge(body: Any, operation: Any) -> None:
    asked = BatchAsked(operation, "", dict.fromkeys(OIDS, 5))

    def seal(action: Action, good_for: float | None) -> str:
        STORAGE.place(action.href, "large/sub/thing")
        return "https://gateway.example/sealed"

    try:
        answer = rewrite_batch(asked, body, seal, {"Authorization": "own"})
    except NotebooksError as error:
        assert error.status == 503
        return
    text = json.dumps(answer)
    assert "canary" not in text
    assert "forge.example" not in text
    assert [one["oid"] for one in answer["objects"]] == list(OIDS)


@examples(max_examples=100, deadline=None)
@given(json_values)
def test_locks_of_any_shape(body: Any) -> None:
    json.dumps(lock_request(body, "path", "ref", "force", "cursor"), ensure_ascii=False).encode()
    try:
        kept = lock_answer({"lock": body, "locks": body, "next_cursor": body, "canary": "canary"})
    except NotebooksError:
        return
    assert "canary" not in kept
    json.dumps(kept, ensure_ascii=False).encode()


@examples(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_a_made_up_ticket_opens_nothing(ticket: str) -> None:
    with pytest.raises(NotFound):
        Tickets(b"k" * 32).open(ticket, Admission("ada", "s", 7, PROJECT, "token"))


def test_a_ticket_opens_for_its_server_for_a_while() -> None:
    tickets, admission = Tickets(b"k" * 32), Admission("ada", "s", 7, PROJECT, "token")
    action = Action("download", "a" * 64, 5, "http://forge.example/x", (("a", "b"),))
    ticket = tickets.seal(action, admission, None)
    assert Tickets(b"k" * 32).open(ticket, admission) == action
    others = [("bob", "s", 7), ("ada", "t", 7), ("ada", "s", 8)]
    for user, server, number in others:
        with pytest.raises(NotFound):
            tickets.open(ticket, Admission(user, server, number, PROJECT, "token"))
    with pytest.raises(NotFound):
        Tickets(b"j" * 32).open(ticket, admission)
    with pytest.raises(TicketExpired):
        tickets.open(tickets.seal(action, admission, -1), admission)
    assert GOOD_FOR <= 4 * 3600
