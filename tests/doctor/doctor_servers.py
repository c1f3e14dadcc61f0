"""A scripted GitLab behind TLS, with certificates of an authority made for the test."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import trustme

from scripted_gitlab import ScriptedGitLab, serve


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


ServeTls = Callable[..., ScriptedGitLab]


@pytest.fixture
def serve_tls(authority: trustme.CA) -> Iterator[ServeTls]:
    """``serve_tls(name, ends=…)``: a scripted GitLab behind TLS, with a certificate for ``name``."""
    servers = []

    def start(
        name: str = "127.0.0.1",
        *,
        by: trustme.CA | None = None,
        begins: datetime | None = None,
        ends: datetime | None = None,
        context: ssl.SSLContext | None = None,
    ) -> ScriptedGitLab:
        if context is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            (by or authority).issue_cert(name, not_before=begins, not_after=ends).configure_cert(
                context
            )
        scripted = ScriptedGitLab()
        server = serve(scripted)
        # The handshake belongs to the connection's thread: one that fails must not end the server.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        servers.append(server)
        scripted.url = scripted.url.replace("http:", "https:")
        return scripted

    yield start
    for server in servers:
        threading.Thread(target=server.shutdown, daemon=True).start()
        server.server_close()
