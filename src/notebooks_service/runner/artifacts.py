"""What a job leaves and what it is given: zip archives of files of its project directory.

Called by ``job`` while nothing of the job runs. The directory belongs to hostile code: links are never
followed, and of files only those that are the job's own are read.
https://docs.gitlab.com/ci/yaml/#artifacts
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import re2  # type: ignore[import-untyped,unused-ignore]

from notebooks_service.errors import NotebooksError

MOST_FILES = 100_000
MOST_BYTES = 4 * 1024**3
"""Of one archive, unpacked: what an archive says of itself may be a lie."""
SUFFIXES = {"zip": ".zip", "gzip": ".gz", "raw": ""}
"""Formats that artifacts have, and how their names end."""
_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
_LINK = stat.S_IFLNK


class ArtifactsRefused(NotebooksError):
    """An archive that is not taken, with the reason."""

    code = "artifacts"
    status = 422


@dataclass(frozen=True)
class Wanted:
    """One entry of ``artifacts`` in the job, as the forge sent it."""

    name: str
    paths: tuple[str, ...]
    exclude: tuple[str, ...]
    untracked: bool
    when: str
    expire_in: str | None
    kind: str = "archive"
    form: str = "zip"

    def applies(self, *, failed: bool) -> bool:
        return self.when == "always" or (self.when == "on_failure") == failed


def wanted(job: Mapping[str, Any], variables: Mapping[str, str]) -> list[Wanted]:
    """What this job is to leave; variables in names and paths written out."""

    def text(value: Any) -> str:
        return _REFERENCE.sub(lambda match: variables.get(match[1] or match[2], ""), str(value))

    found = []
    for entry in job.get("artifacts") or []:
        if not isinstance(entry, dict) or entry.get("artifact_format", "zip") not in SUFFIXES:
            continue
        found.append(
            Wanted(
                kind=str(entry.get("artifact_type") or "archive"),
                form=str(entry.get("artifact_format") or "zip"),
                name=re.sub(r"[^\w .+-]", "_", text(entry.get("name") or "artifacts"))[:200],
                paths=tuple(text(one) for one in entry.get("paths") or ()),
                exclude=tuple(text(one) for one in entry.get("exclude") or ()),
                untracked=entry.get("untracked") is True,
                when=str(entry.get("when") or "on_success"),
                expire_in=None if entry.get("expire_in") is None else str(entry["expire_in"]),
            )
        )
    return found


def pattern(glob: str) -> Callable[[str], bool]:
    """Whether a path is meant by ``glob``: ``*`` and ``?`` within a segment, ``**`` across them.

    A directory means all in it. https://docs.gitlab.com/ci/yaml/#artifactspaths
    """
    clean = os.path.normpath(glob.strip()).lstrip("/") if glob.strip() else ""
    if not clean or clean.split("/")[0] == "..":
        return lambda path: False
    if clean == ".":
        return lambda path: True
    source = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", clean):
        source += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(
            part, re2.escape(part)
        )
    try:
        compiled = re2.compile(f"(?s:{source})(?:/(?s:.*))?")
    except re2.error:
        return lambda path: False
    return lambda path: compiled.fullmatch(path) is not None


def files_in(project: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every file and link below ``project`` but git's own, as relative paths."""
    for directory, names, files in os.walk(project):
        if Path(directory) == project and ".git" in names:
            names.remove(".git")
        for name in sorted(
            [*files, *(one for one in names if (Path(directory) / one).is_symlink())]
        ):
            path = Path(directory) / name
            yield str(path.relative_to(project)), path.lstat()


def tracked(project: Path) -> frozenset[str]:
    """What the checkout has brought. Asked before any code of the project runs, and not git."""
    return frozenset(path for path, _ in files_in(project))


