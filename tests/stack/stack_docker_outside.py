"""What is outside of servers in containers: a site that may be reached, and places that may not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from docker_fixtures import Engine

HOST = "127.0.0.2"
"""This machine, by an address that no `no_proxy` names."""
SAYS = "outside"
FETCH = "import urllib.request as r, sys; print(r.urlopen(sys.argv[1]).read().decode())"


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SAYS.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def outside_site() -> Iterator[str]:
    """``host:port`` of a site on one of this machine's own addresses, which is no public one."""
    server = ThreadingHTTPServer((HOST, 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"{HOST}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def setting(site: str) -> str:
    """The site, and a network that holds the hub, its proxy and all servers."""
    return json.dumps([site, "10.0.0.0/8"])


def unreachable(engine: Engine, server: str, port: int, ports: Mapping[str, int]) -> list[str]:
    """What the setting does not let out: another server's address, the hub and all around it, this machine."""
    host, front, way_out = (engine.address(number) for number in (1, 2, 3))
    registry, hub, egress = (ports[name] for name in ("registry", "hub", "egress"))
    return [
        f"{server}:8888", f"http://{server}:8888/", f"{host}:{hub}", f"{host}:{egress}",
        f"{front}:8001", f"{way_out}:8000", "notebooks.internal:8000",
        "169.254.169.254:80", "http://169.254.169.254/latest/meta-data/",
        f"127.0.0.1:{registry}", f"127.0.0.1:{port}", f"localhost:{registry}", f"0.0.0.0:{registry}",
        f"{socket.gethostname()}:80", "[::1]:80", "[::ffff:127.0.0.1]:80",
        "1.1.1.1:443",
    ]  # fmt: skip
