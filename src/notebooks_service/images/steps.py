"""Runs one step of a build, a program of others, and streams what it says; used by ``images/uv.py``
and ``images/builders.py``. Whatever the step has started ends with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from notebooks_service.images.limits import LOOK, Watchdog
from notebooks_service.images.log import BuildLog, cleaned

LINES_KEPT = 200
LINE_LENGTH = 4096
"""Bytes of a line that are kept: whoever prints a hundred megabytes without an end gets no more."""
LOG_LIMIT = 8 * 2**20
"""Bytes that one step may say; what comes after is not written down."""


def attempt(
    log: BuildLog,
    cwd: Path,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    inherited: tuple[int, ...] = (),
    watchdog: Watchdog | None = None,
) -> tuple[int, list[str]]:
    """Runs a step that may fail; gives its exit code and its last 200 lines.

    ``inherited``: descriptors that it keeps open. ``watchdog`` ends a step that takes too much.
    """
    lines: list[str] = []
    written = 0
    process = subprocess.Popen(
        list(command),
        env=dict(environ),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=inherited,
        # A group of its own, so that what a package's build has started ends with it.
        start_new_session=True,
    )
    try:
        for line in _lines(process, watchdog):
            lines = [*lines, line][-LINES_KEPT:]
            if written <= LOG_LIMIT:
                log.line(f"  {line}")
                written += len(line)
                if written > LOG_LIMIT:
                    log.line("  (It says more than is written down here.)")
    finally:
        end_group(process)
    return process.returncode, lines


def _lines(process: subprocess.Popen[bytes], watchdog: Watchdog | None) -> Iterator[str]:
    """What ``process`` says, until it ends; raises what the watchdog has against it."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    rest = b""
    while True:
        if watchdog is not None:
            watchdog.check()
        ready, _, _ = select.select([descriptor], [], [], LOOK)
        if not ready:
            # A daemon may hold the other end for ever.
            if process.poll() is None:
                continue
            break
        data = os.read(descriptor, 65_536)
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield _text(line)
        rest = rest[:LINE_LENGTH]
    if rest:
        yield _text(rest)
    while process.poll() is None:
        if watchdog is not None:
            watchdog.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK)


def _text(line: bytes) -> str:
    return cleaned(line[:LINE_LENGTH].decode(errors="replace"))


def end_group(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ends a process that leads a group, and whatever is left of the group."""
    if process.poll() is None:
        # It removes what it has begun, if it is asked.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
