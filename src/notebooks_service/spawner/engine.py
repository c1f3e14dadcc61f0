"""The Docker engine, for the ``docker`` runtime: containers, networks and volumes, by ``aiodocker``.

DockerSpawner's client has one thread for all servers; what may take long goes through here, on the hub's
loop. An engine that is away is one error, ``EngineUnavailable``; what is gone already is no error.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp
from aiodocker.exceptions import DockerError

from notebooks_service.errors import EngineRefused, EngineUnavailable, NoSpace, NotebooksError

log = logging.getLogger(__name__)

ANSWER_WAIT = aiohttp.ClientTimeout(total=60, sock_connect=10)
COUNT_WAIT = aiohttp.ClientTimeout(total=1800, sock_connect=10)
AGAIN, LONGEST_PAUSE = 1.0, 10.0
"""Seconds between two tries to reach an engine that is away: the first, and what it grows to."""
STDERR = 2
GONE, BUSY, BAD = 404, 409, 400

Hear = Callable[[int, bytes], None]
"""Is given what a container writes: 1 for stdout or 2 for stderr, and some bytes."""
Connect = Callable[[], aiodocker.Docker]


def connect() -> aiodocker.Docker:
    """The engine that ``DOCKER_HOST`` or the docker command's own configuration names."""
    try:
        return aiodocker.Docker(timeout=ANSWER_WAIT)
    except (AssertionError, ValueError, OSError):  # no socket anywhere
        raise EngineUnavailable() from None


@dataclass(frozen=True)
class Ended:
    """How a container ended: the engine's own words (``State``)."""

    code: int
    state: Mapping[str, Any]


