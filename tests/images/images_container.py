"""What tests of container images share: a dockerd of our own, and repositories that build in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from images_repository import commit, git

from runner_fixtures import until

DOCKERFILE = """\
FROM scratch
COPY busybox /bin/sh
COPY python3 requirements.txt /bin/
"""
RUNS = DOCKERFILE + 'RUN ["/bin/sh", "-c", "echo it ran; umask > /ran"]\n'
PYTHON = '#!/bin/sh\nwhile read -r line; do echo "$line"; done < /bin/requirements.txt\n'
"""Stands for an image's Python where its packages are asked for: a real one would be 50 MB."""


def busybox() -> bytes:
    found = shutil.which("busybox")
    if found is None:
        pytest.skip("busybox is not installed here (Debian has it: apt-get install busybox-static)")
    return Path(found).read_bytes()


def project(repository: Path, requirements: str = "six==1.16.0\n", **files: str) -> str:
    """A repository whose image has no base that would have to be fetched; its sha."""
    first = not (repository / ".git").exists()
    given: dict[str, str | bytes | None] = {"requirements.txt": requirements, **files}
    if first:
        given = {"Dockerfile": DOCKERFILE, "busybox": busybox(), "python3": PYTHON, **given}
        repository.mkdir(parents=True)
        for name in ("busybox", "python3"):
            content = given[name]
            (repository / name).write_bytes(
                content if isinstance(content, bytes) else str(content).encode()
            )
            (repository / name).chmod(0o755)
        git(repository, "init", "-q", "-b", "main")
    return commit(repository, given)


@contextmanager
def docker_daemon() -> Iterator[str]:
    """A dockerd without a network, which leaves nothing behind; gives its ``DOCKER_HOST``."""
    if shutil.which("dockerd") is None or shutil.which("docker") is None or os.geteuid() != 0:
        pytest.skip("no dockerd here, or no right to start one (Debian: apt-get install docker.io)")
    root = Path(tempfile.mkdtemp(prefix="nbd"))
    host = f"unix://{root}/s"
    command = ["dockerd", f"--data-root={root}/data", f"--exec-root={root}/exec"]
    command += [f"--pidfile={root}/pid", f"--host={host}", "--bridge=none", "--iptables=false"]
    command += ["--ip-masq=false"]
    log = root / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        asked = ["docker", "--host", host, "version"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    try:
        until(answers, "dockerd", 60)
        yield host
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def buildah_storage() -> Iterator[dict[str, str]]:
    """Variables for a buildah that has its own store, and works inside containers and VMs."""
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed here (Debian has it: apt-get install buildah)")
    root = Path(tempfile.mkdtemp(prefix="nbb"))
    conf = root / "storage.conf"
    conf.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{root}/graph"\nrunroot = "{root}/run"\n'
    )
    try:
        yield {"CONTAINERS_STORAGE_CONF": str(conf), "BUILDAH_ISOLATION": "chroot"}
    finally:
        shutil.rmtree(root, ignore_errors=True)
