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
_LISTENING = "0A"
_LOCAL = ("0100007F", "00000000", "0" * 32, "0000000000000000FFFF00000100007F")
"""127.0.0.1, all of IPv4, all of both, and 127.0.0.1 as IPv6 writes it."""
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
    """Whether ``main`` and its descendants, and nobody else, listen where 127.0.0.1 has this port.

    Everybody on the machine may listen on a port that was free a moment ago, and would then be sent
    what is meant for the server.
    """
    return (sockets := _listeners(port)) != set() and sockets <= _sockets(main)


def taken(main: psutil.Process, port: int) -> bool:
    """Whether somebody else listens there, or also: the server no longer has its port for itself."""
    return not _listeners(port) <= _sockets(main)


def _listeners(port: int) -> set[str]:
    """The sockets that 127.0.0.1 with this port may lead to, those of all addresses too.

    https://man7.org/linux/man-pages/man5/proc_net_tcp.5.html
    """
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # no IPv6 here
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                row = line.split()
                address, _, number = row[1].partition(":")
                if row[3] == _LISTENING and int(number, 16) == port and address in _LOCAL:
                    found.add(f"socket:[{row[9]}]")
    return found


def _sockets(main: psutil.Process) -> set[str]:
    """What ``main`` and its descendants have open."""
    ours: set[str] = set()
    with contextlib.suppress(*_GONE):
        for process in (main, *main.children(recursive=True)):
            with contextlib.suppress(OSError):
                for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
                    with contextlib.suppress(OSError):
                        ours.add(str(descriptor.readlink()))
    return ours


async def ended(facts: Mapping[str, Any]) -> None:
    """Return as soon as the process that ``identify`` described has ended.

    https://man7.org/linux/man-pages/man2/pidfd_open.2.html (Linux 5.3). Where there is none, this
    waits for ever: whoever asks from time to time finds out.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    if (process := recall(facts)) is None:
        return
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):
        return await over
    try:
        if recall(facts) is None:
            return  # the number may be somebody else's by now
        loop.add_reader(descriptor, _settle, over)
        await over
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _settle(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


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
        _signal([_command(main)] if main is not None else mine, signal.SIGTERM)
        await _gone([main] if main is not None else mine, grace)
    deadline = time.monotonic() + KILL_WAIT
    while True:
        mine = {p for p in mine if _lives(p)} | await asyncio.to_thread(belonging, directory, main)
        if not mine or time.monotonic() > deadline:
            return
        _signal(mine, signal.SIGKILL)
        await _gone(mine, 0.5)


def _command(main: psutil.Process) -> psutil.Process:
    """Whom a SIGTERM is for. Our launcher hands one on; bubblewrap does not, it ends with all inside.

    Its own first process inside has the command as its oldest child.
    https://github.com/containers/bubblewrap/issues/369
    """
    found = main
    with contextlib.suppress(*_GONE):
        while found.name() == "bwrap" and (children := found.children()):
            found = min(children, key=lambda child: child.create_time())
    return found


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
