"""A forge that answers when a test says so: the few GitLab endpoints that a launch asks.

For what the embedded forge cannot be told to do: to be slow, to fail, to say 401 for a while. It
runs in a thread of the test; every answer follows https://docs.gitlab.com/api/.
"""

from __future__ import annotations

import json
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"


class SmallForge:
    """People by token (``token-of-<name>``); 7 ``group/thing`` for all, 8 ``secret/plan`` for owl."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self.removed: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.jobs: dict[str, list[dict[str, Any]]] = {}
        self.away = False
        self.tags: set[str] = set()
        self.refresh: Callable[[dict[str, str]], tuple[int, Any]] = lambda form: (503, {})
        self.refreshes = 0
        self.asked: list[str] = []
        self.level = 30
        server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"forge": self})
        )
        server.daemon_threads = True
        self._server = server
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def close(self) -> None:
        for gate in self.gates.values():
            gate.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def held(self, path: str) -> Iterator[threading.Event]:
        """While this lasts, requests whose path contains ``path`` wait; yields "one has come"."""
        gate, came = threading.Event(), threading.Event()
        self.gates[path] = gate
        self._came = came
        try:
            yield came
        finally:
            gate.set()
            self.gates.pop(path, None)

    def pass_gate(self, path: str) -> None:
        for part, gate in list(self.gates.items()):
            if part in path:
                self._came.set()
                gate.wait(60)

    def answer(self, person: str, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path == "/api/v4/user":
            return 200, {
                "id": zlib.crc32(person.encode()),
                "username": person,
                "name": person.title(),
                "email": f"{person}@example.org",
                "public_email": "",
                "commit_email": f"{person}@example.org",
                "state": "active",
            }
        if not (found := re.match(r"/api/v4/projects/([^/]+)(.*)\Z", path)):
            return 404, {"message": "404 Not Found"}
        if person in self.removed:
            return 404, {"message": "404 Project Not Found"}
        name, rest = unquote(found[1]), found[2]
        project = {"7": "group/thing", "8": "secret/plan"}.get(name, name)
        if project not in ("group/thing", "secret/plan"):
            return 404, {"message": "404 Project Not Found"}
        if project == "secret/plan" and person != "owl":
            return 404, {"message": "404 Project Not Found"}
        return self.about(project, rest, query)

    def about(self, project: str, rest: str, query: dict[str, str]) -> tuple[int, Any]:
        rest = unquote(rest)
        if rest == "":
            return 200, {
                "id": 7 if project == "group/thing" else 8,
                "path_with_namespace": project,
                "name": project.rsplit("/", 1)[-1],
                "default_branch": "main",
                "visibility": "private",
                "web_url": f"{self.url}/{project}",
                "description": "",
                "empty_repo": False,
                "last_activity_at": "2026-01-01T00:00:00Z",
                "permissions": {"project_access": {"access_level": self.level}},
            }
        if rest.startswith("/members/all/"):
            return 200, {"id": 1, "access_level": self.level}
        if rest.endswith("/refs"):
            return 200, [{"type": "branch", "name": "main"}]
        if rest.startswith("/repository/commits/"):
            sha = rest.rsplit("/", 1)[-1]
            if sha not in (SHA, OTHER):
                return 404, {"message": "404 Commit Not Found"}
            return 200, {
                "id": sha,
                "title": "A commit",
                "message": "A commit\n",
                "author_name": "Ada",
                "author_email": "ada@example.org",
                "authored_date": "2026-01-01T00:00:00Z",
                "created_at": "2026-01-01T00:00:00Z",
                "parent_ids": [],
            }
        if rest.startswith("/repository/branches/"):
            if rest.endswith("/main"):
                return 200, {
                    "name": "main",
                    "default": True,
                    "protected": False,
                    "can_push": True,
                    "commit": {"id": SHA},
                }
            return 404, {"message": "404 Branch Not Found"}
        if rest == "/pipelines":
            sha = query.get("sha", SHA)
            number = int(sha[:4], 16)
            return 200, [
                {"id": number, "sha": sha, "status": "running", "ref": "main", "source": "push"}
            ]
        if found := re.match(r"/pipelines/(\d+)/(jobs|bridges)\Z", rest):
            sha = SHA if int(found[1]) == int(SHA[:4], 16) else OTHER
            return 200, self.jobs.get(sha, []) if found[2] == "jobs" else []
        if found := re.match(r"/jobs/(\d+)(/trace)?\Z", rest):
            job = next(
                (job for jobs in self.jobs.values() for job in jobs if job["id"] == int(found[1])),
                None,
            )
            if job is None:
                return 404, {"message": "404 Not Found"}
            return 200, f"log at {time.time()}\n".encode() if found[2] else job
        if rest == "/registry/repositories":
            return 200, [{"id": 3, "name": "", "path": project, "location": f"registry/{project}"}]
        if found := re.match(r"/registry/repositories/3/tags/(\w+)\Z", rest):
            if found[1] in self.tags:
                return 200, {
                    "name": found[1],
                    "path": f"{project}:{found[1]}",
                    "location": f"registry/{project}:{found[1]}",
                    "digest": "sha256:" + "0" * 64,
                }
            return 404, {"message": "404 Tag Not Found"}
        return 404, {"message": f"404 {rest}"}


def job(number: int, status: str, name: str = "image_build") -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "status": status,
        "pipeline": {"id": 1},
        "web_url": f"http://forge/jobs/{number}",
        "created_at": "2026-01-01T00:00:00Z",
        "started_at": None,
        "finished_at": None,
        "failure_reason": None,
    }


class _Handler(BaseHTTPRequestHandler):
    forge: SmallForge
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        split = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(split.query).items()}
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.forge.asked.append(split.path)
        self.forge.pass_gate(split.path)
        if self.forge.away:
            self.reply(503, {"message": "Deploying"})
            return
        person = token.removeprefix("token-of-")
        if person == token or token in self.forge.revoked:
            self.reply(401, {"message": "401 Unauthorized"})
            return
        self.reply(*self.forge.answer(person, split.path, query))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        if self.path.endswith("/oauth/token"):
            self.forge.refreshes += 1
            form = {key: values[-1] for key, values in parse_qs(body).items()}
            self.reply(*self.forge.refresh(form))
        else:
            self.reply(404, {"message": "404 Not Found"})

    def reply(self, status: int, data: Any) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        self.send_header(
            "Content-Type", "text/plain" if isinstance(data, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(body)))
        if isinstance(data, list):
            self.send_header("X-Page", "1")
            self.send_header("X-Next-Page", "")
            self.send_header("X-Total", str(len(data)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass
