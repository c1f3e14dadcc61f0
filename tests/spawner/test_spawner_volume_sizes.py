"""How much is kept of servers in containers: the sizes of their volumes, by a real engine."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiodocker
import pytest

from docker_fixtures import Engine as EngineProcess
from notebooks_service.errors import EngineUnavailable
from notebooks_service.settings import load_settings
from notebooks_service.spawner.docker import DockerRuntime
from notebooks_service.spawner.engine import Engine
from notebooks_service.spawner.runtime import ServerKey

MIB = 2**20
KEY, OTHER, GONE = (ServerKey("ada", name) for name in ("s1", "s2", "s3"))


@pytest.fixture(scope="module")
def process() -> Iterator[EngineProcess]:
    missing = [name for name in ("dockerd", "docker") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"the sizes of volumes were not asked of an engine: {missing or 'not root'}")
    found = EngineProcess(Path(tempfile.mkdtemp(prefix="nbe")))
    try:
        found.start()
        yield found
    finally:
        if found.process is not None:
            found.stop()
        shutil.rmtree(found.root, ignore_errors=True)


async def test_the_size_of_a_volume(process: EngineProcess, tmp_path: Path) -> None:
    engine = Engine(lambda: aiodocker.Docker(process.host))
    settings = load_settings(data=tmp_path, runtime="docker", docker_instance="sizes")
    runtime = DockerRuntime(settings, engine=engine)
    try:
        # Whoever has no volume keeps nothing, and no engine is asked for that.
        assert await runtime.sizes([GONE]) == {GONE: 0}
        for key in (KEY, OTHER):
            directory = runtime.directory(key)
            directory.make()
            directory.keep_volume(f"sizes-{key.server}")
        await engine.make_volume("sizes-s1", {})
        inside = process.root / "data" / "volumes" / "sizes-s1" / "_data"
        (inside / "work").mkdir()
        (inside / "work" / "large.bin").write_bytes(b"x" * 5 * MIB)
        found = await runtime.sizes([KEY, OTHER, GONE])
        assert set(found) == {KEY, OTHER, GONE}
        assert 5 * MIB <= found[KEY] < 6 * MIB
        # A directory that names a volume which somebody has removed.
        assert (found[OTHER], found[GONE]) == (0, 0)
    finally:
        await engine.aclose()


async def test_an_engine_that_is_away_says_nothing(tmp_path: Path) -> None:
    engine = Engine(lambda: aiodocker.Docker(f"unix://{tmp_path}/nothing"))
    settings = load_settings(data=tmp_path, runtime="docker", docker_instance="sizes")
    runtime = DockerRuntime(settings, engine=engine)
    directory = runtime.directory(KEY)
    await asyncio.to_thread(directory.make)
    directory.keep_volume("sizes-s1")
    try:
        with pytest.raises(EngineUnavailable):
            await runtime.sizes([KEY])
    finally:
        await engine.aclose()
