"""The operating system's processes of one server: found, watched, ended. Called by ``local.py``.

A notebook's kernels and terminals are sessions of their own and daemons leave their parents, so a
server's processes are found three ways: as descendants, in its session, and by a variable that
only this server's environment has.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

MARKER = "NOTEBOOKS_SERVER_DIRECTORY"
KILL_WAIT = 5.0
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


def identify(pid: int) -> dict[str, Any]:
    """What tells this process from a later one with the same number: pid and start time.

    The start is counted from the machine's own (``ticks`` of ``boot``): ``created``, the time of day,
    is another one as soon as somebody sets the clock.
    """
    try:
        created = psutil.Process(pid).create_time()
        return {"pid": pid, "created": created, "ticks": _ticks(pid), "boot": _boot()}
    except (psutil.NoSuchProcess, OSError):
        return {"pid": pid, "created": 0.0}


def recall(facts: Mapping[str, Any]) -> psutil.Process | None:
    """The living process that ``identify`` described, or None."""
    try:
        process = psutil.Process(int(facts["pid"]))
        if "ticks" in facts:
            same = (facts["ticks"], facts["boot"]) == (_ticks(process.pid), _boot())
        else:  # noted by an earlier version
            same = abs(process.create_time() - float(facts["created"])) <= 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, TypeError, ValueError, psutil.NoSuchProcess, OSError):
        return None


def _ticks(pid: int) -> int:
    """When a process began, in clock ticks since the machine did.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, field 22; a name may hold brackets.
    """
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


def _boot() -> str:
    """Which start of the machine this is. https://man7.org/linux/man-pages/man5/proc_sys_kernel.5.html"""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def belonging(directory: Path, main: psutil.Process | None) -> set[psutil.Process]:
    """Every living process of the server in ``directory``; reads the whole process table."""
    found: set[psutil.Process] = set()
    session = None
    if main is not None:
        with contextlib.suppress(*_GONE, ProcessLookupError):
            found.update([main, *main.children(recursive=True)])
            session = os.getsid(main.pid)
            session = session if session == main.pid else None
    for process in psutil.process_iter():
        with contextlib.suppress(*_GONE, ProcessLookupError, OSError):
            if (session is not None and os.getsid(process.pid) == session) or (
                process.environ().get(MARKER) == str(directory)
            ):
                found.add(process)
    return {process for process in found if _lives(process)}


def listens(main: psutil.Process, port: int) -> bool:
    """Whether the one who listens on this port of 127.0.0.1 is ``main`` or one of its descendants.

    Everybody on the machine may listen on a port that was free a moment ago, and would then be sent
    what is meant for the server. https://man7.org/linux/man-pages/man5/proc_net_tcp.5.html
    """
    wanted = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == wanted and row[3] == "0A"}
    ours: set[str] = set()
    with contextlib.suppress(*_GONE):
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        ours.add(str(descriptor.readlink()))
    return bool(sockets) and sockets <= ours


def kill_now(facts: Mapping[str, Any]) -> None:
    """SIGKILL to the process and its group, without looking any further and without waiting."""
    if (process := recall(facts)) is not None:
        _signal([process], signal.SIGKILL)
        with contextlib.suppress(OSError):
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)


async def end(directory: Path, facts: Mapping[str, Any], *, grace: float) -> None:
    """End every process of a server: SIGTERM and ``grace`` seconds, then SIGKILL.

    The main process alone gets the SIGTERM, so that it ends its kernels in good order; without one,
    all of them get it. Returns when none is left, or after a few seconds more if one cannot die.
    """
    main = recall(facts)
    mine = await asyncio.to_thread(belonging, directory, main)
    if mine and grace > 0:
        _signal([main] if main is not None else mine, signal.SIGTERM)
        await _gone([main] if main is not None else mine, grace)
    deadline = time.monotonic() + KILL_WAIT
    while True:
        mine = {p for p in mine if _lives(p)} | await asyncio.to_thread(belonging, directory, main)
        if not mine or time.monotonic() > deadline:
            return
        _signal(mine, signal.SIGKILL)
        await _gone(mine, 0.5)


async def _gone(processes: Iterable[psutil.Process], wait: float) -> None:
    left = list(processes)
    deadline = time.monotonic() + wait
    while left and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
        left = [process for process in left if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except _GONE:
        return False


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(*_GONE):
            process.send_signal(number)
