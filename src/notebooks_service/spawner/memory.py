"""A directory in memory for one server's secrets, where no wall gives it one of its own. Called by ``local.py``.

It is this user's alone, is named after the server's directory, so that any hub finds it again, and is gone
when the server is, at the latest with the machine's next start.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from notebooks_service.errors import StartFailed
from notebooks_service.spawner.directories import remove_tree

SHARED = Path("/dev/shm")  # noqa: S108 - everybody's: what is there is looked at before it is used


def place(server: Path) -> Path:
    """Where the secrets of the server with this directory are."""
    name = hashlib.sha256(os.fsencode(server)).hexdigest()[:20]
    return SHARED / f"notebooks-{os.getuid()}-{name}"


def make(server: Path) -> Path:
    """An empty directory, ours and closed to others. Raises ``StartFailed`` if somebody else has it.

    Where there is no such memory the server starts without the directory, if it gets no secrets.
    """
    path = place(server)
    remove(server)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        raise StartFailed(
            f"Somebody else of this machine has {path}, where the server's secrets belong. Ask whoever runs"
            " this machine to remove it."
        ) from None
    except OSError:
        return path
    return path


def clear(data: Path) -> None:
    """Remove those of all servers with a directory below ``data``: none of them runs any more."""
    for server in (data / "servers").glob("*/*"):
        remove(server)


def remove(server: Path) -> None:
    """Remove it with what is in it, if it is ours."""
    path = place(server)
    try:
        found = path.lstat()
    except OSError:
        return
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
        remove_tree(path)
