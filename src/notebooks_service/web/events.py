"""What happens in a launch, told to any number of watchers as Server-Sent Events.

Stateless: everything comes from the hub's record of the launch; the hub's own progress stream only
says when to look again. So a watcher can go on after a restart of the service or of the hub.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from notebooks_service.domain import LaunchOutcome, LaunchRecord
from notebooks_service.errors import HubUnavailable, NotebooksError, NotFound, NotSignedIn
from notebooks_service.gateway.hub import HubServer
from notebooks_service.web.logs import JobLog
from notebooks_service.web.parts import Parts, parts_of
from notebooks_service.web.sign_in import Person
from notebooks_service.web.states import opens_in
from notebooks_service.web.urls import page_url
from notebooks_service.web.visits import is_ours

KEEP_ALIVE_SECONDS = 15.0
# A person whose sign-in ends stops watching; a hub that is away this long ends the stream, and the
# browser connects again by itself.
IDENTIFY_SECONDS = 60.0
HUB_AWAY_SECONDS = 120.0
# The hub says ready just before or just after the record does.
RECORD_SECONDS = 5.0
HUB_AWAY = "The hub is restarting; nothing is lost. This page goes on by itself."

router = APIRouter(tags=["servers"])


@dataclass(frozen=True)
class Position:
    """How far a watcher is: ``<launch>.<event>[.<log offset>.<job>]``, an event's id on the wire."""

    launch: str = ""
    event: int = 0
    offset: int = 0
    job: int = 0

    _FORM = re.compile(r"([0-9a-f]{1,64})\.(\d{1,9})(?:\.(\d{1,15})(?:\.(\d{1,15}))?)?\Z")

    def __str__(self) -> str:
        tail = f".{self.offset}.{self.job}" if self.job else ""
        return f"{self.launch}.{self.event}{tail}"

    @classmethod
    def parse(cls, text: str | None) -> Position:
        """The position in an event's id; anything else is the beginning."""
        found = cls._FORM.match(text or "")
        if not found:
            return cls()
        launch, event, offset, job = found.groups(default="0")
        return cls(launch, int(event), int(offset), int(job))


def message(kind: str, data: Mapping[str, Any], position: Position | None = None) -> str:
    """One event as it goes over the wire."""
    lines = [f"event: {kind}", f"data: {json.dumps(data)}"]
    if position and position.launch:
        lines.insert(0, f"id: {position}")
    return "\n".join(lines) + "\n\n"


def ending(server: HubServer | None, ready_for: float = RECORD_SECONDS) -> dict[str, Any] | None:
    """How a launch has ended by the hub's own model, or None while it is under way.

    ``ready_for``: seconds since the hub first called it ready, for a record that says nothing yet.
    A cancelled launch is never ready, whatever the hub's model says for a moment.
    """
    if server is None:
        return {"outcome": "gone", "failure": None}
    record = server.record
    outcome = record.outcome if record else None
    if server.pending:
        return None
    if server.ready and outcome in (None, LaunchOutcome.READY):
        if record is not None and outcome is None and ready_for < RECORD_SECONDS:
            return None
        return {"outcome": "ready", "failure": None}
    failure = dict(record.failure) if record and record.failure else None
    if outcome is LaunchOutcome.CANCELLED:
        return {"outcome": "cancelled", "failure": failure}
    if outcome is LaunchOutcome.FAILED:
        lost = failure is not None and failure.get("code") == "hub_restarted"
        return {"outcome": "interrupted" if lost else "failed", "failure": failure}
    if outcome is LaunchOutcome.READY:
        return {"outcome": "stopped", "failure": failure}
    return {"outcome": "interrupted", "failure": failure}


