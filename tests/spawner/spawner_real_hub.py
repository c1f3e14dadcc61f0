"""A real hub in a process of its own, that a test can kill and start again, and its watchers."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from spawner_small_forge import OTHER, SHA

from notebooks_service.domain import server_name
from ports import free_port

HERE = Path(__file__).parent
OPTIONS = {"notebooks": {"project": "group/thing", "commit": SHA, "branch": "main"}}
NAME = server_name(7, SHA, "main")
OTHER_OPTIONS = {"notebooks": {"project": "group/thing", "commit": OTHER, "branch": "main"}}
OTHER_NAME = server_name(7, OTHER, "main")

# Obeys files in the directory of the test: `hold-<step>` makes it wait, `fail-<step>` makes it end.
OBEY = """
import json, os, pathlib, subprocess, sys, time
test = pathlib.Path({directory!r})
def obey(step):
    (test / f"reached-{{step}}").write_text(str(os.getpid()))
    while (test / f"hold-{{step}}").exists():
        time.sleep(0.01)
    if (test / f"fail-{{step}}").exists():
        print(json.dumps({{"message": f"told to fail in {{step}}", "phase": "failed"}}), flush=True)
        sys.exit(3)
"""
CLONE = """
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
work = pathlib.Path(os.environ["NOTEBOOKS_WORK_DIR"])
(work / "half").mkdir()
print(json.dumps({"message": "Receiving objects: 50%", "percent": 50}), flush=True)
obey("clone")
(work / "thing").mkdir(exist_ok=True)
(work / "half").rmdir()
print(json.dumps({"branch": "main", "upstream": True, "notes": ["This image has no git-lfs."]}), flush=True)
"""
UNSAVED = """
print(json.dumps({"uncommitted": sorted(p.name for p in pathlib.Path(sys.argv[1]).iterdir())}))
"""
SECRETS = """
command = sys.argv[sys.argv.index("--") + 1:]
os.execv(command[0], command)
"""
# A server with a child in a session of its own, like a kernel, and a daemon that left its parent.
SERVER = """
import http.server, urllib.parse
if (test / "busy-once").exists():
    (test / "busy-once").unlink()
    sys.exit("The port 1234 is already in use.")
own = os.environ.get("NOTEBOOKS_SERVER_DIRECTORY")
if own:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    kernel = subprocess.Popen(sleep, start_new_session=True)
    subprocess.Popen([sys.executable, "-c", f"import subprocess as s; s.Popen({sleep}, start_new_session=True)"]).wait()
    (pathlib.Path(own) / "environ.json").write_text(json.dumps(dict(os.environ)))
    obey("starting")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
address = urllib.parse.urlparse(os.environ["JUPYTERHUB_SERVICE_URL"])
http.server.HTTPServer((address.hostname, address.port), Handler).serve_forever()
"""


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of ``condition``; fails the test after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"still not true after {seconds} s")
        time.sleep(0.02)


class Watcher:
    """Reads one progress stream of the hub in a thread; ``events`` grows."""

    def __init__(self, hub: RealHub, name: str, server: str, token: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.status = 0
        self._thread = threading.Thread(
            target=self._read, args=(hub, name, server, token), daemon=True
        )
        self._thread.start()

    def _read(self, hub: RealHub, name: str, server: str, token: str) -> None:
        path = f"{hub.api_url}/users/{name}/servers/{server}/progress"
        headers = {"Authorization": f"token {token}"}
        with (
            httpx.Client(timeout=120, trust_env=False) as client,
            client.stream("GET", path, headers=headers) as answer,
        ):
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    self.events.append(json.loads(line.removeprefix("data: ")))

    def all(self, seconds: float = 90) -> list[dict[str, Any]]:
        """Every event, once the stream has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"the stream has not ended: {self.events}"
        return self.events

    @property
    def launch_events(self) -> list[dict[str, Any]]:
        return [event["launch_event"] for event in self.events if "launch_event" in event]


