"""What a launch left is cleaned up until it is gone, and never once the server runs again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from notebooks_service.errors import EngineUnavailable
from notebooks_service.spawner.cleanup import Cleanups, Leftover
from notebooks_service.spawner.runtime import Runtime, ServerKey

KEY = ServerKey("ada", "p1-abc")
OTHER = ServerKey("bob", "p1-abc")


class Engine:
    """The boundary: what a runtime does to an engine that may be away."""

    def __init__(self) -> None:
        self.away = False
        self.cleaned: list[ServerKey] = []

    async def clean(self, key: ServerKey, facts: Mapping[str, Any], *, files: bool) -> None:
        if self.away:
            raise EngineUnavailable()
        self.cleaned.append(key)

    async def purge(self) -> None:
        pass


@pytest.fixture
def engine() -> Engine:
    return Engine()


def cleanups(tmp_path: Path, engine: Engine) -> Cleanups:
    return Cleanups(tmp_path / "cleanup", cast(Runtime, engine))


def journal(tmp_path: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["user"] for path in (tmp_path / "cleanup").iterdir())


def left(key: ServerKey) -> Leftover:
    return Leftover(key, f"launch-of-{key.user}", {}, files=False)


async def test_what_failed_is_tried_before_the_next_launch(tmp_path: Path, engine: Engine) -> None:
    ours = cleanups(tmp_path, engine)
    engine.away = True
    await asyncio.wait([ours.begin(left(KEY))])
    assert ours.busy(KEY)
    assert journal(tmp_path) == ["ada"]
    engine.away = False
    await ours.wait(KEY)
    assert engine.cleaned == [KEY]
    assert not ours.busy(KEY)
    assert journal(tmp_path) == []


@pytest.mark.parametrize("restarted", [False, True])
async def test_nothing_of_before_is_cleaned_up_under_a_later_launch(
    tmp_path: Path, engine: Engine, restarted: bool
) -> None:
    """An engine was restarted; the next restart of the hub must not end what was started since."""
    ours = cleanups(tmp_path, engine)
    engine.away = True
    await asyncio.wait([ours.begin(left(KEY))])
    await asyncio.wait([ours.begin(left(OTHER))])
    await ours.wait(KEY)  # a launch of this server begins
    engine.away = False
    if restarted:
        ours = cleanups(tmp_path, engine)
        ours.start()
    await ours.again()
    while ours.busy(OTHER):
        await asyncio.sleep(0)
    assert engine.cleaned == [OTHER]
    assert journal(tmp_path) == []


async def test_a_launch_right_after_the_hubs_start_is_not_overtaken(
    tmp_path: Path, engine: Engine
) -> None:
    before = cleanups(tmp_path, engine)
    engine.away = True
    for key in (KEY, OTHER):
        await asyncio.wait([before.begin(left(key))])
    engine.away = False
    ours = cleanups(tmp_path, engine)
    ours.start()
    assert ours.busy(OTHER)
    await ours.wait(OTHER)
    assert engine.cleaned.count(OTHER) == 1
    while ours.busy(KEY):
        await asyncio.sleep(0)
    assert sorted(key.user for key in engine.cleaned) == ["ada", "bob"]
    assert journal(tmp_path) == []
