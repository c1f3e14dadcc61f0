"""What a server asks of its hub, answered on 127.0.0.1: who somebody is, and that it is there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jupyterhub

TOKEN = "canary-server-token"
USER, SERVER = "ann", "s"
SCOPE = f"access:servers!server={USER}/{SERVER}"


class _Asked(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        known = self.headers.get("Authorization", "").split(" ")[-1] == TOKEN
        found: dict[str, object] = {"version": jupyterhub.__version__}
        if self.path.endswith("/user"):
            found = {"kind": "user", "name": USER, "admin": False, "groups": [], "scopes": [SCOPE]}
        body = json.dumps(found).encode()
        self.send_response(200 if known or not self.path.endswith("/user") else 403)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-JupyterHub-Version", jupyterhub.__version__)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def small_hub() -> Iterator[str]:
    """The address of its API."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hub/api"
    finally:
        server.shutdown()
        server.server_close()
