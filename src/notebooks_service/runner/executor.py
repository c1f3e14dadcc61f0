"""Runs one program of a job, and only here, behind the wall of the job's project.

The program gets the environment that it is given and nothing else, a session of its own, no input.
Whatever it starts ends with it (``supervisor``; and the wall's own end ends all that is behind it).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import psutil

from notebooks_service.walls.wall import SUPERVISOR, Inside, Walls

MARK = "NOTEBOOKS_RUNNER_MARK"
"""In the environment of everything that a job starts; finds what outlived its supervisor."""

GRACE = 3.0
"""Seconds between asking processes to end and making them."""

Cause = Literal["ended", "timeout", "stopped", "disk"]


@dataclass(frozen=True)
class Outcome:
    """How a program ended: its exit code (128 + n for signal n), and whether by itself."""

    exit_code: int
    cause: Cause


class Running(Protocol):
    """One program of a job. ``stop`` may be called from any thread, any number of times."""

    def run(self) -> Outcome:
        """Starts it and waits for its end. Raises ``OSError`` if it cannot be started."""

    def stop(self) -> None:
        """Ends it and everything it started; ``run`` returns soon after."""


class Executor(Protocol):
    """Where the programs of jobs run."""

    staged: bool
    """Whether environments are built into a place beside the job, behind its wall."""

    def execution(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None],
        timeout: float,
        inside: Inside,
        lack: Callable[[], str | None],
    ) -> Running:
        """One program, which does not run yet."""

    def own(self, path: Path, who: str) -> None:
        """Let the job have this directory."""

    def end(self, mark: str) -> None:
        """A job is over: nothing of it is left."""

    def clear(self) -> None:
        """Ends what an earlier runner, which was killed, has left."""

    def close(self) -> None:
        """The runner ends."""


class Processes:
    """Jobs as processes of this machine, behind a wall."""

    def __init__(self, walls: Walls) -> None:
        self._walls = walls
        self.staged = walls.hold

    def execution(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None],
        timeout: float,
        inside: Inside,
        lack: Callable[[], str | None] = lambda: None,
    ) -> Running:
        return Execution(
            command,
            directory=directory,
            environment=environment,
            output=output,
            timeout=timeout,
            walls=self._walls,
            inside=inside,
            lack=lack,
        )

    def own(self, path: Path, who: str) -> None:
        self._walls.own(path, who)

    def end(self, mark: str) -> None:
        """Every execution has swept its own."""

    def clear(self) -> None:
        """``leftovers`` finds processes by their marks."""

    def close(self) -> None:
        """Nothing is kept."""


class Execution:
    """One running program. ``stop`` may be called from any thread, any number of times."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None],
        timeout: float,
        walls: Walls,
        inside: Inside,
        lack: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(GRACE), *command]
        self._directory = directory
        self._environment = dict(environment)
        self._output = output
        self._walls = walls
        self._inside = inside
        self._lack = lack
        self._deadline = time.monotonic() + timeout
        self._lock = threading.Lock()
        self._cause: Cause = "ended"
        self._process: subprocess.Popen[bytes] | None = None
        self._asked_at: float | None = None

    def run(self) -> Outcome:
        """Starts the program and waits for its end. Raises ``OSError`` if it cannot be started."""
        with self._lock:
            if self._asked_at is not None:
                return Outcome(143, "stopped")
            with self._walls.around(
                self._inside,
                self._command,
                directory=self._directory,
                environment=self._environment,
                marks=(MARK, "HOME"),
                umask=0o022,
            ) as call:
                self._process = subprocess.Popen(
                    call.command,
                    cwd=call.directory,
                    env=call.environment,
                    pass_fds=call.descriptors,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            process = self._process
        reader = threading.Thread(target=self._read, args=(process,), daemon=True)
        reader.start()
        while process.poll() is None:
            moment = time.monotonic()
            if self._asked_at is None and moment > self._deadline:
                self._end("timeout")
            if self._asked_at is None and self._lack() is not None:
                self._end("disk")
            if self._asked_at is not None and moment > self._asked_at + GRACE + 4:
                # The supervisor did not manage: the job may have stopped or slowed it.
                process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
        sweep(self._environment.get(MARK, ""))
        # Nobody holds the other end any more; should somebody, the log is cut off here.
        reader.join(timeout=10)
        with contextlib.suppress(OSError):
            if process.stdin:
                process.stdin.close()
        return Outcome(process.returncode, self._cause)

    def stop(self) -> None:
        """Ends the program and everything it started; ``run`` returns soon after."""
        self._end("stopped")

    def _end(self, cause: Cause) -> None:
        with self._lock:
            if self._asked_at is not None:
                return
            self._asked_at = time.monotonic()
            if self._process is None or self._process.poll() is not None:
                return
            self._cause = cause
            with contextlib.suppress(OSError):
                if self._process.stdin:
                    self._process.stdin.close()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        while True:
            try:
                data = os.read(descriptor, 65_536)
            except OSError:
                return
            if not data:
                return
            self._output(data)


def sweep(mark: str) -> int:
    """Ends every process whose environment has this mark; how many there were."""
    if not mark:
        return 0
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(found, timeout=GRACE)
    return len(found)


def sweep_all(prefix: str) -> int:
    """Ends what a runner that was killed left behind: marks that begin with ``prefix``."""
    marks = set()
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK, "")
        except (psutil.Error, OSError):
            continue
        if mark.startswith(prefix):
            marks.add(mark)
    return sum(sweep(mark) for mark in marks)
