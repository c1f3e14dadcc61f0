"""What can be seen behind a wall: the machine's programs, the service's own, and what is named.

Pure but for a look at which directories this machine has; ``wall`` turns it into a command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import notebooks_service

MACHINE = ("/usr", "/etc", "/opt", "/nix/store", "/sys/devices/system")
MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "GIT_SSL_CAINFO")


@dataclass(frozen=True)
class Mount:
    """One thing that is there. ``read`` and ``write`` show ``source``; ``tmpfs`` is empty and new."""

    kind: Literal["read", "write", "tmpfs", "link"]
    at: str
    source: str = ""
    mode: str = "0755"


def reading(*paths: Path) -> tuple[Mount, ...]:
    return tuple(Mount("read", str(path), str(path)) for path in paths)


def writing(*paths: Path) -> tuple[Mount, ...]:
    return tuple(Mount("write", str(path), str(path)) for path in paths)


@cache
def machine() -> tuple[Mount, ...]:
    """The programs of the machine and of the service, and empty ``/run`` and ``/tmp``."""
    found: list[Mount] = []
    for name in MERGED:
        if Path(name).is_symlink():
            found.append(Mount("link", name, str(Path(name).readlink())))
        elif Path(name).is_dir():
            found.append(Mount("read", name, name))
    found += [Mount("read", name, name) for name in MACHINE if Path(name).is_dir()]
    found.append(Mount("tmpfs", "/run"))
    found.append(Mount("tmpfs", "/tmp", mode="1777"))  # noqa: S108 - an own, empty one
    found.append(Mount("link", "/var/tmp", "/tmp"))  # noqa: S108
    found += reading(*uncovered(service_paths()))
    return tuple(found)


def service_paths() -> list[Path]:
    """Where the service's own Python and packages are, also by the way their links go."""
    package = Path(notebooks_service.__file__).parent
    named = [Path(sys.prefix), Path(sys.base_prefix), package]
    named += [Path(os.environ[name]) for name in CERTIFICATES if os.environ.get(name)]
    # A resolver's own file may be elsewhere: /etc/resolv.conf is often a link.
    named.append(Path("/etc/resolv.conf").resolve())
    # An interpreter is often a link in a directory of links (uv's and pyenv's are).
    named.append(Path(sys.executable).resolve().parent.parent)
    return [path for path in named if path.is_absolute() and path.exists()]


def interpreter_paths(python: Path) -> list[Path]:
    """What an environment's interpreter needs: the installation that it belongs to.

    Empty if it belongs to none that is safe to show, such as one that lies in a home directory.
    """
    real = python.resolve()
    prefix = real.parent.parent
    if real.parent.name != "bin" or not any(prefix.glob("lib/python*/os.py")):
        return []
    return uncovered([prefix])


def uncovered(paths: Iterable[Path]) -> list[Path]:
    """Those, each also resolved, that the machine's own directories do not show already."""
    found: list[Path] = []
    for path in paths:
        for one in dict.fromkeys((path, path.resolve())):
            covered = any(one.is_relative_to(name) for name in (*MACHINE, *MERGED))
            if not covered and one != Path("/") and one not in found:
                found.append(one)
    return [one for one in found if not any(one != o and one.is_relative_to(o) for o in found)]
