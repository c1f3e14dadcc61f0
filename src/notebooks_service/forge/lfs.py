"""Large files (Git LFS) without HTTP: who may, what a batch is answered, which project has what.

Called by ``routes_lfs`` in threads. https://github.com/git-lfs/git-lfs/tree/main/docs/api ·
https://docs.gitlab.com/topics/git/lfs/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from urllib.parse import quote

from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from notebooks_service.forge import access
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.git_access import DENIED, GitRefused, asker_of
from notebooks_service.forge.lfs_models import LfsLink, LfsObject
from notebooks_service.forge.lfs_store import LfsStore, is_oid
from notebooks_service.forge.models import Project
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.throttle import Throttle

Operation = Literal["download", "upload"]

MOST_OBJECTS = 10_000
"""Objects in one batch; git-lfs asks for 100 at a time."""
UNLINKED = timedelta(days=1)
"""How long an object stays that no project has."""
AT_ONCE = 500
MOST_REMOVED = 100

NOT_FOUND = "Not found."
FORBIDDEN = "Access forbidden. Check your access level."
NO_OBJECT = "Object does not exist on the server or you don't have permissions to access it"


class LfsRefused(Exception):
    """An answer that is no success: the sentence is shown by git-lfs."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class LfsPermit:
    """Somebody may do this in this project; ``path`` is how the project is called today."""

    project_id: int
    path: str
    user_id: int | None
    user_name: str
    maintains: bool


def permit(
    session: Session,
    throttle: Throttle,
    path: str,
    authorization: str,
    *,
    upload: bool,
    address: str = "",
) -> LfsPermit:
    """The permit for reading or sending objects of a project. Raises ``LfsRefused``.

    Reading objects is reading code; sending them is pushing, from Developer on. Who may not read
    gets the same 404 as for a project that is not there.
    """
    try:
        asker = asker_of(session, throttle, authorization, address)
    except GitRefused as refused:
        raise LfsRefused(refused.status, refused.text) from None
    project = access.project_by_path(session, path) or access.moved_project(session, path)
    can = access.project_access(session, asker, project).can if project else frozenset()
    if project is None or not {Can.READ_PROJECT, Can.READ_CODE} <= can:
        raise LfsRefused(401, DENIED) if asker.kind == "nobody" else LfsRefused(404, NOT_FOUND)
    if upload and asker.kind == "nobody":
        raise LfsRefused(401, DENIED)
    if upload and not _may_push(asker, can):
        raise LfsRefused(403, FORBIDDEN)
    return LfsPermit(
        project_id=project.id,
        path=project.full_path,
        user_id=asker.user.id if asker.user else None,
        user_name=asker.user.name if asker.user else "",
        maintains=Can.PUSH_PROTECTED in can,
    )


def _may_push(asker: Asker, can: frozenset[Can]) -> bool:
    return Can.PUSH in can and asker.has_scope("api", "write_repository")


@dataclass(frozen=True)
class Asked:
    """One object of a batch; ``wrong`` says why it is none."""

    oid: str
    size: int
    wrong: str = ""


@dataclass(frozen=True)
class Batch:
    """What a batch request asks for."""

    operation: Operation
    objects: tuple[Asked, ...]


def read_batch(body: object) -> Batch:
    """Reads a batch request's JSON. Raises ``LfsRefused`` (404, 409, 413, 422), whatever its shape.

    https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md#requests
    """
    if not isinstance(body, dict):
        raise LfsRefused(422, "A batch request is a JSON object.")
    operation, objects = body.get("operation"), body.get("objects")
    if operation not in ("download", "upload"):
        raise LfsRefused(422, "The operation of a batch request is `download` or `upload`.")
    if body.get("hash_algo", "sha256") != "sha256":
        raise LfsRefused(409, "This server names objects by their SHA-256 only.")
    if not isinstance(objects, list) or not objects:
        raise LfsRefused(404, NOT_FOUND)
    if len(objects) > MOST_OBJECTS:
        raise LfsRefused(413, f"One batch request may ask for {MOST_OBJECTS} objects at most.")
    return Batch(operation, tuple(_asked(item) for item in objects))


def _asked(item: object) -> Asked:
    given = item if isinstance(item, dict) else {}
    oid, size = given.get("oid"), given.get("size")
    shown = oid if isinstance(oid, str) and oid.isascii() and oid.isprintable() else ""
    if not is_oid(oid):
        return Asked(shown[:128], 0, "The oid is not a SHA-256 in 64 lower-case hex digits.")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        return Asked(shown, 0, "The size is not a number of bytes.")
    return Asked(shown, size)


