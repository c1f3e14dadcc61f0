"""Finds an image that somebody named, with that person's rights; used by ``images/facts.py``. Blocking.

A name is looked for in the forge's own registry: ``[<host>/]<project>:<tag>``, with ``@<digest>`` if
it must be exactly that one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from notebooks_service.domain import Project
from notebooks_service.errors import NotFound
from notebooks_service.gitlab.forge import Forge, RegistryTag
from notebooks_service.images.known import Pin

# https://github.com/distribution/reference/blob/main/regexp.go
_REFERENCE = re.compile(
    r"(?:(?P<host>(?:[a-z0-9-]+\.[a-z0-9.-]+|localhost|[a-z0-9.-]+(?=:\d))(?::\d{1,5})?)/)?"
    r"(?P<path>[a-z0-9._-]+(?:/[a-z0-9._-]+)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?\Z",
    re.ASCII,
)

LookUp = Callable[[Forge, Project, str], RegistryTag | None]
"""The tag of a project's registry, if this person may read it and it can be run here."""


@dataclass(frozen=True)
class Reference:
    """``digest`` is empty if any will do."""

    host: str
    path: str
    tag: str
    digest: str


def read_reference(text: str) -> Reference | None:
    """The parts of an image's name; None if it is none."""
    found = _REFERENCE.match(text) if len(text) <= 500 else None
    if found is None:
        return None
    return Reference(
        found["host"] or "", found["path"], found["tag"] or "latest", found["digest"] or ""
    )


def find_pin(forge: Forge, look_up: LookUp, text: str, source: str) -> Pin:
    """The pinned image as this person may have it; without a ``tag`` they may not.

    Hidden and missing are the same answer.
    """
    reference = read_reference(text)
    if reference is None:
        return Pin(text[:200], source, problem="that is no image's name")
    try:
        project = forge.project(reference.path)
    except NotFound:
        return Pin(text, source)
    if project.path.lower() != reference.path:
        return Pin(text, source)  # an old path of a renamed project; registries know none
    tag = look_up(forge, project, reference.tag)
    if tag is None or not _same_place(tag.reference, reference):
        return Pin(text, source)
    if reference.digest and tag.digest != reference.digest:
        return Pin(text, source, problem="the tag names another digest now")
    return Pin(text, source, tag, project_id=project.id)


def _same_place(location: str, reference: Reference) -> bool:
    """Whether the tag that was found is where the name says, host included if both say one."""
    named = f"{reference.path}:"
    return location.startswith(named) or (
        location.startswith(f"{reference.host}/{named}")
        if reference.host
        else location.partition("/")[2].startswith(named)
    )
