"""The logs of jobs: one file each, only ever appended to, written by the runner's routes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from notebooks_service.forge.config import ForgeConfig

TRACE_LIMIT = 16 * 1024 * 1024
"""Bytes of one log; a longer one ends its job, as GitLab's ``ci_jobs_trace_size_limit`` does."""

_locks = [threading.Lock() for _ in range(64)]


def _path(config: ForgeConfig, project_id: int, job_id: int) -> Path:
    return config.root / "traces" / str(project_id) / f"{job_id}.log"


@contextmanager
def _locked(job_id: int) -> Iterator[None]:
    with _locks[job_id % len(_locks)]:
        yield


def size(config: ForgeConfig, project_id: int, job_id: int) -> int:
    """Bytes so far."""
    try:
        return _path(config, project_id, job_id).stat().st_size
    except FileNotFoundError:
        return 0


def read(config: ForgeConfig, project_id: int, job_id: int, offset: int = 0) -> bytes:
    """The log from ``offset`` on; empty if there is none."""
    try:
        with _path(config, project_id, job_id).open("rb") as stream:
            stream.seek(offset)
            return stream.read(TRACE_LIMIT)
    except FileNotFoundError:
        return b""


def append(
    config: ForgeConfig, project_id: int, job_id: int, data: bytes, offset: int
) -> tuple[int, bool]:
    """Adds ``data`` if the log ends at ``offset``: (its size now, whether it was added).

    Anything else is left to the sender, who learns the size and sends again from there.
    """
    path = _path(config, project_id, job_id)
    with _locked(job_id):
        known = size(config, project_id, job_id)
        if known != offset:
            return known, False
        if not data:
            return known, True
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.lseek(descriptor, offset, os.SEEK_SET)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError:
            # A full disk may have taken a part; the rest will be sent again from the old end.
            os.ftruncate(descriptor, offset)
            raise
        finally:
            os.close(descriptor)
        return offset + len(data), True


def write_note(config: ForgeConfig, project_id: int, job_id: int, text: str) -> None:
    """Adds a line of the forge's own to the end of the log, where no runner can."""
    data = f"\n\x1b[31;1m{text}\x1b[0;m\n".encode()
    append(config, project_id, job_id, data, size(config, project_id, job_id))


def remove(config: ForgeConfig, project_id: int, job_id: int) -> None:
    with _locked(job_id):
        _path(config, project_id, job_id).unlink(missing_ok=True)


def remove_project(config: ForgeConfig, project_id: int) -> None:
    """All logs of a project that is no more."""
    shutil.rmtree(config.root / "traces" / str(project_id), ignore_errors=True)
