"""What Linux lets us say about processes: who dies with whom, who is whose, and how to end them.

Called by the supervisor and by ``notebooks up``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

# https://man7.org/linux/man-pages/man2/prctl.2.html
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number.

    ``created`` is in seconds since the machine's own start: the time of day, which psutil would add,
    is another one as soon as somebody sets the clock.
    """

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        return cls(pid, _created(pid))

    @classmethod
    def read(cls, file: Path) -> ProcessId | None:
        """What ``write`` wrote to ``file``; nothing if it is missing or was cut short."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            return cls(int(data["pid"]), float(data["created"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, file: Path) -> None:
        new = file.with_name(f".{file.name}.new")
        new.write_text(json.dumps(asdict(self)), encoding="utf-8")
        new.replace(file)

    def find(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_created(self.pid) - self.created) < 0.02
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def _created(pid: int) -> float:
    """https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html, field 22. Raises ``NoSuchProcess``."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def adopt_orphans() -> None:
    """From now on orphaned descendants become our children, so that none is lost to us."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def dies_with(parent: int) -> Callable[[], None]:
    """A ``preexec_fn``: the child is sent SIGTERM when ``parent``, which starts it, is gone."""

    def set_up() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return set_up


def end_all(
    find: Callable[[], Iterable[psutil.Process]],
    *,
    grace: float = 5.0,
    forced: Callable[[], bool] = lambda: False,
    reap: Callable[[], None] = lambda: None,
) -> None:
    """End every process that ``find`` names, again and again until it names none.

    Each is asked (SIGTERM), and after ``grace`` seconds or when ``forced`` says so made to end
    (SIGKILL). Gives up 5 s after the last kill: then the kernel itself holds them.
    """
    asked: set[psutil.Process] = set()
    start = time.monotonic()
    while True:
        reap()
        left = [process for process in find() if _alive(process)]
        if not left or time.monotonic() > start + grace + 5:
            return
        kill = forced() or time.monotonic() > start + grace
        for process in left:
            try:
                if kill:
                    process.kill()
                elif process not in asked:
                    asked.add(process)
                    process.terminate()
            except psutil.Error:
                continue
        time.sleep(0.05)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
