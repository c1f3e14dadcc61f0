"""The doctor and forges: the embedded one as a process, and scripted ones, honest and hostile."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from forge_fixtures import ForgeProcess, StartForge, make_repository
from notebooks_service.doctor.asking import Answer as AnswerOf
from notebooks_service.doctor.asking import Requester
from notebooks_service.doctor.examine import Asked, Examination, examine
from notebooks_service.doctor.project import ProjectFacts, ask_project, judge_project
from notebooks_service.doctor.registry import ask_registry, judge_registry
from notebooks_service.forge import registry_tokens
from notebooks_service.forge.config import ForgeConfig
from ports import free_port
from runner_fixtures import RawRunner, Workspace
from scripted_gitlab import Answer, ScriptedGitLab
from scripted_gitlab import Asked as AskedOf

TOKEN = "glpat-canary-of-the-doctor"
SECRET = "canary-secret-of-the-application"
SCOPES = ["read_user", "read_api", "read_repository", "write_repository", "read_registry"]
REDIRECT = "http://127.0.0.1:8000/hub/oauth_callback"


async def look(forge: str, **asked: Any) -> tuple[list[str], Examination]:
    """The codes of all that is said of a forge, and the whole."""
    done = await examine(Asked(forge=forge, **asked), areas=["forge"])
    assert "doctor.stumbled" not in [one.code for one in done.findings]
    everything = json.dumps([one.__dict__ for one in done.findings])
    for canary in (TOKEN, SECRET):
        assert canary not in everything
    return [one.code for one in done.findings], done


# -- the embedded forge --------------------------------------------------------------------------


@pytest.fixture
def client(forge: ForgeProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    forge.administration.ensure_application("Doctor", REDIRECT, SCOPES, "doctors", SECRET, True)
    monkeypatch.setenv("NOTEBOOKS_FORGE_CLIENT_ID", "doctors")
    monkeypatch.setenv("NOTEBOOKS_FORGE_CLIENT_SECRET", SECRET)
    return "doctors"


async def test_the_embedded_forge(forge: ForgeProcess, client: str, tmp_path: Path) -> None:
    person = forge.user()
    make_repository(tmp_path / "one")
    forge.project(tmp_path / "one", f"{person}/one", person)
    token = forge.token(person, "read_api", "read_registry")
    found, done = await look(forge.url, token=token, project=f"{person}/one")
    assert token not in str(done.findings)
    # Whether other tests left a runner in this forge is not this one's business.
    problems = {one.code for one in done.findings if one.level == "problem"}
    assert problems <= {"runner.none", "runner.offline"}, done.findings
    assert {"forge.answers", "forge.name", "version.embedded", "token.accepted"} <= set(found)
    assert {"clock.together", "oauth.client", "scopes.asked", "proxy.none"} <= set(found)
    assert "project.not-found" not in found


async def test_a_project_of_the_embedded_forge(start_forge: StartForge, tmp_path: Path) -> None:
    """Its runners, jobs and rules for tags, as they really are."""
    forge = start_forge()
    space = Workspace(forge, tmp_path)
    token = forge.token(space.username, "read_api")

    async def told() -> set[str]:
        async with Requester(forge.url, token=token) as asking:
            facts = await ask_project(asking, space.path, "image_build")
        return {one.code for one in judge_project(facts)}

    assert await told() == {"runner.none", "job.none", "tags.open"}
    runner = RawRunner(forge)
    assert await told() == {"runner.offline", "job.none", "tags.open"}
    space.push("image_build: {script: x, tags: [anything]}")
    job = runner.take()
    assert await told() == {"runner.online", "job.there", "tags.open"}
    assert runner.put(job, "failed").status_code == 200
    rule = {"minimum_access_level_for_push": "owner", "minimum_access_level_for_delete": "owner"}
    rules = f"/projects/{space.id}/registry/protection/tag/rules"
    space.gitlab.http_post(rules, post_data={"tag_name_pattern": "^[0-9a-f]{40}$", **rule})
    assert await told() == {"runner.online", "job.failed", "tags.protected"}
    reader = forge.user()
    forge.administration.add_member(space.path, reader, "reporter")
    token = forge.token(reader, "read_api")
    assert await told() == {"runner.unseen", "job.failed", "tags.unseen"}


async def test_the_embedded_forge_without_a_token(forge: ForgeProcess, client: str) -> None:
    found, done = await look(forge.url)
    assert done.exit_code == 0
    assert {"forge.answers", "version.unknown", "token.none", "oauth.client"} <= set(found)


async def test_a_wrong_token(forge: ForgeProcess, client: str) -> None:
    found, done = await look(forge.url, token=TOKEN)
    assert done.exit_code == 1
    assert {"token.refused", "oauth.client"} <= set(found)


async def test_a_wrong_secret(
    forge: ForgeProcess, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CLIENT_SECRET", f"not-{SECRET}")
    found, _ = await look(forge.url)
    assert "oauth.client-refused" in found


async def test_a_client_that_is_unknown(
    forge: ForgeProcess, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_CLIENT_ID", "somebody")
    found, _ = await look(forge.url)
    assert {"oauth.client-refused", "oauth.other-redirect"} <= set(found)


async def test_a_wrong_redirect(forge: ForgeProcess, client: str) -> None:
    found, _ = await look(forge.url, hub="http://127.0.0.1:9999")
    assert {"oauth.client", "oauth.other-redirect"} <= set(found)


async def test_a_scope_that_the_application_lacks(
    forge: ForgeProcess, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_SCOPES", json.dumps([*SCOPES, "write_registry"]))
    found, _ = await look(forge.url)
    assert "oauth.scopes-missing" in found


async def test_a_project_that_others_may_not_see(
    forge: ForgeProcess, client: str, tmp_path: Path
) -> None:
    owner, other = forge.user(), forge.user()
    make_repository(tmp_path / "hidden")
    forge.project(tmp_path / "hidden", f"{owner}/hidden", owner)
    token = forge.token(other, "read_api")
    for path in (f"{owner}/hidden", f"{owner}/nowhere"):
        found, _ = await look(forge.url, token=token, project=path)
        assert "project.not-found" in found


async def test_the_embedded_forges_rate_limits(
    start_forge: StartForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked often enough, the doctor itself is told to wait, and says so."""
    monkeypatch.setenv("NOTEBOOKS_FORGE_RATE_LIMIT", "3")
    limited = start_forge()
    token = limited.token(limited.user(), "read_api")
    seen = set()
    for _ in range(5):
        found, _ = await look(limited.url, token=token)
        seen |= {one for one in found if one.startswith("limits.")}
        if "limits.reached" in seen:
            break
    assert seen == {"limits.far", "limits.near", "limits.reached"}


