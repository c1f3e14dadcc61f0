"""A scripted GitLab at the level of HTTP: real sockets, real requests, answers from a table."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    method: str
    path: str
    query: str
    headers: dict[str, str]


@dataclass
class ScriptedGitLab:
    """Answers by ``<METHOD> <path>`` (path as sent, undecoded); everything else is GitLab's 404."""

    answers: dict[str, Answer | Callable[[Asked], Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def json(self, route: str, body: Any, status: int = 200, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[route] = (
            status,
            {"Content-Type": "application/json", **named},
            json.dumps(body).encode(),
        )

    def raw(self, route: str, status: int, body: bytes, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answers[route] = (status, named, body)

    def paths(self) -> list[str]:
        return [one.path for one in self.asked]


def serve(gitlab: ScriptedGitLab) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            parts = urlsplit(self.path)
            asked = Asked(self.command, parts.path, parts.query, dict(self.headers))
            gitlab.asked.append(asked)
            default = (404, {"Content-Type": "application/json"}, b'{"message":"404 Not Found"}')
            found = gitlab.answers.get(f"{self.command} {parts.path}", default)
            status, headers, body = found(asked) if callable(found) else found
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            if "Content-Length" in headers:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, address: Any) -> None:
            """A client that gave up is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    gitlab.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture
def gitlab() -> Iterator[ScriptedGitLab]:
    scripted = ScriptedGitLab()
    server = serve(scripted)
    yield scripted
    server.shutdown()
    server.server_close()


@pytest.fixture
def elsewhere() -> Iterator[ScriptedGitLab]:
    """Another host, which must never be asked."""
    scripted = ScriptedGitLab()
    server = serve(scripted)
    yield scripted
    server.shutdown()
    server.server_close()
