"""Webhooks from the outside: python-gitlab sets them up, a real receiver is told, and what it must not do."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gitlab
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge_fixtures import ForgeProcess, StartForge, run_git
from notebooks_service.forge import outbound, web_hook_delivery, web_hooks
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.web_hook_models import WebHook
from runner_fixtures import RawRunner, Workspace, until

SECRET = "hook-secret-4711"


class Receiver:
    """An HTTP server on 127.0.0.1 that keeps what it is told; ``answers`` says what it answers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.answers: list[int] = []
        self.location = ""
        self.hold = threading.Event()
        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.hold.wait(120)
                receiver.seen.append((self.path, dict(self.headers), json.loads(body)))
                status = receiver.answers.pop(0) if receiver.answers else 200
                text = f"thanks, {self.headers.get('X-Gitlab-Token')} ".encode() + b"x" * 50_000
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.send_header("X-Long", "y" * 5000)
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.end_headers()
                with contextlib.suppress(OSError):  # The forge reads no further than it keeps.
                    self.wfile.write(text)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [body for _, _, body in self.seen if body["object_kind"] == kind]

    def wait(self, count: int, kind: str = "", seconds: float = 90) -> list[dict[str, Any]]:
        def look() -> list[dict[str, Any]] | None:
            found = self.of(kind) if kind else [body for _, _, body in self.seen]
            return found if len(found) >= count else None

        return until(look, f"{count} deliveries {kind}", seconds)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def hook_forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForgeProcess]:
    """A forge whose webhooks may reach this machine's own address, and that tries again soon."""
    arguments = ["--webhook-allow", "127.0.0.1", "--webhook-retry", "0.05"]
    started = ForgeProcess(tmp_path_factory.mktemp("hook-forge"), arguments=arguments)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        started.administration.close()


@pytest.fixture
def space(hook_forge: ForgeProcess, tmp_path: Path) -> Workspace:
    return Workspace(hook_forge, tmp_path)


def hook_of(space: Workspace, receiver: Receiver, **more: Any) -> Any:
    values = {"url": receiver.url, "token": SECRET, "push_events": False, **more}
    return space.api.hooks.create(values)


def events_of(space: Workspace, hook: Any, **query: Any) -> list[dict[str, Any]]:
    path = f"/projects/{space.id}/hooks/{hook.id}/events"
    return list(space.gitlab.http_list(path, get_all=True, query_data=query))


def test_a_hook_lives_as_python_gitlab_expects(space: Workspace, receiver: Receiver) -> None:
    hook = hook_of(space, receiver, push_events=True, push_events_branch_filter="main")
    assert (hook.url, hook.project_id, hook.push_events) == (receiver.url, space.id, True)
    assert hook.enable_ssl_verification and not hook.tag_push_events
    assert (hook.alert_status, hook.disabled_until) == ("executable", None)
    assert SECRET not in json.dumps(hook.attributes) and "token" not in hook.attributes
    hook.job_events = True
    hook.save()
    again = space.api.hooks.get(hook.id)
    assert (again.job_events, again.push_events_branch_filter) == (True, "main")
    assert [one.id for one in space.api.hooks.list(get_all=True)] == [hook.id]
    hook.delete()
    with pytest.raises(gitlab.GitlabGetError) as error:
        space.api.hooks.get(hook.id)
    assert error.value.response_code == 404


def test_who_may_have_hooks(hook_forge: ForgeProcess, space: Workspace, receiver: Receiver) -> None:
    hook = hook_of(space, receiver)
    for level, code in (("developer", 403), ("maintainer", 200), (None, 404)):
        other = hook_forge.user()
        if level:
            hook_forge.administration.add_member(space.path, other, level)
        headers = {"PRIVATE-TOKEN": hook_forge.token(other)}
        url = f"{hook_forge.url}/api/v4/projects/{space.id}/hooks"
        assert httpx.get(url, headers=headers).status_code == code
        answer = httpx.post(url, headers=headers, json={"url": receiver.url})
        assert answer.status_code == (201 if code == 200 else code)
        answer = httpx.delete(f"{url}/{hook.id}", headers=headers)
        assert answer.status_code == (204 if code == 200 else code)
    assert httpx.get(url).status_code == 401


