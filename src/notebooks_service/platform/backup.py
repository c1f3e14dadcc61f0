"""``notebooks backup`` and ``notebooks restore``: a data directory as one archive, also while it is used.

Databases are copied by SQLite itself. Files are walked by descriptors, because people write in their
directories meanwhile and could put a link to somebody else's in the place of a directory.
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
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.directory import LAYOUT

FORMAT = 1
VOLUMES = "volumes"
ABOUT, END = "backup.json", "backup.end"
DATA = "data"
MADE_AGAIN = ("run", "logs", "runner", "backups")
"""Of the data directory: what only a running platform needs, and what it makes anew."""
REBUILT = "environments"
DATABASE_PLACES = ("hub", "service", "forge")
_SQLITE_BESIDE = (".sqlite-wal", ".sqlite-shm", ".sqlite-journal")
COMPRESSION = 3
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,100}\Z")
LONGEST_ABOUT = 1024 * 1024
DEEPEST = 200
"""Directories within each other; each holds a descriptor while it is read."""


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


@dataclass
class Archived:
    """What went into an archive. ``skipped``: paths that could not be read, or are no files."""

    files: int = 0
    bytes: int = 0
    volumes: int = 0
    skipped: list[str] = field(default_factory=list)


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
    if target.exists():
        raise PlatformFailed(f"{target} is there already; give the name of a new file.")
    part = target.with_name(f".{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            archived = _write(data, stream, version, environments=environments, volumes=volumes)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(part, target)  # unlike a rename, never over what came there meanwhile
    except FileExistsError:
        raise PlatformFailed(f"{target} is there already; give the name of a new file.") from None
    finally:
        part.unlink(missing_ok=True)
    return archived


def restore(source: IO[bytes], data: Path, volumes: FindVolumes | None = None) -> dict[str, Any]:
    """Unpack an archive as the data directory ``data``; what its ``backup.json`` says.

    Nothing may be there yet. It appears whole or not at all. Raises ``PlatformFailed``.
    """
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise PlatformFailed(
            f"{data} is not empty; a backup is restored to a new place. Name another with --data, "
            "or move what is there away."
        )
    data.parent.mkdir(parents=True, exist_ok=True)
    made = tempfile.mkdtemp(prefix=f".{data.name}.restore-", dir=data.parent)
    new = Path(os.path.realpath(made))
    try:
        about = _unpack(source, new)
        _put_back(about, new, volumes)
        if data.exists():
            data.rmdir()
        (new / DATA).rename(data)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return about


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
        root = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _Walk(archive, archived, left_out).directory(root, DATA)
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


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(text.encode())
    info.mode = 0o600
    archive.addfile(info, io.BytesIO(text.encode()))


class _Walk:
    """Adds directories; nothing that is replaced by a link meanwhile is followed."""

    def __init__(self, archive: tarfile.TarFile, archived: Archived, left_out: set[str]) -> None:
        self._archive = archive
        self._archived = archived
        self._left_out = {f"{DATA}/{name}" for name in left_out}
        self._known: dict[tuple[int, int], str] = {}

    def directory(self, descriptor: int, name: str) -> None:
        """What is in an open directory, itself first."""
        self._archive.addfile(self._info(os.fstat(descriptor), name))
        seen: set[str] = set()
        while True:
            try:
                entries = [entry for entry in os.listdir(descriptor) if entry not in seen]
            except OSError as error:
                self._skip(name, error)
                return
            for entry in sorted(entries, key=_order):
                seen.add(entry)
                self._entry(descriptor, entry, f"{name}/{entry}")
            # git may have packed anew what we were about to read; then it is in a newer pack.
            if not entries or not name.endswith("/objects/pack"):
                return

    def _entry(self, parent: int, entry: str, name: str) -> None:
        if name in self._left_out or self._is_database(name):
            return
        try:
            facts = os.lstat(entry, dir_fd=parent)
            if stat.S_ISLNK(facts.st_mode):
                info = self._info(facts, name)
                info.linkname = os.readlink(entry, dir_fd=parent)
                self._archive.addfile(info)
                self._archived.files += 1
            elif stat.S_ISDIR(facts.st_mode) and name.count("/") > DEEPEST:
                self._archived.skipped.append(f"{name.removeprefix(f'{DATA}/')}: too deep")
            elif stat.S_ISDIR(facts.st_mode):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                descriptor = os.open(entry, flags, dir_fd=parent)
                try:
                    self.directory(descriptor, name)
                finally:
                    os.close(descriptor)
            elif stat.S_ISREG(facts.st_mode):
                # It may be a pipe by now, which would wait for somebody.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
                with open(os.open(entry, flags, dir_fd=parent), "rb") as file:  # noqa: PTH123
                    self._file(file, name)
            elif not stat.S_ISSOCK(facts.st_mode):
                self._archived.skipped.append(name.removeprefix(f"{DATA}/"))
        except FileNotFoundError:
            return  # removed meanwhile, as it was anybody's right
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE, errno.EFBIG, errno.EIO):
                raise
            self._skip(name, error)

    def _file(self, file: IO[bytes], name: str) -> None:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            self._archived.skipped.append(name.removeprefix(f"{DATA}/"))
            return
        info = self._info(facts, name)
        if facts.st_nlink > 1:
            first = self._known.setdefault((facts.st_ino, facts.st_dev), name)
            if first != name:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
                self._archive.addfile(info)
                return
        self._archive.addfile(info, _Whole(file, info.size))
        self._archived.files += 1
        self._archived.bytes += info.size

    def _info(self, facts: os.stat_result, name: str) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(facts.st_mode)
        info.uid, info.gid, info.mtime = facts.st_uid, facts.st_gid, facts.st_mtime
        if stat.S_ISDIR(facts.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(facts.st_mode):
            info.type = tarfile.SYMTYPE
        else:
            info.size = facts.st_size
        return info

    def _skip(self, name: str, error: OSError) -> None:
        self._archived.skipped.append(f"{name.removeprefix(f'{DATA}/')}: {error.strerror}")

    @staticmethod
    def _is_database(name: str) -> bool:
        """Copied before, by SQLite; and what it keeps beside a database is in the copy."""
        place, _, file = name.removeprefix(f"{DATA}/").partition("/")
        return (
            place in DATABASE_PLACES
            and "/" not in file
            and (file.endswith((".sqlite", *_SQLITE_BESIDE)))
        )


def _order(entry: str) -> tuple[bool, bool, bool, str]:
    """Of a git repository: what names objects before objects, single ones before packs.

    A pack comes before its index, so that no index is there without it.
    """
    return entry == "objects", entry == "pack", not entry.endswith(".pack"), entry


class _Whole:
    """Gives exactly as many bytes as were announced: a file that shrinks meanwhile ends in zeros."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        found = self._file.read(size)
        found += bytes(size - len(found))
        self._left -= size
        return found


