"""The launches of one server, one after another: access, image, clone, start, and their ends.

``launch.py`` puts this behind JupyterHub's spawner interface. What a runtime does is in
``runtime.py`` and its implementations; what a launch leaves in the hub's database is in
``record.py``.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

from jupyterhub import __version__ as JUPYTERHUB_VERSION
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import object_session

from notebooks_service import default_urls, mounts, resources
from notebooks_service.domain import Image, Job, LaunchOutcome, LaunchRecord, LaunchStep, Project
from notebooks_service.errors import (
    LaunchRefused,
    NoSpace,
    NotebooksError,
    NotFound,
    RegistryLoginRefused,
    SignInExpired,
)
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.known import Wish
from notebooks_service.mounts import Mount
from notebooks_service.resources import Resources
from notebooks_service.spawner import access, served, server_hosts, submodules
from notebooks_service.spawner import record as records
from notebooks_service.spawner.beneath import SpawnerBeneath
from notebooks_service.spawner.cleanup import Leftover
from notebooks_service.spawner.events import Feed
from notebooks_service.spawner.options import LaunchOptions, read_options
from notebooks_service.spawner.refusal import refusal
from notebooks_service.spawner.registry_login import pull_token
from notebooks_service.spawner.runtime import ServerKey, ServerPlan
from notebooks_service.spawner.shared import Shared

T = TypeVar("T")

MARGIN = 300
"""Seconds that a whole launch may take beyond the limits of its steps."""
MOST_SAID = 10
"""Submodules that are left out and have an event of their own; all are in the record."""

ASK_AGAIN = 3.0
"""Seconds after which the forge's word on who may launch is asked for again before anything runs."""


class _Silent:
    """In place of the answer of a server that gave none; JupyterHub reads its version there."""

    headers: ClassVar[Mapping[str, str]] = {"X-JupyterHub-Version": JUPYTERHUB_VERSION}


