"""Brings images to a Docker engine, by digest, with progress in layers and bytes; ``docker.py`` calls it.

DockerSpawner sends every call through one thread, a pull of many minutes too. Pulls have threads of
their own, several at once; all who wait for the same digest share one.
https://docs.docker.com/reference/api/engine/  (``POST /images/create``)
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import docker
import docker.errors
import docker.utils
import requests

from notebooks_service.errors import ImageUnavailable, NoSpace
from notebooks_service.spawner.runtime import Tell

log = logging.getLogger(__name__)

AT_ONCE = 3
TRIES = 5
"""A pull that got further than the one before it is tried again so often: a token of the registry
may expire between two layers, a network may break off."""

DOWNLOADED = frozenset({"Download complete", "Verifying Checksum", "Extracting", "Pull complete"})
DONE = frozenset({"Pull complete", "Already exists"})
REFUSED = ("unauthorized", "denied", "authentication required", "no basic auth")
FULL = ("no space left", "disk quota exceeded")

Token = Callable[[], Awaitable[str | None]]
"""A fresh token of the registry that may pull this one repository; None where nobody logs in."""
Connect = Callable[[], docker.APIClient]


def connect() -> docker.APIClient:
    """A client of the engine that ``DOCKER_HOST`` names, as DockerSpawner makes its own."""
    return docker.APIClient(version="auto", **docker.utils.kwargs_from_env())


@dataclass(frozen=True)
class Progress:
    """How far a pull is; ``total`` counts the bytes of the layers whose size is known by now."""

    layers: int = 0
    done: int = 0
    bytes: int = 0
    total: int = 0

    @property
    def sentence(self) -> str:
        if not self.layers:
            return "Asking the registry for the image."
        parts = f"Pulling the image: {self.done} of {self.layers} layers"
        if not self.total:
            return f"{parts}."
        return f"{parts}, {self.bytes / 2**20:,.0f} of {self.total / 2**20:,.0f} MiB."


@dataclass
class Layers:
    """Adds up the engine's events, one for each step of each layer."""

    _done: dict[str, bool] = field(default_factory=dict)
    _bytes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def hear(self, event: Mapping[str, Any]) -> Progress:
        """Where the pull is after ``event``."""
        layer, status = event.get("id"), event.get("status")
        if (
            isinstance(layer, str)
            and isinstance(status, str)
            and not status.startswith("Pulling from")
        ):
            self._done[layer] = self._done.get(layer, False) or status in DONE
            detail = event.get("progressDetail") or {}
            if status == "Downloading":
                total = int(detail.get("total") or 0)
                current = int(detail.get("current") or 0)
                self._bytes[layer] = (current, max(total, current))
            elif status in DOWNLOADED and layer in self._bytes:
                total = self._bytes[layer][1]
                self._bytes[layer] = (total, total)
        return Progress(
            layers=len(self._done),
            done=sum(self._done.values()),
            bytes=sum(current for current, _ in self._bytes.values()),
            total=sum(total for _, total in self._bytes.values()),
        )


@dataclass(eq=False)
class _Pull:
    """One pull that is under way. ``stop`` is set when nobody waits for it any more."""

    tells: list[Tell] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[None] | None = None
    progress: Progress = field(default_factory=Progress)


class _Broken(Exception):
    """The pull ended early; ``args[0]`` is what the engine said."""


