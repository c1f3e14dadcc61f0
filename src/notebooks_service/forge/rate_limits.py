"""GitLab's limits on how often somebody may call the API: 429 with ``Retry-After``; off by default.

Counts in fixed windows of time, per person for calls with a token, per address for others.
https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from threading import Lock

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from notebooks_service.forge import errors
from notebooks_service.forge.authentication import from_token, sent_token
from notebooks_service.forge.database import Database
from notebooks_service.forge.rate_limit_values import RateLimits

TEXT = "Retry later\n"
RUNNERS = ("/api/v4/jobs/", "/api/v4/runners")
"""What runners call, about once a second for each log: not counted here."""
MOST_KEYS = 100_000


@dataclass(frozen=True)
class Count:
    """Where somebody stands after one more call. ``reset`` is in unix seconds."""

    name: str
    limit: int
    observed: int
    period: int
    reset: int

    @property
    def exceeded(self) -> bool:
        return self.observed > self.limit

    def headers(self, now: float) -> dict[str, str]:
        """What GitLab sends with every answer, and with a refusal."""
        found = {
            "RateLimit-Name": self.name,
            # GitLab says it for one minute, whatever the period.
            "RateLimit-Limit": str(math.ceil(self.limit * 60 / self.period)),
            "RateLimit-Observed": str(self.observed),
            "RateLimit-Remaining": str(max(self.limit - self.observed, 0)),
            "RateLimit-Reset": str(self.reset),
        }
        if self.exceeded:
            found["RateLimit-ResetTime"] = formatdate(self.reset, usegmt=True)
            found["Retry-After"] = str(max(math.ceil(self.reset - now), 1))
        return found


class Counter:
    """Counts calls by key in windows of ``period`` seconds that begin at whole multiples of it."""

    def __init__(self, limits: RateLimits, clock: Callable[[], float] = time.time) -> None:
        self._limits = limits
        self.clock = clock
        self._lock = Lock()
        self._window = -1
        self._counts: dict[str, int] = {}

    def count(self, user_id: int | None, address: str) -> Count | None:
        """One more call by this person, or by nobody from this address; None if that has no limit."""
        known = user_id is not None
        limit = self._limits.authenticated if known else self._limits.unauthenticated
        if not limit:
            return None
        name = f"throttle_{'' if known else 'un'}authenticated_api"
        key = f"{name}:{user_id if known else address}"
        period = self._limits.period
        window = int(self.clock() // period)
        with self._lock:
            if window != self._window or len(self._counts) > MOST_KEYS:
                self._window, self._counts = window, {}
            observed = self._counts[key] = self._counts.get(key, 0) + 1
        return Count(name, limit, observed, period, (window + 1) * period)


class RateLimited:
    """The middleware. Knows people by their tokens; a wrong token is nobody's."""

    def __init__(self, app: ASGIApp, database: Database, limits: RateLimits) -> None:
        self.app = app
        self._database = database
        self._counter = Counter(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not path.startswith("/api/") or path.startswith(RUNNERS):
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        token = sent_token(request)
        user_id = await run_in_threadpool(self._user_id, token) if token else None
        count = self._counter.count(user_id, request.client.host if request.client else "")
        if count is None:
            await self.app(scope, receive, send)
            return
        headers = count.headers(self._counter.clock())
        if count.exceeded:
            await PlainTextResponse(TEXT, 429, headers=headers)(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self.app(scope, receive, with_headers)

    def _user_id(self, token: str) -> int | None:
        with self._database.read() as session:
            try:
                asker = from_token(session, token)
            except errors.ForgeError:
                return None
            return asker.user.id if asker.user else None
