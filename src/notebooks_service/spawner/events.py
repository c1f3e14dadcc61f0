"""The events of one server's launches, told to any number of watchers; used by the launch mixin.

A watcher gets every event so far and then each new one, until the launch has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from notebooks_service.domain import LaunchEvent, LaunchRecord, LaunchStep

PERCENT = {
    LaunchStep.ACCESS: 5,
    LaunchStep.IMAGE: 15,
    LaunchStep.CLONE: 50,
    LaunchStep.STARTING: 75,
    LaunchStep.READY: 95,
}


def event_to_dict(event: LaunchEvent) -> dict[str, Any]:
    """An event as the ``launch_event`` of the hub's ``/progress`` carries it."""
    return {
        "id": event.id,
        "at": event.at,
        "step": event.step.value,
        "message": event.message,
        "detail": dict(event.detail),
    }


class Feed:
    """The record of the present launch, and a bell that rings whenever it changes."""

    def __init__(self) -> None:
        self.record: LaunchRecord | None = None
        self._bell = asyncio.Event()

    def publish(self, record: LaunchRecord) -> None:
        """Replace the record and wake every watcher."""
        self.record = record
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def changed(self) -> None:
        """Wait for the next ``publish``."""
        await self._bell.wait()

    async def watch(self, launch: str) -> AsyncIterator[dict[str, Any]]:
        """JupyterHub progress events of the launch with this id, ended by its outcome."""
        last = 0
        while (record := self.record) is not None and record.id == launch:
            bell = self._bell
            for event in record.events:
                if event.id > last:
                    last = event.id
                    yield {
                        "progress": PERCENT[event.step],
                        "message": event.message,
                        "launch": record.id,
                        "launch_event": event_to_dict(event),
                    }
            if self.record is not record:
                continue
            if record.outcome is not None:
                return
            await bell.wait()
