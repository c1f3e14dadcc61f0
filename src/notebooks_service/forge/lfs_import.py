"""Brings the large files (Git LFS) of an imported repository in; called by ``administration``.

They lie in the source's git directory, where git-lfs keeps those that were fetched or made there.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.forge import lfs
from notebooks_service.forge.database import Database
from notebooks_service.forge.git_process import git_environment, git_executable
from notebooks_service.forge.hooks.large_files import pointers
from notebooks_service.forge.lfs_store import PIECE, LfsStore, Receiver, WrongContent


@dataclass(frozen=True)
class LargeFiles:
    """How many objects an import brought in, and the oids of those that the source lacks."""

    brought: int = 0
    missing: tuple[str, ...] = ()


def bring(
    database: Database, store: LfsStore, project_id: int, repository: Path, source: str
) -> LargeFiles:
    """Take in what ``repository`` points at and the project does not have yet.

    ``source`` is the git directory that was imported, or an address, which has no such directory.
    """
    wanted = _wanted(repository)
    with database.read() as session:
        known = lfs.known_objects(session, project_id, wanted)
    brought = 0
    missing = []
    for oid, size in wanted.items():
        if oid in known:
            continue
        file = Path(source) / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
        if "://" not in source and _take(database, store, oid, size, file):
            lfs.link(database, project_id, oid, size)
            brought += 1
        else:
            missing.append(oid)
    return LargeFiles(brought, tuple(missing))


def _wanted(repository: Path) -> Mapping[str, int]:
    git = [git_executable(), f"--git-dir={repository}"]
    return pointers(git, [], "--branches", "--tags", environment=git_environment()) or {}


def _take(database: Database, store: LfsStore, oid: str, size: int, file: Path) -> bool:
    """Whether ``file`` is the object; it is in the store then."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return False
        stream = file.open("rb")
    except OSError:
        return False
    lfs.touch(database, oid)
    receiver = Receiver(store, oid, size)
    try:
        with stream:
            while piece := stream.read(PIECE):
                receiver.write(piece)
        receiver.finish()
    except WrongContent:
        return False
    finally:
        receiver.give_up()
    return True
