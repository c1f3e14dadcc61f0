"""The ``local`` runtime: one JupyterLab process per server, on this machine, loopback only.

The launch mixin calls it. JupyterLab comes from the service's own environment, kernels from the
commit's. Where nothing walls servers off from each other only the owner launches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import httpx

from notebooks_service.domain import ImageOrigin
from notebooks_service.errors import CloneFailed, ImageUnavailable, StartFailed
from notebooks_service.high_water import Gauge, Marks
from notebooks_service.images.default import default_environment
from notebooks_service.images.environments import Environment, EnvironmentStore
from notebooks_service.images.limits import disk_usage
from notebooks_service.personal_secrets import NO_SECRETS, PLACE, VARIABLE
from notebooks_service.settings import Settings
from notebooks_service.spawner import directories, memory, processes
from notebooks_service.spawner.cloning import (
    CARRIED,
    Around,
    is_folder,
    run_clone,
    run_unsaved,
)
from notebooks_service.spawner.container_ends import WITHOUT_SECRETS
from notebooks_service.spawner.directories import ServerDirectory, limit_log
from notebooks_service.spawner.jupyter_files import RUNTIME, server_environment, write_files
from notebooks_service.spawner.runtime import Beneath, Save, ServerKey, ServerPlan, Tell
from notebooks_service.spawner.served import Served
from notebooks_service.spawner.server_log import log_tail
from notebooks_service.walls.ownership import open_to_readers
from notebooks_service.walls.view import Mount, interpreter_paths, reading, writing
from notebooks_service.walls.wall import Inside, Walls, in_force

log = logging.getLogger(__name__)

# -P keeps modules of the working directory from taking the place of JupyterLab's.
SERVER = (sys.executable, "-P", "-m", "jupyterhub.singleuser")
STOP_GRACE = 10.0
LONGEST_LOG = 20 * 1024 * 1024
PORT_TRIES = 3
_PROBE_FIRST, _PROBE_SLOWEST = 0.02, 0.1
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A server of this machine speaks plain HTTP; to read all authorities' certificates would hold the
hub's loop for 20 ms at each launch."""


MakeDefault = Callable[[EnvironmentStore, tuple[str, ...], Walls, TextIO, Gauge], Environment]


