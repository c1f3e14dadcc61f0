"""The record of usage: kept by a real hub that is killed, and by a meter whose clock a test sets."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from spawner_real_hub import NAME, OPTIONS, RealHub, wait_until

from notebooks_service.domain import LaunchRecord, LaunchStep
from notebooks_service.settings import load_settings
from notebooks_service.spawner.meter import Meter
from notebooks_service.spawner.runtime import ServerKey
from notebooks_service.usage.ledger import Ledger, ledger_file
from notebooks_service.usage.records import Run
from notebooks_service.usage.report import Period

GIB = 2**30
KEY = ServerKey("ada", NAME)
ALWAYS = Period(0, 1e12)
NOON = datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()


def runs(ledger: Ledger) -> list[Run]:
    return ledger.read(ALWAYS)[0]


def test_runs_outlive_a_hub_that_is_killed(start_hub: Callable[..., RealHub]) -> None:
    hub = start_hub(quotas='[{"people": ["ada"], "cpu_hours": 0.000000001}]')
    ledger = Ledger(ledger_file(hub.data))
    token = hub.person("ada")
    hub.launch(token)
    assert hub.settled("ada")["ready"], hub.record("ada")
    [first] = wait_until(lambda: runs(ledger))
    assert (first.user, first.server, first.project, first.ended) == ("ada", NAME, "group/thing", False)  # fmt: skip
    assert first.cpu >= 1 and first.memory > GIB

    # It runs on without its hub, and the next one takes it up.
    hub.kill()
    hub.start()
    later = wait_until(lambda: [each for each in runs(ledger) if each.seen > first.seen])
    assert [(each.launch, each.began, each.ended) for each in later] == [(first.launch, first.began, False)]  # fmt: skip
    hub.cancel(token)
    [stopped] = wait_until(lambda: [each for each in runs(ledger) if each.ended])
    assert stopped.seen >= later[0].seen

    # What is used now is more than ada may use, which is hardly anything.
    hub.launch(token)
    failure = wait_until(lambda: hub.record("ada").get("failure"))
    assert failure["code"] == "quota"
    assert "CPU-hours this month" in failure["message"]
    assert len(runs(ledger)) == 1


def test_a_run_whose_end_nobody_saw_ends_when_it_was_last_seen(
    start_hub: Callable[..., RealHub],
) -> None:
    hub = start_hub()
    ledger = Ledger(ledger_file(hub.data))
    hub.launch(hub.person("ada"))
    assert hub.settled("ada")["ready"], hub.record("ada")
    [first] = wait_until(lambda: runs(ledger))
    hub.kill()
    for process in hub.processes("ada", NAME):
        process.kill()
    [last] = runs(ledger)
    hub.start()
    [found] = wait_until(lambda: [each for each in runs(ledger) if each.ended])
    assert (found.launch, found.began, found.seen) == (first.launch, first.began, last.seen)


class Disk:
    """Stands for a runtime: what is kept of servers, or an error."""

    def __init__(self) -> None:
        self.kept: dict[ServerKey, int] = {}
        self.asked: list[ServerKey] = []

    async def sizes(self, keys: Sequence[ServerKey]) -> Mapping[ServerKey, int]:
        self.asked = list(keys)
        return {key: self.kept.get(key, 0) for key in keys}


class Scene:
    def __init__(self, data: Path, **settings: Any) -> None:
        self.now = NOON
        self.disk = Disk()
        self.ledger = Ledger(ledger_file(data))
        self.settings = load_settings(data=data, **settings)
        self.meter = self.another_hub()

    def another_hub(self) -> Meter:
        self.meter = Meter(
            self.settings, self.ledger, self.disk, clock=lambda: self.now  # type: ignore[arg-type]
        )  # fmt: skip
        return self.meter

    def record(self, launch: str = "one") -> LaunchRecord:
        at = datetime.fromtimestamp(self.now, UTC).isoformat()
        return LaunchRecord(
            launch, 7, "group/thing", "0" * 40, "main", at,
            started_steps={LaunchStep.READY.value: at},
        )  # fmt: skip

    @property
    def sizes(self) -> list[tuple[float, int]]:
        return [(each.at - NOON, each.bytes) for each in self.ledger.read(ALWAYS)[1]]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, runtime="docker", server_cpu=2, server_cpu_most=8)


async def test_what_a_server_may_use_is_written_down(scene: Scene) -> None:
    options = {"notebooks": {**OPTIONS["notebooks"], "cpu": 6, "gpu": 1}}
    scene.meter.runs(KEY, scene.record(), options)
    scene.now += 90
    await scene.meter.write()
    [run] = runs(scene.ledger)
    assert (run.cpu, run.memory, run.gpus) == (6, 4 * GIB, 1)
    assert (run.began, run.seen, run.ended) == (NOON, NOON + 90, False)
    scene.now += 10
    scene.meter.ended(KEY, "one")
    scene.now += 1000
    await scene.meter.write()
    [run] = runs(scene.ledger)
    assert (run.seen, run.ended) == (NOON + 100, True)


async def test_a_run_that_was_never_written_is_found_again_with_its_beginning(scene: Scene) -> None:
    record = scene.record()
    scene.now += 500
    scene.another_hub().runs(KEY, record, OPTIONS)
    await scene.meter.write()
    [run] = runs(scene.ledger)
    assert (run.began, run.seen) == (NOON, NOON + 500)


async def test_what_could_not_be_written_is_written_later(scene: Scene) -> None:
    scene.ledger.file.parent.mkdir(parents=True)
    scene.ledger.file.write_text("this is no database, however long one looks at it" * 9)
    scene.meter.runs(KEY, scene.record(), OPTIONS)
    scene.now += 60
    scene.meter.ended(KEY, "one")
    await scene.meter.write()
    # Whoever cannot know what was used refuses nobody.
    assert await scene.meter.spent() == []
    with pytest.raises(sqlite3.DatabaseError):
        runs(scene.ledger)
    scene.ledger.file.unlink()
    scene.now += 60
    await scene.meter.write()
    [run] = runs(scene.ledger)
    assert (run.seen, run.ended) == (NOON + 60, True)


async def test_sizes_are_looked_at_after_a_beginning_and_an_end_and_now_and_then(
    scene: Scene,
) -> None:
    other = ServerKey("bob", NAME)
    scene.disk.kept = {KEY: GIB, other: GIB}
    scene.meter.runs(KEY, scene.record(), OPTIONS)
    scene.meter.runs(other, scene.record("two"), OPTIONS)
    await scene.meter.look(everywhere=False)
    assert scene.sizes == [(0, GIB), (0, GIB)]
    scene.now += 60
    scene.disk.kept[KEY] = 2 * GIB
    scene.meter.ended(KEY, "one")
    await scene.meter.look(everywhere=False)
    assert scene.disk.asked == [KEY]
    assert sorted(scene.sizes) == [(0, GIB), (0, GIB), (60, 2 * GIB)]
    # As it was: nothing to write.
    scene.now += 60
    await scene.meter.look(everywhere=True)
    assert set(scene.disk.asked) == {KEY, other}
    assert len(scene.sizes) == 3
    # In the trash it is not counted any more, and not looked at.
    del scene.disk.kept[KEY]
    scene.meter.removed(KEY)
    await scene.meter.look(everywhere=False)
    assert sorted(scene.sizes)[-1] == (120, 0)
    await scene.meter.look(everywhere=True)
    assert scene.disk.asked == [other]


async def test_a_month_counts_what_it_is_asked_for(scene: Scene) -> None:
    scene.disk.kept = {KEY: GIB}
    scene.meter.runs(KEY, scene.record(), OPTIONS)
    await scene.meter.look(everywhere=False)
    scene.now += 3600
    [spent] = await scene.meter.spent()
    assert (spent.user, spent.project) == ("ada", "group/thing")
    assert (spent.cpu, spent.gpu, spent.storage) == pytest.approx((2, 0, 1))
    # Asked for again within a minute, it is not added up again.
    scene.now += 30
    assert (await scene.meter.spent())[0].cpu == pytest.approx(2)
    scene.now += 31
    assert (await scene.meter.spent())[0].cpu == pytest.approx(2 + 2 * 61 / 3600)
    # A new month begins with nothing but what is still kept.
    scene.meter.ended(KEY, "one")
    scene.now = datetime(2026, 7, 1, 1, tzinfo=UTC).timestamp()
    [spent] = await scene.meter.spent()
    assert (spent.cpu, spent.storage) == pytest.approx((0, 1))
