"""Locks on files of a project: who has locked what, as git-lfs asks for it.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/locking.md ·
https://docs.gitlab.com/user/project/file_lock/. Called by ``routes_lfs`` in threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge.database import iso
from notebooks_service.forge.lfs import NOT_FOUND, LfsPermit, LfsRefused
from notebooks_service.forge.lfs_models import LfsLock

PAGE = 100
"""Locks on one page, also if somebody asks for more; as GitLab's other lists."""
LONGEST_PATH = 4096
MOST_LOCKS = 10_000


class AlreadyLocked(LfsRefused):
    """Somebody, maybe the asker, has locked it; ``lock`` is that lock."""

    def __init__(self, lock: dict[str, Any]) -> None:
        super().__init__(409, "already locked")
        self.lock = lock


def entity(lock: LfsLock) -> dict[str, Any]:
    """A lock as the API shows it."""
    return {
        "id": str(lock.id),
        "path": lock.path,
        "locked_at": iso(lock.locked_at),
        "owner": {"name": lock.user.name},
    }


def create(session: Session, permit: LfsPermit, body: object) -> dict[str, Any]:
    """Lock a path. Raises ``AlreadyLocked``, or ``LfsRefused`` for what is no path."""
    path = _path(body.get("path") if isinstance(body, dict) else None)
    query = select(LfsLock).where(LfsLock.project_id == permit.project_id)
    lock = session.scalar(query.where(LfsLock.path == path))
    if lock is not None:
        raise AlreadyLocked(entity(lock))
    if len(session.scalars(query.with_only_columns(LfsLock.id)).all()) >= MOST_LOCKS:
        raise LfsRefused(422, f"A project has {MOST_LOCKS} locks at most.")
    lock = LfsLock(project_id=permit.project_id, user_id=permit.user_id, path=path)
    session.add(lock)
    session.flush()
    session.refresh(lock)
    return entity(lock)


def page(
    session: Session, permit: LfsPermit, asked: Mapping[str, object]
) -> tuple[list[LfsLock], str | None]:
    """Locks by ``path`` or ``id``, from ``cursor`` on, ``limit`` of them; and the next cursor."""
    query = select(LfsLock).where(LfsLock.project_id == permit.project_id).order_by(LfsLock.id)
    if asked.get("path"):
        query = query.where(LfsLock.path == _path(asked["path"]))
    if asked.get("id"):
        query = query.where(LfsLock.id == _number(asked["id"]))
    if asked.get("cursor"):
        query = query.where(LfsLock.id >= _number(asked["cursor"]))
    limit = min(_number(asked["limit"]) or PAGE, PAGE) if asked.get("limit") else PAGE
    found = list(session.scalars(query.limit(limit + 1)))
    after = str(found[limit].id) if len(found) > limit else None
    return found[:limit], after


def listed(session: Session, permit: LfsPermit, asked: Mapping[str, object]) -> dict[str, Any]:
    """The answer to a list of locks."""
    locks, after = page(session, permit, asked)
    answer: dict[str, Any] = {"locks": [entity(lock) for lock in locks]}
    return {**answer, "next_cursor": after} if after else answer


def verified(session: Session, permit: LfsPermit, body: object) -> dict[str, Any]:
    """Whose locks are whose: git-lfs asks before a push."""
    asked = body if isinstance(body, dict) else {}
    locks, after = page(
        session, permit, {"cursor": asked.get("cursor"), "limit": asked.get("limit")}
    )
    answer: dict[str, Any] = {
        "ours": [entity(lock) for lock in locks if lock.user_id == permit.user_id],
        "theirs": [entity(lock) for lock in locks if lock.user_id != permit.user_id],
    }
    return {**answer, "next_cursor": after} if after else answer


def unlock(session: Session, permit: LfsPermit, number: str, body: object) -> dict[str, Any]:
    """Take a lock away: one's own, or with ``force``, as a maintainer, anybody's."""
    lock = session.scalar(
        select(LfsLock).where(
            LfsLock.project_id == permit.project_id, LfsLock.id == _number(number)
        )
    )
    if lock is None:
        raise LfsRefused(404, NOT_FOUND)
    if lock.user_id != permit.user_id:
        if not isinstance(body, dict) or body.get("force") is not True:
            raise LfsRefused(403, f"{lock.path} is locked by {lock.user.name}")
        if not permit.maintains:
            raise LfsRefused(403, "You must have maintainer access to force delete a lock")
    gone = entity(lock)
    session.delete(lock)
    return gone


def _path(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_PATH or "\0" in value:
        raise LfsRefused(422, "The path of a lock is a text of 1 to 4096 characters.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise LfsRefused(422, "The path of a lock holds characters that are none.") from None
    return value


def _number(value: object) -> int:
    """An id, a cursor or a limit; what is none of them is 0, which no lock has."""
    text = str(value) if isinstance(value, (str, int)) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