# Reading --------------------------------------------------------------------------------------


def _not_whole() -> PlatformFailed:
    return PlatformFailed("That is no backup of ours, or it is not whole. Nothing was changed.")


def _unpack(source: IO[bytes], new: Path) -> dict[str, Any]:
    about: dict[str, Any] | None = None
    ended = False
    try:
        with (
            gzip.GzipFile("", "rb", fileobj=source) as packed,
            tarfile.open(fileobj=packed, mode="r|") as archive,
        ):
            archive.extraction_filter = staticmethod(lambda member, path: member)
            for member in archive:
                if about is None:
                    about = _about(archive, member)
                elif member.name == END:
                    ended = True
                else:
                    _check_place(member, new)
                    archive.extract(member, new, numeric_owner=True)
    except (tarfile.TarError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        raise _not_whole() from None
    except OSError as error:
        if isinstance(error, PlatformFailed) or error.errno is not None:
            raise
        raise _not_whole() from None  # gzip's own
    if about is None or not ended or not (new / DATA).is_dir():
        raise _not_whole()
    return about


def _put_back(about: dict[str, Any], new: Path, volumes: FindVolumes | None) -> None:
    """The volumes of the archive, all of them or none."""
    listed = about.get(VOLUMES) or []
    if not listed:
        return
    for each in listed:
        name = str(each["name"])
        if not _NAME.match(name) or not (new / VOLUMES / name).is_file():
            raise _not_whole()
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


def _about(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    file = (
        archive.extractfile(member)
        if member.name == ABOUT and member.size < LONGEST_ABOUT
        else None
    )
    if file is None:
        raise ValueError
    with closing(file):
        about = json.loads(file.read())
    if not isinstance(about, dict):
        raise ValueError
    if about["format"] > FORMAT or about["layout"] > LAYOUT:
        raise PlatformFailed(
            f"That backup was made by a newer version ({about.get('version', 'unknown')}); restore it "
            "with that one."
        )
    return about


def _check_place(member: tarfile.TarInfo, new: Path) -> None:
    """Raises ``ValueError`` for what would be written outside ``new``, and for devices and pipes.

    Not one of Python's filters: they change modes, and people's links may lead anywhere.
    """
    names = [member.name, *([member.linkname] if member.islnk() else [])]
    for name in names:
        parts = name.split("/")
        volume = parts[0] == VOLUMES and len(parts) == 2 and member.isreg()
        if (parts[0] != DATA and not volume) or ".." in parts:
            raise ValueError(name)
        # A link that lies on the way, whoever put it there.
        parent = os.path.realpath((new / name).parent)
        within = str(new / parts[0] if len(parts) > 1 else new)
        if parent != within and not parent.startswith(f"{within}{os.sep}"):
            raise ValueError(name)
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ValueError(member.name)
