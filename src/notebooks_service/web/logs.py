"""What launches and servers have written: a job's log at the forge, a server's own files.

Called by the event streams and by the route ``logs/<name>``. Whatever is read here was written by
strangers: it is text, bounded in size, and its files are opened without following links.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response

from notebooks_service.domain import LaunchRecord, LaunchStep, Project
from notebooks_service.errors import (
    ForgeUnavailable,
    InvalidRequest,
    NotebooksError,
    NotFound,
    SignInExpired,
)
from notebooks_service.gitlab.forge import Forge
from notebooks_service.web.parts import Parts
from notebooks_service.web.sign_in import Person
from notebooks_service.web.visits import Visit, visit

LARGEST_PIECE = 64 * 1024
MOST_PER_WATCHER = 2 * 1024 * 1024
LARGEST_LOG = 8 * 1024 * 1024
MOST_TAIL = 100_000

# Terminal escapes (colours, GitLab's section markers) and other control characters but tab and newline.
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
# Options hold no bracket here, or a log of nothing but opened ones would take time without end.
_SECTION = re.compile(r"section_(?:start|end):\d+:[\w.\-]+(?:\[[^\[\]\n]*\])?\r?")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")

Step = Literal["image", "clone", "server", "launch"]
Tail = Annotated[int, Query(ge=1, le=MOST_TAIL)]

router = APIRouter(tags=["servers"])


@dataclass(frozen=True)
class Piece:
    """Part of a log: plain text, the byte offset after it, and whether something was left out before."""

    text: str
    end: int
    cut: bool = False


def plain(text: str) -> str:
    """A log as text: no escapes, no section markers; of a line drawn again and again the last state."""
    text = _SECTION.sub("", _ESCAPES.sub("", text.replace("\r\n", "\n")))
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _CONTROL.sub("", "\n".join(lines))


def whole_lines(data: bytes, *, last: bool) -> bytes:
    """The beginning of ``data`` that can be shown now: up to its last newline, or all at the end.

    A line longer than ``LARGEST_PIECE`` is cut between two characters.
    """
    if last or not data:
        return data
    newline = data.rfind(b"\n")
    if newline >= 0:
        return data[: newline + 1]
    if len(data) < LARGEST_PIECE:
        return b""
    end = len(data)
    while end > len(data) - 4 and (data[end - 1] & 0xC0) == 0x80:
        end -= 1
    return data[: end - 1] if data[end - 1] & 0x80 else data[:end]


class JobLog:
    """A job's log, read bit by bit with the person's own forge token. Not to be shared."""

    def __init__(self, parts: Parts, person: Person) -> None:
        self._parts = parts
        self._person = person
        self._forge: Forge | None = None
        self._project: Project | None = None
        self._sent = 0
        self._finished: int | None = None

    def close(self) -> None:
        if self._forge is not None:
            self._forge.close()
            self._forge = None

    async def read(
        self, project_path: str, job: int, offset: int, step: LaunchStep
    ) -> AsyncIterator[Piece]:
        """What the log has more than ``offset`` bytes; once to its end when the image step is over.

        A forge that is away, or a log that may not be read, is no more text for now.
        """
        if self._finished == job or self._sent > MOST_PER_WATCHER:
            return
        last = step is not LaunchStep.IMAGE
        try:
            data = await self._trace(project_path, job, offset)
        except (ForgeUnavailable, NotFound):
            return
        except SignInExpired:
            self.close()
            return
        if last:
            self._finished = job
        cut = len(data) > MOST_PER_WATCHER
        if cut:
            skipped = len(data) - MOST_PER_WATCHER
            skipped = data.find(b"\n", skipped) + 1 or skipped
            offset, data = offset + skipped, data[skipped:]
        shown = whole_lines(data, last=last)
        for start in range(0, len(shown), LARGEST_PIECE):
            piece = shown[start : start + LARGEST_PIECE]
            self._sent += len(piece)
            yield Piece(plain(piece.decode("utf-8", "replace")), offset + start + len(piece), cut)
            cut = False

    async def _trace(self, project_path: str, job: int, offset: int) -> bytes:
        if self._forge is None:
            token = await self._parts.hub.forge_token(self._person.name)
            self._forge = self._parts.forge(token)
        if self._project is None or self._project.path != project_path:
            self._project = await asyncio.to_thread(self._forge.project, project_path)
        return await asyncio.to_thread(self._forge.ci.trace, self._project, job, offset)


def read_file(root: Path, *names: str) -> bytes:
    """The last ``LARGEST_LOG`` bytes of a regular file below ``root``, or nothing.

    The directories belong to whoever runs code in them: no link is followed at any step, and only a
    file with a single name is read, so that no other file can be put in its place.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    if any(name in ("", ".", "..") or "/" in name for name in names):
        return b""
    opened: list[int] = []
    try:
        opened.append(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for name in names[:-1]:
            opened.append(os.open(name, flags | os.O_DIRECTORY, dir_fd=opened[-1]))
        file = os.open(names[-1], flags | os.O_NONBLOCK, dir_fd=opened[-1])
        opened.append(file)
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
            return b""
        return os.pread(file, LARGEST_LOG, max(0, facts.st_size - LARGEST_LOG))
    except OSError:
        return b""
    finally:
        for each in opened:
            os.close(each)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and end (exclusive) of a ``Range`` header with one range; None for the whole.

    Raises ``InvalidRequest`` with status 416 for a range outside. RFC 9110, 14.2.
    """
    found = _RANGE.match(header or "")
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(0, size - int(last)), size
    if start >= size or start >= end:
        error = InvalidRequest("The log has no such range.")
        error.status = 416
        raise error
    return start, end


@router.get("/logs/{name}", summary="The log of a server or of its launch", tags=["servers"])
async def show_log(
    request: Request, name: str, step: Step | None = None, tail: Tail | None = None
) -> Response:
    """Plain text. `step`: `image` (the CI job's log), `clone`, `server`, `launch`; without it all but the
    job's. `tail`: only that many last lines. Takes a `Range` of bytes."""
    async with visit(request) as visited:
        server = visited.server(name)
        if server is None:
            raise NotFound
        text = await _log(visited, name, server.record, step)
    if tail is not None:
        text = "\n".join(text.rstrip("\n").split("\n")[-tail:]) + "\n"
    data = text.encode()
    headers = {"Accept-Ranges": "bytes"}
    bounds = byte_range(request.headers.get("range"), len(data))
    if bounds is None:
        return PlainTextResponse(data, headers=headers)
    start, end = bounds
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return PlainTextResponse(data[start:end], status_code=206, headers=headers)


async def last_lines(visited: Visit, name: str, record: LaunchRecord, lines: int) -> str:
    """The end of the log that says most about how a launch failed; empty if there is none to read."""
    step = {
        LaunchStep.IMAGE: "image",
        LaunchStep.CLONE: "clone",
        LaunchStep.STARTING: "server",
    }.get(record.step)
    if step is None:
        return ""
    try:
        text = await _log(visited, name, record, step)
    except NotebooksError:
        return ""
    return "\n".join(text.rstrip().split("\n")[-lines:])


async def _log(visited: Visit, name: str, record: LaunchRecord | None, step: str | None) -> str:
    if step == "image":
        job = int(record.job.get("id") or 0) if record and record.job else 0
        if record is None or not job:
            raise NotFound
        project = await visited.ask(visited.forge.project, record.project_path)
        data = await visited.ask(visited.forge.ci.trace, project, job, 0)
        return plain(data[-LARGEST_LOG:].decode("utf-8", "replace"))
    if step == "launch":
        return _events(record)
    if step in ("clone", "server"):
        return await _file(visited, name, f"{step}.log")
    sections = [
        ("launch", _events(record)),
        ("clone", await _file(visited, name, "clone.log")),
        ("server", await _file(visited, name, "server.log")),
    ]
    return "\n".join(f"== {title} ==\n{text}" for title, text in sections if text)


def _events(record: LaunchRecord | None) -> str:
    if record is None:
        return ""
    lines = [f"{event.at}  {event.step.value:<8}  {event.message}" for event in record.events]
    if record.failure:
        lines.append(f"failed: {record.failure.get('message', '')}")
    return plain("\n".join([f"launch {record.id}", *lines, ""]))


def _directory_name(user: str) -> str:
    """A hub user's directory below ``servers``, as ``spawner/directories.py`` names it."""
    quoted = quote(user, safe="") or "%"
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


async def _file(visited: Visit, server: str, file: str) -> str:
    """A log file of the `local` or `docker` runtime; pods keep theirs elsewhere."""
    settings = visited.parts.settings
    if settings.runtime == "kubernetes":
        return ""
    root = settings.data / "servers"
    user = _directory_name(visited.person.name)
    data = await asyncio.to_thread(read_file, root, user, server, file)
    return plain(data.decode("utf-8", "replace"))
