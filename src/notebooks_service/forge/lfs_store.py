"""Where the bytes of large files (Git LFS) are: a directory, or an S3-compatible store through fsspec.

An object is named by the SHA-256 of its content and comes into being whole or not at all. Everything
here blocks; the routes call it in threads. Who may see an object is not asked here but in ``lfs``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from notebooks_service.errors import InvalidRequest, NoSpace, NotFound, SettingsInvalid

PIECE = 1 << 20
"""Bytes that are read or written at a time."""
PART = 16 << 20
"""Bytes of one part of an upload to S3; its limit of 10,000 parts makes the largest object 156 GiB."""
STALE = 3600.0
"""Seconds without a byte after which an unfinished upload is removed at the next start."""

_OID = re.compile(r"[0-9a-f]{64}\Z")


def is_oid(text: object) -> bool:
    """Whether this names an object: 64 lower-case hex digits."""
    return isinstance(text, str) and _OID.match(text) is not None


class WrongContent(InvalidRequest):
    """What came is not the object that it was said to be; nothing of it was kept."""


@dataclass(frozen=True)
class StoreOptions:
    """Which store: ``location`` is empty (a directory of the forge's own), an absolute directory,
    or ``s3://bucket/prefix``. The others are for S3. ``largest`` is in bytes."""

    location: str = ""
    endpoint: str = ""
    key: str = ""
    secret: str = field(default="", repr=False)
    largest: int = 20 << 30


class Incoming(Protocol):
    """Bytes on their way in, invisible until ``keep``; after ``drop`` nothing of them is left."""

    def write(self, piece: bytes) -> None: ...
    def keep(self) -> None: ...
    def drop(self) -> None: ...


class LfsStore(Protocol):
    """Objects by their oid. ``size`` is None for one that is not there."""

    def size(self, oid: str) -> int | None: ...
    def incoming(self, oid: str) -> Incoming: ...
    def read(self, oid: str, start: int, length: int) -> Iterator[bytes]: ...
    def remove(self, oid: str) -> None: ...
    def free(self) -> int | None: ...
    def clean_up(self) -> None: ...


def open_store(options: StoreOptions, own_directory: Path) -> LfsStore:
    """The store that the settings name. Raises ``SettingsInvalid``."""
    location = options.location
    if not location:
        return DirectoryStore(own_directory)
    if "://" not in location:
        directory = Path(location).expanduser()
        if not directory.is_absolute():
            raise SettingsInvalid(
                f"The setting `lfs_store` is wrong: {location} is no absolute directory."
            )
        return DirectoryStore(directory)
    if not re.match(r"s3://[^/]+(/|$)", location):
        raise SettingsInvalid(
            "The setting `lfs_store` is wrong: give a directory or s3://bucket/prefix."
        )
    return S3Store(options)


class Receiver:
    """Takes an object in piece by piece and keeps it only if it is what it was said to be."""

    def __init__(self, store: LfsStore, oid: str, size: int) -> None:
        self._oid, self._size = oid, size
        self._hash = hashlib.sha256()
        self._count = 0
        # What the store has already is read and checked all the same: whoever names an object
        # must prove to have it.
        self._incoming = store.incoming(oid) if store.size(oid) != size else None

    def write(self, piece: bytes) -> None:
        """Raises ``WrongContent`` as soon as there is too much, ``NoSpace`` on a full disk."""
        self._count += len(piece)
        if self._count > self._size:
            raise WrongContent(
                f"More than the announced {self._size} bytes came. Nothing was stored."
            )
        self._hash.update(piece)
        if self._incoming is not None:
            self._incoming.write(piece)

    def finish(self) -> None:
        """Keep the object. Raises ``WrongContent`` if it is not the announced one."""
        if self._count != self._size:
            raise WrongContent(
                f"{self._count} bytes came instead of the announced {self._size}. Nothing was stored."
            )
        if self._hash.hexdigest() != self._oid:
            raise WrongContent(
                "The content does not have the announced SHA-256: it was changed or damaged on the"
                " way. Nothing was stored; push again."
            )
        if self._incoming is not None:
            self._incoming.keep()
            self._incoming = None

    def give_up(self) -> None:
        """Nothing of what came stays. After ``finish`` this does nothing."""
        if self._incoming is not None:
            self._incoming.drop()
            self._incoming = None


class DirectoryStore:
    """Objects as read-only files ``ab/cd/<oid>``, as git-lfs has them in a repository."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, oid: str) -> Path:
        if not is_oid(oid):
            raise NotFound
        return self._root / oid[:2] / oid[2:4] / oid

    def size(self, oid: str) -> int | None:
        try:
            return self.path(oid).stat().st_size
        except FileNotFoundError:
            return None

    def incoming(self, oid: str) -> Incoming:
        return _IncomingFile(self._root / "incoming" / secrets.token_hex(16), self.path(oid))

    def read(self, oid: str, start: int, length: int) -> Iterator[bytes]:
        try:
            file = self.path(oid).open("rb")
        except FileNotFoundError:
            raise NotFound from None
        with file:
            file.seek(start)
            while length > 0 and (piece := file.read(min(PIECE, length))):
                length -= len(piece)
                yield piece

    def remove(self, oid: str) -> None:
        self.path(oid).unlink(missing_ok=True)

    def free(self) -> int | None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return shutil.disk_usage(self._root).free

    def clean_up(self) -> None:
        for path in (self._root / "incoming").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE:
                    path.unlink()


class _IncomingFile:
    def __init__(self, half: Path, whole: Path) -> None:
        half.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._half, self._whole = half, whole
        self._file = half.open("xb", buffering=0)
        half.chmod(0o400)

    def write(self, piece: bytes) -> None:
        view = memoryview(piece)
        try:
            while view:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            raise _as_ours(error) from error

    def keep(self) -> None:
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            self._whole.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._half.replace(self._whole)
        except OSError as error:
            self.drop()
            raise _as_ours(error) from error

    def drop(self) -> None:
        self._file.close()
        self._half.unlink(missing_ok=True)


class S3Store:
    """Objects in a bucket, by multipart uploads that are completed only when the content is right.

    What a killed forge leaves of an upload is never an object; a bucket's own rule
    (``AbortIncompleteMultipartUpload``) removes it.
    """

    def __init__(self, options: StoreOptions) -> None:
        try:
            import s3fs
        except ImportError:
            raise SettingsInvalid(
                "The setting `lfs_store` names an S3 store, which needs one more package: install"
                " notebooks-service[s3]."
            ) from None
        self._root = options.location.removeprefix("s3://").strip("/")
        self._fs: Any = s3fs.S3FileSystem(
            key=options.key or None,
            secret=options.secret or None,
            endpoint_url=options.endpoint or None,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def _path(self, oid: str) -> str:
        if not is_oid(oid):
            raise NotFound
        return f"{self._root}/{oid[:2]}/{oid[2:4]}/{oid}"

    def size(self, oid: str) -> int | None:
        try:
            return int(self._fs.info(self._path(oid), refresh=True)["size"])
        except FileNotFoundError:
            return None

    def incoming(self, oid: str) -> Incoming:
        file = self._fs.open(self._path(oid), "wb", autocommit=False, block_size=PART)
        return _IncomingUpload(file)

    def read(self, oid: str, start: int, length: int) -> Iterator[bytes]:
        path = self._path(oid)
        while length > 0:
            # One request for each part of it: nothing is read ahead that nobody may want.
            try:
                part = self._fs.cat_file(path, start=start, end=start + min(PART, length))
            except FileNotFoundError:
                raise NotFound from None
            if not part:
                return
            start, length = start + len(part), length - len(part)
            yield part

    def remove(self, oid: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(oid))

    def free(self) -> int | None:
        return None

    def clean_up(self) -> None:
        return None


class _IncomingUpload:
    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def keep(self) -> None:
        try:
            self._file.close()
            self._file.commit()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        try:
            self._file.discard()
        finally:
            # So that its finalizer does not try to send the rest.
            self._file.closed = True


def _as_ours(error: OSError) -> Exception:
    import errno

    return NoSpace() if error.errno in (errno.ENOSPC, errno.EDQUOT) else error
