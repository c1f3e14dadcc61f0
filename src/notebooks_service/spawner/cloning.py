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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import notebooks_service
from notebooks_service.errors import CloneFailed
from notebooks_service.spawner.directories import ServerDirectory
from notebooks_service.spawner.runtime import ServerPlan, Tell

log = logging.getLogger(__name__)

CARRIED = Path(notebooks_service.__file__).parent / "singleuser"
UNSAVED_WAIT = 20.0
TELL_EVERY = 0.5
_LONGEST_LINE = 64 * 1024


async def run_clone(
    programs: Path,
    directory: ServerDirectory,
    plan: ServerPlan,
    environment: Mapping[str, str],
    wait: float,
    tell: Tell,
) -> Mapping[str, Any]:
    """Clone the plan's commit into ``work``; what was checked out, as ``clone.py`` says it.

    Raises ``CloneFailed`` with its sentence. A cancel kills the clone with everything it started.
    """
    environ = {
        **environment,
        "NOTEBOOKS_WORK_DIR": str(directory.work),
        "NOTEBOOKS_AUTHOR_NAME": plan.person.name,
        "NOTEBOOKS_AUTHOR_EMAIL": plan.person.email,
    }
    output = directory.open_log(directory.clone_log)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            str(programs / "clone.py"),
            cwd=directory.work,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
            limit=_LONGEST_LINE,
        )
    finally:
        os.close(output)
    try:
        last = await asyncio.wait_for(_listen(process, tell), wait)
        code = await process.wait()
    except TimeoutError:
        raise CloneFailed(
            f"The clone took longer than {wait:.0f} seconds and was given up; nothing was changed."
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        raise CloneFailed(_sentence(last), exit_code=code)
    return {key: value for key, value in last.items() if key not in ("message", "error")}


async def run_unsaved(
    programs: Path, directory: ServerDirectory, folder: str, environment: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """Uncommitted files and unpushed commits, as ``unsaved.py`` says them; None if it cannot."""
    repository = directory.work / folder
    if not repository.is_dir():
        return None
    environ = {**environment, "NOTEBOOKS_WORK_DIR": str(directory.work)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(programs / "unsaved.py"),
        str(repository),
        cwd=repository,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), UNSAVED_WAIT)
        data = json.loads(output)
    except (TimeoutError, ValueError):
        log.warning("What is unsaved in %s cannot be said", directory.path.name)
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    return data if process.returncode == 0 and isinstance(data, dict) else None


async def _listen(process: asyncio.subprocess.Process, tell: Tell) -> dict[str, Any]:
    """Pass progress on, not too often; the last line that was an object."""
    assert process.stdout is not None
    last: dict[str, Any] = {}
    told = 0.0
    async for line in process.stdout:
        try:
            data = json.loads(line)
        except ValueError:
            continue
        if not isinstance(data, dict):
            continue
        last = data
        if isinstance(data.get("message"), str) and time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            tell(data["message"], {k: v for k, v in data.items() if k != "message"})
    return last


def _sentence(last: Mapping[str, Any]) -> str | None:
    message = last.get("message") or last.get("error")
    return message if isinstance(message, str) else None