def test_a_push_is_told(space: Workspace, receiver: Receiver) -> None:
    hook_of(space, receiver, push_events=True, tag_push_events=True)
    before = run_git("rev-parse", "HEAD", cwd=space.clone).strip()
    (space.clone / "old").write_text("old")
    sha = space.push(
        files={"new ü.txt": "1"}, message="Say: hello\n\nAt length", options=("ci.skip",)
    )
    [body] = receiver.wait(1, "push")
    [(path, headers, _)] = receiver.seen
    assert path == "/hook"
    assert headers["X-Gitlab-Event"] == "Push Hook"
    assert headers["X-Gitlab-Token"] == SECRET
    assert headers["X-Gitlab-Instance"] == space.forge.url
    assert headers["Host"] == f"127.0.0.1:{receiver.port}"
    ids = {headers[n] for n in ("X-Gitlab-Webhook-UUID", "X-Gitlab-Event-UUID", "Idempotency-Key")}
    assert len(ids) == 3
    assert (body["before"], body["after"], body["checkout_sha"]) == (before, sha, sha)
    assert (body["ref"], body["ref_protected"]) == ("refs/heads/main", True)
    assert body["user_username"] == space.username
    assert body["project"]["path_with_namespace"] == space.path
    assert body["project"]["git_http_url"] == f"{space.forge.url}/{space.path}.git"
    assert (body["total_commits_count"], body["push_options"]) == (1, {"ci": {"skip": True}})
    [commit] = body["commits"]
    assert (commit["id"], commit["title"]) == (sha, "Say: hello")
    assert commit["added"] == ["counter", "new ü.txt", "old"]
    # Tags, and branches that go.
    run_git("tag", "-a", "v1", "-m", "First", cwd=space.clone)
    run_git("push", "--quiet", "origin", "v1", cwd=space.clone)
    [tag] = receiver.wait(1, "tag_push")
    assert (tag["ref"], tag["checkout_sha"], tag["message"]) == ("refs/tags/v1", sha, "First")
    assert tag["after"] != sha and tag["commits"] == []
    space.api.branches.create({"branch": "side", "ref": "main"})
    space.api.branches.delete("side")
    [_, made, gone] = receiver.wait(3, "push")
    assert (made["before"], made["commits"]) == ("0" * 40, [])
    assert (gone["after"], gone["checkout_sha"]) == ("0" * 40, None)


def test_more_than_twenty_commits_are_counted(space: Workspace, receiver: Receiver) -> None:
    hook_of(space, receiver, push_events=True)
    for number in range(24):
        run_git("commit", "--quiet", "--allow-empty", "-m", f"Number {number}", cwd=space.clone)
    space.push(message="Last")
    [body] = receiver.wait(1, "push")
    titles = [commit["title"] for commit in body["commits"]]
    assert (len(titles), titles[-1], body["total_commits_count"]) == (20, "Last", 25)


def test_a_push_of_many_branches_tells_nobody(space: Workspace, receiver: Receiver) -> None:
    hook_of(space, receiver, push_events=True)
    refs = [f"HEAD:refs/heads/many{number}" for number in range(4)]
    run_git("push", "--quiet", "origin", *refs, cwd=space.clone)
    space.push()
    [body] = receiver.wait(1, "push")
    assert body["ref"] == "refs/heads/main"


@pytest.mark.parametrize(
    ("strategy", "pattern", "told"),
    [
        ("wildcard", "feature/*", ["feature/a", "feature/a/b"]),
        ("wildcard", "main", ["main"]),
        ("wildcard", "m?in", []),
        ("wildcard", "", ["main", "feature/a", "feature/a/b"]),
        ("regex", "^(main|feature/a)$", ["main", "feature/a"]),
        ("regex", "(((", []),
        ("all_branches", "main", ["main", "feature/a", "feature/a/b"]),
    ],
)
def test_the_filter_of_branches(strategy: str, pattern: str, told: list[str]) -> None:
    hook = WebHook(branch_filter=pattern, branch_filter_strategy=strategy)
    every = ["main", "feature/a", "feature/a/b"]
    assert [n for n in every if web_hooks.branch_matches(hook, f"refs/heads/{n}")] == told
    assert web_hooks.branch_matches(hook, "refs/tags/v1")