class LocalRuntime:
    """Servers as processes. One instance per hub process; see ``runtime.Runtime``."""

    def __init__(
        self,
        settings: Settings,
        store: EnvironmentStore,
        *,
        command: Sequence[str] = SERVER,
        programs: Path = CARRIED,
        walls: Walls | None = None,
        make_default: MakeDefault = default_environment,
    ) -> None:
        """``command`` starts a server, ``programs`` holds ``clone.py``, ``unsaved.py`` and ``secret_files.py``."""
        self._make_default = make_default
        self._settings = settings
        self._walls = walls or in_force(settings)
        self._store = store
        self._command = list(command)
        self._programs = programs
        self._children: dict[ServerKey, subprocess.Popen[bytes]] = {}

    proxied = False

    def directory(self, key: ServerKey) -> ServerDirectory:
        return ServerDirectory(self._settings.data, key)

    def refuse(self, user: str) -> str | None:
        owner = self._settings.owner.lower()
        allowed = self._walls.hold or self._settings.unwalled_people
        if allowed or (owner and user.lower() == owner):
            return None
        return (
            "This machine runs notebooks for its owner only: nothing walls the servers of one "
            "machine off from each other here. `notebooks doctor` says why; the owner can allow "
            "it all the same with the setting `unwalled_people`."
        )

    def holds_work(self, key: ServerKey) -> bool:
        return self.directory(key).read_cloned() is not None

    async def prepare(self, plan: ServerPlan, tell: Tell) -> None:
        await self._environment(plan, tell)

    async def clone(self, plan: ServerPlan, tell: Tell) -> Mapping[str, Any]:
        directory = self.directory(plan.key)
        await processes.end(directory.path, {}, grace=0)
        await asyncio.to_thread(directory.remove_half_clone)
        await asyncio.to_thread(directories.remove_tree, directory.temporary)
        directory.make()
        await asyncio.to_thread(self._hand_over, plan.key)
        facts = await run_clone(
            self._programs,
            directory,
            plan,
            server_environment(directory, plan.environment, walled=self._walls.hold),
            self._settings.clone_wait,
            tell,
            self._around(plan.key),
        )
        folder = str(facts.get("folder", plan.project.folder))
        if not is_folder(folder) or not (directory.work / folder).is_dir():
            raise CloneFailed()
        directory.write_cloned({"commit": plan.commit, "branch": plan.branch, "checkout": facts})
        return facts

    async def start(self, plan: ServerPlan, save: Save, beneath: Beneath | None = None) -> str:
        directory = self.directory(plan.key)
        shared = await self._environment(plan, lambda message, detail: None)
        if self._walls.hold:
            await asyncio.to_thread(open_to_readers, shared.path)
        layer = shared.overlay(directory.packages)
        write_files(directory, layer, walled=self._walls.hold)
        for last in range(1, PORT_TRIES + 1):
            try:
                return await self._start_once(plan, directory, (layer, shared), save)
            except _PortTaken:
                if last == PORT_TRIES:
                    raise StartFailed("The server found no free port on this machine.") from None
        raise AssertionError("unreachable")

    def kill_now(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        processes.kill_now(facts)

    async def clean(self, key: ServerKey, facts: Mapping[str, Any], *, files: bool) -> None:
        directory = self.directory(key)
        await processes.end(directory.path, facts, grace=0)
        self._reap(key)
        await asyncio.to_thread(memory.remove, directory.path)
        if files:
            await asyncio.to_thread(directory.remove)

    async def poll(
        self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath | None = None
    ) -> int | None:
        main = processes.recall(facts)
        if main is None:
            return self._reap(key)
        if await asyncio.to_thread(processes.taken, main, int(facts["port"])):
            # Nobody is to be sent there any more; what is left of the server ends with its route.
            log.warning("%s: somebody else listens on its port; it counts as ended", key)
            return 1
        limit_log(self.directory(key).server_log, LONGEST_LOG)
        return None

    async def answer(
        self, key: ServerKey, facts: Mapping[str, Any], beneath: Beneath, wait: float
    ) -> httpx.Response:
        raise NotImplementedError  # the hub reaches these servers itself

    async def ended(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        await processes.ended(facts)

    async def served(self, key: ServerKey) -> Served | None:
        return None  # JupyterLab is the service's own

    async def why_ended(self, key: ServerKey, facts: Mapping[str, Any]) -> str:
        return ""

    async def stop(
        self,
        key: ServerKey,
        facts: Mapping[str, Any],
        beneath: Beneath | None = None,
        *,
        now: bool,
    ) -> None:
        grace = 0 if now else STOP_GRACE
        directory = self.directory(key)
        await processes.end(directory.path, facts, grace=grace)
        self._reap(key)
        await asyncio.to_thread(memory.remove, directory.path)

    async def unsaved(self, key: ServerKey, folder: str) -> Mapping[str, Any] | None:
        directory = self.directory(key)
        return await run_unsaved(
            self._programs,
            directory,
            folder,
            server_environment(directory, {}, walled=self._walls.hold),
            self._around(key),
        )

    async def discard(self, key: ServerKey, facts: Mapping[str, Any]) -> None:
        directory = self.directory(key)
        await processes.end(directory.path, {}, grace=0)
        await asyncio.to_thread(memory.remove, directory.path)
        await asyncio.to_thread(directories.discard, self._settings.data, key, facts)

    async def sizes(self, keys: Sequence[ServerKey]) -> Mapping[ServerKey, int]:
        return {
            key: await asyncio.to_thread(disk_usage, self.directory(key).path, sys.maxsize)
            for key in keys
        }

    async def purge(self) -> None:
        for name in await asyncio.to_thread(
            directories.purge, self._settings.data, self._settings.trash_days
        ):
            log.info("The trash no longer holds %s", name)

    # -- the wall ----------------------------------------------------------------------------

    def _hand_over(self, key: ServerKey) -> None:
        """What the person's code may write is theirs; also what was made before there were walls."""
        for path in self.directory(key).persons:
            self._walls.own(path, person(key))

    def _around(self, key: ServerKey, *read: Path) -> Around:
        """Behind this server's wall: its own directories, and ``read``."""
        directory = self.directory(key)
        mounts = (
            Mount("tmpfs", str(RUNTIME), mode="1777"),
            # The server's own, which ends with it. Its files are closed to others all the same.
            Mount("tmpfs", PLACE, mode="1777"),
            *writing(directory.work, directory.home, directory.jupyter, directory.packages),
            *reading(*(path for path in (directory.settings, *read) if path.exists())),
        )
        return partial(
            self._walls.around,
            Inside(person(key), mounts, directory.temporary),
            marks=(processes.MARKER, "HOME"),
        )

    # -- the pieces --------------------------------------------------------------------------

    async def _environment(self, plan: ServerPlan, tell: Tell) -> Environment:
        """The image as files on this machine; the default one is built at its first need."""
        if plan.image.origin is ImageOrigin.DEFAULT:
            logs = self._settings.data / "logs"
            tell("Making the default environment ready.", {})
            return await asyncio.to_thread(self._default, logs / "default-environment.log")
        digest = plan.image.digest
        found = None
        if digest is not None:
            # A pinned image may be another project's: whether this person may have it was asked.
            owner = plan.image.evidence.get("project") or plan.project.id
            found = await asyncio.to_thread(self._store.find, owner, digest)
        if found is None:
            raise ImageUnavailable(
                "The environment of this commit is no longer on this machine. Start the launch "
                "again to have it looked for anew, or run the commit's image job again."
            )
        return found

    def _default(self, path: Path) -> Environment:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.open("a") as file:
            requirements = self._settings.default_requirements
            gauge = Gauge(Marks.of(self._settings))
            return self._make_default(self._store, requirements, self._walls, file, gauge)

    async def _start_once(
        self,
        plan: ServerPlan,
        directory: ServerDirectory,
        environments: tuple[Environment, Environment],
        save: Save,
    ) -> str:
        """``environments``: the server's own layer, and what it is a layer over."""
        layer, shared = environments
        port = reserve_port()
        prefix = plan.environment["JUPYTERHUB_SERVICE_PREFIX"]
        given = {
            **plan.environment,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}{prefix}",
            "JUPYTERHUB_ROOT_DIR": str(directory.work),
            VARIABLE: PLACE if self._walls.hold else str(memory.make(directory.path)),
        }
        programs = (layer.bin, shared.bin)
        environment = server_environment(directory, given, programs, walled=self._walls.hold)
        around = self._around(plan.key, shared.path, *interpreter_paths(shared.python))
        secrets = [sys.executable, "-I", "-S", str(self._programs / "secret_files.py"), "--"]
        command = [*secrets, *layering(layer, shared, directory), *self._command]
        output = directory.open_log(directory.server_log)
        try:
            with around(command, directory=directory.work, environment=environment) as call:
                # No asyncio subprocess: that one kills its child when the hub's loop ends.
                child = subprocess.Popen(  # noqa: ASYNC220
                    call.command,
                    cwd=call.directory,
                    env=call.environment,
                    pass_fds=call.descriptors,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    umask=0o077,
                )
        finally:
            os.close(output)
        self._children[plan.key] = child
        save(
            {
                **processes.identify(child.pid),
                "port": port,
                "log": directory.relative(directory.server_log),
            }
        )
        try:
            await asyncio.wait_for(
                self._answers(child, f"http://127.0.0.1:{port}{prefix}api"),
                self._settings.start_wait,
            )
        except TimeoutError:
            raise StartFailed(
                f"The server did not answer within {self._settings.start_wait:.0f} seconds."
                + log_tail(directory.server_log, given)
            ) from None
        except _Exited as exited:
            tail = log_tail(directory.server_log, given)
            if "already in use" in tail:
                raise _PortTaken from None
            if exited.code == NO_SECRETS:
                raise StartFailed(f"{WITHOUT_SECRETS}{tail}") from None
            raise StartFailed(
                f"The server's process ended (exit code {exited.code}) before it answered.{tail}"
            ) from None
        main = processes.recall(processes.identify(child.pid))
        if main is None or not await asyncio.to_thread(processes.listens, main, port):
            # Somebody else took the port, and answered.
            await processes.end(directory.path, processes.identify(child.pid), grace=0)
            raise _PortTaken
        return f"http://127.0.0.1:{port}"

    async def _answers(self, child: subprocess.Popen[bytes], url: str) -> None:
        """Return when the server answers; raise ``_Exited`` as soon as its process is gone."""
        pause = _PROBE_FIRST
        async with httpx.AsyncClient(timeout=5, trust_env=False, verify=_NO_TLS) as client:
            while True:
                if (code := child.poll()) is not None:
                    raise _Exited(code)
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get(url)).status_code == 200:
                        return
                await asyncio.sleep(pause)
                pause = min(pause * 1.3, _PROBE_SLOWEST)

    def _reap(self, key: ServerKey) -> int:
        """The exit code of a server's process that has ended, 0 if it was another hub's child."""
        child = self._children.get(key)
        if child is None:
            return 0
        code = child.poll()
        if code is None:
            return 0
        del self._children[key]
        return code if code >= 0 else 128 - code


def person(key: ServerKey) -> str:
    """Whose wall: people are known by the hub's name, as their directories are."""
    return f"person:{key.user}"


def layering(layer: Environment, shared: Environment, directory: ServerDirectory) -> list[str]:
    """What goes before a server's command to make its layer, in its own name."""
    if layer == shared:
        return []
    program = [sys.executable, "-I", "-S", str(CARRIED / "layer.py")]
    return [*program, str(directory.packages), str(shared.python), str(shared.library), "--"]


class _PortTaken(Exception):
    """Somebody else was faster on the port."""


class _Exited(Exception):
    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(code)


def reserve_port() -> int:
    """A port that nobody listens on, and that the kernel hands to nobody else for a minute.

    A connection that was accepted and closed leaves the port in TIME_WAIT: no longer given out as a
    free one, yet a listener with SO_REUSEADDR (Tornado's have it) may bind it.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        port: int = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            return port
