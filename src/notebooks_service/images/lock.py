"""A lock on a file that the programs a build starts hold too; used by ``images/environments.py``.

``filelock`` would do but for one thing: a builder that is killed may leave its ``uv`` behind, still
writing. The open file is inherited by ``uv``, and the kernel keeps the lock until both are gone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_SECONDS = 0.1


def try_lock(path: Path) -> int | None:
    """The descriptor of the locked file (close it to unlock), or None if somebody holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def held(path: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Holds the lock at ``path`` and gives its descriptor; calls ``waiting`` once if it is taken."""
    descriptor = try_lock(path)
    if descriptor is None:
        waiting()
    while descriptor is None:
        time.sleep(POLL_SECONDS)
        descriptor = try_lock(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