CI = """
stages: [a, b]
one: {stage: a, script: ["true"]}
two: {stage: b, script: ["true"], allow_failure: true}
"""


def test_jobs_and_pipelines_are_told(space: Workspace, receiver: Receiver) -> None:
    hook_of(space, receiver, job_events=True, pipeline_events=True)
    sha = space.push(CI)
    runner = RawRunner(space.forge)
    for state in ("success", "failed"):
        # Jobs of other tests' projects may wait there as well.
        while (job := runner.take())["job_info"]["project_id"] != space.id:
            runner.put(job, "success")
        assert runner.put(job, state, failure_reason="script_failure").status_code == 200
    until(
        lambda: (
            receiver.of("pipeline")[-1:]
            and receiver.of("pipeline")[-1]["object_attributes"]["status"] == "success"
        ),
        "the end",
    )
    states = [(body["build_name"], body["build_status"]) for body in receiver.of("build")]
    for name, end in (("one", "success"), ("two", "failed")):
        assert [state for found, state in states if found == name] == [
            "created",
            "pending",
            "running",
            end,
        ]
    last = receiver.of("build")[-1]
    assert (last["sha"], last["build_failure_reason"]) == (sha, "script_failure")
    assert last["build_allow_failure"] and last["build_duration"] is not None
    assert last["commit"]["id"] == last["pipeline_id"] and last["commit"]["message"] == "Change\n"
    assert last["user"]["username"] == space.username
    assert [body["object_attributes"]["status"] for body in receiver.of("pipeline")] == [
        "pending",
        "running",
        "success",
    ]
    end = receiver.of("pipeline")[-1]
    assert end["commit"]["id"] == sha and end["object_attributes"]["detailed_status"] == "passed"
    assert [(job["name"], job["status"]) for job in end["builds"]] == [
        ("one", "success"),
        ("two", "failed"),
    ]
    assert end["object_attributes"]["stages"] == ["a", "b"]
    names = [headers["X-Gitlab-Event"] for _, headers, _ in receiver.seen]
    assert set(names) == {"Job Hook", "Pipeline Hook"}


def test_the_log_shows_no_secret(space: Workspace, receiver: Receiver) -> None:
    hook = hook_of(
        space, receiver, push_events=True, url=receiver.url.replace("//", "//me:pass-0815@")
    )
    assert hook.url == receiver.url.replace("//", "//me:*****@")
    space.push()
    receiver.wait(1)
    assert receiver.seen[0][1]["Authorization"].startswith("Basic ")
    [event] = until(lambda: events_of(space, hook), "the log of the hook")
    assert (event["trigger"], event["response_status"]) == ("push_hooks", "200")
    assert event["request_headers"]["X-Gitlab-Token"] == "[REDACTED]"
    assert event["request_data"]["object_kind"] == "push"
    # The receiver sent the secret back, in much text.
    assert event["response_body"].startswith("thanks, [REDACTED] x")
    assert len(event["response_body"]) <= 8192 and len(event["response_headers"]["X-Long"]) == 1024
    everything = json.dumps([event, space.api.hooks.get(hook.id).attributes])
    assert SECRET not in everything and "pass-0815" not in everything
    log = space.forge.log.read_text()
    assert SECRET not in log and "pass-0815" not in log
    # What is shown may be sent back without losing the password; another address loses the secret.
    hook.save()
    space.push()
    receiver.wait(2)
    assert receiver.seen[1][1]["Authorization"].startswith("Basic ")
    assert receiver.seen[1][1]["X-Gitlab-Token"] == SECRET
    hook.url = receiver.url + "/other"
    hook.save()
    space.push()
    receiver.wait(3)
    assert "X-Gitlab-Token" not in receiver.seen[2][1]
    assert events_of(space, hook, status="client_failure") == []
    until(lambda: len(events_of(space, hook, status="successful")) == 3, "three log entries")


