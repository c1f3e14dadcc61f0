"""Puts the files of a data directory into an archive while people write there, for ``backup.py``.

Everything is reached by descriptors: somebody could put a link to another's file in the place of their own.
What one person makes may not keep the others from being restored: paths, depth and empty space have limits.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

DATA = "data"
"""The directory of the archive that the data directory's files are in."""
DATABASE_PLACES = ("hub", "service", "forge")
_SQLITE_BESIDE = (".sqlite-wal", ".sqlite-shm", ".sqlite-journal")
DEEPEST = 200
"""Directories within each other; each holds a descriptor while it is read."""
LONGEST_PATH = 3000
"""Bytes. A system call takes 4095, and whoever restores may have a longer name for the place."""
LEAST_HOLE = 1024 * 1024
"""Bytes without content that are worth leaving out."""
MOST_PIECES = 8 * 1024**3
"""Bytes of content from which a file with holes is written in full: Python's ``tarfile`` reads no larger."""
BLOCK = 512
PACKED_REFS = "packed-refs"


@dataclass
class Archived:
    """What went into an archive. ``skipped``: paths that could not be read, or are no files."""

    files: int = 0
    bytes: int = 0
    volumes: int = 0
    skipped: list[str] = field(default_factory=list)


class Walk:
    """Adds directories. ``left_out``: names below the first; ``own``: the archive's device and inode."""

    def __init__(
        self,
        archive: tarfile.TarFile,
        archived: Archived,
        left_out: set[str],
        own: tuple[int, int] | None,
    ) -> None:
        self._archive = archive
        self._archived = archived
        self._left_out = {f"{DATA}/{name}" for name in left_out}
        self._own = own
        self._known: dict[tuple[int, int], str] = {}

    def directory(self, descriptor: int, name: str) -> None:
        """What is in an open directory, itself first. Raises ``OSError`` if the archive takes no more."""
        self._archive.addfile(_info(os.fstat(descriptor), name))
        seen: set[str] = set()
        while True:
            try:
                entries = [entry for entry in os.listdir(descriptor) if entry not in seen]
            except OSError as error:
                self._skip(name, error.strerror)
                return
            if {"refs", "objects"} <= set(entries) and PACKED_REFS not in entries:
                entries.append(PACKED_REFS)  # it may come to be while we read what goes there
            for entry in sorted(entries, key=order):
                seen.add(entry)
                self._entry(descriptor, entry, f"{name}/{entry}")
            # git may have packed anew what we were about to read; then it is in a newer pack.
            if not entries or not name.endswith("/objects/pack"):
                return

    def _entry(self, parent: int, entry: str, name: str) -> None:
        if name in self._left_out or _is_database(name):
            return
        if len(os.fsencode(name)) > LONGEST_PATH:
            self._skip(name, "its path is too long")
            return
        try:
            add = self._way_to_add(parent, entry, name)
        except FileNotFoundError:
            return  # removed meanwhile, as it was anybody's right
        except OSError as error:
            self._skip(name, error.strerror)
            return
        # Not within the `try`: what fails from here on is the archive, and nothing can follow that.
        if add is not None:
            add()

    def _way_to_add(self, parent: int, entry: str, name: str) -> Callable[[], None] | None:
        """Opens what is there, whatever it is by now. Raises ``OSError``."""
        facts = os.lstat(entry, dir_fd=parent)
        if stat.S_ISLNK(facts.st_mode):
            info = _info(facts, name)
            info.linkname = os.readlink(entry, dir_fd=parent)
            return lambda: self._link(info)
        if stat.S_ISDIR(facts.st_mode):
            if name.count("/") > DEEPEST:
                self._skip(name, "too deep")
                return None
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            descriptor = os.open(entry, flags, dir_fd=parent)
            return lambda: self._opened_directory(descriptor, name)
        if stat.S_ISREG(facts.st_mode):
            # It may be a pipe by now, which would wait for somebody.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            file = open(os.open(entry, flags, dir_fd=parent), "rb")  # noqa: PTH123, SIM115
            return lambda: self._opened_file(file, name)
        if not stat.S_ISSOCK(facts.st_mode):
            self._skip(name)
        return None

    def _link(self, info: tarfile.TarInfo) -> None:
        self._archive.addfile(info)
        self._archived.files += 1

    def _opened_directory(self, descriptor: int, name: str) -> None:
        try:
            self.directory(descriptor, name)
        finally:
            os.close(descriptor)

    def _opened_file(self, file: IO[bytes], name: str) -> None:
        with file:
            facts = os.fstat(file.fileno())
            place = (facts.st_dev, facts.st_ino)
            if not stat.S_ISREG(facts.st_mode):
                self._skip(name)
                return
            if place == self._own:
                return
            info = _info(facts, name)
            if facts.st_nlink > 1:
                first = self._known.setdefault(place, name)
                if first != name:
                    info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
                    self._archive.addfile(info)
                    return
            content = _Content(file, _pieces(file, facts))
            if content.holes:
                # https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html, PAX 1.0
                info.pax_headers = {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.realsize": str(info.size),
                }
                info.size = content.size
            self._archive.addfile(info, content)
            if content.failed is not None:
                self._skip(name, f"{content.failed}; what could not be read is zeros")
            self._archived.files += 1
            self._archived.bytes += info.size

    def _skip(self, name: str, why: str | None = None) -> None:
        path = name.removeprefix(f"{DATA}/")
        self._archived.skipped.append(f"{path}: {why}" if why else path)


