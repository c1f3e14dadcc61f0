"""The launch: access, image, clone, start, in a mixin over any JupyterHub spawner class.

JupyterHub calls it. A server whose options have no ``notebooks`` key goes to the class beneath,
untouched. What a runtime does is in ``runtime.py`` and its implementations; what a launch leaves
in the hub's database is in ``record.py``.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from jupyterhub.spawner import Spawner
from sqlalchemy.orm import object_session
from tornado import web

from notebooks_service.domain import (
    Image,
    Job,
    LaunchOutcome,
    LaunchRecord,
    LaunchStep,
)
from notebooks_service.errors import LaunchRefused, NoSpace, NotebooksError
from notebooks_service.gitlab.forge import Forge
from notebooks_service.spawner import access
from notebooks_service.spawner import record as records
from notebooks_service.spawner.cleanup import Leftover
from notebooks_service.spawner.events import Feed
from notebooks_service.spawner.options import (
    LaunchOptions,
    is_ours,
    may_be_ours,
    read_options,
)
from notebooks_service.spawner.refusal import refusal
from notebooks_service.spawner.runtime import ServerKey, ServerPlan
from notebooks_service.spawner.shared import Shared

START_MARGIN = 300


class LaunchMixin(Spawner):  # type: ignore[misc]
    """Goes before a spawner class: ``class Ours(LaunchMixin, Theirs): shared = ...``."""

    shared: ClassVar[Shared]

    def __init__(self, **kwargs: Any) -> None:
        self._feed = Feed()
        self._launch_id: str | None = None
        self._launching = False
        self._begun = asyncio.Event()
        self._ending = False
        self._new_files = False
        super().__init__(**kwargs)

    # -- what the hub asks -------------------------------------------------------------------

    @property
    def record(self) -> LaunchRecord | None:
        """The record of the newest launch of this server, if it is one of ours."""
        return self._feed.record

    @property
    def key(self) -> ServerKey:
        return ServerKey(self.user.name, self.name)

    @property
    def ready(self) -> bool:
        """JupyterHub counts a server as ready once its database row exists and nothing is pending.

        That is wrong for a cancelled launch for about a second, in which watchers would be told
        that the server is ready; for ours, the launch must have said so too.
        """
        if self.record is not None and self.record.outcome is not LaunchOutcome.READY:
            return False
        return not self._launching and bool(super().ready)

    def start(self) -> Awaitable[Any]:
        """Start a server: one of ours by a launch, any other by the class beneath.

        No coroutine function, because the hub reads ``start_timeout`` right after this returns.
        """
        if not is_ours(self.user_options):
            self._feed = Feed()
            self._launch_id = None
            self._begun.set()
            return super().start()  # type: ignore[no-any-return]
        settings = self.shared.settings
        self.start_timeout = int(
            settings.image_wait + 2 * settings.clone_wait + 2 * settings.start_wait + START_MARGIN
        )
        return self._launch()

    async def stop(self, now: bool = False) -> None:
        """Stop the server; of ours, note what is unsaved and keep every file."""
        record = self.record
        if record is None:
            await super().stop(now)
            return
        self._ending = True
        await self.shared.runtime.stop(self.key, record.runtime, now=now)
        self._log(record, "the server was stopped")
        await self._ended(record)

    async def poll(self) -> int | None:
        """None while the server runs or is being started, otherwise an exit code."""
        record = self.record
        if record is None:
            return await super().poll()  # type: ignore[no-any-return]
        if self._launching:
            return None
        if record.outcome is None:  # the hub that was launching it is gone
            self._log(record, "interrupted by a restart of the hub")
            cleanup = self._clean(record, files=not self.shared.runtime.holds_work(self.key))
            self._publish(records.interrupted(record))
            await asyncio.wait([cleanup])
            return 1
        if record.outcome is not LaunchOutcome.READY or not record.runtime:
            return 1
        status = await self.shared.runtime.poll(self.key, record.runtime)
        if status is not None and not self._ending:
            self._ending = True
            self._log(record, f"the server's process ended by itself, exit code {status}")
            self._clean(record, files=False)
            await self._ended(record)
        return status

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self._feed.record = records.read_record(state)

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self.record is not None:
            state[records.STATE_KEY] = self.record.to_dict()
        return state

    def get_env(self) -> dict[str, str]:
        """For one of ours: the hub's variables and ours; nothing of the hub's own environment."""
        if not is_ours(self.user_options):
            return super().get_env()  # type: ignore[no-any-return]
        kept = self.env_keep
        self.set_trait("env_keep", [])
        try:
            environment = Spawner.get_env(self)
        finally:
            self.set_trait("env_keep", kept)
        environment.pop("JPY_API_TOKEN", None)  # the same token again, for servers before 0.7.2
        return {key: str(value) for key, value in environment.items()}

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """Every event of this launch so far, then each new one, to any number of watchers."""
        if not self._begun.is_set() and (is_ours(self.user_options) or may_be_ours(self.name)):
            await self._begun.wait()
        launch = self._launch_id
        if launch is None:
            async for event in super().progress():
                yield event
            return
        async for event in self._feed.watch(launch):
            yield event

    async def rename(self, old_name: str, new_name: str) -> None:
        """JupyterHub 6 lets people rename servers; the name of one of ours says what it is."""
        if self.record is not None or is_ours(self.user_options):
            raise web.HTTPError(
                400, "A notebooks server keeps its name; its display name may change."
            )
        await super().rename(old_name, new_name)

    async def delete_forever(self) -> None:
        """The server is removed from the hub: its files go to the trash."""
        if may_be_ours(self.name):
            await self.shared.cleanups.wait(self.key)
            record = self.record
            facts = {} if record is None else _facts(record)
            await self.shared.runtime.discard(self.key, facts)
        if (deleted := super().delete_forever()) is not None:
            await deleted

    # -- the launch --------------------------------------------------------------------------

    async def _launch(self) -> str:
        previous = self.record
        try:
            options = read_options(self.user_options)
        except LaunchRefused as error:
            self.log.warning("Refused for %s: %s", self._log_name, error.message)
            self._begun.set()
            raise refusal(error) from None
        record = records.begin(options, previous)
        self._launch_id = record.id
        self._launching = True
        self._ending = self._new_files = False
        self._publish(record)
        self._begun.set()
        self._log(record, f"begins for {self.key}")
        try:
            return await self._steps(options, previous)
        except asyncio.CancelledError:
            self._cancelled()
            raise
        except Exception as error:
            failure = _as_ours(error)
            if failure is not error:
                self.log.exception("launch %s: %s", record.id, type(error).__name__)
            await self._failed(failure)
            raise refusal(failure) from None
        finally:
            self._launching = False

    async def _steps(self, options: LaunchOptions, previous: LaunchRecord | None) -> str:
        shared, runtime = self.shared, self.shared.runtime
        self._tell(LaunchStep.ACCESS, "Asking the forge whether you may open this commit.")
        if shared.cleanups.busy(self.key):
            self._tell(LaunchStep.ACCESS, "Waiting until the launch before this one is cleaned up.")
            await shared.cleanups.wait(self.key)
        if (reason := runtime.refuse(self.user.name)) is not None:
            raise LaunchRefused(reason)
        grant = await self._grant(options)
        access.check_name(self.name, grant, previous)
        self._publish(records.with_project(self._now, grant.project, grant.commit))
        self._tell(LaunchStep.IMAGE, "Looking for this commit's image.")
        image = await self._image(grant)
        self._publish(replace(self._now, image=image))
        self._tell(LaunchStep.IMAGE, image.reason, origin=image.origin.value)
        plan = ServerPlan(
            key=self.key,
            launch=self._now.id,
            project=grant.project,
            commit=grant.commit.sha,
            branch=grant.branch,
            image=image,
            person=grant.person,
            environment=self._environment(grant, image),
        )
        if shared.slots.locked():
            self._tell(LaunchStep.IMAGE, "Waiting for other launches to finish.")
        async with shared.slots:
            await runtime.prepare(plan, self._teller(LaunchStep.IMAGE))
            self._new_files = not runtime.holds_work(self.key)
            self._tell(LaunchStep.CLONE, "Cloning the repository.")
            checkout = await runtime.clone(plan, self._teller(LaunchStep.CLONE))
            self._publish(replace(self._now, checkout=checkout))
            self._tell(LaunchStep.STARTING, "Starting JupyterLab.")
            url = await runtime.start(plan, self._keep)
        self._log(self._now, "the server answers")
        self._publish(records.ready(self._now, "The server answers."))
        return url

    async def _grant(self, options: LaunchOptions) -> access.Grant:
        settings = self.shared.settings
        forge = self.shared.forge(await self._token())
        returning = self.shared.runtime.holds_work(self.key)
        return await access.check(forge, options, settings.minimum_access, returning=returning)

    async def _image(self, grant: access.Grant) -> Image:
        """The image, by the hub's one watcher, which asks for a fresh token if a wait outlives one."""

        async def renew() -> Forge:
            return self.shared.forge(await self._token())

        return await self.shared.watcher.resolve(
            await renew(), grant.project, grant.commit, self._waits_for, renew
        )

    async def _token(self) -> str:
        return await self.shared.refresher.token(self.authenticator, self.user)

    def _waits_for(self, job: Job) -> None:
        facts = {"id": job.id, "name": job.name, "status": job.status, "web_url": job.web_url}
        self._publish(replace(self._now, job=facts))
        self._tell(LaunchStep.IMAGE, f"Waiting for the job `{job.name}`: {job.status}.", job=facts)

    def _environment(self, grant: access.Grant, image: Image) -> dict[str, str]:
        settings = self.shared.settings
        return {
            **self.get_env(),
            "NOTEBOOKS_GATEWAY_URL": settings.gateway_url,
            "NOTEBOOKS_FORGE_URL": settings.forge_url,
            "NOTEBOOKS_PROJECT": grant.project.path,
            "NOTEBOOKS_PROJECT_ID": str(grant.project.id),
            "NOTEBOOKS_COMMIT": grant.commit.sha,
            "NOTEBOOKS_BRANCH": grant.branch,
            "NOTEBOOKS_IMAGE_ORIGIN": image.origin.value,
            "NOTEBOOKS_IMAGE_REASON": image.reason,
        }

    # -- its ends ----------------------------------------------------------------------------

    def _cancelled(self) -> None:
        """Return at once: kill without waiting, leave the rest to a tracked task.

        The hub's row of the server goes too, so that nothing takes it for one that is ready.
        """
        record = self._now
        self._log(record, f"cancelled in step {record.step}")
        self.shared.runtime.kill_now(self.key, record.runtime)
        self._clean(record, files=self._new_files)
        self.server = None
        self._publish(replace(records.cancelled(record), runtime={}))

    async def _failed(self, error: NotebooksError) -> None:
        record = self._now
        self._log(record, f"failed in step {record.step}: {error.code}")
        cleanup = self._clean(record, files=self._new_files)
        self._publish(replace(records.failed(record, error), runtime={}))
        await asyncio.wait([cleanup])

    async def _ended(self, record: LaunchRecord) -> None:
        """A server that ran has ended: note what is unsaved; there is no process to find again."""
        folder = record.project_path.rsplit("/", 1)[-1]
        work = await self.shared.runtime.unsaved(self.key, folder)
        self._publish(replace(record, work=work, runtime={}))

    def _clean(self, record: LaunchRecord, *, files: bool) -> asyncio.Task[None]:
        return self.shared.cleanups.begin(
            Leftover(self.key, record.id, record.runtime, files=files)
        )

    # -- its record --------------------------------------------------------------------------

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
        if (session := object_session(self.orm_spawner)) is not None:
            self.orm_spawner.state = self.get_state()
            session.commit()

    def _log(self, record: LaunchRecord, text: str) -> None:
        self.log.info("launch %s: %s", record.id, text)


def _facts(record: LaunchRecord) -> dict[str, Any]:
    """What is noted beside a server's files in the trash."""
    return {
        "project": record.project_path,
        "project_id": record.project_id,
        "commit": record.commit,
        "branch": record.branch,
        "launch": record.id,
        "requested_at": record.requested_at,
        "work": record.work,
    }


def _as_ours(error: Exception) -> NotebooksError:
    if isinstance(error, NotebooksError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace()
    return NotebooksError()