def test_a_failing_receiver_is_asked_again_and_then_left_alone(
    space: Workspace, receiver: Receiver
) -> None:
    hook = hook_of(space, receiver, push_events=True)
    receiver.answers = [500, 429]
    space.push()
    receiver.wait(3)
    keys = {headers["Idempotency-Key"] for _, headers, _ in receiver.seen}
    assert len(keys) == 1
    until(lambda: len(events_of(space, hook)) == 3, "three log entries")
    assert [e["response_status"] for e in events_of(space, hook)] == ["200", "429", "500"]
    assert space.api.hooks.get(hook.id).alert_status == "executable"
    # Four failures in a row switch it off for a minute; 404 is not tried again.
    receiver.answers = [404] * 4
    for _ in range(4):
        space.push()
    off = until(
        lambda: (found := space.api.hooks.get(hook.id)).alert_status != "executable" and found,
        "a disabled hook",
    )
    assert off.alert_status == "temporarily_disabled" and off.disabled_until
    assert len(receiver.seen) == 7
    space.push()
    # A test is sent all the same, and a good answer switches the hook on again.
    space.gitlab.http_post(f"/projects/{space.id}/hooks/{hook.id}/test/push_events")
    assert space.api.hooks.get(hook.id).alert_status == "executable"
    assert len(receiver.seen) == 8


def test_tests_and_resends_of_a_hook(space: Workspace, receiver: Receiver) -> None:
    hook = hook_of(space, receiver)
    path = f"/projects/{space.id}/hooks/{hook.id}"
    assert space.gitlab.http_post(f"{path}/test/push_events") == {"message": "201 Created"}
    assert receiver.seen[0][2]["object_kind"] == "push"
    for trigger, code in (("pipeline_events", 422), ("issues_events", 400)):
        with pytest.raises(gitlab.GitlabHttpError) as error:
            space.gitlab.http_post(f"{path}/test/{trigger}")
        assert error.value.response_code == code
    receiver.answers = [503]
    with pytest.raises(gitlab.GitlabHttpError, match="503"):
        space.gitlab.http_post(f"{path}/test/tag_push_events")
    first = events_of(space, hook)[-1]
    answer = space.gitlab.http_post(f"{path}/events/{first['id']}/resend")
    assert answer == {"response_status": 200}
    assert receiver.seen[-1][1]["Idempotency-Key"] == receiver.seen[0][1]["Idempotency-Key"]
    codes = [
        httpx.post(
            f"{space.forge.url}/api/v4{path}/test/push_events",
            headers={"PRIVATE-TOKEN": space.token},
        ).status_code
        for _ in range(4)
    ]
    assert codes[-1] == 429


def test_a_group_hook_hears_of_its_projects(
    hook_forge: ForgeProcess, tmp_path: Path, receiver: Receiver
) -> None:
    space = Workspace(hook_forge, tmp_path, path=f"hooked{receiver.port}/deep/thing")
    headers = {"PRIVATE-TOKEN": space.token}
    url = f"{hook_forge.url}/api/v4/groups/hooked{receiver.port}/hooks"
    made = httpx.post(url, headers=headers, json={"url": receiver.url})
    assert made.status_code == 201 and made.json()["group_id"]
    space.push()
    [body] = receiver.wait(1, "push")
    assert body["project"]["path_with_namespace"] == space.path


def test_what_waits_survives_a_killed_forge(
    start_forge: StartForge, tmp_path: Path, receiver: Receiver
) -> None:
    forge = start_forge(arguments=["--webhook-allow", "127.0.0.1"])
    space = Workspace(forge, tmp_path)
    hook_of(space, receiver, push_events=True)
    receiver.hold.clear()
    sha = space.push()
    space.push(branch="second")
    forge.stop(signal.SIGKILL)
    forge.start()
    receiver.hold.set()
    wanted = {"refs/heads/main", "refs/heads/second"}
    until(lambda: {body["ref"] for _, _, body in receiver.seen} == wanted, "both deliveries")
    assert any(body["after"] == sha for _, _, body in receiver.seen)
    # The request that was cut off is made again: by its key a receiver knows it.
    keys = [headers["Idempotency-Key"] for _, headers, _ in receiver.seen]
    assert len(set(keys)) == 2


