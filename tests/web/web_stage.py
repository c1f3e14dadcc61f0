"""The stage of the web room's tests: a real hub process, the service on a real uvicorn, one address.

One small reverse proxy in the test's process stands where configurable-http-proxy stands.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from web_small_forge import SmallForge

from notebooks_service.settings import Settings
from notebooks_service.web.app import make_app
from notebooks_service.web.parts import HubFacts, make_parts
from ports import free_port

HERE = Path(__file__).parent
PREFIX = "/services/notebooks/"
SERVER = """
import http.server, os, urllib.parse
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here is JupyterLab")
    def log_message(self, *args):
        pass
address = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.HTTPServer((address.hostname, address.port), Handler).serve_forever()
"""


async def until(
    condition: Callable[[], Awaitable[Any]] | Callable[[], Any], seconds: float = 60
) -> Any:
    """The first true value of ``condition``; an error after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"still not true after {seconds} s")
        await asyncio.sleep(0.02)


@dataclass
class RealHub:
    """The hub's process, which may be killed and started again on the same data."""

    directory: Path
    port: int = field(default_factory=free_port)
    public_port: int = field(default_factory=free_port)
    service_port: int = field(default_factory=free_port)
    service_token: str = field(default_factory=lambda: secrets.token_hex(16))
    test_token: str = field(default_factory=lambda: secrets.token_hex(16))
    process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hub/api"

    @property
    def control(self) -> Path:
        return self.directory / "control"

    def start(self) -> None:
        self.control.mkdir(exist_ok=True)
        (self.directory / "server.py").write_text(SERVER)
        given = {
            "port": self.port,
            "public_port": self.public_port,
            "service_port": self.service_port,
            "directory": str(self.directory),
            "control": str(self.control),
            "service_token": self.service_token,
            "test_token": self.test_token,
        }
        with (self.directory / "hub.log").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(HERE / "web_hub_config.py")],
                cwd=self.directory,
                env={**os.environ, "WEB_TEST_HUB": json.dumps(given)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        end = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, (self.directory / "hub.log").read_text()[-3000:]
            try:
                if httpx.get(f"{self.api_url}/", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < end, "the hub does not answer"
            time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        assert self.process is not None
        self.process.kill() if kill else self.process.terminate()
        self.process.wait(60)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = httpx.request(
            method,
            f"{self.api_url}{path}",
            headers={"Authorization": f"token {self.test_token}"},
            json=body,
            trust_env=False,
            timeout=30,
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def token(self, name: str, scopes: list[str] | None = None) -> str:
        """A hub token of this person."""
        return str(
            self.call("POST", f"/users/{name}/tokens", {"scopes": scopes} if scopes else {})[
                "token"
            ]
        )

    def remove_servers(self, name: str) -> None:
        """Stop and forget all servers of this person."""
        path = f"/users/{name}?include_stopped_servers=1"
        end = time.monotonic() + 90

        def named() -> list[str]:
            return [server for server in self.call("GET", path)["servers"] if server]

        for server in named():
            self.call("DELETE", f"/users/{name}/servers/{server}", {"remove": True})
        while named():
            assert time.monotonic() < end, "servers are still there"
            time.sleep(0.05)

    def forge_token(self, name: str, token: str | None) -> None:
        """What the hub holds for this person as their forge token."""
        state = {"access_token": token} if token else {}
        self.call("PATCH", f"/users/{name}", {"auth_state": state})

    def script(self, name: str, server: str, then: str, **record: Any) -> None:
        """Let the spawner of this server do this; at once if it is waiting."""
        file = self.control / f"{name}-{server}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"record": record, "then": then}))
        new.rename(file)


class OneAddress:
    """What is below the service's prefix goes to the service, everything else to the hub."""

    def __init__(self, service: ASGIApp, hub_port: int) -> None:
        self._service = service
        self._hub = httpx.URL(f"http://127.0.0.1:{hub_port}")
        self._transport = httpx.AsyncHTTPTransport()  # no client: that would keep cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(PREFIX.rstrip("/")):
            await self._service(scope, receive, send)
            return
        if scope["path"].startswith("/user/"):
            await Response("here is JupyterLab")(scope, receive, send)
            return
        request = Request(scope, receive)
        asked = httpx.Request(
            request.method,
            self._hub.copy_with(raw_path=request.url.path.encode() + b"?" + scope["query_string"]),
            headers=request.headers.raw,
            content=await request.body(),
        )
        answer = await self._transport.handle_async_request(asked)
        response = StreamingResponse(answer.stream, status_code=answer.status_code)
        response.raw_headers = [
            (name.lower(), value)
            for name, value in answer.headers.raw
            if name.lower() not in (b"transfer-encoding", b"connection")
        ]
        try:
            await response(scope, receive, send)
        finally:
            await answer.aclose()


@dataclass
class Stage:
    """Everything a test touches; ``url`` is the public address."""

    hub: RealHub
    forge: SmallForge
    settings: Settings
    url: str

    def browser(self, name: str = "") -> Browser:
        return Browser(self)

    def api(self, name: str) -> httpx.AsyncClient:
        """A script with a hub token of this person."""
        return httpx.AsyncClient(
            base_url=self.url + PREFIX,
            headers={"Authorization": f"Bearer {self.hub.token(name)}"},
            trust_env=False,
            timeout=60,
        )


class Browser(httpx.AsyncClient):
    """An HTTP client that behaves as a browser does where our checks look."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(
            base_url=stage.url,
            headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"},
            trust_env=False,
            timeout=60,
        )
        self.origin = stage.url

    async def sign_in(self, name: str) -> httpx.Response:
        """Open the service, sign in at the hub's own form, come back."""
        login = await self.get(PREFIX, follow_redirects=True)
        assert "/hub/login" in str(login.url), login.text
        url = str(login.url.copy_with(raw_path=login.url.raw_path))
        return await self.post(
            url,
            data={"username": name, "password": "x", "_xsrf": self.cookies.get("_xsrf") or ""},
            follow_redirects=True,
        )

    async def submit(self, url: str, token: str, **fields: str) -> httpx.Response:
        return await self.post(
            url,
            data={"csrf_token": token, **fields},
            headers={"Origin": self.origin, "Sec-Fetch-Site": "same-origin"},
        )


@asynccontextmanager
async def run_stage(hub: RealHub, directory: Path, **more: Any) -> AsyncIterator[Stage]:
    """The service of this process's code on a uvicorn of its own, beside ``hub``; ``more`` settings."""
    forge = SmallForge()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        settings = Settings(
            data=directory / "data", hub_url=url, forge_url="http://forge.test", **more
        )
        facts = HubFacts(api_url=hub.api_url, api_token=hub.service_token)
        parts = make_parts(settings, facts, forge_session=forge.session, poll_seconds=0.1)
        config = uvicorn.Config(
            OneAddress(make_app(parts), hub.port),
            log_level="warning",
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await until(lambda: server.started)
        try:
            yield Stage(hub, forge, settings, url)
        finally:
            server.should_exit = True
            await serving
