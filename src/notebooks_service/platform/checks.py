"""What has to be true before ``notebooks up`` starts anything; each failure is one sentence."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from notebooks_service.errors import NoSpace, PlatformFailed
from notebooks_service.platform.directory import DataDirectory, free_space, is_free
from notebooks_service.settings import Runtime

OLDEST_GIT = (2, 28)
"""The first with ``git init --initial-branch``."""

LEAST_SPACE = 500_000_000
"""Bytes. An environment with pandas and matplotlib takes about half of it."""


def check_system() -> None:
    if sys.platform != "linux":
        raise PlatformFailed(
            f"`notebooks up` runs on Linux only, and this is {sys.platform}; use a virtual machine or a container."
        )


def check_runtime(runtime: Runtime) -> None:
    if runtime == "kubernetes":
        raise PlatformFailed(
            "The runtime kubernetes is not part of this version yet; start with --runtime local or docker."
        )
    if runtime == "docker" and importlib.util.find_spec("docker") is None:
        raise PlatformFailed(
            "The runtime docker needs packages that are not installed; install notebooks-service[docker]."
        )


def check_git() -> None:
    """git is there and not too old."""
    wanted = ".".join(str(number) for number in OLDEST_GIT)
    if shutil.which("git") is None:
        raise PlatformFailed(
            "git was not found; install it (on Debian and Ubuntu: apt install git), then start again."
        )
    said = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout
    version = re.search(r"(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST_GIT:
        raise PlatformFailed(
            f"git {wanted} or newer is needed, and this is {said.strip() or 'no git at all'}; update it, then start again."
        )


def check_space(data: Path) -> None:
    free = free_space(data)
    if free < LEAST_SPACE:
        raise NoSpace(
            f"The disk of {data} is full: {free // 1_000_000} MB are free and {LEAST_SPACE // 1_000_000} MB are needed. Free some space, or choose another place with --data."
        )


def check_port(port: int, option: str) -> None:
    if not is_free(port):
        raise PlatformFailed(
            f"Port {port} is taken by another program; choose another with {option}."
        )


def lock(directory: DataDirectory) -> FileLock:
    """The lock that says that this data is in use; held until its process ends."""
    held = FileLock(directory.lock, blocking=False)
    try:
        held.acquire()
    except Timeout:
        running = directory.running()
        who = f" (process {running.pid}, {running.hub_url})" if running else ""
        raise PlatformFailed(
            f"Another `notebooks up` is running on {directory.path}{who}; stop it first, or use another --data."
        ) from None
    except OSError as error:
        raise PlatformFailed(
            f"The data directory {directory.path} cannot be locked ({os.strerror(error.errno or 0)}); choose another with --data."
        ) from None
    return held
