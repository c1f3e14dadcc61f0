"""Fixtures of the spawner's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spawner_real_hub import RealHub
from spawner_small_forge import SmallForge


@pytest.fixture
def small_forge() -> Iterator[SmallForge]:
    forge = SmallForge()
    yield forge
    forge.close()


@pytest.fixture
def start_hub(tmp_path: Path, small_forge: SmallForge) -> Iterator[Callable[..., RealHub]]:
    """``start_hub(setting=…)`` starts a hub of one's own against the small forge."""
    hubs: list[RealHub] = []

    def start(**settings: object) -> RealHub:
        hub = RealHub(tmp_path / f"hub{len(hubs)}", small_forge.url, **settings)
        hubs.append(hub)
        hub.start()
        return hub

    yield start
    for hub in hubs:
        hub.close()


@pytest.fixture(scope="session")
def shared_forge() -> Iterator[SmallForge]:
    forge = SmallForge()
    yield forge
    forge.close()


@pytest.fixture(scope="session")
def shared_hub(
    tmp_path_factory: pytest.TempPathFactory, shared_forge: SmallForge
) -> Iterator[RealHub]:
    hub = RealHub(tmp_path_factory.mktemp("hub") / "hub", shared_forge.url, unwalled_people=True)
    try:
        hub.start()
        yield hub
    finally:
        hub.close()


@pytest.fixture
def hub(shared_hub: RealHub) -> RealHub:
    """One hub for many tests; each makes people of its own."""
    shared_hub.reset()
    return shared_hub


@pytest.fixture
def forge_of_hub(shared_forge: SmallForge) -> Iterator[SmallForge]:
    """The forge of the shared hub, as it was before the test once it is over."""
    yield shared_forge
    shared_forge.jobs.clear()
    shared_forge.revoked.clear()
    shared_forge.away = False
