"""Puts our own programs where every container of a server can read and none can write: into volumes of
the engine's. ``docker.py`` calls this before it starts anything.

A volume is named after what is in it, so a new version makes a new one beside the old.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
import tarfile
from pathlib import Path

from notebooks_service.errors import ImageUnavailable
from notebooks_service.spawner.containers import PROGRAMS, Limits, Ours, program_config
from notebooks_service.spawner.engine import Engine

log = logging.getLogger(__name__)

FILL_WAIT = 300.0
WHOLE = ".whole"
"""The last file to be written: with it the volume is what its name says."""
JUPYTER = "/opt/notebooks-jupyter"
"""Where the singleuser image has a Jupyter that runs in images that have none."""


def archive(directory: Path) -> bytes:
    """The files of ``directory`` as a tar archive that is the same for the same content; root's."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in sorted(directory.iterdir()):
            if path.suffix in (".py", ".sh") and path.is_file():
                _add(tar, path.name, path.read_bytes(), 0o755)
        _add(tar, WHOLE, b"", 0o644)
    return data.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def programs_volume(ours: Ours, content: bytes) -> str:
    """The name of the volume with these programs."""
    return f"{ours.name}-programs-{hashlib.sha256(content).hexdigest()[:12]}"


def jupyter_volume(ours: Ours, image_id: str) -> str:
    """The name of the volume with the Jupyter of this image."""
    return f"{ours.name}-jupyter-{image_id.rpartition(':')[2][:12]}"


class Programs:
    """The programs of one hub. ``image`` is any image of ours: nothing of it is run."""

    def __init__(self, engine: Engine, ours: Ours, directory: Path, image: str) -> None:
        self._engine = engine
        self._ours = ours
        self._image = image
        self._archive = archive(directory)
        self._making = asyncio.Lock()
        self._lending = asyncio.Lock()
        self._ready = False
        self._lent: dict[str, bool] = {}

    @property
    def volume(self) -> str:
        return programs_volume(self._ours, self._archive)

    async def ready(self) -> str:
        """The volume that holds them; made and filled at the first need."""
        async with self._making:
            if not self._ready or not await self._engine.has_volume(self.volume):
                await self._fill()
                self._ready = True
        return self.volume

    async def jupyter(self, image: str, digest: str) -> str | None:
        """The volume with the Jupyter of ``image`` (the default one, whose id is ``digest``), for images
        that have none; None if it cannot be lent. Made at the first need, which takes some seconds.
        """
        volume = jupyter_volume(self._ours, digest)
        programs = await self.ready()
        # Not the lock of the programs: every launch needs those, and this takes some seconds.
        async with self._lending:
            if volume in self._lent:
                return volume if self._lent[volume] else None
            self._lent[volume] = await self._lend(volume, image, programs)
        return volume if self._lent[volume] else None

    async def _lend(self, volume: str, image: str, programs: str) -> bool:
        name = self._ours.fresh()
        await self._engine.make_volume(volume, self._ours.labels("programs"))
        config = program_config(
            self._ours,
            "programs",
            ["/bin/sh", f"{PROGRAMS}/fill.sh", JUPYTER],
            {"HOME": "/tmp"},  # noqa: S108
            image=image,
            volumes={programs: f"{PROGRAMS}:ro", volume: JUPYTER},
            network="none",
            limits=Limits(0, 0, 0),
        )
        config |= {"User": "0:0", "WorkingDir": "/"}
        probe = self._ours.fresh()
        await self._engine.create(probe, config)
        try:
            if await self._engine.has_file(probe, f"{JUPYTER}/{WHOLE}"):
                return True
        finally:
            await asyncio.shield(asyncio.ensure_future(self._engine.remove(probe)))
        # Nobody uses what is not whole: it is of a hub that was killed while it was filled, or empty.
        await self._engine.remove_volume(volume)
        await self._engine.make_volume(volume, self._ours.labels("programs"))
        said: list[bytes] = []
        try:
            ended = await self._engine.run(
                name, config, lambda _, data: said.append(data), FILL_WAIT
            )
        except TimeoutError:
            ended = None
        if ended is None or ended.code != 0:
            # What is half there would be in the way of the next try, after a restart of the hub.
            await self._engine.remove_volume(volume)
            log.error(
                "The image %s has no Jupyter that could be lent to others: %s",
                image,
                b"".join(said)[-500:].decode(errors="replace"),
            )
        return ended is not None and ended.code == 0

    async def _fill(self) -> None:
        await self._engine.make_volume(self.volume, self._ours.labels("programs"))
        name = self._ours.fresh()
        config = program_config(
            self._ours,
            "programs",
            ["/bin/true"],
            {},
            image=self._image,
            volumes={self.volume: PROGRAMS},
            network="none",
            limits=Limits(0, 0, 0),
        )
        await self._engine.create(name, config)
        try:
            if not await self._engine.has_file(name, f"{PROGRAMS}/{WHOLE}"):
                await self._engine.put(name, PROGRAMS, self._archive)
        finally:
            await asyncio.shield(asyncio.ensure_future(self._engine.remove(name)))


def missing(image: str) -> ImageUnavailable:
    """One of our own images is not on the host."""
    return ImageUnavailable(
        f"The image `{image}` is not on this machine, and no registry has it. Whoever runs this service "
        "can make it with `deploy/docker/build --base debian`."
    )