def pack(project: Path, entry: Wanted, known: Collection[str], target: Path) -> list[str]:
    """Writes the archive or report to ``target``; the sentences about it. No file if nothing matches.

    A gzip is of all files one after the other, a raw one of a single file. ``known`` are the files of the checkout, for ``untracked``. Raises ``ArtifactsRefused``.
    """
    includes = [(glob, pattern(glob)) for glob in entry.paths]
    excludes = [pattern(glob) for glob in entry.exclude]
    owner = project.lstat().st_uid
    unmatched = {glob for glob, _ in includes}
    chosen: list[tuple[str, os.stat_result]] = []
    size = 0
    for path, facts in files_in(project):
        hits = {glob for glob, means in includes if means(path)}
        unmatched -= hits
        if not hits and not (entry.untracked and path not in known):
            continue
        if any(means(path) for means in excludes) or facts.st_uid != owner:
            continue
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode)):
            continue
        chosen.append((path, facts))
        size += facts.st_size
        if len(chosen) > MOST_FILES or size > MOST_BYTES:
            raise ArtifactsRefused("The artifacts are more than a runner keeps.")
    notes = [f"WARNING: {glob}: no matching files" for glob in sorted(unmatched)]
    if not chosen:
        return [*notes, "ERROR: No files to upload"]
    if entry.form == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
            for path, facts in chosen:
                _add(archive, project, path, facts)
    else:
        plain = [path for path, facts in chosen if stat.S_ISREG(facts.st_mode)]
        if entry.form == "raw" and len(plain) != 1:
            raise ArtifactsRefused(f"A {entry.kind} report is one file, not {len(plain)}.")
        with contextlib.ExitStack() as opened:
            written: IO[bytes] = opened.enter_context(target.open("wb"))
            if entry.form == "gzip":
                packed = gzip.GzipFile(fileobj=written, mode="wb", filename="", mtime=0)
                written = cast("IO[bytes]", opened.enter_context(packed))
            for path in plain:
                _copy(project, path, written)
    return [*notes, f"Found {len(chosen)} matching artifact files and directories"]


def _add(archive: zipfile.ZipFile, project: Path, path: str, facts: os.stat_result) -> None:
    name = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = (facts.st_mode & 0xFFFF) << 16
    if stat.S_ISLNK(facts.st_mode):
        archive.writestr(info, os.fsencode((project / path).readlink()))
        return
    with archive.open(info, "w", force_zip64=True) as target:
        _copy(project, path, target)


def _copy(project: Path, path: str, target: IO[bytes]) -> None:
    descriptor = os.open(project / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as source:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            shutil.copyfileobj(source, target, 1 << 20)


def unpack(archive_file: Path, project: Path) -> int:
    """Puts the files of an archive into ``project``; how many. Raises ``ArtifactsRefused``.

    No entry leaves the directory, by its name or through a link that is there; links that the
    archive brings are made only if they stay inside.
    """
    facts = project.lstat()
    count = 0
    left = MOST_BYTES
    root = os.open(project, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with zipfile.ZipFile(archive_file) as archive:
            entries = archive.infolist()
            if len(entries) > MOST_FILES:
                raise ArtifactsRefused("An archive of artifacts holds too many files.")
            for info in entries:
                if info.is_dir():
                    continue
                left = _place(archive, info, root, facts, left)
                count += 1
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ArtifactsRefused(f"An archive of artifacts cannot be read: {error}.") from None
    except OSError as error:
        raise ArtifactsRefused(
            f"An archive of artifacts cannot be unpacked: {error.strerror}."
        ) from None
    finally:
        os.close(root)
    return count


def _place(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, root: int, owner: os.stat_result, left: int
) -> int:
    parts = info.filename.split("/")
    if {"", ".", "..", ".git"} & set(parts) or "\0" in info.filename:
        raise ArtifactsRefused("An archive of artifacts names a file outside the project.")
    directory = _directory(root, parts[:-1], owner)
    try:
        name = parts[-1]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        mode = info.external_attr >> 16
        if stat.S_ISLNK(mode):
            target = archive.read(info)[:4096].decode("utf-8", "surrogateescape")
            inside = os.path.normpath(os.path.join(*parts[:-1], target))  # noqa: PTH118
            if target.startswith("/") or inside.split("/")[0] == "..":
                raise ArtifactsRefused(
                    "An archive of artifacts holds a link that leaves the project."
                )
            os.symlink(target, name, dir_fd=directory)
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=directory, follow_symlinks=False)
            return left
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(name, flags, 0o600, dir_fd=directory)
        with os.fdopen(descriptor, "wb") as target_file, archive.open(info) as source:
            while chunk := source.read(1 << 20):
                left -= len(chunk)
                if left < 0:
                    raise ArtifactsRefused("An archive of artifacts is too large when unpacked.")
                target_file.write(chunk)
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
            os.fchmod(descriptor, 0o755 if mode & 0o100 else 0o644)
        return left
    finally:
        os.close(directory)


def _directory(root: int, parts: Sequence[str], owner: os.stat_result) -> int:
    """The directory that these segments name, made where it is missing; never through a link."""
    at = os.dup(root)
    for part in parts:
        try:
            try:
                os.mkdir(part, 0o755, dir_fd=at)
            except FileExistsError:
                pass
            else:
                os.chown(part, owner.st_uid, owner.st_gid, dir_fd=at, follow_symlinks=False)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            below = os.open(part, flags, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at
