"""Runs the programs of ``singleuser/`` beside a server: the clone, and what is unsaved.

They are carried, not imported: standard library only, told everything by environment variables.
Called by ``local.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import notebooks_service
from notebooks_service.errors import CloneFailed, NoSpace
from notebooks_service.spawner.directories import ServerDirectory
from notebooks_service.spawner.runtime import ServerPlan, Tell
from notebooks_service.walls.wall import Call

log = logging.getLogger(__name__)

Around = Callable[..., AbstractContextManager[Call]]
"""Puts a command behind the server's wall: called as ``around(command, directory=…, environment=…)``."""

CARRIED = Path(notebooks_service.__file__).parent / "singleuser"
UNSAVED_WAIT = 20.0
TELL_EVERY = 0.5
LAST_WORDS_WAIT = 0.5
_LONGEST_LINE = 64 * 1024


async def run_clone(
    programs: Path,
    directory: ServerDirectory,
    plan: ServerPlan,
    environment: Mapping[str, str],
    wait: float,
    tell: Tell,
    around: Around,
) -> Mapping[str, Any]:
    """Clone the plan's commit into ``work``; what was checked out, as ``clone.py`` says it.

    Raises ``CloneFailed`` with its sentence. A cancel kills the clone with everything it started.
    """
    environ = {
        **environment,
        "NOTEBOOKS_WORK_DIR": str(directory.work),
        "NOTEBOOKS_AUTHOR_NAME": plan.person.name,
        "NOTEBOOKS_AUTHOR_EMAIL": plan.person.email,
        **plan.clone,
    }
    heard = CloneWords(tell)
    errors = directory.open_log(directory.clone_log)
    try:
        program = [str(programs / "clone.py")]
        code = await _run(program, directory.work, environ, errors, wait, heard.hear, around)
    except TimeoutError:
        raise too_slow(wait) from None
    finally:
        os.close(errors)
    return heard.facts(code)


_ENDED = (
    "The clone was ended before it was done, as by a restart of this machine or of its container engine; "
    "nothing was changed. Try again."
)


class CloneWords:
    """What ``clone.py`` says while it runs, and what came of it; however it is run."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._last: dict[str, Any] = {}
        self._told = 0.0

    def hear(self, data: dict[str, Any]) -> None:
        """One of its objects; people are told of some."""
        self._last = dict(data)
        if isinstance(data.get("message"), str) and time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            self._tell(data["message"], {k: v for k, v in data.items() if k != "message"})

    def facts(self, code: int) -> Mapping[str, Any]:
        """What was checked out, if ``code`` is 0. Raises ``CloneFailed`` or ``NoSpace`` otherwise."""
        last = self._last
        if code != 0:
            if last.get("error") == "no_space":
                raise NoSpace()
            if last.get("error") == "no_room":
                raise NoSpace(_sentence(last))
            # A launch that people cancel does not come here; and what it said before it was ended is no reason.
            ended = code < 0 or code > 128
            said = _sentence(last) if last.get("phase") == "failed" else None
            raise CloneFailed(_ENDED if ended else said, exit_code=code)
        self._tell(_sentence(last) or "The repository is there.", {})
        for note in last.get("notes") or ():
            self._tell(str(note), {})
        return {key: value for key, value in last.items() if key not in ("message", "phase")}


def too_slow(wait: float) -> CloneFailed:
    """A clone that was given up after ``wait`` seconds."""
    return CloneFailed(
        f"The clone took longer than {wait:.0f} seconds and was given up; nothing was changed."
    )


async def run_unsaved(
    programs: Path,
    directory: ServerDirectory,
    folder: str,
    environment: Mapping[str, str],
    around: Around,
) -> Mapping[str, Any] | None:
    """Uncommitted files and unpushed commits, as ``unsaved.py`` says them; None if it cannot."""
    repository = directory.work / folder
    if not is_folder(folder) or not repository.is_dir():
        return None
    environ = {**environment, "NOTEBOOKS_WORK_DIR": str(directory.work)}
    said: list[dict[str, Any]] = []
    program = [str(programs / "unsaved.py"), str(repository)]
    try:
        code = await _run(
            program,
            repository,
            environ,
            asyncio.subprocess.DEVNULL,
            UNSAVED_WAIT,
            said.append,
            around,
        )
    except TimeoutError:
        code = -1
    if code != 0 or not said:
        log.warning("What is unsaved in %s cannot be said", directory.path.name)
        return None
    return said[-1]


async def _run(
    program: list[str],
    cwd: Path,
    environ: Mapping[str, str],
    errors: int,
    wait: float,
    hear: Callable[[dict[str, Any]], None],
    around: Around,
) -> int:
    """Run one of the programs; its exit code. Each JSON object that it prints goes to ``hear``.

    The pipe is ours and not asyncio's, whose ``wait()`` ends only when everything that holds the
    pipe has ended: a git daemon that a clone leaves behind would keep it open. Raises
    ``TimeoutError``; whatever ends this early kills the program and its group.
    """
    reading, writing = os.pipe()
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", buffering=0)
    )
    listener = asyncio.create_task(_listen(reader, hear))
    try:
        try:
            command = [sys.executable, "-I", *program]
            with around(command, directory=cwd, environment=environ) as call:
                process = await asyncio.create_subprocess_exec(
                    *call.command,
                    cwd=call.directory,
                    env=call.environment,
                    pass_fds=call.descriptors,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=writing,
                    stderr=errors,
                    start_new_session=True,
                )
        finally:
            os.close(writing)
        try:
            code = await asyncio.wait_for(process.wait(), wait)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        await asyncio.wait([listener], timeout=LAST_WORDS_WAIT)
        return code
    finally:
        listener.cancel()
        transport.close()


async def _listen(reader: asyncio.StreamReader, hear: Callable[[dict[str, Any]], None]) -> None:
    while line := await _line(reader):
        if (data := said(line)) is not None:
            hear(data)


def said(line: bytes) -> dict[str, Any] | None:
    """The object that one of our programs has printed as a line; None if that is something else."""
    try:
        data = json.loads(line)
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


async def _line(reader: asyncio.StreamReader) -> bytes:
    """The next line; one that is too long is no line of ours and counts as an empty one."""
    try:
        return await reader.readline()
    except ValueError:
        return b"\n"


def is_folder(name: str) -> bool:
    """Whether what a clone calls its folder is the name of one: it is said by what runs inside."""
    return bool(name) and name not in (".", "..") and Path(name).name == name


def _sentence(last: Mapping[str, Any]) -> str | None:
    message = last.get("message")
    return message if isinstance(message, str) else None