class Engine:
    """One client for a hub's lifetime, made at its first use, on the loop that uses it."""

    def __init__(self, connect: Connect = connect) -> None:
        self._connect = connect
        self._client: aiodocker.Docker | None = None

    @property
    def client(self) -> aiodocker.Docker:
        if self._client is None:
            self._client = self._connect()
        return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def architecture(self) -> str:
        """What kind of processor the engine's machine has, as images call it."""
        async with answering():
            return str((await self.client.version())["Arch"])

    # -- containers --------------------------------------------------------------------------

    async def containers(self, filters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """What the engine says of each container that ``filters`` fit, ended ones too."""
        async with answering():
            found = await self.client.containers.list(all="true", filters=json.dumps(filters))
            return [each._container for each in found]

    async def inspect(self, name: str) -> Mapping[str, Any] | None:
        """All that the engine knows of a container; None if there is none of that name."""
        async with answering():
            try:
                return await self.client.containers.container(name).show()
            except DockerError as error:
                if error.status == GONE:
                    return None
                raise

    async def create(self, name: str, config: Mapping[str, Any]) -> None:
        async with answering():
            await self.client.containers.create(dict(config), name=name)

    async def start(self, name: str) -> None:
        async with answering():
            await self.client.containers.container(name).start()

    async def stop(self, name: str, grace: int) -> None:
        """SIGTERM, after ``grace`` seconds SIGKILL; returns when it has ended."""
        async with answering():
            try:
                await self.client.containers.container(name).stop(t=grace)
            except DockerError as error:
                if error.status not in (GONE, 304):
                    raise

    async def remove(self, name: str) -> None:
        """Kill and remove a container with its anonymous volumes; returns when it is gone."""
        async with answering():
            while True:
                try:
                    await self.client.containers.container(name).delete(force=True, v=True)
                except DockerError as error:
                    if error.status == GONE:
                        return
                    if error.status != BUSY:
                        raise
                # Somebody else is removing it: it is gone when the engine says so.
                await asyncio.sleep(0.05)

    async def ended(self, name: str) -> Ended | None:
        """Wait until a container does not run any more; None if it is gone. Outlives the engine."""
        pause = AGAIN
        while True:
            try:
                async with answering():
                    try:
                        await self.client.containers.container(name).wait()
                    except DockerError as error:
                        if error.status == GONE:
                            return None
                        raise
                found = await self.inspect(name)
                if found is None:
                    return None
                state = found["State"]
                if not state.get("Running"):
                    return Ended(int(state.get("ExitCode") or 0), state)
                pause = AGAIN
            except EngineUnavailable:
                pause = min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def follow(self, name: str, hear: Hear, *, attached: asyncio.Event | None = None) -> None:
        """Hand all that a container has written, and writes from now on, to ``hear`` until it ends.

        ``attached`` is set when nothing that it writes can be missed any more.
        """
        async with answering():
            stream = self.client.containers.container(name).attach(
                stdout=True, stderr=True, logs=True
            )
            async with stream:
                if attached is not None:
                    attached.set()
                while (message := await stream.read_out()) is not None:
                    hear(message.stream, message.data)

    async def run(self, name: str, config: Mapping[str, Any], hear: Hear, wait: float) -> Ended:
        """Run a container until it ends, for ``wait`` seconds at most (then ``TimeoutError``).

        It is removed in any case; a cancel kills it.
        """
        await self.create(name, config)
        try:
            async with asyncio.timeout(wait):
                attached = asyncio.Event()
                following = asyncio.create_task(
                    self.follow(name, hear, attached=attached), name=f"log of {name}"
                )
                try:
                    await asyncio.wait(
                        [following, waiting := asyncio.ensure_future(attached.wait())],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    waiting.cancel()
                    await self.start(name)
                    found = await self.ended(name)
                    # All that it wrote is in the stream when it has ended.
                    await asyncio.wait([following], timeout=5)
                finally:
                    following.cancel()
                if found is None:
                    raise EngineUnavailable("Somebody removed a container while it ran.")
                return found
        finally:
            await asyncio.shield(asyncio.ensure_future(self._removed(name)))

    async def _removed(self, name: str) -> None:
        try:
            await self.remove(name)
        except NotebooksError as error:
            log.warning("The container %s is left behind: %s", name, error.message)

    # -- networks and volumes ------------------------------------------------------------------

    async def networks(self, filters: Mapping[str, Any] | None = None) -> list[Mapping[str, Any]]:
        async with answering():
            return list(await self.client.networks.list(filters=filters))

    async def network(self, name: str) -> Mapping[str, Any] | None:
        async with answering():
            try:
                found: Mapping[str, Any] = await self.client.networks.docker._query_json(
                    f"networks/{name}"
                )
                return found
            except DockerError as error:
                if error.status == GONE:
                    return None
                raise

    async def make_network(self, config: Mapping[str, Any]) -> None:
        """Raises ``Taken`` if the addresses or the name are somebody else's."""
        async with answering():
            try:
                await self.client.networks.create(dict(config))
            except DockerError as error:
                if error.status in (403, BUSY) or "overlaps" in error.message.lower():
                    raise Taken(error.message) from None
                raise

    async def join(self, network: str, container: str, aliases: list[str]) -> None:
        """Put a container into a network; no error if it is in there."""
        config = {"Container": container, "EndpointConfig": {"Aliases": aliases}}
        async with answering():
            try:
                await aiodocker.networks.DockerNetwork(self.client, network).connect(config)
            except DockerError as error:
                if "already exists in network" not in error.message:
                    raise

    async def leave(self, network: str, container: str) -> None:
        config = {"Container": container, "Force": True}
        async with answering():
            try:
                await aiodocker.networks.DockerNetwork(self.client, network).disconnect(config)
            except DockerError as error:
                if error.status != GONE and "is not connected" not in error.message:
                    raise

    async def remove_network(self, name: str) -> None:
        async with answering():
            try:
                await aiodocker.networks.DockerNetwork(self.client, name).delete()
            except DockerError as error:
                if error.status != GONE:
                    raise

    async def make_volume(self, name: str, labels: Mapping[str, str]) -> None:
        async with answering():
            await self.client.volumes.create({"Name": name, "Labels": dict(labels)})

    async def has_volume(self, name: str) -> bool:
        async with answering():
            try:
                await self.client.volumes.get(name)
            except DockerError as error:
                if error.status == GONE:
                    return False
                raise
            return True

    async def remove_volume(self, name: str) -> None:
        async with answering():
            try:
                await aiodocker.volumes.DockerVolume(self.client, name).delete()
            except DockerError as error:
                if error.status != GONE:
                    raise

    async def volumes(self, filters: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        async with answering():
            return list((await self.client.volumes.list(filters=filters)).get("Volumes") or [])

    async def volume_sizes(self) -> Mapping[str, int]:
        """Bytes of every volume by name; -1 where the engine does not know. It counts files: that takes long.

        https://docs.docker.com/reference/api/engine/version/v1.44/#tag/System/operation/SystemDataUsage
        """
        async with answering():
            found = await self.client._query_json(
                "system/df", method="GET", params={"type": "volume"}, timeout=COUNT_WAIT
            )
            return {
                str(each["Name"]): int((each.get("UsageData") or {}).get("Size", -1))
                for each in found.get("Volumes") or []
            }

    async def put(self, name: str, at: str, archive: bytes) -> None:
        """Unpack a tar archive at ``at`` in a container, which need not run."""
        async with answering():
            await self.client.containers.container(name).put_archive(at, archive)

    async def has_file(self, name: str, path: str) -> bool:
        """Whether a container, which need not run, has this file."""
        async with answering():
            try:
                await self.client.containers.container(name).get_archive(path)
            except DockerError as error:
                if error.status == GONE:
                    return False
                raise
            return True


class Taken(Exception):
    """Another network has these addresses, or this name."""


@asynccontextmanager
async def answering() -> AsyncIterator[None]:
    """What comes of an engine that is away is ``EngineUnavailable``; the log has the engine's words."""
    try:
        yield
    except (DockerError, aiohttp.ClientError, OSError) as error:
        log.warning("The Docker engine: %s", error)
        if isinstance(error, DockerError) and "no space left" in error.message:
            raise NoSpace(
                "The disk of the machine that runs servers is full; nothing that was saved is lost."
            ) from None
        if isinstance(error, DockerError) and BAD <= error.status < 500:
            raise EngineRefused() from None
        raise EngineUnavailable() from None
