"""Adds the submodules that the hub has allowed: each a clone of its own, at the commit's place.

Called by ``clone.py``. Which submodules there are, where they come from and whether the person may
read them and agreed was all decided in the hub; no address out of ``.gitmodules`` is used here, and
nothing in it is run. A place that is not what the hub saw is left empty, with a remark.

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from notebooks_service.singleuser.clone_fill import Limits, Source, fetch, fill
    from notebooks_service.singleuser.clone_git import Failed, Git, say
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from clone_fill import Limits, Source, fetch, fill
    from clone_git import Failed, Git, say

UPDATES = ("checkout", "rebase", "merge", "none")
"""What git takes for ``submodule.<name>.update`` in ``.gitmodules``; of anything else it dies."""
LEFT_OUT = ("commit_missing", "not_found", "refused", "unsafe_path")


class Submodule(NamedTuple):
    """``at`` is its place in the whole tree, ``parent`` the place of the submodule that holds it."""

    at: str
    parent: str
    name: str
    project: str
    commit: str
    bytes: int | None

    @property
    def inside(self) -> str:
        """Its place in the repository that holds it."""
        return self.at[len(self.parent) + 1 :] if self.parent else self.at


def read(text: str) -> list[Submodule]:
    """What the hub gives, in its order: parents first. Raises ``Failed("environment")``."""
    try:
        found = [
            Submodule(
                at=_checked(each["at"], r"[^/].*[^/]|[^/]"),
                parent=_checked(each["parent"], r".*"),
                name=_checked(each["name"], r"[^-].*"),
                project=_checked(each["project"], r"[^/\\]+(/[^/\\]+)+"),
                commit=_checked(each["commit"], r"[0-9a-f]{40}"),
                bytes=int(each["bytes"]) if each.get("bytes") is not None else None,
            )
            for each in json.loads(text or "[]")
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Failed("environment", "NOTEBOOKS_SUBMODULES") from None
    for each in found:
        inside = not each.parent or each.at.startswith(each.parent + "/")
        segments = [*each.at.split("/"), *each.name.split("/"), *each.project.split("/")]
        if not inside or any(segment.lower() in ("", ".", "..", ".git") for segment in segments):
            raise Failed("environment", "NOTEBOOKS_SUBMODULES")
    return found


def _checked(value: Any, pattern: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(pattern, value) or not value.isprintable():
        raise ValueError
    return value


def add(git: Git, wanted: list[Submodule], forge_url: str, limits: Limits) -> list[str]:
    """Add them to the checked-out repository of ``git``; remarks. Raises ``Failed``."""
    notes = []
    there = {""}
    for each in wanted:
        if each.parent not in there:
            continue
        reason = _add_one(git, each, forge_url, limits)
        if reason:
            notes.append(f"The submodule `{each.at}` is left out: {reason}")
        else:
            there.add(each.at)
    return notes


def _add_one(git: Git, each: Submodule, forge_url: str, limits: Limits) -> str:
    """Why it was left out, or nothing."""
    top = git.directory
    holder = git.within(top / each.parent) if each.parent else git
    listed = holder.read("ls-files", "-s", "-z", "--", f":(literal){each.inside}")
    if listed != f"160000 {each.commit} 0\t{each.inside}\0".encode():
        return "the checked-out commit has something else there."
    place = top / each.at
    if place.resolve() != top.resolve() / each.at or not place.is_dir() or any(place.iterdir()):
        return "its place is no empty directory of its own."
    say(f"Adding the submodule `{each.at}`.", "submodules")
    source = Source(f"{forge_url}/{each.project}.git", each.project, each.commit, each.bytes)
    try:
        inner = fetch(holder, source, place, limits)
        fill(inner, source, limits, "--quiet", "--detach", each.commit, "--")
        # From here on it is as ``git submodule update`` leaves it: its ``.git`` lies in its parent's.
        for key, value in (("url", source.url), ("active", "true")):
            holder.do("config", f"submodule.{each.name}.{key}", value)
        try:
            holder.do("submodule", "--quiet", "absorbgitdirs", "--", each.inside)
        except Failed as failed:
            if failed.kind != "git_failed":
                raise
            empty(place)
            for key in ("url", "active"):
                holder.do("config", "--unset", f"submodule.{each.name}.{key}")
            return "git does not take what `.gitmodules` says of it."
    except Failed as failed:
        if failed.kind not in LEFT_OUT:
            raise
        empty(place)
        return failed.sentence
    mend(inner)
    return ""


def mend(git: Git) -> list[str]:
    """Make git usable where ``.gitmodules`` names a program to run; what is to be said about it.

    git refuses every ``status``, ``diff`` and ``add`` as long as it reads such a line, and reads them
    from the file if there is one. So the file here says ``none``, and the index that it is as it was.
    https://git-scm.com/docs/gitmodules (``update``)
    """
    file = git.directory / ".gitmodules"
    if file.is_symlink() or not file.is_file():
        return []  # git reads no link, either
    listed = git.ask(
        "config", "--file", str(file), "--null", "--get-regexp", r"^submodule\..*\.update$"
    )
    pairs = [entry.partition("\n") for entry in (listed or "").split("\0") if entry]
    wrong = {key for key, _, value in pairs if value not in UPDATES}
    if not wrong:
        return []
    for key in sorted(wrong):
        git.do("config", "--file", str(file), "--replace-all", key, "none")
    git.do("update-index", "--assume-unchanged", ".gitmodules")
    names = ", ".join(f"`{key[len('submodule.') : -len('.update')]}`" for key in sorted(wrong))
    return [
        f"`.gitmodules` names a program to run for the submodule {names}. git works with no such file,"
        " so it says `none` here; this is not taken for a change of yours."
    ]


def empty(place: Path) -> None:
    """Leave the empty directory that git has made for the submodule."""
    shutil.rmtree(str(place))
    place.mkdir()