async def test_a_real_registry_of_the_embedded_forge(forge: ForgeProcess, tmp_path: Path) -> None:
    """The registry names the forge's token endpoint; the forge gives a token for it."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed here (apt-get install docker-registry)")
    person = forge.user()
    make_repository(tmp_path / "one")
    forge.project(tmp_path / "one", f"{person}/one", person)
    certificates = registry_tokens.certificates(ForgeConfig(forge.data, forge.url))
    port = free_port()
    token_auth = {
        "realm": f"{forge.url}/jwt/auth",
        "service": registry_tokens.SERVICE,
        "issuer": registry_tokens.ISSUER,
        "rootcertbundle": str(certificates),
    }
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "images")}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"token": token_auth},
    }
    (tmp_path / "config.yml").write_text(json.dumps(config))
    with (tmp_path / "registry.log").open("wb") as log:
        command = ["docker-registry", "serve", str(tmp_path / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        token = forge.token(person, "read_api", "read_registry")
        named = {
            "container_registry_image_prefix": f"127.0.0.1:{port}/{person}/one",
            "path_with_namespace": f"{person}/one",
        }
        facts = ProjectFacts("", "", AnswerOf(200, body=json.dumps(named).encode()))
        end = time.monotonic() + 90
        while True:
            async with Requester(forge.url, token=token) as asking:
                told = judge_registry(await ask_registry(asking, facts, Requester))
            if told[0].code != "registry.unreachable" or time.monotonic() > end:
                break
            await asyncio.sleep(0.1)
        assert [one.code for one in told] == ["registry.realm", "registry.token"]
    finally:
        process.terminate()
        process.wait(60)


# -- a GitLab as its documentation has it --------------------------------------------------------


@pytest.fixture
def complete(gitlab: ScriptedGitLab, monkeypatch: pytest.MonkeyPatch) -> ScriptedGitLab:
    """A GitLab that has everything, asked by a Maintainer who is an administrator."""
    monkeypatch.setenv("NOTEBOOKS_FORGE_CLIENT_ID", "the-id")
    monkeypatch.setenv("NOTEBOOKS_FORGE_CLIENT_SECRET", SECRET)
    limits = {"RateLimit-Limit": "600", "RateLimit-Remaining": "599"}
    body = json.dumps({"version": "18.8.1-ee", "revision": "abc", "enterprise": True}).encode()
    gitlab.answers["GET /api/v4/metadata"] = (200, limits, body)
    offered = {"issuer": gitlab.url, "scopes_supported": [*SCOPES, "api"]}
    gitlab.json("GET /.well-known/openid-configuration", offered)
    gitlab.json("POST /oauth/token", {"error": "invalid_grant"}, 400)
    gitlab.raw("GET /oauth/authorize", 302, b"", Location=f"{gitlab.url}/users/sign_in")
    known = {"application_id": "the-id", "callback_url": REDIRECT, "scopes": SCOPES}
    gitlab.json("GET /api/v4/applications", [{"application_id": "other"}, known])
    at = "/api/v4/projects/group%2Fsub%2Fone"
    prefix = f"{gitlab.url.removeprefix('http://')}/group/sub/one"
    project = {"id": 7, "path_with_namespace": "group/sub/one"}
    gitlab.json(f"GET {at}", {**project, "container_registry_image_prefix": prefix})
    gitlab.json(f"GET {at}/runners", [{"id": 3, "online": True, "paused": False}])
    gitlab.json("GET /api/v4/runners/3", {"id": 3, "tag_list": ["docker"], "run_untagged": True})
    gitlab.json(f"GET {at}/jobs", [{"name": "image_build", "status": "success", "tag_list": []}])
    rule = {"tag_name_pattern": "^[0-9a-f]{40}$", "minimum_access_level_for_push": None}
    gitlab.json(f"GET {at}/registry/protection/tag/rules", [rule])
    realm = f'Bearer realm="{gitlab.url}/jwt/auth",service="container_registry"'
    gitlab.raw("GET /v2/", 401, b"{}", WWW_Authenticate=realm)
    gitlab.json("GET /jwt/auth", {"token": "a-registry-token"})
    return gitlab


ALL = {"token": TOKEN, "project": "group/sub/one"}


async def test_a_complete_gitlab(complete: ScriptedGitLab) -> None:
    found, done = await look(complete.url, **ALL)
    assert {one.level for one in done.findings} == {"ok"}, done.findings
    assert {
        "version.supported", "oauth.redirect", "limits.far", "runner.online", "job.there",
        "tags.immutable", "registry.realm", "registry.token", "scopes.asked", "forge.name",
    } <= set(found)  # fmt: skip


async def test_below_a_relative_root(complete: ScriptedGitLab) -> None:
    for route in list(complete.answers):
        method, path = route.split(" ")
        complete.answers[f"{method} /gitlab{path}"] = complete.answers.pop(route)
    complete.json(
        "GET /gitlab/.well-known/openid-configuration", {"issuer": f"{complete.url}/gitlab"}
    )
    complete.raw("GET /", 302, b"", Location="/gitlab/users/sign_in")
    found, _ = await look(complete.url, **ALL)
    assert "forge.relative-root" in found
    found, done = await look(f"{complete.url}/gitlab", **ALL)
    assert {"forge.name", "version.supported", "runner.online"} <= set(found)
    problems = [one.code for one in done.findings if one.level == "problem"]
    assert problems == [], problems


async def test_a_gitlab_before_the_metadata_api(complete: ScriptedGitLab) -> None:
    del complete.answers["GET /api/v4/metadata"]
    complete.json("GET /api/v4/version", {"version": "14.10.5", "revision": "x"})
    found, _ = await look(complete.url, **ALL)
    assert "version.needs-api-scope" in found


async def test_the_secret_is_not_tried_at_another_forge(
    complete: ScriptedGitLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_URL", "https://gitlab.example.org")
    found, _ = await look(complete.url, **ALL)
    assert "oauth.no-client" in found
    assert not [one for one in complete.asked if one.path.startswith("/oauth")]


async def test_a_clock_that_is_wrong(
    complete: ScriptedGitLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(handler: object, timestamp: float | None = None) -> str:
        return formatdate(time.time() - 300, usegmt=True)

    monkeypatch.setattr("http.server.BaseHTTPRequestHandler.date_time_string", late)
    found, _ = await look(complete.url, **ALL)
    assert "clock.apart" in found


# -- hostile forges ------------------------------------------------------------------------------


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


HUGE = 3 << 20
HOSTILE: dict[str, Answer] = {
    "HTML": (200, {"Content-Type": "text/html"}, b"<html><script>alert(1)</script>"),
    "500": (500, {}, b"oops"),
    "empty": (200, {}, b""),
    "no object": (200, {}, b"[[[[1]]]]"),
    "deep": (200, {}, b"[" * 100_000),
    "huge": (200, {}, b" " * HUGE),
    "half": (200, {"Content-Length": "1000"}, b'{"version": "1'),
    "compressed": (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b" + b"0" * 100),
    "escapes": (200, {}, json.dumps({"version": "\x1b[2J\x1b]0;x\x07\u202e17"}).encode()),
    "odd types": (200, {}, json.dumps({"version": {"a": [1]}, "message": 7}).encode()),
    "no text": (200, {}, b"\xff\xfe\x00\x01" * 50),
    "numbers": (200, {}, b'{"version": 1e999999, "issuer": -0}'),
    "a long number": (200, {}, b'{"version": ' + b"9" * 5000 + b"}"),
    "loop": (302, {"Location": "/api/v4/metadata"}, b""),
    "redirect nowhere": (302, {"Location": "http://[bad"}, b""),
    "redirect to a file": (302, {"Location": "file:///etc/passwd"}, b""),
    "odd headers": (
        200,
        {"Date": "x" * 900, "RateLimit-Limit": "-1", "RateLimit-Remaining": "NaN"},
        b'{"version": "17.1"}',
    ),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_answer_everywhere(complete: ScriptedGitLab, answer: Answer) -> None:
    for route in complete.answers:
        complete.answers[route] = answer
    found, done = await look(complete.url, **ALL)
    assert any(code.startswith(("forge.", "version.")) for code in found)
    assert all(one.sentence.isprintable() and len(one.sentence) < 700 for one in done.findings)


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_answer_at_every_step_after_the_first(
    complete: ScriptedGitLab, answer: Answer
) -> None:
    for route in complete.answers:
        if route != "GET /api/v4/metadata":
            complete.answers[route] = answer
    found, done = await look(complete.url, **ALL)
    assert "version.supported" in found
    assert all(one.sentence.isprintable() and len(one.sentence) < 700 for one in done.findings)


async def test_an_answer_that_is_too_large_is_not_read(complete: ScriptedGitLab) -> None:
    body = json.dumps({"version": "17.8.0", "more": "x" * HUGE}).encode()
    complete.raw("GET /api/v4/metadata", 200, body)
    found, _ = await look(complete.url, **ALL)
    assert "forge.no-gitlab" in found


async def test_one_hostile_answer_at_a_time(complete: ScriptedGitLab) -> None:
    good = dict(complete.answers)
    odd: Answer = (
        200,
        {},
        json.dumps([{"id": "x", "online": [], "tag_list": 5, "name": {}}]).encode(),
    )
    for route in good:
        complete.answers = {**good, route: odd}
        found, _ = await look(complete.url, **ALL)
        assert found


async def test_a_forge_that_sends_elsewhere(
    complete: ScriptedGitLab, elsewhere: ScriptedGitLab
) -> None:
    """Not one request goes there, whichever answer it is that redirects."""
    good = dict(complete.answers)
    for number, route in enumerate(good):
        # 307 and 308 would have a POST repeated with its body.
        for status in (307, (301, 302, 303, 308)[number % 4]):
            target = {"Location": f"{elsewhere.url}{route.split(' ')[1]}"}
            complete.answers = {**good, route: (status, target, b"")}
            await look(complete.url, **ALL)
    assert elsewhere.asked == []
    complete.answers = {route: (302, {"Location": elsewhere.url}, b"") for route in good}
    found, _ = await look(complete.url, **ALL)
    assert "forge.moved" in found
    assert elsewhere.asked == []


async def test_a_realm_elsewhere_gets_no_credential(
    complete: ScriptedGitLab, elsewhere: ScriptedGitLab
) -> None:
    realm = f'Bearer realm="{elsewhere.url}/jwt/auth",service="container_registry"'
    complete.raw("GET /v2/", 401, b"{}", WWW_Authenticate=realm)
    found, _ = await look(complete.url, **ALL)
    assert "registry.other-realm" in found
    assert elsewhere.asked == []


async def test_a_registry_elsewhere_gets_no_credential(
    complete: ScriptedGitLab, elsewhere: ScriptedGitLab
) -> None:
    prefix = f"{elsewhere.url.removeprefix('http://')}/x"
    project = {"id": 7, "container_registry_image_prefix": prefix}
    complete.json("GET /api/v4/projects/group%2Fsub%2Fone", project)
    realm = f'Bearer realm="{complete.url}/jwt/auth",service="s"'
    elsewhere.raw("GET /v2/", 401, b"", WWW_Authenticate=realm)
    found, _ = await look(complete.url, **ALL)
    assert "registry.token" in found
    assert [one.path for one in elsewhere.asked] == ["/v2/"]
    assert not {"Authorization", "Cookie"} & set(elsewhere.asked[0].headers)


@pytest.mark.parametrize("prefix", ["a@b/c", "../x", "http://x/y", "x:99999999/y", "", 5, None])
async def test_a_registry_that_is_no_host(complete: ScriptedGitLab, prefix: object) -> None:
    project = {"id": 7, "container_registry_image_prefix": prefix}
    complete.json("GET /api/v4/projects/group%2Fsub%2Fone", project)
    found, _ = await look(complete.url, **ALL)
    assert {"registry.off", "registry.unreachable"} & set(found)


async def test_a_forge_that_says_our_secrets_back(complete: ScriptedGitLab) -> None:
    """In every field that is shown; ``look`` searches for them."""

    def echo(asked: AskedOf) -> Answer:
        said = asked.headers.get("Authorization", "") + f" {TOKEN} {SECRET}"
        body = {"version": said, "issuer": f"http://{TOKEN}/", "error": SECRET, "message": said}
        return (200, {"Location": f"http://{TOKEN}/{SECRET}"}, json.dumps(body).encode())

    good = dict(complete.answers)
    for status in (200, 302, 401):
        complete.answers = {
            route: (lambda asked, status=status: (status, *echo(asked)[1:])) for route in good
        }
        await look(complete.url, **ALL)
    complete.answers = {**good, "GET /api/v4/metadata": echo}
    _, done = await look(complete.url, **ALL)
    assert "[hidden]" in str(done.findings)


async def test_cookies_of_the_forge_are_not_kept(complete: ScriptedGitLab) -> None:
    body = json.dumps({"version": "18.8.1"}).encode()
    complete.answers["GET /api/v4/metadata"] = (200, {"Set-Cookie": "_session=x; Path=/"}, body)
    await look(complete.url, **ALL)
    assert not [one for one in complete.asked if "Cookie" in one.headers]


@pytest.mark.parametrize("how", ["silent", "drip"])
async def test_a_slow_forge(
    gitlab: ScriptedGitLab,
    monkeypatch: pytest.MonkeyPatch,
    released: threading.Event,
    slow_server: Callable[[str], str],
    how: str,
) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_TIMEOUT", "0.5")
    began = time.monotonic()
    found, _ = await look(slow_server(how), **ALL)
    assert "forge.slow" in found
    assert time.monotonic() - began < 20


@pytest.fixture
def slow_server(released: threading.Event) -> Iterator[Callable[[str], str]]:
    """A server that says nothing, or one byte of its headers every now and then."""
    import socket

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()

    def serve(how: str) -> None:
        while not released.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=speak, args=(how, connection), daemon=True).start()

    def speak(how: str, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not released.wait(0.1):
                    if how == "drip":
                        connection.sendall(b"X-A: b\r\n")
            except OSError:
                return

    def start(how: str) -> str:
        threading.Thread(target=serve, args=(how,), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}"

    yield start
    released.set()
    listening.close()


async def test_nobody_there(free_address: str) -> None:
    found, done = await look(free_address, **ALL)
    assert {"forge.refused", "forge.not-asked"} <= set(found)
    assert done.exit_code == 1


@pytest.fixture
def free_address() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def test_a_name_that_is_none() -> None:
    found, _ = await look("https://gitlab.invalid", **ALL)
    assert {"forge.unknown-host", "forge.not-asked"} <= set(found)


async def test_a_proxy_of_the_environment(
    gitlab: ScriptedGitLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GitLab whose name only the proxy knows is asked through it, and the doctor says what that means."""
    monkeypatch.setenv("http_proxy", gitlab.url.replace("//", "//me:hunter22-canary@"))
    assert "http_proxy" in os.environ
    gitlab.json("GET http://gitlab.invalid/api/v4/metadata", {"version": "17.8.0"})
    gitlab.json("GET /api/v4/metadata", {"version": "17.8.0"})
    found, done = await look("http://gitlab.invalid", token=TOKEN)
    assert {"proxy.needed", "proxy.loopback", "version.supported"} <= set(found), found
    assert "hunter22-canary" not in str(done.findings)


async def test_a_proxy_that_refuses(free_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", free_address)
    found, _ = await look("https://gitlab.invalid", token=TOKEN)
    assert {"forge.proxy-fails", "forge.refused"} & set(found)
