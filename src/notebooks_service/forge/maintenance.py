"""Keeps the forge's data small and quick: leftovers at start, repositories after pushes.

git's own automatic clean-up is off, because it would outlive the forge's process; this does it as
children of the forge that end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from datetime import timedelta
from pathlib import Path

from sqlalchemy import delete, select

from notebooks_service.forge import lfs
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.git_process import git_environment, git_executable
from notebooks_service.forge.lfs_store import LfsStore
from notebooks_service.forge.models import BrowserSession, OAuthGrant, OAuthToken, SignInLink

log = logging.getLogger(__name__)

KEPT = timedelta(days=30)
"""How long rows that are over stay, so that a second use is still recognised."""
MOST_PACKS = 20
STALE = 3600.0
"""Seconds after which an unfinished pack of a dead process is removed."""


def clean_up(config: ForgeConfig, database: Database) -> None:
    """Removes what a killed forge left behind. Called before the first request."""
    shutil.rmtree(config.pushes, ignore_errors=True)
    for pattern in (".*.deleted", "*.git/objects/*incoming-*"):
        for path in config.repositories.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    # An import in another process may be making these just now.
    for pattern in (".*.new", "*.git/objects/pack/tmp_*"):
        for path in config.repositories.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    moment = now()
    with database.write() as session:
        session.execute(delete(SignInLink).where(SignInLink.expires_at < moment - KEPT))
        session.execute(delete(BrowserSession).where(BrowserSession.expires_at < moment))
        # What a sign-in's living tokens came from stays: it is how they end together.
        living = select(OAuthToken.grant_id).where(
            OAuthToken.revoked_at.is_(None), OAuthToken.grant_id.is_not(None)
        )
        session.execute(
            delete(OAuthGrant).where(
                OAuthGrant.expires_at < moment - KEPT, OAuthGrant.id.not_in(living)
            )
        )
        session.execute(delete(OAuthToken).where(OAuthToken.revoked_at < moment - KEPT))


def clean_up_large_files(database: Database, store: LfsStore) -> None:
    """Removes objects that no project has any more, and what broken uploads left."""
    try:
        store.clean_up()
        lfs.remove_unlinked(database, store)
    except Exception:
        # A store that is away for a while must not keep the forge from starting.
        log.exception("the store of large files could not be cleaned up")


class Maintenance:
    """Packs repositories after pushes, one at a time, in the background."""

    def __init__(self, config: ForgeConfig) -> None:
        self._config = config
        self._waiting: asyncio.Queue[int] = asyncio.Queue()
        self._known: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def pushed(self, project_id: int) -> None:
        """A project's repository has grown."""
        if project_id not in self._known:
            self._known.add(project_id)
            self._waiting.put_nowait(project_id)

    async def _run(self) -> None:
        while True:
            project_id = await self._waiting.get()
            self._known.discard(project_id)
            repository = self._config.repository(project_id)
            try:
                if await asyncio.to_thread(_packs, repository) > MOST_PACKS:
                    # Small packs become one; large ones are left as they are.
                    await _git(repository, "repack", "-q", "-d", "-l", "--geometric=2")
                    await _git(repository, "commit-graph", "write", "--reachable", "--split")
            except OSError:
                log.exception("maintenance of project %d", project_id)


def _packs(repository: Path) -> int:
    return len(list(repository.glob("objects/pack/*.pack")))


async def _git(repository: Path, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        git_executable(),
        f"--git-dir={repository}",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=git_environment(),
    )
    try:
        if await process.wait() != 0:
            log.warning("git %s ended with %s", arguments[0], process.returncode)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
