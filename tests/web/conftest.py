"""Fixtures of the web room's tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from web_stage import RealHub, Stage, run_stage


@pytest.fixture(scope="session")
def web_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    """One real hub for all tests of this room."""
    hub = RealHub(tmp_path_factory.mktemp("web-hub"))
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
async def stage(web_hub: RealHub, tmp_path: Path) -> AsyncIterator[Stage]:
    """The service beside the hub; people's forge tokens are good, no server is left from before."""
    for name in ("ada", "bob"):
        web_hub.forge_token(name, f"forge-token-of-{name}")
    async with run_stage(web_hub, tmp_path) as stage:
        yield stage
        for file in web_hub.control.iterdir():
            file.unlink()
        for name in ("ada", "bob"):
            await asyncio.to_thread(web_hub.remove_servers, name)
