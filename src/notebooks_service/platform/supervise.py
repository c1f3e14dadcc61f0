"""Starts the parts of the platform as processes, keeps them running, and ends them all.

Called by ``notebooks up``. One thread, one loop: children are started, reaped and watched from it,
because the kernel's death signal of a child follows the thread that started it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.processes import ProcessId, adopt_orphans, dies_with, end_all

FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
STEADY = 60.0
"""Seconds after which a part that crashed counts as healthy again: its next delay is the first."""

LOG_BYTES = 10_000_000
LOG_KEPT = 3


class Stopped(Exception):
    """Somebody asked for the end (Ctrl-C, SIGTERM, SIGHUP)."""


@dataclass(frozen=True)
class Part:
    """One process of the platform.

    ``ready`` asks, within about a second, whether it answers. ``after_restart`` is called when it
    answers again after a crash. ``start_wait`` is in seconds. Parts that ``end_first`` end before
    all others.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ready: Callable[[], bool]
    after_restart: Callable[[], None] = lambda: None
    start_wait: float = 60.0
    end_first: bool = False


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    delay: float = FIRST_DELAY
    again_at: float | None = None
    answering: bool = False
    starting: bool = True
    log_start: int = 0


@dataclass
class Supervisor:
    """The parts that run. ``run`` and ``logs`` are directories; ``say`` gets one sentence at a time.

    ``others`` names further processes to end at the stop that are no descendants of ours, as
    notebook servers are that an earlier, killed ``up`` left running.
    """

    run: Path
    logs: Path
    cwd: Path
    say: Callable[[str], None]
    others: Callable[[], Sequence[psutil.Process]] = list
    log_bytes: int = LOG_BYTES
    _parts: list[_Running] = field(default_factory=list)
    _asked: int = 0
    _wake: tuple[int, int] = (-1, -1)
    _looked_at_logs: float = 0.0

    @contextlib.contextmanager
    def supervising(self) -> Iterator[None]:
        """While it lasts, signals are ours and orphans come to us; at its end every part is ended."""
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = (read, write)
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in wanted}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        adopt_orphans()
        try:
            yield
        finally:
            self.stop()
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def end_leftovers(self, names: Sequence[str]) -> None:
        """End the parts that an earlier ``up`` of this data left behind, if any still run."""
        found = []
        for name in names:
            known = ProcessId.read(self._pid_file(name))
            process = known.find() if known else None
            if process:
                found.append(process)
        if found:
            self.say("Ending what an earlier start left running.")
            end_all(lambda: found)
        for name in names:
            self._pid_file(name).unlink(missing_ok=True)

    def start(self, *parts: Part) -> None:
        """Start ``parts`` side by side and wait until all of them answer.

        Raises ``PlatformFailed`` with the end of its log when one ends or stays silent instead, and
        ``Stopped`` when somebody asks for the end meanwhile.
        """
        group = [_Running(part) for part in parts]
        self._parts += group
        for running in group:
            self._spawn(running)
        while waiting := [running for running in group if running.starting]:
            self._tick(0.05)
            for running in waiting:
                part = running.part
                if running.process is None:
                    raise PlatformFailed(
                        f"The {part.name} ended before it answered. {self._last_words(running)}"
                    )
                if part.ready():
                    running.answering = True
                    running.starting = False
                elif time.monotonic() > running.started + part.start_wait:
                    raise PlatformFailed(
                        f"The {part.name} did not answer within {part.start_wait:.0f} seconds. {self._last_words(running)}"
                    )

    def watch(self) -> None:
        """Keep the parts running until somebody asks for the end; then return."""
        with contextlib.suppress(Stopped):
            while True:
                self._tick(0.5)

    def stop(self) -> None:
        """End every part, then every descendant that is left."""
        if self._parts:
            self.say("Stopping.")
        for first in (True, False):
            group = [running for running in self._parts if running.part.end_first is first]
            processes = _processes([part.process.pid for part in group if part.process])
            end_all(
                lambda processes=processes: processes,  # type: ignore[misc]
                grace=8,
                forced=self._forced,
                reap=self._reap,
            )
        own = psutil.Process()
        descendants = functools.partial(own.children, recursive=True)
        end_all(descendants, forced=self._forced, reap=self._reap)
        # By themselves, because to find them means to look at every process of the machine.
        end_all(self.others, forced=self._forced, reap=self._reap)
        self._reap()
        for running in self._parts:
            self._pid_file(running.part.name).unlink(missing_ok=True)
        self._parts.clear()

    def _forced(self) -> bool:
        return self._asked > 1

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1

    def _pid_file(self, name: str) -> Path:
        return self.run / f"{name}.json"

    def _log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _spawn(self, running: _Running) -> None:
        part = running.part
        path = self._log_file(part.name)
        # The mode is for a log that is new: nobody else reads it.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        running.log_start = path.stat().st_size
        try:
            running.process = subprocess.Popen(
                part.command,
                env=dict(part.environment),
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal reaches us alone; we say who ends when.
                start_new_session=True,
                # We have one thread, so the child's few calls before exec are safe.
                preexec_fn=dies_with(os.getpid()),
            )
        except OSError as error:
            raise PlatformFailed(f"The {part.name} could not be started: {error}.") from None
        finally:
            os.close(descriptor)
        running.started = time.monotonic()
        running.again_at = None
        running.answering = False
        with contextlib.suppress(psutil.Error):
            ProcessId.of(running.process.pid).write(self._pid_file(part.name))

    def _tick(self, seconds: float) -> None:
        """One turn of the loop: sleep until something happens, reap, restart. Raises ``Stopped``."""
        with contextlib.suppress(InterruptedError):
            if select.select([self._wake[0]], [], [], seconds)[0]:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake[0], 4096)
        if self._asked:
            raise Stopped
        self._reap()
        for running in self._parts:
            self._mind(running)
        self._rotate_logs()

    def _reap(self) -> None:
        """Take in every child that has ended: parts, and orphans that became ours."""
        parts = {running.process.pid: running for running in self._parts if running.process}
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            running = parts.get(ended.si_pid)
            if running and running.process:
                running.process.poll()
            else:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(ended.si_pid, os.WNOHANG)

    def _mind(self, running: _Running) -> None:
        """Restart a part that has ended, when its delay is over; tell when it answers again."""
        now = time.monotonic()
        part = running.part
        if running.process and running.process.returncode is not None:
            code = running.process.returncode
            if now - running.started > STEADY:
                running.delay = FIRST_DELAY
            running.process = None
            if running.starting:
                return
            running.again_at = now + running.delay
            self.say(
                f"The {part.name} ended ({_how_it_ended(code)}); starting it again in {running.delay:.0f} s. Its log: {self._log_file(part.name)}"
            )
            running.delay = min(running.delay * 2, LONGEST_DELAY)
        elif running.again_at is not None and now >= running.again_at:
            self._spawn(running)
        elif running.process and not running.starting and not running.answering and part.ready():
            running.answering = True
            part.after_restart()
            self.say(f"The {part.name} answers again.")

    def _last_words(self, running: _Running) -> str:
        path = self._log_file(running.part.name)
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(running.log_start, path.stat().st_size - 4000))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
            lines = [line for line in lines if line]
            if lines:
                return f"Its last words: {lines[-1][:300]} (all of them: {path})"
        return f"Its log is {path}."

    def _rotate_logs(self) -> None:
        """Copy a log that has grown too large aside, and cut it: its writer appends, so it goes on."""
        now = time.monotonic()
        if now < self._looked_at_logs + 5:
            return
        self._looked_at_logs = now
        for running in self._parts:
            path = self._log_file(running.part.name)
            with contextlib.suppress(OSError):
                if path.stat().st_size > self.log_bytes:
                    rotate(path)


def rotate(path: Path) -> None:
    """``path`` → ``path.1`` → … → ``path.3``, and ``path`` itself empty."""
    for number in range(LOG_KEPT, 1, -1):
        older = path.with_name(f"{path.name}.{number - 1}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number}"))
    shutil.copy2(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def _processes(pids: Sequence[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
