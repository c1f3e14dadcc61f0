"""Stands between us and a program that runs a project's code; ends everything that it started.

Run as a file (standard library only) by the runner for each step of a job, and by ``images/default.py``:
``supervisor.py <grace> <program> <arguments…>``. It is the reaper of all its descendants, so a daemon
that detached itself is found too. It ends them when the program has ended, when somebody writes to its
standard input, and when whoever started it dies (end of file there). Its own exit code is the program's, 128 + n for one ended by signal n.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def descendants() -> list[int]:
    """Process ids of all living descendants of this process, from /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue
            # The name in parentheses may itself hold anything.
            state, parent = stat.rpartition(b") ")[2].split(b" ", 2)[:2]
            if state not in (b"Z", b"X"):
                parents[int(entry.name)] = int(parent)
    found: list[int] = []
    for pid in parents:
        above, steps = parents.get(pid), 0
        while above is not None and above != os.getpid() and steps < 10_000:
            above, steps = parents.get(above), steps + 1
        if above == os.getpid():
            found.append(pid)
    return found


def signal_all(number: int) -> bool:
    """Sends a signal to every descendant; whether there was one."""
    found = descendants()
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return bool(found)


def reap() -> dict[int, int]:
    """Takes back every ended child: process id to wait status."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def end_all(grace: float, main: int | None) -> int | None:
    """Asks every descendant to end, and makes it after ``grace`` seconds. The main one's status."""
    status: int | None = None
    end = time.monotonic() + grace
    asked = False
    while True:
        ended = reap()
        if main is not None and main in ended:
            status = ended[main]
        if not asked:
            alive, asked = signal_all(signal.SIGTERM), True
        elif time.monotonic() < end:
            alive = bool(descendants())
        else:
            # Held still first, so that none of them can make new ones meanwhile.
            signal_all(signal.SIGSTOP)
            alive = signal_all(signal.SIGKILL)
        if not alive and not descendants():
            final = reap()
            return final.get(main, status) if main is not None else status
        time.sleep(0.01)


def main() -> int:
    grace = float(sys.argv[1])
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.closerange(3, 256)
        try:
            os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606
        finally:
            os._exit(127)
    status: int | None = None
    stopped = False
    while status is None and not stopped:
        ready, _, _ = select.select([0, wake_read], [], [])
        if wake_read in ready:
            signals = os.read(wake_read, 4096)
            stopped = signal.SIGTERM in signals
        if 0 in ready:
            stopped = True
        status = reap().get(pid)
    rest = end_all(grace if stopped else min(grace, 1.0), pid if status is None else None)
    status = rest if status is None else status
    if status is None:
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