def answer_batch(
    batch: Batch,
    known: Mapping[str, int],
    root: str,
    authorization: str,
    *,
    largest: int,
    free: int | None,
) -> dict[str, Any]:
    """The batch response. ``known`` are the sizes of those objects that the project has.

    ``root`` is the project's repository address; actions get the asker's own ``Authorization``, as
    on GitLab, so that git-lfs sends it there too.
    """
    header = {"Authorization": authorization} if authorization else {}
    answered: list[dict[str, Any]] = []
    for asked in batch.objects:
        one: dict[str, Any] = {"oid": asked.oid, "size": asked.size}
        answered.append(one)
        there = known.get(asked.oid)
        refusal = _refusal(asked, batch.operation, there, largest, free)
        if refusal is not None:
            one["error"] = {"code": refusal[0], "message": refusal[1]}
            continue
        if batch.operation == "download":
            one["actions"] = {"download": {"href": _object(root, asked.oid), "header": header}}
        elif there is None:
            sending = {
                **header,
                "Content-Type": "application/octet-stream",
                "Transfer-Encoding": "chunked",
            }
            one["actions"] = {
                "upload": {"href": f"{_object(root, asked.oid)}/{asked.size}", "header": sending},
                "verify": {"href": f"{root}/info/lfs/objects/verify", "header": header},
            }
        if header:
            one["authenticated"] = True
    return {"transfer": "basic", "objects": answered, "hash_algo": "sha256"}


def _object(root: str, oid: str) -> str:
    return f"{root}/gitlab-lfs/objects/{oid}"


def _refusal(
    asked: Asked, operation: Operation, there: int | None, largest: int, free: int | None
) -> tuple[int, str] | None:
    if asked.wrong:
        return 422, asked.wrong
    if there is not None and there != asked.size:
        return 422, f"This object has {there} bytes, not {asked.size}."
    if operation == "download":
        return (404, NO_OBJECT) if there is None else None
    if there is None and asked.size > largest:
        return 413, too_large(largest)
    if there is None and free is not None and asked.size > free:
        return 507, "The forge's disk has no room for this file."
    return None


def too_large(largest: int) -> str:
    return f"The file is larger than the {largest} bytes that this forge takes."


def repository_url(config: ForgeConfig, path: str) -> str:
    """The address of a project's repository, as GitLab writes it into actions."""
    return f"{config.url}/{quote(path, safe='/')}.git"


# Which project has what


def known_objects(session: Session, project_id: int, oids: Iterable[str]) -> dict[str, int]:
    """Sizes of those of ``oids`` that the project has."""
    found: dict[str, int] = {}
    wanted = sorted(set(oids))
    for start in range(0, len(wanted), AT_ONCE):
        rows = session.execute(
            select(LfsObject.oid, LfsObject.size)
            .join(LfsLink, LfsLink.oid == LfsObject.oid)
            .where(
                LfsLink.project_id == project_id, LfsObject.oid.in_(wanted[start : start + AT_ONCE])
            )
        )
        found.update((oid, size) for oid, size in rows)
    return found


def touch(database: Database, oid: str) -> None:
    """Somebody begins to send this object: it is not to be removed meanwhile."""
    with database.write() as session:
        session.execute(update(LfsObject).where(LfsObject.oid == oid).values(touched_at=now()))


def link(database: Database, project_id: int, oid: str, size: int) -> None:
    """The store has the object, and the project has proved to have it.

    Raises ``LfsRefused`` if the project was deleted meanwhile.
    """
    moment = now()
    with database.write() as session:
        if session.get(Project, project_id) is None:
            raise LfsRefused(404, NOT_FOUND)
        row = insert(LfsObject).values(oid=oid, size=size, touched_at=moment)
        session.execute(
            row.on_conflict_do_update(index_elements=["oid"], set_={"touched_at": moment})
        )
        tie = insert(LfsLink).values(project_id=project_id, oid=oid, created_at=moment)
        session.execute(tie.on_conflict_do_nothing())


def remove_unlinked(database: Database, store: LfsStore) -> int:
    """Remove objects that no project has, a day after they were last sent; how many."""
    linked = select(LfsLink.oid).where(LfsLink.oid == LfsObject.oid).exists()
    with database.write() as session:
        gone = session.scalars(
            select(LfsObject.oid)
            .where(~linked, LfsObject.touched_at < now() - UNLINKED)
            .limit(MOST_REMOVED)
        ).all()
        for oid in gone:
            store.remove(oid)
        if gone:
            session.execute(delete(LfsObject).where(LfsObject.oid.in_(gone)))
    return len(gone)