class Watch:
    """One watcher of one server, from a position on."""

    def __init__(self, parts: Parts, person: Person, server: str, position: Position) -> None:
        self._parts = parts
        self._person = person
        self._server = server
        self._position = position
        self._log = JobLog(parts, person)
        self._wake = asyncio.Event()
        self._ready_since: float | None = None

    async def stream(self) -> AsyncIterator[str]:
        """The messages, until the launch has ended or the hub is away for too long."""
        yield "retry: 2000\n\n"
        listening = asyncio.create_task(self._listen())
        away_since: float | None = None
        spoke = identified = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                try:
                    if now - identified > IDENTIFY_SECONDS:
                        identified = now
                        await self._parts.hub.identify(self._person.hub_token)
                    server = await self._parts.hub.server(self._person.name, self._server)
                except NotSignedIn as error:
                    failure = {"code": error.code, "message": error.message}
                    yield message("end", {"outcome": "signed_out", "failure": failure})
                    return
                except HubUnavailable:
                    if away_since is None:
                        away_since = now
                        yield message("hub", {"available": False, "message": HUB_AWAY})
                    elif now - away_since > HUB_AWAY_SECONDS:
                        return
                    await asyncio.sleep(self._parts.poll_seconds)
                    continue
                if away_since is not None:
                    away_since = None
                    yield message("hub", {"available": True, "message": ""})
                async for text in self._news(server):
                    spoke = time.monotonic()
                    yield text
                end = self._end(server)
                if end is not None:
                    yield message("end", end, self._position)
                    return
                if time.monotonic() - spoke > KEEP_ALIVE_SECONDS:
                    spoke = time.monotonic()
                    yield ": keep-alive\n\n"
                if listening.done():
                    listening = asyncio.create_task(self._listen())
                await self._nap()
        finally:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            self._log.close()

    async def _news(self, server: HubServer | None) -> AsyncIterator[str]:
        """The record's events that this watcher has not seen, and the job's log as it grows."""
        record = server.record if server and is_ours(server) else None
        if server is None or record is None:
            return
        if record.id != self._position.launch:
            self._position = Position(record.id)
        for event in record.events:
            if event.id > self._position.event:
                self._position = Position(
                    record.id, event.id, self._position.offset, self._position.job
                )
                data = {
                    "launch": record.id,
                    "id": event.id,
                    "at": event.at,
                    "step": event.step.value,
                    "message": event.message,
                    "detail": dict(event.detail),
                }
                yield message("step", data, self._position)
        async for text in self._log_news(record):
            yield text

    async def _log_news(self, record: LaunchRecord) -> AsyncIterator[str]:
        job = int(record.job.get("id") or 0) if record.job else 0
        if not job:
            return
        start = self._position.offset if job == self._position.job else 0
        async for piece in self._log.read(record.project_path, job, start, record.step):
            self._position = Position(record.id, self._position.event, piece.end, job)
            data = {"job": job, "text": piece.text, "offset": piece.end, "cut": piece.cut}
            yield message("log", data, self._position)

    def _end(self, server: HubServer | None) -> dict[str, Any] | None:
        if server is None or not server.ready:
            self._ready_since = None
        elif self._ready_since is None:
            self._ready_since = time.monotonic()
        ready_for = time.monotonic() - self._ready_since if self._ready_since else 0.0
        end = ending(server, ready_for)
        if end is not None and end["outcome"] == "ready" and server is not None:
            folder = server.record.project_path.rpartition("/")[2] if server.record else ""
            end["url"] = page_url(
                self._parts.server_url(self._person.name, server.name),
                folder,
                opens=opens_in(self._parts.settings, server),
            )
        return end

    async def _listen(self) -> None:
        """Ring the bell for each of the hub's progress events; its end means: look again."""
        hub, person = self._parts.hub, self._person
        with contextlib.suppress(NotebooksError):
            progress = hub.progress(person.hub_token, person.name, self._server)
            async with contextlib.aclosing(progress) as events:  # type: ignore[type-var]
                async for _ in events:
                    self._wake.set()
        self._wake.set()

    async def _nap(self) -> None:
        """Sleep until the hub says something, or for the time between two looks."""
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._parts.poll_seconds)
        self._wake.clear()
        least = min(0.1, self._parts.poll_seconds)
        await asyncio.sleep(max(0.0, least - (time.monotonic() - began)))


@router.get("/servers/{name}/events", summary="What happens in a launch, as Server-Sent Events")
async def events(request: Request, name: str, last_event_id: str | None = None) -> Response:
    """Events `step`, `log`, `hub` and at last `end`; send `Last-Event-ID` to go on from there.

    `end` has `outcome` (`ready` with `url`, `failed` with `failure`, `cancelled`, `interrupted`,
    `stopped`, `gone`, `signed_out`). After `interrupted` POST again: it is the same server.
    """
    parts = parts_of(request)
    person = await parts.sign_in.person(request)
    server = await parts.hub.server(person.name, name)
    if server is None or not is_ours(server):
        raise NotFound
    position = Position.parse(request.headers.get("last-event-id") or last_event_id)
    return StreamingResponse(
        Watch(parts, person, name, position).stream(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )
