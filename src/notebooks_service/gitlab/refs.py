"""What a ref's name may look like, decided before the forge is asked; used by ``gitlab/forge.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["sha", "branch", "tag", "short sha", "revision"]

FULL_SHA = re.compile(r"[0-9a-fA-F]{40}\Z")
SHORT_SHA = re.compile(r"[0-9a-fA-F]{4,39}\Z")
FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


@dataclass(frozen=True)
class Reading:
    """One way to understand a ref's name, and the name to ask for."""

    kind: Kind
    name: str


def is_ref_name(name: str) -> bool:
    """Whether git would accept ``name``; nothing else is ever sent to a forge.

    https://git-scm.com/docs/git-check-ref-format. That ``.`` and ``..`` are no names matters
    beyond git: they would climb in a URL's path.
    """
    if not name or name == "@" or FORBIDDEN.search(name):
        return False
    if name.startswith("/") or name.endswith(("/", ".")):
        return False
    return not any(part.startswith(".") or part.endswith(".lock") for part in name.split("/"))


def readings(name: str) -> tuple[Reading, ...]:
    """The ways to understand ``name``, likeliest first; none if it cannot be a ref.

    40 hex digits are always a commit. Of a branch and a tag of one name the branch is meant, as a
    person who opens "main" expects; ``refs/tags/<name>`` asks for the tag. A short sha comes last:
    a branch may well be called ``beef``.
    """
    if FULL_SHA.match(name):
        return (Reading("sha", name.lower()),)
    if not is_ref_name(name):
        return ()
    if name == "HEAD":
        return (Reading("revision", name),)
    if name.startswith("refs/heads/"):
        return (Reading("branch", name.removeprefix("refs/heads/")),)
    if name.startswith("refs/tags/"):
        return (Reading("tag", name.removeprefix("refs/tags/")),)
    if name.startswith("refs/"):
        return (Reading("revision", name),)
    found = (Reading("branch", name), Reading("tag", name))
    if SHORT_SHA.match(name):
        return (*found, Reading("short sha", name.lower()))
    return found