class Pulls:
    """The pulls of one hub. ``connect`` makes a client of the engine; each pull has its own."""

    def __init__(self, connect: Connect = connect, at_once: int = AT_ONCE) -> None:
        self._connect = connect
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="pull")
        self._looks = ThreadPoolExecutor(2, thread_name_prefix="image")
        self._running: dict[str, _Pull] = {}

    async def image(self, reference: str) -> Mapping[str, Any] | None:
        """What the engine knows of an image that it has; None if it has none of that name."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._looks, self._inspect, reference)

    async def bring(self, name: str, digest: str, token: Token, tell: Tell) -> Mapping[str, Any]:
        """Have the image ``name`` (without a tag) in its version ``digest``; what the engine knows of it.

        Raises ``ImageUnavailable`` or ``NoSpace`` with a sentence. Whoever is cancelled leaves the
        pull to the others who wait for it; if there are none, it ends.
        """
        reference = f"{name}@{digest}"
        while True:
            found = await self.image(reference)
            if found is not None:
                return found
            theirs = self._running.get(reference)
            if theirs is None:
                await self._wait(self._begin(reference, name, digest, token), reference, tell)
            else:
                # Where it fails for somebody else, it may be by their right: then it is tried with ours.
                try:
                    await self._wait(theirs, reference, tell)
                except (ImageUnavailable, NoSpace):
                    continue

    def waiting(self, name: str, digest: str) -> int:
        """How many wait for the pull of this image that is under way; 0 if there is none."""
        pull = self._running.get(f"{name}@{digest}")
        return 0 if pull is None else len(pull.tells)

    def _begin(self, reference: str, name: str, digest: str, token: Token) -> _Pull:
        pull = self._running[reference] = _Pull()
        pull.task = asyncio.create_task(self._tries(pull, name, digest, token), name=f"pull {name}")
        pull.task.add_done_callback(lambda task: self._forget(reference, pull, task))
        return pull

    def _forget(self, reference: str, pull: _Pull, task: asyncio.Task[None]) -> None:
        if self._running.get(reference) is pull:
            del self._running[reference]
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _wait(self, pull: _Pull, reference: str, tell: Tell) -> None:
        assert pull.task is not None
        pull.tells.append(tell)
        try:
            await asyncio.shield(pull.task)
        finally:
            pull.tells.remove(tell)
            if not pull.tells and not pull.task.done():
                # The thread notices at the engine's next word; a new wish begins a new pull.
                pull.stop.set()
                self._running.pop(reference, None)

    async def _tries(self, pull: _Pull, name: str, digest: str, token: Token) -> None:
        loop = asyncio.get_running_loop()

        def heard(progress: Progress) -> None:
            pull.progress = progress
            for tell in list(pull.tells):
                tell(progress.sentence, {"layers": progress.layers, "layers_done": progress.done,
                                         "bytes": progress.bytes, "total": progress.total})  # fmt: skip

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(heard, progress)

        before = -1
        for last in range(1, TRIES + 1):
            granted = await token()
            if pull.stop.is_set():
                return
            layers = Layers()
            try:
                await loop.run_in_executor(
                    self._threads, self._pull, name, digest, granted, pull.stop, layers, tell,
                )  # fmt: skip
                return
            except _Broken as broken:
                said = str(broken)
            if any(word in said.lower() for word in FULL):
                raise NoSpace(
                    "The disk of the machine that runs servers is full: the image does not fit."
                )
            if pull.progress.done <= before or last == TRIES:
                log.warning("%s@%s was not pulled: %s", name, digest, said)
                raise ImageUnavailable(_why(said))
            before = pull.progress.done
        raise AssertionError("unreachable")

    # -- in threads ----------------------------------------------------------------------------

    def _inspect(self, reference: str) -> Mapping[str, Any] | None:
        with _engine(), closing(self._connect()) as client:
            try:
                found: Mapping[str, Any] = client.inspect_image(reference)
            except docker.errors.ImageNotFound:
                return None
            return found

    def _pull(
        self,
        name: str,
        digest: str,
        token: str | None,
        stop: threading.Event,
        layers: Layers,
        tell: Callable[[Progress], None],
    ) -> None:
        # Without it the engine's client would look for the logins of whoever runs the hub.
        auth = {"registrytoken": token} if token else {}
        last = Progress()
        with _engine(), closing(self._connect()) as client:
            try:
                for event in client.pull(
                    name, tag=digest, stream=True, decode=True, auth_config=auth
                ):
                    if stop.is_set():
                        return
                    if error := event.get("error"):
                        raise _Broken(str(error))
                    progress = layers.hear(event)
                    if progress != last:
                        last = progress
                        tell(progress)
            except docker.errors.APIError as error:
                raise _Broken(str(error.explanation or error)) from None
            except (docker.errors.DockerException, requests.RequestException) as error:
                raise _Broken(f"the Docker engine: {type(error).__name__}") from None


@contextmanager
def _engine() -> Iterator[None]:
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as error:
        log.warning("The Docker engine does not answer: %r", error)
        raise ImageUnavailable(
            "The Docker engine does not answer, so no image can be run. Try again in a minute; if it "
            "stays so, tell whoever runs this service."
        ) from None


def _why(said: str) -> str:
    low = said.lower()
    if any(word in low for word in REFUSED):
        return "The registry does not let you pull this image any more. Ask a member of the project for access."
    if "not found" in low or "manifest unknown" in low:
        return "This image is no longer in its registry. Start the launch again to have it looked for anew."
    return "The image could not be pulled from its registry. Try again in a minute."
