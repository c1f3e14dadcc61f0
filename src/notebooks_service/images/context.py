"""Finds what of a commit a Dockerfile's instructions take; used by ``images/container.py``.

A directory that is taken whole is one input, by its own id: nothing below it has to be listed. Only
where a rule of ``.dockerignore`` or a pattern may cut through one is it looked into.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

from notebooks_service.images.inputs import Input
from notebooks_service.images.patterns import Ignore, Pattern, State, is_glob
from notebooks_service.images.tree import DIRECTORY, SUBMODULE, SYMLINK, CommitFiles, Entry

MOST_ROWS = 5000
MOST_COMPARED = 400_000
MOST_LINKS = 40
MOST_LISTINGS = 200


class _TooMany(Exception):
    """More directories would have to be listed than one environment is worth."""


def inside(path: str) -> str:
    """``path`` as a build's context takes it: from its root, and never above; "" is the root."""
    return posixpath.normpath("/" + path.lstrip("/")).lstrip("/")


class Context:
    """The files below ``root`` ("" or a directory of the commit), less what ``ignore`` leaves out."""

    def __init__(self, files: CommitFiles, root: str, ignore: Ignore) -> None:
        self._files = files
        self._root = root
        self._ignore = ignore
        self._listed: dict[str, Mapping[str, Entry]] = {}
        self._questions = 0
        self._rows_left = min(MOST_ROWS, MOST_COMPARED // max(1, ignore.weight))
        self._inputs: dict[str, Input] = {}
        self.unsure: list[str] = []

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What was taken; nothing twice, as a file and with its directory."""
        whole = {path for path, each in self._inputs.items() if each.mode == DIRECTORY}
        return tuple(
            each for path, each in sorted(self._inputs.items()) if whole.isdisjoint(_above(path))
        )

    def take(self, source: str, why: str, *, glob: bool = True, deep: bool = False) -> None:
        """What ``COPY source`` takes; nothing if nothing is there, and the build will fail.

        ``glob``: ``source`` may be a pattern; ``deep``: of ``COPY --parents``, where two stars stand
        for any number of directories.
        """
        try:
            if deep:
                self._take_matching(source, why)
            elif glob:
                self._take_glob(source, why)
            else:
                self._take_path(inside(source), why)
        except _TooMany:
            for entry in self._listing("").values():
                self._add(entry, why)
            self.unsure.append(
                f"{why}: too many directories would have to be looked into, so all files count."
            )

    def _take_glob(self, source: str, why: str) -> None:
        path = inside(source)
        if not is_glob(path):
            self._take_path(path, why)
            return
        fixed: list[str] = []
        names = path.split("/")
        while not is_glob(names[0]):
            fixed.append(names.pop(0))
        pattern = "/".join(names)
        try:
            matcher = Pattern(pattern, deep=False)
        except ValueError:
            return  # Go finds nothing by it either
        base = self._resolve("/".join(fixed), why)
        if base is None or not self._is_directory(base):
            return
        found: list[str] = []
        self._match(base, base, matcher, len(names), found)
        for each in found:
            self._take_path(each, why)

    def _take_matching(self, pattern: str, why: str) -> None:
        path = inside(pattern)
        if not is_glob(path):
            self._take_path(path, why)
            return
        try:
            matcher = Pattern(path, deep=True)
        except ValueError:
            return
        self._walk("", self._ignore.top, why, matcher)

    # Paths

    def _take_path(self, path: str, why: str) -> None:
        landed = self._resolve(path, why)
        if landed is None:
            return
        if landed == "":
            self._walk("", self._ignore.top, why)
            return
        entry = self._entry(landed)
        if entry is not None:
            above, _ = self._ignore.verdict(posixpath.dirname(landed))
            state, out = self._ignore.step(above, landed)
            self._take_entry(entry, landed, state, out, why)

    def _resolve(self, path: str, why: str) -> str | None:
        """Where ``path`` is once links on the way are followed, inside the context; they are taken.

        None if it leads nowhere.
        """
        waiting = path.split("/") if path else []
        parent = posixpath.dirname(path)
        if waiting and (entry := self._listing(parent).get(waiting[-1])) and entry.mode != SYMLINK:
            return path
        done: list[str] = []
        links = 0
        while waiting:
            name = waiting.pop(0)
            here = "/".join((*done, name))
            entry = self._listing("/".join(done)).get(name)
            if entry is None:
                return None
            if entry.mode != SYMLINK:
                done.append(name)
                continue
            links += 1
            if links > MOST_LINKS:
                return None
            if self._ignore.verdict(here)[1]:
                return None
            self._add(entry, f"{why}, by a symbolic link")
            target = self._files.content(entry).decode("utf-8", "surrogateescape")
            start = "" if target.startswith("/") else "/".join(done)
            landed = inside(f"{start}/{target}")
            waiting = [*(landed.split("/") if landed else []), *waiting]
            done = []
        return "/".join(done)

    def _match(
        self, base: str, directory: str, matcher: Pattern, depth: int, found: list[str]
    ) -> None:
        """Entries ``depth`` levels below ``base`` that match; where the pattern leads and nowhere else."""
        for name, entry in sorted(self._listing(directory).items()):
            path = f"{directory}/{name}" if directory else name
            relative = path[len(base) + 1 :] if base else path
            if depth == 1:
                if matcher.matches(relative):
                    found.append(path)
            elif entry.mode == DIRECTORY and matcher.may_match_below(relative):
                self._match(base, path, matcher, depth - 1, found)

    # Directories

    def _walk(self, directory: str, state: State, why: str, only: Pattern | None = None) -> None:
        """Takes what is below ``directory``; ``only``: what matches, with all that is below that."""
        for name, entry in sorted(self._listing(directory).items()):
            path = f"{directory}/{name}" if directory else name
            below, out = self._ignore.step(state, path)
            if only is None or only.matches(path):
                self._take_entry(entry, path, below, out, why)
            elif (
                entry.mode == DIRECTORY
                and only.may_match_below(path)
                and (not out or self._ignore.may_change_below(path, out))
            ):
                self._look_into(entry, path, below, why, only)

    def _take_entry(self, entry: Entry, path: str, state: State, out: bool, why: str) -> None:
        cut = self._ignore.may_change_below(path, out)
        if entry.mode == DIRECTORY and cut:
            self._look_into(entry, path, state, why)
        elif not out or (entry.mode == SUBMODULE and cut):
            # What a submodule holds is not known here; its commit stands for all of it.
            self._add(entry, why)

    def _look_into(
        self, entry: Entry, path: str, state: State, why: str, only: Pattern | None = None
    ) -> None:
        deep = self._ignore.is_deep or (only is not None and only.is_deep)
        if not deep or self._below(entry, path):
            self._walk(path, state, why, only)
            return
        self._add(entry, why)
        self.unsure.append(
            f"`{entry.path}` holds more files than rules are applied to, so all of them count."
        )

    def _add(self, entry: Entry, why: str) -> None:
        self._inputs.setdefault(entry.path, Input(entry.path, entry.mode, entry.blob, why))

    # Questions

    def _entry(self, path: str) -> Entry | None:
        directory, name = posixpath.split(path)
        return self._listing(directory).get(name)

    def _is_directory(self, path: str) -> bool:
        entry = self._entry(path) if path else None
        return not path or (entry is not None and entry.mode == DIRECTORY)

    def _listing(self, directory: str) -> Mapping[str, Entry]:
        if directory not in self._listed:
            self._questions += 1
            if self._questions > MOST_LISTINGS:
                raise _TooMany
            self._listed[directory] = self._files.listing(
                posixpath.join(self._root, directory).rstrip("/")
            )
        return self._listed[directory]

    def _below(self, entry: Entry, path: str) -> bool:
        """Asks for all below a directory at once instead of level by level; False if it is too much."""
        if path in self._listed:
            return True
        rows = self._files.below(entry, self._rows_left)
        if rows is None:
            return False
        self._rows_left -= len(rows)
        gathered: dict[str, dict[str, Entry]] = {path: {}}
        for row in rows:
            place = row.path[len(self._root) + 1 :] if self._root else row.path
            parent, name = posixpath.split(place)
            gathered.setdefault(parent, {})[name] = row
            if row.mode == DIRECTORY:
                gathered.setdefault(place, {})
        self._listed |= gathered
        return True


def _above(path: str) -> set[str]:
    names = path.split("/")
    return {"/".join(names[:depth]) for depth in range(1, len(names))}
