"""Unpacks an archive of ``backup.py`` into a directory of its own, which nobody else may look into.

An archive may be anything: nothing is written outside, nothing over what is there, and no device is made.
"""

from __future__ import annotations

import gzip
import json
import os
import stat
import tarfile
import zlib
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.backup_files import DATA
from notebooks_service.platform.directory import LAYOUT

FORMAT = 1
VOLUMES = "volumes"
ABOUT, END = "backup.json", "backup.end"
LONGEST_ABOUT = 16 * 1024 * 1024


def not_whole() -> PlatformFailed:
    return PlatformFailed("That is no backup of ours, or it is not whole. Nothing was changed.")


def unpack(source: IO[bytes], new: Path) -> tuple[dict[str, Any], int]:
    """What the archive says of itself, and how many files could not be given to their owners.

    Raises ``PlatformFailed`` for what is no whole archive of ours; ``new`` may hold parts of it then.
    """
    about: dict[str, Any] | None = None
    ended = False
    unpacked = _Unpacked(new)
    try:
        with gzip.GzipFile("", "rb", fileobj=source) as packed:
            with tarfile.open(fileobj=packed, mode="r|") as archive:
                archive.extraction_filter = staticmethod(lambda member, path: member)
                for member in archive:
                    if about is None:
                        about = _about(archive, member)
                    elif member.name == END:
                        ended = True
                    else:
                        unpacked.add(archive, member)
            while packed.read(1024 * 1024):
                pass  # what says whether all of it was right comes last
        unpacked.finish()
    except (tarfile.TarError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        raise not_whole() from None
    except OSError as error:
        if isinstance(error, PlatformFailed) or error.errno is not None:
            raise
        raise not_whole() from None  # gzip's own
    if about is None or not ended or not (new / DATA).is_dir():
        raise not_whole()
    return about, unpacked.others


class _Unpacked:
    """What was unpacked so far. Directories get their owner, mode and time last: one may be closed to us."""

    def __init__(self, new: Path) -> None:
        self._new = new
        self._directories: list[tarfile.TarInfo] = []
        self._root = os.geteuid() == 0
        self.others = 0

    def add(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Raises ``ValueError`` for what would be written elsewhere, twice, or is neither file nor link.

        Not one of Python's filters: they change modes, and people's links may lead anywhere.
        """
        self._check_place(member.name, volume=member.isreg())
        path = self._new / member.name
        there = path.lstat() if os.path.lexists(path) else None
        if there is not None and not (member.isdir() and stat.S_ISDIR(there.st_mode)):
            raise ValueError(member.name)
        if not self._root and member.uid != os.geteuid():
            self.others += 1
        if member.isdir():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directories.append(member)
            return
        if member.name == DATA or not (member.isreg() or member.issym() or member.islnk()):
            raise ValueError(member.name)
        if member.islnk():
            self._check_place(member.linkname, volume=False)
            if not stat.S_ISREG((self._new / member.linkname).lstat().st_mode):
                raise ValueError(member.name)
        archive.extract(member, self._new, numeric_owner=True)

    def finish(self) -> None:
        """Inner directories first: the outer ones may be closed to us after that."""
        for member in sorted(self._directories, key=lambda one: one.name.count("/"), reverse=True):
            path = self._new / member.name
            if self._root:
                os.chown(path, member.uid, member.gid)
            path.chmod(member.mode & 0o7777)
            os.utime(path, (member.mtime, member.mtime))

    def _check_place(self, name: str, *, volume: bool) -> None:
        parts = name.split("/")
        in_volumes = volume and parts[0] == VOLUMES and len(parts) == 2
        if (parts[0] != DATA and not in_volumes) or {"", ".", ".."} & set(parts):
            raise ValueError(name)
        # A link that lies on the way, whoever put it there.
        parent = os.path.realpath((self._new / name).parent)
        within = str(self._new / parts[0] if len(parts) > 1 else self._new)
        if parent != within and not parent.startswith(f"{within}{os.sep}"):
            raise ValueError(name)


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
    listed = about.setdefault(VOLUMES, [])
    if not all(isinstance(each["labels"], dict) and each["name"] for each in listed):
        raise ValueError
    return about
