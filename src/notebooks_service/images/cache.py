"""uv's cache as several builds share it: what a build leaves there that only takes room is removed.

Used by ``images/environments.py``. uv keeps the unpacked source of every source package, with all that
its build has written there, and temporary directories of steps that were killed. Neither is needed
again (``uv cache prune --ci`` removes the same), and a hostile package can make them any size.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = "notebooks.lock"
UNPACKED = ("sdists-v*/**/src", "sdists-v*/.tmp*", "builds-v*/.tmp*", "archive-v*/.tmp*", ".tmp*")


@contextmanager
def in_use(cache: Path) -> Iterator[None]:
    """While one build uses ``cache``; the last of those that do so at once sweeps it."""
    cache.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(cache / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another build is at work; it will do it
        else:
            sweep(cache)
        finally:
            os.close(descriptor)


def sweep(cache: Path) -> None:
    """Removes what only takes room. Nobody builds."""
    for pattern in UNPACKED:
        for path in list(cache.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
