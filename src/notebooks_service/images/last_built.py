"""What changed since the last environment that was built, as a build's log says it: in its inputs, in
their lines, in the packages that are installed. Used by ``container_build`` and ``environments``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.errors import BuildFailed
from notebooks_service.images.clean_checkout import git
from notebooks_service.images.log import BuildLog, changes

LINES = 60
"""Of each list at most."""
MOST_FILES = 20
_DIFF = ("diff", "--no-color", "--no-ext-diff", "--no-textconv", "--unified=0")
_HEADER = ("index ", "diff ", "@@", "--- ", "+++ ", "old ", "new ", "similarity ")


@dataclass(frozen=True)
class LastBuilt:
    """The environment that was built before this one: how the log calls it, the canonical text of its
    inputs, and its packages as ``name==version``."""

    name: str
    text: str
    packages: tuple[str, ...] = ()


def say_inputs(log: BuildLog, last: LastBuilt | None, text: str, checkout: Path | None) -> None:
    """What the new environment, which ``text`` describes, is made of and the last one was not."""
    if last is None:
        log.line("No environment of an earlier commit is known here, so all of this is new:")
        for line in cut(text.splitlines()):
            log.line(f"  {line}")
        return
    log.line(f"Since {last.name}, the last one that was built:")
    for line in changes(last.text.splitlines(), text.splitlines(), LINES):
        log.line(f"  {line}")
    if checkout is not None:
        for line in diff(checkout, changed(last.text, text)):
            log.line(f"  {line}")


def say_packages(log: BuildLog, last: LastBuilt | None, packages: Iterable[str]) -> None:
    """What is installed, or only what is not as in the last environment."""
    now = list(packages)
    log.line(f"{len(now)} Python packages are installed")
    known = last is not None and last.packages
    shown = changes(last.packages, now, LINES) if last is not None and known else cut(now)
    for row in shown or ["as in the last environment"]:
        log.line(f"  {row}")


def changed(before: str, after: str) -> dict[str, tuple[str, str]]:
    """Path to the blobs before and after, for the files that are an input of both texts, differently."""
    old, new = _blobs(before), _blobs(after)
    return {
        path: (old[path], blob) for path, blob in sorted(new.items()) if old.get(path, blob) != blob
    }


def _blobs(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        mode, _, rest = rest.partition(" ")
        blob, _, name = rest.partition(" ")
        # Submodules are commits of another repository.
        if kind == "input" and mode.startswith("100") and blob.isalnum():
            try:
                path = json.loads(name)
            except ValueError:
                continue
            if isinstance(path, str):
                found[path] = blob
    return found


def diff(checkout: Path, files: Mapping[str, tuple[str, str]]) -> list[str]:
    """The lines that changed, after the name of each file; without what a shallow clone has not got."""
    found: list[str] = []
    for path, (before, after) in list(files.items())[:MOST_FILES]:
        try:
            said = git(checkout, *_DIFF, before, after)
        except BuildFailed:
            continue
        rows = [line[:200] for line in said.splitlines() if not line.startswith(_HEADER)]
        if rows:
            found += [f"{path}:", *rows]
    return cut(found)


def cut(rows: list[str]) -> list[str]:
    """At most ``LINES`` of them, and how many more there are."""
    more = len(rows) - LINES
    return rows if more <= 0 else [*rows[:LINES], f"… and {more} more"]