# Where hooks may not go -----------------------------------------------------------------------

FORBIDDEN = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://localhost/",
    "http://LOCALHOST./",
    "http://0.0.0.0/",
    "http://0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a9fe:a9fe]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://[ff02::1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://user@127.0.0.1:80@127.0.0.1/",
    "http://127.0.0.1\\@example.org/",
    "http://example.org\t.localhost/",
    "http://[fe80::1%25lo]/",
    "ftp://example.org/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/",
    "http:///nowhere",
    "http://127.0.0.1:0/",
    "http://127.0.0.1:99999/",
    "http://no-such-name.invalid/",
    "javascript:alert(1)",
    "nothing",
]


def test_forbidden_addresses(forge: ForgeProcess, tmp_path: Path) -> None:
    """At a forge that allows none: refused when the hook is made, and its tests tell nothing."""
    space = Workspace(forge, tmp_path)
    headers = {"PRIVATE-TOKEN": space.token}
    url = f"{forge.url}/api/v4/projects/{space.id}/hooks"
    for bad in FORBIDDEN:
        answer = httpx.post(url, headers=headers, json={"url": bad})
        assert answer.status_code == 422, (bad, answer.text)
        assert answer.json() == {"message": "Invalid url given"}
    assert httpx.get(url, headers=headers).json() == []


def test_an_allowed_address_is_one_address(hook_forge: ForgeProcess, space: Workspace) -> None:
    """127.0.0.1 is allowed there, which opens neither the rest of the loopback nor IPv6's."""
    for bad in (
        "http://127.0.0.2/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "http://169.254.169.254/",
    ):
        with pytest.raises(gitlab.GitlabCreateError) as error:
            space.api.hooks.create({"url": bad})
        assert error.value.response_code == 422


@pytest.mark.parametrize(
    ("entry", "host", "address", "port", "admitted"),
    [
        ("127.0.0.1", "x", "127.0.0.1", 80, True),
        ("127.0.0.1:8000", "x", "127.0.0.1", 8000, True),
        ("127.0.0.1:8000", "x", "127.0.0.1", 8001, False),
        ("10.0.0.0/8", "x", "10.1.2.3", 1, True),
        ("10.0.0.0/8", "x", "11.1.2.3", 1, False),
        ("[::1]:80", "x", "::1", 80, True),
        ("[::1]:80", "x", "::1", 81, False),
        ("fd00::/8", "x", "fd12::1", 1, True),
        ("Hooks.Example", "hooks.example", "10.0.0.1", 1, True),
        ("hooks.example:443", "hooks.example", "10.0.0.1", 80, False),
        ("hooks.example", "evil.hooks.example", "10.0.0.1", 80, False),
    ],
)
def test_the_allowlist(entry: str, host: str, address: str, port: int, admitted: bool) -> None:
    [allowed] = outbound.read_allowed([entry])
    assert allowed.admits(host, ipaddress.ip_address(address), port) is admitted


