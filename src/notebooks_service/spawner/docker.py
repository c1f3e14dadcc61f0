"""The ``docker`` runtime: every server a container of its commit's image, on one host.

The launch mixin calls it. DockerSpawner makes, watches and removes the server's container; the image is
brought, the volume made, the repository cloned and the network laid around it here, on the hub's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import ssl
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from docker.errors import DockerException
from requests import RequestException

from notebooks_service.domain import ImageOrigin
from notebooks_service.errors import (
    CloneFailed,
    EngineUnavailable,
    ImageUnavailable,
    NotebooksError,
    StartFailed,
)
from notebooks_service.mounts import Mount
from notebooks_service.resources import for_whom, granted
from notebooks_service.settings import Settings
from notebooks_service.spawner import container_ends, containers, directories, served
from notebooks_service.spawner.cloning import CARRIED, UNSAVED_WAIT, CloneWords, is_folder, too_slow
from notebooks_service.spawner.container_logs import ProgramOutput, ServerLogs
from notebooks_service.spawner.containers import PLACE, PROGRAMS, WORK, Limits, Ours
from notebooks_service.spawner.engine import Engine
from notebooks_service.spawner.gpus import Gpus
from notebooks_service.spawner.networks import Networks
from notebooks_service.spawner.programs import JUPYTER, Programs, missing
from notebooks_service.spawner.pulling import Pulls
from notebooks_service.spawner.runtime import Beneath, Save, ServerKey, ServerPlan, Tell
from notebooks_service.spawner.served import Served
from notebooks_service.spawner.server_log import log_tail
from notebooks_service.spawner.volumes import VolumeDirectory, volume_of

log = logging.getLogger(__name__)

STOP_GRACE = 10
LOOK_LIMITS = Limits(1, 2 * 2**30, 200)
"""For a look at what is unsaved: it runs git's own format readers over files that a person wrote."""
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: to read all authorities' certificates would hold the hub's loop for 20 ms."""
_PROBE_FIRST, _PROBE_SLOWEST = 0.02, 0.2
_SERVED_WAIT = 2.0
_NO_DATA = "The data `{name}` is not on this machine at present. Start the server without it, or tell whoever runs this service."
_GONE = (
    "The volume with this server's work is not on this machine any more. Ask whoever runs this service to "
    "bring it back from a backup; if it is of no use, delete the server and start it anew."
)


class DockerRuntime:
    """Servers as containers. One instance per hub process; see ``runtime.Runtime``."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: Engine | None = None,
        pulls: Pulls | None = None,
        programs: Path = CARRIED,
    ) -> None:
        self._settings = settings
        self._engine = engine or Engine()
        self._pulls = pulls or Pulls()
        self._ours = Ours(instance(settings))
        self._programs = Programs(self._engine, self._ours, programs, settings.init_image)
        range_ = ipaddress.IPv4Network(settings.docker_networks)
        self._networks = Networks(
            self._engine, self._ours, range_, containers.inside_host(settings)
        )
        self._logs = ServerLogs(self._engine)
        self._limits = Limits.of(settings)
        self._gpus = Gpus(settings.gpus, self._engine, self._ours)
        self._network: dict[ServerKey, str] = {}
        self._starting: dict[ServerKey, asyncio.Task[Any]] = {}
        self._looked: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._architecture = ""

    proxied = True

    def directory(self, key: ServerKey) -> VolumeDirectory:
        return VolumeDirectory(self._settings.data, key)

    def refuse(self, user: str) -> str | None:
        return None

    def holds_work(self, key: ServerKey) -> bool:
        return self.directory(key).read_cloned() is not None

    # -- the image -----------------------------------------------------------------------------

    async def prepare(self, plan: ServerPlan, tell: Tell) -> None:
        await self._gpus.look(plan.key, plan.resources.gpu)
        await self._image(plan, tell)

    async def _image(self, plan: ServerPlan, tell: Tell) -> str:
        """What the engine calls the plan's image, which it has when this returns."""
        if plan.image.origin is ImageOrigin.DEFAULT or plan.image.digest is None:
            name = self._settings.default_image
            found = await self._pulls.image(name)
            if found is None:
                raise missing(name)
            return str(found["Id"])
        name = containers.image_name(plan.image.reference)

        async def token() -> str | None:
            if plan.registry_token is None:
                return None
            return await plan.registry_token(containers.repository(name))

        found = await self._pulls.bring(name, plan.image.digest, token, tell)
        await self._check_architecture(found)
        return f"{name}@{plan.image.digest}"

    async def _check_architecture(self, image: Mapping[str, Any]) -> None:
        if not self._architecture:
            self._architecture = await self._engine.architecture()
        made_for = str(image.get("Architecture") or self._architecture)
        if made_for != self._architecture:
            raise ImageUnavailable(
                f"This image is made for another kind of processor ({made_for}) than this machine has "
                f"({self._architecture}). Have its CI job build it for {self._architecture}."
            )

    # -- the clone -----------------------------------------------------------------------------

    async def clone(self, plan: ServerPlan, tell: Tell) -> Mapping[str, Any]:
        key, directory = plan.key, self.directory(plan.key)
        await self._remove(key)
        await self._volume(key, directory)
        network = self._ours.fresh()
        await self._networks.make(network, key, plan.launch)
        self._network[key] = network
        words = CloneWords(tell)
        errors = directory.open_log(directory.clone_log)
        try:
            ended = await self._engine.run(
                self._ours.fresh(),
                await self._program(
                    plan.key, "init", [f"{PROGRAMS}/clone.py"],
                    containers.init_environment(plan, self._settings),
                    network=network, limits=self._limits, launch=plan.launch,
                ),
                ProgramOutput(words.hear, errors),
                self._settings.clone_wait,
            )  # fmt: skip
        except TimeoutError:
            raise too_slow(self._settings.clone_wait) from None
        finally:
            os.close(errors)
        if ended.state.get("OOMKilled"):
            raise CloneFailed(container_ends.why(ended.state, memory=self._limits.memory or None))
        facts = words.facts(ended.code)
        if not is_folder(str(facts.get("folder", plan.project.folder))):
            raise CloneFailed()
        directory.write_cloned({"commit": plan.commit, "branch": plan.branch, "checkout": facts})
        return facts

    async def _volume(self, key: ServerKey, directory: VolumeDirectory) -> None:
        """The server's volume, with its work if there is some, otherwise an empty one."""
        known = directory.volume
        if directory.read_cloned() is not None and known is not None:
            if not await self._engine.has_volume(known):
                raise CloneFailed(_GONE)
            return
        if known is not None:  # half a clone
            await self._engine.remove_volume(known)
        directory.make()
        fresh = self._ours.fresh()
        directory.keep_volume(fresh)
        await self._engine.make_volume(fresh, self._ours.labels("volume", key))

    async def _program(
        self,
        key: ServerKey,
        kind: containers.Kind,
        command: list[str],
        variables: Mapping[str, str],
        *,
        network: str,
        limits: Limits,
        launch: str = "",
    ) -> dict[str, Any]:
        """A container that runs one of our programs over the server's volume."""
        volume = self.directory(key).volume
        if await self._pulls.image(self._settings.init_image) is None:
            raise missing(self._settings.init_image)
        place = f"{PLACE}:ro" if kind == "look" else PLACE
        return containers.program_config(
            self._ours, kind, ["python3", "-I", *command], variables,
            image=self._settings.init_image,
            volumes={await self._programs.ready(): f"{PROGRAMS}:ro", str(volume): place},
            network=network, limits=limits, key=key, launch=launch,
        )  # fmt: skip

    # -- the server ----------------------------------------------------------------------------

    async def start(self, plan: ServerPlan, save: Save, beneath: Beneath) -> str:
        key, directory = plan.key, self.directory(plan.key)
        network = self._network.pop(key)
        image = await self._image(plan, lambda message, detail: None)
        limits = self._limits.with_resources(
            granted(for_whom(self._settings, key.user, plan.project.path), plan.resources)
        )
        environment = containers.server_environment(plan, self._settings, limits)
        lent = await self._lent(plan)
        name = self._ours.fresh()
        facts = {
            "container": name,
            "network": network,
            "volume": directory.volume,
            "log": directory.relative(directory.server_log),
            "memory": limits.memory,
        }
        save(facts)
        # The last thing before the container: nothing may fail between, which would keep them from others.
        gpus = await self._gpus.take(key, limits.gpus)
        if gpus:
            environment[containers.VISIBLE_GPUS] = ",".join(gpus)
        traits = containers.server_traits(
            self._ours, plan, image=image, name=name, volume=str(directory.volume),
            programs=lent, network=network, limits=limits, gpus=gpus,
        )  # fmt: skip
        ip, port = await self._made(key, beneath, traits, environment, plan.mounts)
        facts["url"] = f"http://{ip}:{port}"
        save(facts)
        self._logs.begin(key, name, directory)
        try:
            await self._until_it_answers(key, facts, beneath, environment)
        except BaseException:
            self._in_background(beneath.unroute())
            raise
        return str(facts["url"])

    async def _lent(self, plan: ServerPlan) -> dict[str, str]:
        """The volumes with what the server's image may be without: our programs, and a Jupyter."""
        found = {await self._programs.ready(): PROGRAMS}
        name = self._settings.default_image
        if plan.image.digest is not None and (default := await self._pulls.image(name)) is not None:
            volume = await self._programs.jupyter(name, str(default["Id"]))
            found |= {volume: JUPYTER} if volume else {}
        return found

    async def _made(
        self,
        key: ServerKey,
        beneath: Beneath,
        traits: Mapping[str, Any],
        environment: Mapping[str, str],
        mounted: Sequence[Mount],
    ) -> tuple[str, int]:
        """Have DockerSpawner make and start the container; its address.

        A cancelled launch leaves that call to end by itself: its thread goes on in any case, and what it
        has made then is cleaned up (``_remove`` waits for it).
        """
        task = asyncio.create_task(beneath.start(traits, environment), name=f"start of {key}")
        self._starting[key] = task
        task.add_done_callback(lambda done: self._started(key, done))
        try:
            ip, port = await asyncio.shield(task)
        except (DockerException, RequestException) as error:
            said = str(getattr(error, "explanation", None) or error)
            log.warning("%s was not started: %s", key, said)
            if not isinstance(error, DockerException):
                raise EngineUnavailable() from None
            if (name := container_ends.absent(said, mounted)) is not None:
                raise StartFailed(_NO_DATA.format(name=name)) from None
            why = container_ends.why({"ExitCode": -1, "Error": said}, memory=None)
            raise StartFailed(f"The server could not be started. {why}") from None
        return str(ip), int(port)

    def _started(self, key: ServerKey, task: asyncio.Task[Any]) -> None:
        if self._starting.get(key) is task:
            del self._starting[key]
            self._gpus.made(key)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    async def _until_it_answers(
        self,
        key: ServerKey,
        facts: Mapping[str, Any],
        beneath: Beneath,
        environment: Mapping[str, str],
    ) -> None:
        """Return when visitors would reach the server. Raises ``StartFailed`` with its last words."""
        directory = self.directory(key)
        end = asyncio.create_task(self._engine.ended(str(facts["container"])))
        ask = asyncio.create_task(self._answer(facts, beneath))
        wait = self._settings.start_wait
        try:
            await asyncio.wait([end, ask], timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if ask.done():
                ask.result()
                return
            if not end.done():
                tail = log_tail(directory.server_log, environment)
                raise StartFailed(f"The server did not answer within {wait:.0f} seconds.{tail}")
            await self._logs.finish(key)
            why = await self.why_ended(key, facts)
            tail = log_tail(directory.server_log, environment)
            raise StartFailed(f"The server ended before it answered. {why}{tail}")
        finally:
            for task in (end, ask):
                task.cancel()

    async def served(self, key: ServerKey) -> Served | None:
        # What a container writes comes by a stream of its own, which may be behind its answers.
        path, until = self.directory(key).server_log, time.monotonic() + _SERVED_WAIT
        while (found := await asyncio.to_thread(served.in_log, path)) is None:
            if time.monotonic() > until:
                return None
            await asyncio.sleep(_PROBE_FIRST)
        return found

    async def answer(
        self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath, wait: float
    ) -> httpx.Response:
        async with asyncio.timeout(wait):
            return await self._answer(facts, beneath)

    async def _answer(self, facts: Mapping[str, Any], beneath: Beneath) -> httpx.Response:
        """The server's own answer to a request through the hub's proxy, which is the only way to it."""
        url = urlsplit(self._settings.docker_proxy_url or self._settings.hub_url)
        headers = {"Host": beneath.host} if beneath.host else {}
        address = f"{url.scheme}://{url.netloc}{beneath.path}api"
        verify: ssl.SSLContext | bool = _NO_TLS if url.scheme == "http" else True
        pause = _PROBE_FIRST
        async with httpx.AsyncClient(timeout=5, trust_env=False, verify=verify) as client:
            routed = False
            while True:
                if not (routed := routed or await beneath.route(str(facts["url"]))):
                    await asyncio.sleep(_PROBE_SLOWEST)
                    continue
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    found = await client.get(address, headers=headers)
                    # While it does not listen, the proxy answers in its place.
                    if found.status_code == 200 and "version" in found.json():
                        return found
                await asyncio.sleep(pause)
                pause = min(pause * 1.3, _PROBE_SLOWEST)

    async def poll(self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath) -> int | None:
        name = facts.get("container")
        if not name:
            return 1
        try:
            status = await beneath.poll()
        except (DockerException, RequestException) as error:
            # A server has not ended because nobody can be asked about it.
            log.warning("%s: the Docker engine does not answer: %r", key, error)
            return None
        if status is not None and await self._runs_after_all(str(name)):
            return None
        if status is None and name not in self._looked:
            # The hub or the proxy may be new since: its log is followed, its network has its doors.
            self._looked.add(str(name))
            with contextlib.suppress(NotebooksError):
                await self._networks.open(str(facts.get("network")))
            self._logs.begin(key, str(name), self.directory(key))
        return status

    async def _runs_after_all(self, name: str) -> bool:
        """Whether a container that is said to have ended runs, or nobody can say.

        DockerSpawner takes an engine's error for the end of the server.
        """
        try:
            found = await self._engine.inspect(name)
        except NotebooksError as error:
            log.warning("%s: %s", name, error)
            return True
        return found is not None and bool(found["State"]["Running"])

    async def why_ended(self, key: ServerKey, facts: Mapping[str, Any]) -> str:
        try:
            found = await self._engine.inspect(str(facts.get("container")))
        except NotebooksError:
            return ""
        if found is None:
            return "Its container was removed by somebody."
        tail = log_tail(self.directory(key).server_log, {})
        memory = int(facts.get("memory", self._limits.memory)) or None
        return container_ends.why(found["State"], memory=memory, log_tail=tail)

    async def ended(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        await self._engine.ended(str(facts.get("container")))

    def kill_now(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        if name := facts.get("container"):
            self._in_background(self._engine.remove(str(name)))

    async def stop(
        self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath, *, now: bool
    ) -> None:
        if name := facts.get("container"):
            # Here and not in DockerSpawner's one thread, where all would wait for one server's grace.
            await self._engine.stop(str(name), 0 if now else STOP_GRACE)
            await self._logs.finish(key)
            try:
                await beneath.stop()
            except (DockerException, RequestException) as error:
                log.warning("%s: DockerSpawner could not remove it: %r", key, error)
        await self._remove(key)

    async def clean(self, key: ServerKey, facts: Mapping[str, Any], *, files: bool) -> None:
        await self._remove(key)
        if files:
            await self._forget(self.directory(key).path)

    async def unsaved(self, key: ServerKey, folder: str) -> Mapping[str, Any] | None:
        directory = self.directory(key)
        if not is_folder(folder) or directory.volume is None:
            return None
        heard: list[dict[str, Any]] = []
        errors = os.open(os.devnull, os.O_WRONLY)
        try:
            ended = await self._engine.run(
                self._ours.fresh(),
                await self._program(
                    key, "look", [f"{PROGRAMS}/unsaved.py", f"{WORK}/{folder}"],
                    containers.base_environment(), network="none", limits=LOOK_LIMITS,
                ),
                ProgramOutput(heard.append, errors),
                UNSAVED_WAIT,
            )  # fmt: skip
        except (NotebooksError, TimeoutError):
            ended = None
        finally:
            os.close(errors)
        if ended is None or ended.code != 0 or not heard:
            log.warning("What is unsaved in %s cannot be said", key)
            return None
        return heard[-1]

    async def discard(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        await self._remove(key)
        await asyncio.to_thread(directories.discard, self._settings.data, key, facts)

    async def sizes(self, keys: Sequence[ServerKey]) -> Mapping[ServerKey, int]:
        volumes = {key: self.directory(key).volume for key in keys}
        found = await self._engine.volume_sizes() if any(volumes.values()) else {}
        # -1 is the engine's word for a size that it does not know.
        sizes = {key: found.get(name, 0) if name else 0 for key, name in volumes.items()}
        return {key: size for key, size in sizes.items() if size >= 0}

    async def purge(self) -> None:
        for path in await asyncio.to_thread(
            directories.expired, self._settings.data, self._settings.trash_days
        ):
            try:
                await self._forget(path)
            except NotebooksError as error:  # it is tried again tomorrow
                log.warning("%s stays in the trash: %s", path.name, error.message)
            else:
                log.info("The trash no longer holds %s", path.name)

    async def _forget(self, path: Path) -> None:
        """Remove a server's volume, then the directory that names it."""
        if (volume := await asyncio.to_thread(volume_of, path)) is not None:
            await self._engine.remove_volume(volume)
        await asyncio.to_thread(directories.remove_tree, path)

    async def _remove(self, key: ServerKey) -> None:
        """Remove every container and network of a server; its volume stays."""
        if (starting := self._starting.get(key)) is not None:
            await asyncio.wait([starting])
        for each in await self._engine.containers(self._ours.filters(key=key)):
            await self._engine.remove(each["Id"])
        await self._networks.remove(key)
        self._network.pop(key, None)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def done() -> None:
            try:
                await work
            except (NotebooksError, httpx.HTTPError, OSError) as error:
                log.warning("Cleaning up: %r", error)

        task = asyncio.create_task(done())
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def instance(settings: Settings) -> str:
    """The short id of this service on its engine: the setting's, or one that is kept in the data."""
    if settings.docker_instance:
        return settings.docker_instance
    path = settings.data / "docker" / "instance"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = secrets.token_hex(4)
        try:
            with path.open("x") as file:
                file.write(fresh)
        except FileExistsError:
            return path.read_text().strip()
        return fresh
