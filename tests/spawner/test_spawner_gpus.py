"""Which server has which GPU: none has another's, whatever starts at once or ran before the hub did."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from notebooks_service.errors import NoGpu
from notebooks_service.spawner.containers import GPUS, SERVER, USER, Ours
from notebooks_service.spawner.engine import Engine
from notebooks_service.spawner.gpus import Gpus, choose, given
from notebooks_service.spawner.runtime import ServerKey

ONE, TWO, THREE = (ServerKey("ada", name) for name in ("one", "two", "three"))


def container(state: str, label: str | None = None, key: ServerKey = THREE) -> dict[str, Any]:
    labels = {USER: key.user, SERVER: key.server}
    return {"State": state, "Labels": labels if label is None else {**labels, GPUS: label}}


class Listing:
    """An engine that lists these containers, a moment after it was asked."""

    def __init__(self, *containers: Mapping[str, Any]) -> None:
        self.found = list(containers)

    async def containers(self, filters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        await asyncio.sleep(0)
        return list(self.found)


def gpus(engine: Listing, *every: str) -> Gpus:
    return Gpus(every, cast(Engine, engine), Ours("test"))


@pytest.mark.parametrize(
    ("containers", "found"),
    [
        ([], set()),
        ([container("running"), {"State": "running", "Labels": None}], set()),
        ([container("running", "0,GPU-8a"), container("paused", "2")], {"0", "GPU-8a", "2"}),
        ([container("created", "1"), container("restarting", "3")], {"1", "3"}),
        ([container("exited", "0"), container("dead", "1"), container("removing", "2")], set()),
    ],
)
def test_what_is_given(containers: list[dict[str, Any]], found: set[str]) -> None:
    assert given(containers, ONE) == found


async def test_what_a_launch_before_left_of_the_server_itself_is_not_in_its_way() -> None:
    """A hub that was killed between making and starting a container leaves one that nobody ends."""
    engine = Listing(container("created", "0", ONE))
    await gpus(engine, "0").look(ONE, 1)
    with pytest.raises(NoGpu):
        await gpus(engine, "0").look(TWO, 1)


def test_those_that_are_free_in_the_order_of_the_setting() -> None:
    assert choose(["b", "a", "c"], frozenset("a"), 2) == ("b", "c")
    with pytest.raises(
        NoGpu, match="1 of this machine's 3 GPUs are free, and this server asks for 2"
    ):
        choose(["b", "a", "c"], frozenset("ab"), 2)


async def test_two_that_start_at_once_have_two() -> None:
    found = gpus(Listing(), "0", "1")
    assert sorted(await asyncio.gather(found.take(ONE, 1), found.take(TWO, 1))) == [("0",), ("1",)]
    with pytest.raises(NoGpu):
        await found.take(THREE, 1)
    with pytest.raises(NoGpu):
        await found.look(THREE, 1)
    await found.look(THREE, 0)
    assert await found.take(THREE, 0) == ()


async def test_what_was_promised_is_the_containers_or_free_again() -> None:
    engine = Listing()
    found = gpus(engine, "0")
    assert await found.take(ONE, 1) == ("0",)
    engine.found.append(container("running", "0", ONE))
    found.made(ONE)
    with pytest.raises(NoGpu):
        await found.take(TWO, 1)
    engine.found.clear()
    assert await found.take(TWO, 1) == ("0",)
    found.made(TWO)  # and none was made
    assert await found.take(THREE, 1) == ("0",)


async def test_a_new_hub_knows_what_is_given() -> None:
    with pytest.raises(NoGpu):
        await gpus(Listing(container("running", "0")), "0").take(ONE, 1)
