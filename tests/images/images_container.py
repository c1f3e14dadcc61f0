"""What tests of container images share: a dockerd of our own, and repositories that build in seconds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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
SMALL = "FROM scratch\nCOPY requirements.txt /\n"
"""For tests that are about something else than what is in an image."""
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
        yield {
            "CONTAINERS_STORAGE_CONF": str(conf),
            "BUILDAH_ISOLATION": "chroot",
            # One layer at the end instead of one for each step: half the time.
            "BUILDAH_LAYERS": "false",
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


USER = 64_900
"""A user number that nobody has on the machines where tests run."""
BECOME = """
set -e
directory=$1 closed=$2 base=$3 user=$4
shift 4
if [ -n "$closed" ]; then # the interpreter lies in somebody's home
  mkdir -p "$directory/base"
  mount --bind "$base" "$directory/base"
  mount -t tmpfs -o mode=755 none "$closed"
  mkdir -p "$base"
  mount --bind "$directory/base" "$base"
fi
for name in passwd group subuid subgid; do mount --bind "$directory/$name" "/etc/$name"; done
exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
"""


def need_user_namespaces() -> None:
    """Skips where a user who is not root may make none: buildah is nothing without them."""
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    asked = [*(become if os.geteuid() == 0 else []), "unshare", "--user", "--map-root-user", "true"]
    done = subprocess.run(asked, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"no user namespaces here, so no build without root: {done.stderr.strip()[-200:]}"
        )


@contextmanager
def somebody_else(*, ranges: bool) -> Iterator[tuple[Path, list[str]]]:
    """A user who is not root: their home, and what goes before a command so that they run it.

    With ``ranges``, further user numbers are set aside for them (``/etc/subuid``). The machine stays as
    it is: all this is in a mount namespace of its own.
    """
    if os.geteuid() != 0:
        pytest.skip(
            "not root, so this user cannot become another: every other test here is rootless"
        )
    if ranges and shutil.which("newuidmap") is None:
        pytest.skip(
            "newuidmap is not installed here (Debian: apt-get install uidmap): ranges untested"
        )
    need_user_namespaces()
    root = Path(tempfile.mkdtemp(prefix="nbu"))
    root.chmod(0o755)
    home = root / "home"
    home.mkdir(mode=0o700)
    os.chown(home, USER, USER)
    (root / "passwd").write_text(
        f"root:x:0:0::/root:/bin/sh\nbuilder:x:{USER}:{USER}::{home}:/bin/sh\n"
    )
    (root / "group").write_text(f"root:x:0:\nbuilder:x:{USER}:\n")
    for name in ("subuid", "subgid"):
        (root / name).write_text("builder:1000000:65536\n" if ranges else "")
    base = Path(sys.base_prefix).resolve()
    above = [*reversed(base.parents), base]
    closed = next((str(one) for one in above if not one.stat().st_mode & 0o001), "")
    prefix = ["unshare", "--mount", "--propagation=private", "sh", "-c", BECOME, "sh"]
    prefix += [str(root), closed, str(base), str(USER)]
    try:
        asked = [*prefix, sys.executable, "-c", "import notebooks_service"]
        # The path that this program was started by may lie in a home of its own, or be for root only.
        done = subprocess.run(asked, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"nobody else may run this program here: {done.stderr.strip()[-200:]}")
        yield home, prefix
    finally:
        shutil.rmtree(root, ignore_errors=True)
