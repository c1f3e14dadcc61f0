"""Secrets are fetched before a server starts, and written into memory or nowhere."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from singleuser_server import PROGRAMS, PYTHON, TOKEN

from notebooks_service.personal_secrets import NO_SECRETS, VARIABLE
from notebooks_service.singleuser import secret_files
from notebooks_service.spawner.container_ends import SECRETS_FAILED

VALUE = b"canary\r\n\x00\xff"


@dataclass
class Gateway:
    """Answers as the service does, or as it is told: ``answers`` first, one for each request."""

    url: str = ""
    answers: list[tuple[int, Any]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.asked.append((self.path, self.headers["Authorization"]))
            status, body = made.answers.pop(0) if len(made.answers) > 1 else made.answers[0]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}/hub/services/notebooks/git/"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield made
        server.shutdown()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = Path("/dev/shm") / f"notebooks-test-{os.getpid()}"
    path.mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


def given(**secrets: bytes) -> tuple[int, Any]:
    rows = [
        {"name": name.replace("__", "."), "value": base64.b64encode(value).decode()}
        for name, value in secrets.items()
    ]
    return 200, {"secrets": rows}


def run(gateway: Gateway, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, "-I", "-S", str(PROGRAMS / "secret_files.py"), *more],
        env={
            "NOTEBOOKS_GATEWAY_URL": gateway.url,
            "JUPYTERHUB_API_TOKEN": TOKEN,
            VARIABLE: str(directory),
            # They never go by a proxy.
            "http_proxy": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_they_are_files_of_this_user_alone(gateway: Gateway, directory: Path) -> None:
    gateway.answers = [given(key__json=VALUE, other=b"o")]
    done = run(
        gateway, directory, "--", "/bin/sh", "-c", 'umask; ls "$NOTEBOOKS_SECRETS_DIR"; exit 5'
    )
    assert (done.returncode, done.stderr) == (5, "")
    assert done.stdout.splitlines()[0] == f"Secrets in {directory}: key.json, other"
    assert done.stdout.splitlines()[2:] == ["key.json", "other"]
    assert (directory / "key.json").read_bytes() == VALUE
    assert (directory / "key.json").stat().st_mode & 0o777 == 0o600
    assert gateway.asked == [("/hub/services/notebooks/git/-/secrets", f"token {TOKEN}")]


def test_without_any_nothing_is_needed(gateway: Gateway, tmp_path: Path) -> None:
    gateway.answers = [given()]
    done = run(gateway, tmp_path / "missing", "--", "/bin/sh", "-c", "exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "", "")
    assert run(gateway, tmp_path / "missing").returncode == 0


def test_a_service_that_is_restarted_is_waited_for(gateway: Gateway, directory: Path) -> None:
    gateway.answers = [(503, b"proxy"), (502, {}), given(key=b"k")]
    assert run(gateway, directory).returncode == 0
    assert (directory / "key").read_bytes() == b"k"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((403, {"error": {"code": "forbidden", "message": "Not now."}}), "Not now."),
        ((404, b"<html>"), "makes no sense (status 404)"),
        ((200, b"<html>"), "makes no sense"),
        ((200, {"secrets": [{"name": "a"}]}), "makes no sense"),
        (given(**{"../evil": VALUE}), "no file's"),
        (given(__netrc=VALUE), "no file's"),
    ],
)
def test_no_server_starts_without_them(
    gateway: Gateway, directory: Path, answer: tuple[int, Any], says: str
) -> None:
    gateway.answers = [answer]
    done = run(gateway, directory, "--", "/bin/sh", "-c", "echo started")
    assert (done.returncode, done.stdout) == (NO_SECRETS, "")
    assert says in done.stderr
    assert SECRETS_FAILED in done.stderr
    assert "canary" not in done.stderr
    assert list(directory.iterdir()) == []
    assert not Path("/dev/shm/evil").exists()


def test_they_are_written_to_no_disk(gateway: Gateway, tmp_path: Path) -> None:
    here = Path(os.path.realpath(tmp_path))
    if secret_files.is_in_memory(here, Path("/proc/self/mountinfo").read_text()):
        pytest.skip("temporary files are in memory here")
    gateway.answers = [given(key=VALUE)]
    done = run(gateway, tmp_path)
    assert done.returncode == NO_SECRETS
    assert "written to no disk" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(gateway: Gateway, directory: Path) -> None:
    (directory / "key").symlink_to(directory / "elsewhere")
    gateway.answers = [given(key=VALUE)]
    assert run(gateway, directory).returncode == NO_SECRETS
    assert not (directory / "elsewhere").exists()


MOUNTS = """\
21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
22 21 0:20 / /run rw - tmpfs tmpfs rw
23 22 0:21 / /run/secrets rw - tmpfs tmpfs rw
24 21 0:22 / /mnt rw - tmpfs tmpfs rw
25 24 8:2 / /mnt rw - ext4 /dev/sdb rw
26 21 0:23 / /with\\040space rw master:1 propagate_from:2 - ramfs none rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/run/secrets", True),
        ("/run/secrets/a", True),
        ("/run/secretsx", True),
        ("/run", True),
        ("/runx", False),
        ("/home/ada", False),
        ("/mnt/a", False),
        ("/with space/a", True),
    ],
)
def test_what_is_in_memory(path: str, expected: bool) -> None:
    assert secret_files.is_in_memory(Path(path), MOUNTS) is expected