def order(entry: str) -> tuple[int, bool, str]:
    """Of a git repository: what names objects before objects, single ones before packs; and single
    names before packed ones, for git writes what it packs before it removes it.

    A pack comes before its index, so that no index is there without it.
    """
    rank = {PACKED_REFS: 1, "objects": 2, "pack": 3}.get(entry, 0)
    return rank, not entry.endswith(".pack"), entry


def _info(facts: os.stat_result, name: str) -> tarfile.TarInfo:
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


def _is_database(name: str) -> bool:
    """Copied before, by SQLite; and what it keeps beside a database is in the copy."""
    place, _, file = name.removeprefix(f"{DATA}/").partition("/")
    return (
        place in DATABASE_PLACES and "/" not in file and file.endswith((".sqlite", *_SQLITE_BESIDE))
    )


@dataclass(frozen=True)
class _Pieces:
    """Where a file has content. ``whole``: in one piece, as most have."""

    places: list[tuple[int, int]]
    whole: bool


def _pieces(file: IO[bytes], facts: os.stat_result) -> _Pieces:
    size = facts.st_size
    whole = _Pieces([(0, size)], True)
    if size - facts.st_blocks * BLOCK < LEAST_HOLE:
        return whole
    found: list[tuple[int, int]] = []
    place = 0
    try:
        while place < size:
            start = os.lseek(file.fileno(), place, os.SEEK_DATA)
            place = min(os.lseek(file.fileno(), start, os.SEEK_HOLE), size)
            if start >= size:
                break
            if found and start - sum(found[-1]) < LEAST_HOLE:
                start = found.pop()[0]
            found.append((start, place - start))
    except OSError:
        pass  # ENXIO: only a hole follows. A file system that knows no holes says that all is content.
    if sum(length for _, length in found) >= MOST_PIECES:
        return whole
    return _Pieces(found, False)


class _Content:
    """Gives exactly as many bytes as were announced: what cannot be read, or is gone, is zeros."""

    def __init__(self, file: IO[bytes], pieces: _Pieces) -> None:
        self._file = file
        self._left = list(reversed(pieces.places))
        self.holes = not pieces.whole
        self._map = _sparse_map(pieces.places) if self.holes else b""
        self.size = len(self._map) + sum(length for _, length in pieces.places)
        self.failed: str | None = None

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, all of them unless the end is near."""
        found, self._map = self._map[:size], self._map[size:]
        while self._left and len(found) < size:
            start, length = self._left.pop()
            take = min(length, size - len(found))
            if take < length:
                self._left.append((start + take, length - take))
            found += self._exactly(start, take)
        return found

    def _exactly(self, start: int, size: int) -> bytes:
        found = b""
        try:
            while len(found) < size:
                more = os.pread(self._file.fileno(), size - len(found), start + len(found))
                if not more:
                    break
                found += more
        except OSError as error:
            self.failed = error.strerror or str(error)
        return found + bytes(size - len(found))


def _sparse_map(pieces: list[tuple[int, int]]) -> bytes:
    numbers = [len(pieces), *(number for piece in pieces for number in piece)]
    text = "".join(f"{number}\n" for number in numbers).encode()
    return text + bytes(-len(text) % BLOCK)
