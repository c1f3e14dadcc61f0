"""Tells waiting runners that a job became pending, without asking the database.

The value is what GitLab sends as ``X-GitLab-Last-Update``: a runner that sends it back knows the
queue as it is and may wait. One forge process, one queue.
"""

from __future__ import annotations

import asyncio
import secrets
import threading

from sqlalchemy import event
from sqlalchemy.orm import Session


class JobQueue:
    """A counter that threads raise and coroutines wait for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Another process's value must never look like ours.
        self._start = secrets.token_hex(8)
        self._count = 0
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def value(self) -> str:
        return f"{self._start}{self._count:x}"

    def changed(self) -> None:
        """There may be a new job. From any thread."""
        with self._lock:
            self._count += 1
            waiting = list(self._waiting)
        for loop, woken in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

    def changed_on_commit(self, session: Session) -> None:
        """``changed``, but only once ``session`` has committed: a runner that looked earlier would
        find nothing and then believe that it knows the newest state."""
        event.listen(session, "after_commit", lambda _: self.changed(), once=True)

    async def wait(self, known: str, seconds: float) -> bool:
        """Whether the value is another than ``known``, waiting for that at most ``seconds``."""
        entry = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if self.value != known:
                return True
            self._waiting.add(entry)
        try:
            await asyncio.wait_for(entry[1].wait(), seconds)
        except TimeoutError:
            return False
        finally:
            with self._lock:
                self._waiting.discard(entry)
        return True


QUEUE = JobQueue()