@pytest.mark.parametrize("entry", ["", ":80", "host:0", "host:x", "10.0.0.0/99", "[::1]:99999"])
def test_a_wrong_allowlist_is_refused(entry: str) -> None:
    with pytest.raises(ValueError):
        outbound.read_allowed([entry])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_an_address_is_as_public_inside_ipv6_as_outside(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    for wrapped in (0xFFFF << 32 | number, int(ipaddress.IPv6Address("64:ff9b::")) | number):
        assert outbound.is_public(ipaddress.IPv6Address(wrapped)) == outbound.is_public(inner)
    if inner.is_private or inner.is_loopback or inner.is_link_local:
        assert not outbound.is_public(inner)


@given(st.text(max_size=60) | st.from_regex(r"https?://[a-z0-9.:@\[\]%/\\-]{0,40}", fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        parts, host, port = outbound.parse(text)
    except outbound.NotAllowed:
        return
    assert parts.scheme in ("http", "https") and host and 0 < port < 65536


async def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that leads elsewhere at each question (DNS rebinding) is asked once."""
    import socket

    asked = itertools.count()
    real = socket.getaddrinfo

    def answer(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "rebound.example":
            return real(host, *rest, **more)
        # First where it may go, from then on where it may not.
        return real("127.0.0.1" if next(asked) == 0 else "127.0.0.9", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    config = ForgeConfig(tmp_path, "http://forge.example", webhook_allowed=("127.0.0.1",))
    sender = web_hook_delivery.Sender(config)
    hook = WebHook(url=f"http://rebound.example:{receiver.port}/", enable_ssl_verification=True)
    outcome = await sender.send(hook, {}, b'{"object_kind": "x"}')
    assert (outcome.status, outcome.error) == (200, None)
    assert receiver.seen[0][1]["Host"] == f"rebound.example:{receiver.port}"
    assert next(asked) == 1
    outcome = await sender.send(hook, {}, b"{}")
    assert outcome.status == 0 and "may not reach" in str(outcome.error) and outcome.final
    assert len(receiver.seen) == 1


async def test_a_redirect_is_not_followed(receiver: Receiver, tmp_path: Path) -> None:
    config = ForgeConfig(tmp_path, "http://forge.example", webhook_allowed=("127.0.0.1",))
    receiver.answers = [307]
    receiver.location = receiver.url + "/secret"
    hook = WebHook(url=receiver.url, enable_ssl_verification=True)
    outcome = await web_hook_delivery.Sender(config).send(hook, {}, b'{"object_kind": "x"}')
    assert outcome.status == 307 and [path for path, _, _ in receiver.seen] == ["/hook"]


class _Drip(socketserver.BaseRequestHandler):
    """Speaks for ever: a header now and then, never an end."""

    def handle(self) -> None:
        self.request.sendall(b"HTTP/1.1 200 OK\r\n")
        try:
            for number in range(200):
                self.request.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.05)
        except OSError:
            pass


async def test_a_receiver_that_never_ends_is_left(tmp_path: Path) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Drip) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = ForgeConfig(
            tmp_path, "http://f.example", webhook_allowed=("127.0.0.1",), webhook_timeout=0.5
        )
        hook = WebHook(url=f"http://127.0.0.1:{server.server_address[1]}/")
        hook.enable_ssl_verification = True
        outcome = await web_hook_delivery.Sender(config).send(hook, {}, b"{}")
        server.shutdown()
    assert (outcome.status, outcome.may_pass) == (0, True) and outcome.seconds < 9


def test_failures_are_counted_as_gitlab_counts_them() -> None:
    hook = WebHook(recent_failures=0, disabled_until=None)
    bad, good = web_hook_delivery.Outcome(500), web_hook_delivery.Outcome(204)
    for _ in range(3):
        web_hook_delivery.note(hook, bad)
    assert web_hooks.alert_status(hook) == "executable" and hook.disabled_until is None
    minutes = []
    while web_hooks.alert_status(hook) != "disabled":
        web_hook_delivery.note(hook, bad)
        assert hook.disabled_until is not None
        left = hook.disabled_until - web_hook_delivery.now()
        minutes.append(round(left.total_seconds() / 60))
        # A failure while it is off, of a delivery under way, counts nothing.
        count = hook.recent_failures
        web_hook_delivery.note(hook, bad)
        assert hook.recent_failures == count
        hook.disabled_until = web_hook_delivery.now() - web_hook_delivery.timedelta(seconds=1)
    assert minutes[:6] == [1, 2, 4, 8, 16, 32] and max(minutes) == 24 * 60
    assert hook.recent_failures == 40
    web_hook_delivery.note(hook, good)
    assert (hook.recent_failures, web_hooks.alert_status(hook)) == (0, "executable")
