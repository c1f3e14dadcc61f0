"""Gives docker and buildah a registry's password by a file that only they read, for as long as they run;
used by ``images/container_build.py``. A password is never an argument: everybody on a host sees those.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooks_service.images.lock import held, try_lock
from notebooks_service.images.registry import Login

PREFIX = "notebooks-login-"
LOCK = "in-use"


@dataclass(frozen=True)
class LoginFiles:
    """``docker``: a directory for ``docker --config``. ``containers``: a file for ``--authfile``."""

    docker: Path
    containers: Path


@contextmanager
def login_files(
    registry: str, login: Login | None, environ: Mapping[str, str]
) -> Iterator[LoginFiles]:
    """Both, made for ``registry`` (``host[:port]``); removed afterwards, and at the next use after a kill.

    What this person's own files know of other registries stays known: a base image may be there.
    """
    _sweep(Path(tempfile.gettempdir()))
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))  # 0700
    try:
        with held(directory / LOCK, lambda: None):
            yield _write(directory, registry, login, environ)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _write(
    directory: Path, registry: str, login: Login | None, environ: Mapping[str, str]
) -> LoginFiles:
    home = Path(environ.get("HOME") or os.devnull)
    own = Path(environ.get("DOCKER_CONFIG") or home / ".docker")
    docker = _read(own / "config.json")
    containers = docker.get("auths", {})
    for known in (
        environ.get("REGISTRY_AUTH_FILE"),
        f"{environ.get('XDG_RUNTIME_DIR')}/containers/auth.json",
        f"/run/containers/{os.geteuid()}/auth.json",
    ):
        if known and (found := _read(Path(known)).get("auths")):
            containers = found
            break
    auths = dict(containers) if isinstance(containers, dict) else {}
    if login is not None:
        word = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
        auths[registry] = {"auth": word}
        docker = {**docker, "auths": {**_object(docker.get("auths")), registry: {"auth": word}}}
        if docker.get("credsStore") or docker.get("credHelpers"):
            # A helper would be asked instead of the file.
            docker["credHelpers"] = {**_object(docker.get("credHelpers")), registry: ""}
    files = LoginFiles(directory / "docker", directory / "auth.json")
    files.docker.mkdir(mode=0o700)
    _private(files.docker / "config.json", json.dumps(docker))
    _private(files.containers, json.dumps({"auths": auths}))
    # Which daemon to talk to, how to reach builders, and plugins such as buildx are found there too.
    for name in ("contexts", "buildx", "cli-plugins"):
        if (own / name).is_dir():
            (files.docker / name).symlink_to(own / name)
    return files


def _private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _read(path: Path) -> dict[str, Any]:
    try:
        return _object(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _object(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _sweep(place: Path) -> None:
    """Removes what builds that were killed have left: ours, and locked by nobody."""
    for directory in place.glob(f"{PREFIX}*"):
        try:
            if directory.is_symlink() or directory.stat().st_uid != os.geteuid():
                continue
            if not (directory / LOCK).exists():
                continue  # just being made
            descriptor = try_lock(directory / LOCK)
        except OSError:
            continue
        if descriptor is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)
