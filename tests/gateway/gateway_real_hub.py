"""Starts a real hub in a process of its own, for the gateway's tests."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ports import free_port
from small_forge import wait_until

HERE = Path(__file__).parent
CLIENT = httpx.Client(timeout=30, trust_env=False)

# What a server runs: it answers the hub's probe and says which token it was given.
SERVER = """
import http.server, os, pathlib, time, urllib.parse
pathlib.Path(os.environ["TEST_TOKEN_FILE"]).write_text(os.environ["JUPYTERHUB_API_TOKEN"])
gate = os.environ["TEST_GATE_FILE"]
while gate and not os.path.exists(gate):
    time.sleep(0.02)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
address = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.HTTPServer((address.hostname, address.port), Handler).serve_forever()
"""


@dataclass
class RealHub:
    api_url: str
    service_token: str
    test_token: str
    tokens: Path
    log: Path

    def call(self, method: str, path: str, body: Any = None) -> Any:
        answer = CLIENT.request(
            method,
            f"{self.api_url}{path}",
            headers={"Authorization": f"token {self.test_token}"},
            json=body,
        )
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def user(self, name: str, forge_token: str | None) -> str:
        """Makes sure of a user with that forge token; returns a hub token of theirs."""
        state = {"access_token": forge_token} if forge_token else {}
        self.call("PATCH", f"/users/{name}", {"auth_state": state})
        return str(self.call("POST", f"/users/{name}/tokens", {})["token"])

    def server_token(self, name: str, server: str) -> str:
        """The token that the server's process was given (waits until it has started)."""
        file = self.tokens / f"{name}-{server}"
        return wait_until(lambda: file.exists() and file.read_text())


def run_hub(directory: Path, python: str = sys.executable) -> Iterator[RealHub]:
    tokens = directory / "tokens"
    tokens.mkdir()
    (directory / "server.py").write_text(SERVER)
    given = {
        "port": free_port(),
        "public_port": free_port(),
        "directory": str(directory),
        "tokens": str(tokens),
        "service_token": secrets.token_hex(16),
        "test_token": secrets.token_hex(16),
    }
    log = directory / "hub.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, "-m", "jupyterhub", "-f", str(HERE / "gateway_hub_config.py")],
            cwd=directory,
            env={**os.environ, "GATEWAY_TEST_HUB": json.dumps(given)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    hub = RealHub(
        f"http://127.0.0.1:{given['port']}/hub/api",
        given["service_token"],
        given["test_token"],
        tokens,
        log,
    )

    def answers() -> bool:
        if process.poll() is not None:
            pytest.fail(f"the hub ended:\n{log.read_text()[-3000:]}")
        try:
            return CLIENT.get(f"{hub.api_url}/").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(answers, 120)
        yield hub
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
