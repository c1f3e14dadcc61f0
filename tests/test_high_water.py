"""High-water marks: when builds wait, when they are ended, when even a server is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooks_service.errors import BuildFailed, NoMemory, SettingsInvalid
from notebooks_service.high_water import (
    LEAST_FOR_A_SERVER,
    MIB,
    Gauge,
    Level,
    Marks,
    disk_at,
    memory_of_host,
)
from notebooks_service.images.limits import BuildLimits, Watchdog
from notebooks_service.runner.limits import DiskWatch, JobLimits
from notebooks_service.settings import load_settings
from notebooks_service.spawner.admissions import Admissions
from notebooks_service.spawner.runtime import ServerKey

GIB = 1024 * MIB
PLENTY = Level(50 * GIB, 100 * GIB)


@pytest.mark.parametrize(
    ("disk", "memory", "says"),
    [
        (PLENTY, PLENTY, ""),
        (Level(5 * GIB + 1, 100 * GIB), PLENTY, ""),
        (Level(5 * GIB, 100 * GIB), PLENTY, "The disk of the machine that builds is 95 % full; builds begin again below 95 %."),
        (PLENTY, Level(GIB, 10 * GIB), "The memory of the machine that builds is 90 % full; builds begin again below 90 %."),
        # Of little memory a tenth is less than what has to stay free.
        (PLENTY, Level(255 * MIB, GIB), "Only 255 MiB of memory are left on the machine that builds, and 256 MiB have to"),
        # What cannot be measured holds nobody up.
        (None, None, ""),
        (Level(0, 0), Level(GIB, 0), ""),
    ],
)  # fmt: skip
def test_when_builds_wait(disk: Level | None, memory: Level | None, says: str) -> None:
    found = Marks().waits(disk, memory)
    assert found.startswith(says) and bool(found) == bool(says)


def test_a_mark_of_one_is_none() -> None:
    marks = Marks(disk=1, memory=1, memory_reserve=0)
    assert marks.waits(Level(1, GIB), Level(1, GIB)) == ""
    assert marks.lacks_memory(Level(1, GIB)) == ""


@pytest.mark.parametrize(
    ("free", "ends"), [(GIB, False), (256 * MIB, False), (256 * MIB - 1, True), (0, True)]
)
def test_when_builds_are_ended(free: int, ends: bool) -> None:
    assert bool(Marks().lacks_memory(Level(free, 100 * GIB))) == ends


def test_a_build_ends_before_servers_suffer(tmp_path: Path) -> None:
    left = [Level(GIB, 8 * GIB)]
    gauge = Gauge(memory=lambda: left[0])
    build = Watchdog(BuildLimits(reserve=1), tmp_path, gauge=gauge)
    job = DiskWatch(JobLimits(reserve=1, gauge=gauge), tmp_path, tmp_path)
    build.check()
    assert job.lack() is None and job.full() is None
    left[0] = Level(100 * MIB, 8 * GIB)
    with pytest.raises(BuildFailed) as caught:
        build.check()
    assert "Only 100 MiB of memory are left" in caught.value.message
    assert "Only 100 MiB of memory are left" in (job.lack() or "")
    # A moment later there is more, and the log still says what it was.
    left[0] = PLENTY
    assert job.lack() is None
    assert "Only 100 MiB of memory are left" in (job.said or "")


def test_the_limit_of_a_build_inside_a_job_is_the_settings(tmp_path: Path) -> None:
    settings = load_settings(data=tmp_path, memory_reserve=0)
    limits = JobLimits.from_settings(settings)
    assert BuildLimits.from_environ(limits.variables).memory == 0
    assert limits.gauge.marks.memory_reserve == 0


async def test_a_server_starts_as_long_as_there_is_some_memory() -> None:
    async def spent() -> list[object]:
        raise AssertionError("nobody asked for hours")

    async def let_in(free: int) -> None:
        gauge = Gauge(memory=lambda: Level(free, 8 * GIB))
        admissions = Admissions((), lambda key: False, spent, gauge)  # type: ignore[arg-type]
        await admissions.let_in(None, ServerKey("ada", "s"), "group/thing")

    await let_in(LEAST_FOR_A_SERVER)
    with pytest.raises(NoMemory):
        await let_in(LEAST_FOR_A_SERVER - 1)


def test_this_machine_can_be_measured(tmp_path: Path) -> None:
    disk, memory = disk_at(tmp_path / "not" / "there"), memory_of_host()
    assert disk is not None and memory is not None
    assert 0 < disk.free < disk.total and 0 < memory.free < memory.total
    assert 0 < disk.used < 1 and 0 < memory.used < 1


@pytest.mark.parametrize("wrong", [{"disk_high_water": 95}, {"memory_high_water": 0}])
def test_a_mark_is_a_share(wrong: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid):
        load_settings(data=tmp_path, **wrong)
