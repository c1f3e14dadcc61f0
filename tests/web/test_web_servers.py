"""Starting a server that somebody else stops at the same moment."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from notebooks_service.errors import Conflict
from notebooks_service.settings import Settings
from notebooks_service.web.parts import HubFacts, make_parts
from notebooks_service.web.servers import START_TRIES, start_when_stopped
from notebooks_service.web.sign_in import Person


@pytest.mark.parametrize(
    ("refused", "pending", "looks", "started"),
    [
        (0, None, 0, True),
        (1, "stop", 1, True),  # the stop began before our start
        (1, None, 0, True),  # … and is over when we look
        (2, "stop", 3, True),  # another stop comes right after the first
        (START_TRIES, None, 0, False),  # the hub refuses for another reason
        (1, "gone", 0, False),  # somebody deleted it
    ],
)
async def test_a_stop_comes_before_a_start(
    tmp_path: Path, refused: int, pending: str | None, looks: int, started: bool
) -> None:
    """``refused``: so often the hub says no; ``looks``: so often the server still stops."""
    tries = stopping = 0

    def hub(request: httpx.Request) -> httpx.Response:
        nonlocal tries, stopping
        if request.url.path == "/hub/api/":
            return httpx.Response(200, json={"version": "6.1.1"})
        if request.method == "POST":
            tries += 1
            if tries <= refused:
                return httpx.Response(400, json={"message": "ada:one is pending stop"})
            return httpx.Response(202)
        if tries and pending == "gone":
            return httpx.Response(404, json={"message": "Not Found"})
        model = {"name": "one", "ready": False, "pending": None, "url": "/", "stopped": True}
        if tries and stopping < looks:
            stopping += 1
            model |= {"pending": "stop", "stopped": False}
        return httpx.Response(200, json=model)

    parts = make_parts(
        Settings(data=tmp_path, forge_url="http://forge"),
        HubFacts("http://hub/hub/api", "service"),
        hub_transport=httpx.MockTransport(hub),
        poll_seconds=0.01,
    )
    person = Person("ada", "token")
    if started:
        assert await start_when_stopped(parts, person, "one", "One", {})
        assert tries == refused + 1 and stopping == looks
    else:
        with pytest.raises(Conflict, match="pending stop"):
            await start_when_stopped(parts, person, "one", "One", {})
        assert tries == refused
    await parts.aclose()