class RealHub:
    """``start`` it, ``kill`` it, ``start`` it again on the same data."""

    def __init__(self, directory: Path, forge_url: str, **settings: Any) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "hub.log"
        self.given = {
            "port": free_port(),
            "public_port": free_port(),
            "directory": str(directory),
            "test_token": secrets.token_hex(16),
            "http_timeout": 30,
        }
        self.python = os.environ.get("NOTEBOOKS_TEST_HUB_PYTHON", sys.executable)
        self.api_url = f"http://127.0.0.1:{self.given['port']}/hub/api"
        self.crypt_key = secrets.token_hex(32)
        self.service_token = secrets.token_hex(16)
        self.settings = {
            "data": str(self.data),
            "forge_url": forge_url,
            "hub_url": f"http://127.0.0.1:{self.given['public_port']}/",
            "forge_client_id": "hub",
            "forge_client_secret": "client-secret-canary",
            "owner": "ada",
            # Its programs obey files in the test's directory, which no wall would show them.
            "walls": "none",
            "image_poll": "0.05",
            "build_on_demand": "false",
            **settings,
        }
        (directory / "programs").mkdir(parents=True)
        obey = OBEY.format(directory=str(directory))
        (directory / "programs" / "clone.py").write_text(obey + CLONE)
        (directory / "programs" / "unsaved.py").write_text(obey + UNSAVED)
        (directory / "programs" / "secret_files.py").write_text(obey + SECRETS)
        (directory / "server.py").write_text(obey + SERVER)
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(timeout=60, trust_env=False)

    def start(self) -> None:
        names = {f"NOTEBOOKS_{key.upper()}": str(value) for key, value in self.settings.items()}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [self.python, "-m", "jupyterhub", "-f", str(HERE / "spawner_hub_config.py")],
                cwd=self.directory,
                env={
                    **os.environ,
                    **names,
                    "SPAWNER_TEST_HUB": json.dumps(self.given),
                    "JUPYTERHUB_CRYPT_KEY": self.crypt_key,
                    "NOTEBOOKS_SERVICE_TOKEN": self.service_token,
                    "NOTEBOOKS_SERVICE_BACKEND": "http://127.0.0.1:9",
                    "HUB_CANARY": "hub-environment-canary",
                },
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._answers, 120)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"the hub ended:\n{self.log.read_text()[-3000:]}")
        try:
            return self.client.get(f"{self.api_url}/").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None

    def close(self) -> None:
        """End the hub and whatever a failed test left of its servers."""
        self.kill()
        for process in self.processes():
            process.kill()
        self.client.close()

    def call(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> httpx.Response:
        return self.client.request(
            method,
            f"{self.api_url}{path}",
            headers={"Authorization": f"token {token or self.given['test_token']}"},
            json=body,
        )

    def reset(self) -> None:
        """Forget what earlier tests told and reached."""
        for pattern in ("hold-*", "fail-*", "reached-*"):
            for path in self.directory.glob(pattern):
                path.unlink()

    def person(self, name: str, auth_state: dict[str, Any] | None = None) -> str:
        """Make sure of a person with that auth_state; a hub token of theirs."""
        state = auth_state if auth_state is not None else {"access_token": f"token-of-{name}"}
        if self.call("GET", f"/users/{name}").status_code == 404:
            assert self.call("POST", f"/users/{name}").status_code == 201
        assert self.call("PATCH", f"/users/{name}", {"auth_state": state}).status_code == 200
        return str(self.call("POST", f"/users/{name}/tokens", {}).json()["token"])

    def launch(
        self, token: str, name: str = "ada", server: str = NAME, options: Any = OPTIONS
    ) -> httpx.Response:
        body = {"display_name": server or "default", "user_options": options}
        if self.version < 6:
            body = options
        path = f"/users/{name}/servers/{server}" if server else f"/users/{name}/server"
        return self.call("POST", path, body, token)

    def cancel(self, token: str, name: str = "ada", server: str = NAME, **body: Any) -> int:
        """The hub's answer. It waits a second for a cancelled start, and says 500 if that takes longer;
        ``HubClient`` asks again then, too."""
        path = f"/users/{name}/servers/{server}"
        for _ in range(5):
            code = self.call("DELETE", path, body or None, token).status_code
            if code != 500:
                break
            found = self.server(name, server)
            if found is not None and found["stopped"] and not body:
                return 204
        return code

    @property
    def version(self) -> int:
        return int(self.client.get(f"{self.api_url}/").json()["version"].split(".")[0])

    def server(self, name: str = "ada", server: str = NAME) -> dict[str, Any] | None:
        """The server as the service sees it, with its own token and the record in its state."""
        answer = self.call(
            "GET", f"/users/{name}?include_stopped_servers=1", token=self.service_token
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] | None = answer.json()["servers"].get(server)
        return found

    def record(self, name: str = "ada", server: str = NAME) -> dict[str, Any]:
        found = self.server(name, server)
        return {} if found is None else (found.get("state") or {}).get("notebooks") or {}

    def is_ready(self, name: str = "ada", server: str = NAME) -> bool:
        found = self.server(name, server)
        return bool(found and found["ready"])

    def settled(self, name: str = "ada", server: str = NAME) -> dict[str, Any]:
        """The server once the hub has nothing pending for it."""

        end = time.monotonic() + 120
        while time.monotonic() < end:
            found = self.server(name, server)
            if found is not None and found["pending"] is None:
                return found
            time.sleep(0.02)
        pytest.fail("the server is still pending")

    def watch(self, token: str, name: str = "ada", server: str = NAME) -> Watcher:
        return Watcher(self, name, server, token)

    def tell(self, *orders: str) -> None:
        for order in orders:
            (self.directory / order).touch()

    def untell(self, *orders: str) -> None:
        for order in orders:
            (self.directory / order).unlink()

    def reached(self, step: str) -> bool:
        return (self.directory / f"reached-{step}").exists()

    def processes(self, name: str = "", server: str = "") -> list[psutil.Process]:
        """Living processes of our servers: those whose environment says so."""
        under = self.folder(name, server) if name else self.data
        found = []
        for process in psutil.process_iter():
            try:
                marker = process.environ().get("NOTEBOOKS_SERVER_DIRECTORY", "")
                if marker.startswith(str(under)) and process.status() != "zombie":
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def folder(self, name: str = "ada", server: str = NAME) -> Path:
        return self.data / "servers" / name / server
