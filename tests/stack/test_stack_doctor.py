"""`notebooks doctor` on a whole running platform, and through reverse proxies that spoil something."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.doctor.examine import Asked, examine
from notebooks_service.platform import secrets
from notebooks_service.platform.secrets import Secrets
from stack_fixtures import Stack

pytestmark = pytest.mark.stack


def test_a_running_platform(stack: Stack, tmp_path: Path) -> None:
    """All is well with it, the token comes from a file, and no secret is printed."""
    with closing(stack.administration()) as administration:
        token = administration.personal_token(stack.owner, "doctor", ["read_api"])
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    done = stack.command("doctor", "--token-file", str(file), "--json")
    assert "Traceback" not in done.stderr
    found = {one["code"]: one["level"] for one in json.loads(done.stdout)["findings"]}
    problems = {code for code, level in found.items() if level == "problem"}
    # How full the disk is, and what else is installed, is the testing machine's matter.
    assert not {one for one in problems if not one.startswith(("disk.", "walls."))}, done.stdout
    assert {
        "settings.read", "data.private", "database.current", "parts.alive", "hub.version",
        "service.answers", "hub.websockets", "hub.stream", "origin.local", "forge.answers",
        "version.embedded", "token.accepted", "oauth.client", "scopes.asked", "clock.together",
    } <= set(found)  # fmt: skip
    assert "doctor.stumbled" not in found
    own = Secrets(stack.directory.secrets)
    for secret in (token, *(own.read(name) for name in secrets.MADE_HERE)):
        assert secret not in done.stdout + done.stderr


async def test_a_part_that_is_away(stack: Stack, tmp_path: Path) -> None:
    """Read from a copy of what `up` writes down, so that the platform itself stays whole."""
    (tmp_path / "run").mkdir()
    for file in (stack.data / "run").glob("*.json"):
        if file.name != "runner.json":
            (tmp_path / "run" / file.name).write_text(file.read_text())
    done = await examine(Asked(data=tmp_path), areas=["data"])
    assert ("parts.missing", "problem") in [(one.code, one.level) for one in done.findings]
    assert done.exit_code == 1


# -- reverse proxies -----------------------------------------------------------------------------

Change = Callable[[dict[str, str]], dict[str, str]]


@pytest.fixture
def through(stack: Stack) -> Iterator[Callable[..., str]]:
    """``through(change, hold=…)``: the address of a proxy before the hub that changes headers."""
    servers = []

    def start(change: Change = dict, *, hold: bool = False) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
                headers = change(dict(self.headers))
                hub.request("GET", self.path, headers=headers)
                answer = hub.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                self.end_headers()
                if hold:
                    self.wfile.write(answer.read())
                else:
                    while piece := answer.read1(65536):
                        self.wfile.write(piece)
                        self.wfile.flush()
                self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def without(*names: str) -> Change:
    return lambda headers: {
        name: value for name, value in headers.items() if name.lower() not in names
    }


@pytest.mark.parametrize(
    ("change", "hold", "wanted"),
    [
        (dict, False, {"hub.websockets": "ok", "hub.stream": "ok", "service.answers": "ok"}),
        (without("upgrade", "connection"), False, {"hub.websockets-lost": "problem"}),
        (dict, True, {"hub.stream-held": "warning"}),
        (lambda headers: {**headers, "Host": "inside:80"}, False, {"hub.host-lost": "problem"}),
        (
            lambda headers: {**headers, "X-Forwarded-Proto": "https"},
            False,
            {"hub.scheme-lost": "problem"},
        ),
    ],
    ids=["as it should be", "no upgrade", "held back", "another host", "another scheme"],
)
async def test_a_reverse_proxy(
    through: Callable[..., str], change: Change, hold: bool, wanted: dict[str, str]
) -> None:
    hub = through(change, hold=hold)
    async with asyncio.timeout(60):
        # A service that has just waited too long for the forge says so for seconds: then one asks again.
        while True:
            done = await examine(Asked(hub=hub), areas=["hub"])
            found = {one.code: one.level for one in done.findings}
            if "service.degraded" not in found:
                break
    assert wanted.items() <= found.items(), done.findings
    odd = {"hub.websockets-lost", "hub.stream-held", "hub.host-lost", "hub.scheme-lost"}
    assert odd & set(found) <= set(wanted)


async def test_a_hub_that_is_none(stack: Stack) -> None:
    done = await examine(Asked(hub=stack.forge_url), areas=["hub"])
    assert ("hub.no-hub", "problem") in [(one.code, one.level) for one in done.findings]
