"""``notebooks backup`` and ``notebooks restore``: a data directory as one archive, also while it is used.

Databases are copied by SQLite itself. ``backup_files.py`` puts files in, ``backup_unpack.py`` takes them out.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import re
import shutil
import sqlite3
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.backup_files import DATA, DATABASE_PLACES, Archived, Walk
from notebooks_service.platform.backup_unpack import (
    ABOUT,
    END,
    FORMAT,
    VOLUMES,
    not_whole,
    unpack,
)
from notebooks_service.platform.directory import LAYOUT

VERSION_FILE = "version.json"

MADE_AGAIN = ("run", "logs", "runner", "backups", "cache")
"""Of the data directory: what only a running platform needs, and what it makes anew."""
REBUILT = "environments"
COMPRESSION = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,100}\Z")
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that knows no hard links: FAT, some on a network."""


class Volumes(Protocol):
    """The volumes of servers, where these are containers."""

    def listed(self) -> list[dict[str, Any]]:
        """``name`` and ``labels`` of each."""

    def read(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """The content of one, as a tar archive in a file."""

    def put_back(self, name: str, labels: Mapping[str, str], content: IO[bytes]) -> None:
        """Make one; ``PlatformFailed`` if it is there."""

    def remove(self, name: str) -> None:
        """Take one away that was put back."""


FindVolumes = Callable[[Path], Volumes]
"""The volumes of the service whose data is there."""


def back_up(
    data: Path,
    target: Path | IO[bytes],
    version: str,
    *,
    environments: bool,
    volumes: FindVolumes | None = None,
) -> Archived:
    """Write the archive to a new file (mode 0600), or to an open stream.

    ``environments``: with those of ``local``, which are built again otherwise. Raises
    ``PlatformFailed`` if ``target`` is there already; nothing is left of an archive that failed.
    """
    if not isinstance(target, Path):
        return _write(data, target, version, environments=environments, volumes=volumes)
    there = PlatformFailed(f"{target} is there already; give the name of a new file.")
    if os.path.lexists(target):
        raise there
    # A name of its own: two backups to one place at once take nothing from each other.
    descriptor, name = tempfile.mkstemp(".part", f".{target.name[:100]}.", target.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            archived = _write(data, stream, version, environments=environments, volumes=volumes)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(part, target)  # unlike a rename, never over what came there meanwhile
        except FileExistsError:
            raise there from None
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(target):
                raise there from None
            part.rename(target)
    finally:
        part.unlink(missing_ok=True)
    return archived


def restore(source: IO[bytes], data: Path, volumes: FindVolumes | None = None) -> dict[str, Any]:
    """Unpack an archive as the data directory ``data``; what its ``backup.json`` says, and as
    ``other_owners`` how many files belonged to others and could not be given to them.

    Nothing may be there yet. It appears whole or not at all. Raises ``PlatformFailed``.
    """
    there = data.exists()
    if there and (not data.is_dir() or any(data.iterdir())):
        raise PlatformFailed(
            f"{data} is not empty; a backup is restored to a new place. Name another with --data, "
            "or move what is there away."
        )
    if not there:
        data.parent.mkdir(parents=True, exist_ok=True)
    # In a directory that is there: it may be a disk of its own, and what is beside it another.
    place = data if there else data.parent
    new = Path(os.path.realpath(tempfile.mkdtemp(prefix=".restore-", dir=place)))
    try:
        about, others = unpack(source, new)
        _put_back(about, new, volumes)
        if there:
            _move_up(new / DATA, data)
        else:
            (new / DATA).rename(data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return {**about, "other_owners": others}


def _move_up(unpacked: Path, data: Path) -> None:
    """All of it or nothing; last what says that there is data at all."""
    moved: list[Path] = []
    try:
        for path in sorted(unpacked.iterdir(), key=lambda one: one.name == VERSION_FILE):
            path.rename(data / path.name)
            moved.append(path)
        data.chmod(stat.S_IMODE(unpacked.stat().st_mode))
    except BaseException:
        for path in reversed(moved):
            (data / path.name).rename(path)
        raise


# Writing --------------------------------------------------------------------------------------


def _write(
    data: Path,
    stream: IO[bytes],
    version: str,
    *,
    environments: bool,
    volumes: FindVolumes | None,
) -> Archived:
    found = None if volumes is None else volumes(data)
    listed = [] if found is None else found.listed()
    about = {
        "format": FORMAT,
        "layout": LAYOUT,
        "version": version,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "environments": environments,
        VOLUMES: listed,
    }
    archived = Archived()
    with (
        tempfile.TemporaryDirectory(prefix="notebooks-backup-") as snapshots,
        gzip.GzipFile("", "wb", COMPRESSION, stream) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        _add_text(archive, ABOUT, json.dumps(about, indent=2))
        # Databases first: what they name is there already, and what comes meanwhile is too much.
        for name in _databases(data):
            copy = Path(snapshots) / "database"
            _copy_database(data / name, copy)
            info = archive.gettarinfo(str(data / name), f"{DATA}/{name}")
            info.size = copy.stat().st_size
            with copy.open("rb") as file:
                archive.addfile(info, file)
            archived.files, archived.bytes = archived.files + 1, archived.bytes + info.size
            copy.unlink()
        left_out = {*MADE_AGAIN, *(() if environments else (REBUILT,))}
        root = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
        try:
            Walk(archive, archived, left_out, _place_of(stream)).directory(root, DATA)
        finally:
            os.close(root)
        if found is not None:
            for each in listed:
                with found.read(each["name"]) as content:
                    info = tarfile.TarInfo(f"{VOLUMES}/{each['name']}")
                    info.mode = 0o600
                    info.size = content.seek(0, os.SEEK_END)
                    content.seek(0)
                    archive.addfile(info, content)
                archived.volumes, archived.bytes = archived.volumes + 1, archived.bytes + info.size
        _add_text(archive, END, "")
    return archived


def _databases(data: Path) -> Iterator[str]:
    for place in DATABASE_PLACES:
        for path in sorted((data / place).glob("*.sqlite")):
            yield f"{place}/{path.name}"


def _copy_database(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


def _place_of(stream: IO[bytes]) -> tuple[int, int] | None:
    """Where the archive itself is; None for what is no file."""
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, AttributeError):
        return None
    return facts.st_dev, facts.st_ino


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    info.mode = 0o600
    archive.addfile(info, io.BytesIO(text.encode()))


# Reading --------------------------------------------------------------------------------------


def _put_back(about: dict[str, Any], new: Path, volumes: FindVolumes | None) -> None:
    """The volumes of the archive, all of them or none."""
    listed = about[VOLUMES]
    if not listed:
        return
    for each in listed:
        name = str(each["name"])
        if not _NAME.match(name) or not (new / VOLUMES / name).is_file():
            raise not_whole()
    if volumes is None:
        raise PlatformFailed("That backup has volumes of servers, and no Docker engine was named.")
    found = volumes(new / DATA)
    made: list[str] = []
    try:
        for each in listed:
            with (new / VOLUMES / each["name"]).open("rb") as content:
                found.put_back(each["name"], each["labels"], content)
            made.append(each["name"])
    except BaseException:
        for name in made:
            found.remove(name)
        raise
