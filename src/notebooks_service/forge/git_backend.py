"""Runs ``git http-backend`` for one request and streams both ways in constant memory.

https://git-scm.com/docs/git-http-backend · used by ``routes_git``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from notebooks_service.forge.git_process import git_environment, git_executable

log = logging.getLogger(__name__)

CHUNK = 1 << 16
MOST_HEADERS = 1 << 16
GOODBYE = 10.0
"""Seconds that git has to clean up after its client is gone, before it is killed."""


class GitBackend(Response):
    """An answer that git writes. ``finished`` runs after git has ended and before the client is
    told that the answer is complete: a push returns only when its pipeline exists."""

    def __init__(
        self,
        environment: Mapping[str, str],
        finished: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self._environment = environment
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        process = await asyncio.create_subprocess_exec(
            git_executable(),
            "http-backend",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=git_environment(self._environment),
            limit=CHUNK,
            # A Ctrl-C in the terminal must not end a push half-way: the forge ends it in order.
            start_new_session=True,
        )
        feeding = asyncio.create_task(_feed(receive, process))
        complaints = asyncio.create_task(_complaints(process))
        answering = asyncio.create_task(self._answer(process, send))
        try:
            await asyncio.wait({feeding, answering}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                # The client is gone. Without its input git ends by itself and cleans up.
                answering.cancel()
                await asyncio.wait({answering})
                await _drained(process)
            else:
                await answering
                await process.wait()
            if self._finished is not None:
                await self._finished()
            if answering.done() and not answering.cancelled():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            feeding.cancel()
            answering.cancel()
            await _end(process)
            for line in (await complaints).decode("utf-8", "replace").splitlines()[:20]:
                log.warning("git http-backend: %s", line)

    async def _answer(self, process: asyncio.subprocess.Process, send: Send) -> None:
        assert process.stdout is not None
        status, headers = await _head(process.stdout)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        while chunk := await process.stdout.read(CHUNK):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _head(stdout: asyncio.StreamReader) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers of a CGI answer. https://www.rfc-editor.org/rfc/rfc3875#section-6"""
    status = 200
    headers: list[tuple[bytes, bytes]] = []
    size = 0
    while True:
        line = await stdout.readline()
        size += len(line)
        if not line or size > MOST_HEADERS:
            return HTTPStatus.INTERNAL_SERVER_ERROR, [(b"content-type", b"text/plain")]
        line = line.rstrip(b"\r\n")
        if not line:
            return status, headers
        name, _, value = line.partition(b":")
        if name.lower() == b"status":
            status = int(value.split()[0])
        else:
            headers.append((name.lower(), value.strip()))


async def _feed(receive: Receive, process: asyncio.subprocess.Process) -> None:
    """Give the request's body to git; returns when the client is gone."""
    assert process.stdin is not None
    open_ended = True
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            process.stdin.close()
            return
        if not open_ended:
            continue
        try:
            body = message.get("body", b"")
            if body:
                process.stdin.write(body)
                await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            open_ended = False  # git has answered without reading all of it.
        if not message.get("more_body", False):
            open_ended = False
            process.stdin.close()


async def _complaints(process: asyncio.subprocess.Process) -> bytes:
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(CHUNK):
        kept = (kept + chunk)[:CHUNK]
    return kept


async def _drained(process: asyncio.subprocess.Process) -> None:
    """Read what git still says, for a while, so that it can end."""
    assert process.stdout is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE):
            while await process.stdout.read(CHUNK):
                pass
            await process.wait()


async def _end(process: asyncio.subprocess.Process) -> None:
    """Nothing of the process group is left: it is asked first, then killed."""
    for asked in (signal.SIGTERM, signal.SIGKILL):
        number = int(asked)
        end = time.monotonic() + GOODBYE / 2
        try:
            while True:
                os.killpg(process.pid, number)
                if time.monotonic() > end:
                    break
                number = 0
                await asyncio.sleep(0.02)
        except ProcessLookupError:
            break
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GOODBYE / 2):
            await process.wait()