class Launches:
    """One per spawner object. ``begun`` is set once it is known whether the server is one of ours."""

    def __init__(self, spawner: Any, shared: Shared, beneath: SpawnerBeneath) -> None:
        self._spawner = spawner
        self.beneath = beneath
        self._shared = shared
        self._feed = Feed()
        self._hub_is_full = False
        self._launch_id: str | None = None
        self._under_way = False
        self._ending = False
        self._new_files = False
        self._watch_task: asyncio.Task[None] | None = None
        self.begun = asyncio.Event()

    @property
    def record(self) -> LaunchRecord | None:
        """The record of the newest launch; None if the server is not one of ours."""
        return self._feed.record

    @property
    def key(self) -> ServerKey:
        return ServerKey(self._spawner.user.name, self._spawner.name)

    @property
    def own_url(self) -> str | None:
        """The server's base URL at a host of its own; None where it has none."""
        return server_hosts.own_url(self._shared.settings, self.key.user, self.key.server)

    @property
    def own_callback(self) -> dict[str, str]:
        """The variable with which a server says where browsers come back to, if that is a host of its own."""
        own = self.own_url
        return {} if own is None else {"JUPYTERHUB_OAUTH_CALLBACK_URL": server_hosts.callback(own)}

    @property
    def longest(self) -> int:
        """Seconds after which the hub may give up a launch that noticed none of its own limits."""
        settings = self._shared.settings
        return int(settings.image_wait + 2 * settings.clone_wait + 2 * settings.start_wait + MARGIN)

    def restore(self, record: LaunchRecord | None) -> None:
        """Take up what the hub's database says, after a restart or for a new spawner object."""
        self._feed.record = record

    def not_ours(self) -> None:
        """This start is of a server that is not ours."""
        self._feed = Feed()
        self._launch_id = None
        self.begun.set()

    def allow_ready(self) -> bool:
        """Whether the hub may call the server ready, as far as a launch of ours can tell."""
        ended = self.record is None or self.record.outcome is LaunchOutcome.READY
        return ended and not self._under_way

    def watch(self) -> AsyncIterator[dict[str, Any]] | None:
        """The events of the launch under way; None if there was none in this spawner object."""
        return None if self._launch_id is None else self._feed.watch(self._launch_id)

    # -- what the hub asks of a server of ours -----------------------------------------------

    async def launch(self) -> str:
        """One launch; the server's URL. Raises the hub's exception with our sentence."""
        previous = self.record
        try:
            options = read_options(self._spawner.user_options)
        except LaunchRefused as error:
            self._spawner.log.warning("Refused for %s: %s", self.key, error.message)
            self.begun.set()
            raise refusal(error) from None
        record = records.begin(options, previous)
        self._launch_id = record.id
        self._under_way = True
        self._ending = self._new_files = False
        self._publish(record)
        self.begun.set()
        self._log(record, f"begins for {self.key}")
        try:
            with self._shared.admissions.launch(self.key):
                return await self._steps(options, previous)
        except asyncio.CancelledError:
            self._cancelled()
            raise
        except Exception as error:
            failure = _as_ours(error)
            if self._hub_is_full and failure.status >= 500:
                # Such a hub knows nobody's token: what failed by that says no word of the disk.
                failure = NoSpace()
            if failure is not error:
                self._spawner.log.exception("launch %s: %s", record.id, type(error).__name__)
            await self._failed(failure)
            raise refusal(failure) from None
        finally:
            self._under_way = False

    async def poll(self) -> int | None:
        """None while the server runs or a launch is under way, otherwise an exit code."""
        record = self._now
        if self._under_way:
            return None
        if record.outcome is None:  # the hub that was launching it is gone
            self._log(record, "interrupted by a restart of the hub")
            cleanup = self._clean(record, files=not self._shared.runtime.holds_work(self.key))
            self._publish(records.interrupted(record))
            await asyncio.wait([cleanup])
            return 1
        if record.outcome is not LaunchOutcome.READY or not record.runtime:
            return 1
        status = await self._shared.runtime.poll(self.key, record.runtime, self.beneath)
        if status is not None and not self._ending:
            self._ending = True
            self._log(record, f"the server's process ended by itself, exit code {status}")
            if why := await self._shared.runtime.why_ended(self.key, record.runtime):
                record = records.ended(record, why)
            await asyncio.wait([self._clean(record, files=False)])
            await self._ended(record)
        elif status is None:
            self._runs(record)
        return status

    async def answer(
        self,
        ask: Callable[..., Awaitable[Any]],
        timeout: float = 10,  # noqa: ASYNC109 - JupyterHub's
        **how: Any,
    ) -> Any:
        """What the hub has in place of ``Server.wait_up``, which is ``ask``.

        The hub stops a server that does not answer, also one that it finds running when it starts. Of ours
        only what has ended does not run: one that is busy, or whose proxy is away, has somebody's work.
        """
        runtime, record = self._shared.runtime, self._now
        try:
            if runtime.proxied:
                return await runtime.answer(self.key, record.runtime, self.beneath, timeout)
            # Its own look ends late where a server takes a request and does not answer.
            async with asyncio.timeout(timeout):
                return await ask(timeout=timeout, **how)
        except Exception as error:
            if await self.poll() is not None:
                raise
            self._log(
                record, f"runs and does not answer ({type(error).__name__}); it is left alone"
            )
            return _Silent()

    async def stop(self, *, now: bool) -> None:
        """Stop the server, note what is unsaved, keep every file."""
        record = self._now
        self._ending = True
        await self._shared.runtime.stop(self.key, record.runtime, self.beneath, now=now)
        self._log(record, "the server was stopped")
        await self._ended(record)

    async def discard(self) -> None:
        """The server is gone for the hub: its files go to the trash."""
        await self._shared.cleanups.wait(self.key)
        facts = {} if self.record is None else records.facts(self.record)
        await self._shared.runtime.discard(self.key, facts)
        self._shared.meter.removed(self.key)

    # -- the steps ---------------------------------------------------------------------------

    async def _steps(self, options: LaunchOptions, previous: LaunchRecord | None) -> str:
        shared, runtime = self._shared, self._shared.runtime
        self._tell(LaunchStep.ACCESS, "Asking the forge whether you may open this commit.")
        if shared.cleanups.busy(self.key):
            self._tell(LaunchStep.ACCESS, "Waiting until the launch before this one is cleaned up.")
            await shared.cleanups.wait(self.key)
        if (reason := runtime.refuse(self.key.user)) is not None:
            raise LaunchRefused(reason)
        grant = await self._grant(options)
        # Whoever asks the hub itself was not told by the service; a server may be from before a setting.
        own = resources.for_whom(shared.settings, self.key.user, grant.project.path)
        resources.check(own, options.resources)
        default_urls.check(shared.settings, options.default_url)
        asked_at = time.monotonic()
        access.check_name(self.key.server, grant)
        self._publish(records.with_project(self._now, grant.project, grant.commit))
        await shared.admissions.let_in(self._spawner.user.db, self.key, grant.project.path)
        self._tell(LaunchStep.IMAGE, "Looking for this commit's image.")
        image = await self._image(grant, options)
        self._publish(replace(self._now, image=image))
        self._tell(LaunchStep.IMAGE, image.reason, origin=image.origin.value)
        clone = await self._ways_to_clone(grant, options)
        plan = replace(
            self._plan(grant, image, clone, options.resources),
            mounts=await self._mounts(grant, options),
            default_url=default_urls.wanted(shared.settings, options.default_url),
        )
        async with shared.queue.turn(self.key.user, self._teller(LaunchStep.IMAGE)):
            if time.monotonic() - asked_at > ASK_AGAIN:
                await self._still_granted(options, grant)
            await runtime.prepare(plan, self._teller(LaunchStep.IMAGE))
            self._new_files = not runtime.holds_work(self.key)
            self._tell(LaunchStep.CLONE, "Cloning the repository.")
            checkout = await runtime.clone(plan, self._teller(LaunchStep.CLONE))
            self._publish(replace(self._now, checkout=checkout))
            self._tell(LaunchStep.STARTING, "Starting JupyterLab.")
            url = await runtime.start(plan, self._keep, self.beneath)
        await self._say_what_serves(plan)
        self._log(self._now, "the server answers")
        self._publish(records.ready(self._now, "The server answers."))
        self._runs(self._now)
        return url

    async def _say_what_serves(self, plan: ServerPlan) -> None:
        """Note what the image turned out to have, and say what it has not."""
        found = await self._shared.runtime.served(self.key)
        if found is None:
            return
        self._publish(replace(self._now, served=found.to_dict(plan.default_url)))
        for sentence in served.sentences(found, plan.default_url):
            self._tell(LaunchStep.STARTING, sentence, way=found.way)

    async def _grant(self, options: LaunchOptions) -> access.Grant:
        returning = self._shared.runtime.holds_work(self.key)
        minimum = self._shared.settings.minimum_access
        return await self._ask(
            lambda forge: access.check(forge, options, minimum, returning=returning)
        )

    async def _ask(self, question: Callable[[Forge], Awaitable[T]]) -> T:
        """Ask the forge; once more with a new token where it refuses one that looked good.

        That is what happens to whoever is under way while another request renews it, after a clock
        was set, and to a token that somebody revoked.
        """
        token = await self._token()
        try:
            return await question(self._shared.forge(token))
        except SignInExpired:
            return await question(self._shared.forge(await self._token(refused=token)))

    async def _still_granted(self, options: LaunchOptions, before: access.Grant) -> None:
        """Ask again after a wait: who was removed from the project meanwhile is not started."""
        self._tell(LaunchStep.ACCESS, "Asking the forge again: that was a while ago.")
        grant = await self._grant(options)
        if grant.project.id != before.project.id:
            raise NotFound()  # another project has taken its name

    async def _mounts(self, grant: access.Grant, options: LaunchOptions) -> tuple[Mount, ...]:
        """The data that was chosen. Raises ``InvalidRequest`` if this person may not have it here."""
        if not options.mounts:
            return ()
        settings = self._shared.settings
        every = settings.mounts if settings.runtime == "docker" else ()
        level = await self._ask(lambda forge: asyncio.to_thread(forge.access, grant.project))
        allowed = mounts.admitted(every, grant.project.path, grant.person.username, level)
        chosen = mounts.check(allowed, options.mounts)
        for each in chosen:
            how = "read-only" if each.read_only else "writable"
            self._tell(
                LaunchStep.IMAGE,
                f"The data `{each.name}` will be in `{each.at}`, {how}.",
                mount=each.name,
            )
        return chosen

    async def _image(self, grant: access.Grant, options: LaunchOptions) -> Image:
        """The image, by the hub's one watcher, which asks for a fresh token if a wait outlives one."""

        token = await self._token()

        async def renew() -> Forge:
            nonlocal token
            token = await self._token(refused=token)
            return self._shared.forge(token)

        return await self._shared.watcher.resolve(
            self._shared.forge(token),
            grant.project,
            grant.commit,
            self._waits_for,
            renew,
            wish=Wish(options.image, self._now.had, options.new_image),
            tell=lambda sentence: self._tell(LaunchStep.IMAGE, sentence),
            person=self.key.user,
        )

    async def _token(self, refused: str | None = None) -> str:
        return await self._shared.refresher.token(
            self._spawner.authenticator, self._spawner.user, refused
        )

    def _waits_for(self, job: Job) -> None:
        facts = {"id": job.id, "name": job.name, "status": job.status, "web_url": job.web_url}
        self._publish(replace(self._now, job=facts))
        self._tell(LaunchStep.IMAGE, f"Waiting for the job `{job.name}`: {job.status}.", job=facts)

    async def _ways_to_clone(
        self, grant: access.Grant, options: LaunchOptions
    ) -> Mapping[str, str]:
        """Decide about submodules, note that where the gateway reads it, and say what is left out."""
        returning = self._shared.runtime.holds_work(self.key)
        chosen = await self._ask(
            lambda forge: submodules.decide(forge, grant, options, returning=returning)
        )
        self._publish(replace(self._now, submodules=chosen))
        for each in [each for each in chosen if each.reason][:MOST_SAID]:
            sentence = f"The submodule `{each.at}` is left out: {each.reason}"
            self._tell(LaunchStep.IMAGE, sentence, submodule=each.at)
        return await self._ask(
            lambda forge: submodules.clone_variables(
                forge, grant, options, chosen, self._shared.settings, returning=returning
            )
        )

    def _plan(
        self, grant: access.Grant, image: Image, clone: Mapping[str, str], chosen: Resources
    ) -> ServerPlan:
        settings = self._shared.settings
        environment = {
            **self._spawner.get_env(),
            "NOTEBOOKS_GATEWAY_URL": settings.gateway_url,
            "NOTEBOOKS_FORGE_URL": settings.forge_url,
            "NOTEBOOKS_PROJECT": grant.project.path,
            "NOTEBOOKS_PROJECT_ID": str(grant.project.id),
            "NOTEBOOKS_COMMIT": grant.commit.sha,
            "NOTEBOOKS_BRANCH": grant.branch,
            "NOTEBOOKS_IMAGE_ORIGIN": image.origin.value,
            "NOTEBOOKS_IMAGE_REASON": image.reason,
        }
        return ServerPlan(
            key=self.key,
            launch=self._now.id,
            project=grant.project,
            commit=grant.commit.sha,
            branch=grant.branch,
            image=image,
            person=grant.person,
            environment=environment,
            clone=clone,
            registry_token=partial(self._registry_token, grant.project),
            resources=chosen,
        )

    async def _registry_token(self, project: Project, repository: str) -> str | None:
        """A token that pulls this repository (without a host), if this person may."""

        async def ask(forge: Forge) -> str | None:
            return await asyncio.to_thread(
                pull_token, self._shared.settings, forge, project, repository
            )

        try:
            return await self._ask(ask)
        except SignInExpired:  # its API takes the token, and has just done so
            raise RegistryLoginRefused from None

    # -- the ends ----------------------------------------------------------------------------

    def _cancelled(self) -> None:
        """Return at once: kill without waiting, leave the rest to a tracked task.

        The hub's row of the server goes too, so that nothing takes it for one that is ready.
        """
        record = self._now
        self._log(record, f"cancelled in step {record.step}")
        self._shared.runtime.kill_now(self.key, record.runtime)
        self._clean(record, files=self._new_files)
        self._spawner.server = None
        self._publish(replace(records.cancelled(record), runtime={}))

    async def _failed(self, error: NotebooksError) -> None:
        record = self._now
        self._log(record, f"failed in step {record.step}: {error.code}")
        cleanup = self._clean(record, files=self._new_files)
        self._publish(replace(records.failed(record, error), runtime={}))
        await asyncio.wait([cleanup])

    def _runs(self, record: LaunchRecord) -> None:
        """Have its hours counted, and its end noticed."""
        self._shared.meter.runs(self.key, record, self._spawner.user_options)
        self._watch_end(record)

    def _watch_end(self, record: LaunchRecord) -> None:
        """Have the hub told as soon as the server's process ends, not when it looks the next time.

        Until then the proxy sends people to a port that anybody on this machine may take.
        """
        name = f"watch {record.id}"
        if (task := self._watch_task) is not None and not task.done():
            if task.get_name() == name:
                return
            task.cancel()
        self._watch_task = asyncio.create_task(self._tell_end(record), name=name)

    async def _tell_end(self, record: LaunchRecord) -> None:
        await self._shared.runtime.ended(self.key, record.runtime)
        if self._now.id == record.id and not self._ending and not self._under_way:
            await self._spawner.poll_and_notify()

    async def _ended(self, record: LaunchRecord) -> None:
        """A server that ran has ended: note what is unsaved; there is no process to find again."""
        self._shared.meter.ended(self.key, record.id)
        if self.own_url is not None:
            # The hub takes away the route below the person's host, where there is none.
            await self._without_route()
        folder = str(record.checkout.get("folder") or record.project_path.rsplit("/", 1)[-1])
        work = await self._shared.runtime.unsaved(self.key, folder)
        self._publish(replace(record, work=work, runtime={}))

    async def _without_route(self) -> None:
        try:
            await self.beneath.unroute()
        except (
            Exception
        ) as error:  # whatever a proxy's class raises; the hub looks for stale routes later
            self._spawner.log.warning("The proxy keeps the route of %s: %r", self.key, error)

    def _clean(self, record: LaunchRecord, *, files: bool) -> asyncio.Task[None]:
        return self._shared.cleanups.begin(
            Leftover(self.key, record.id, record.runtime, files=files)
        )

    # -- the record --------------------------------------------------------------------------

    @property
    def _now(self) -> LaunchRecord:
        assert self._feed.record is not None
        return self._feed.record

    def _tell(self, step: LaunchStep, message: str, **detail: Any) -> None:
        record = self._now.with_event(records.now(), step, message, **detail)
        self._log(record, f"{step}: {message}")
        self._publish(record)

    def _teller(self, step: LaunchStep) -> Any:
        """A runtime's voice: its events reach watchers at once and the database at the next step."""

        def tell(message: str, detail: Mapping[str, Any]) -> None:
            self._feed.publish(self._now.with_event(records.now(), step, message, **detail))

        return tell

    def _keep(self, facts: Mapping[str, Any]) -> None:
        self._publish(replace(self._now, runtime=dict(facts)))

    def _publish(self, record: LaunchRecord) -> None:
        """Tell watchers, and commit: a hub that is killed now must find this again."""
        self._feed.publish(record)
        row = self._spawner.orm_spawner
        if (session := object_session(row)) is None:
            return  # the server was removed meanwhile
        row.state = self._spawner.get_state()
        try:
            session.commit()
            self._hub_is_full = False
        except SQLAlchemyError as error:  # a full disk; what is under way is not lost by it
            session.rollback()
            self._hub_is_full = "disk is full" in str(error)
            self._log(record, f"could not be saved: {type(error).__name__}")

    def _log(self, record: LaunchRecord, text: str) -> None:
        self._spawner.log.info("launch %s: %s", record.id, text)


def _as_ours(error: Exception) -> NotebooksError:
    if isinstance(error, NotebooksError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace()
    return NotebooksError()
