"""Among a project's images that are tagged by sha, one whose commit has the same environment.

Used by ``images/facts.py`` for projects that know nothing of us: their CI pushes
``$CI_REGISTRY_IMAGE:$CI_COMMIT_SHA``, the short sha, or seven digits as Renku did. Blocking.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from notebooks_service.domain import Project
from notebooks_service.errors import BuildFailed, NotFound
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.known import Twin
from notebooks_service.images.naming import Named, Names

SHA_TAG = re.compile(r"(?:[0-9a-f]{7}|[0-9a-f]{8}|[0-9a-f]{40})\Z")
LENGTHS = (40, 8, 7)
NEAREST = 100
"""Commits before the one that is opened among which tagged ones are looked for, nearest first."""

NEW_NAMES = 4
"""Commits whose environment is worked out for one launch; the others wait for the next one."""


def find_twin(forge: Forge, names: Names, project: Project, sha: str, wanted: Named) -> Twin | None:
    """The image of the nearest commit with the same environment; None if none was found in bounds.

    Environments that are worked out are kept, so each launch that finds nothing looks further. What an
    image was built on that nobody pins may have moved since: their files say that they are the same.
    """
    tags = {tag for tag in forge.registry.tags(project) if SHA_TAG.match(tag)}
    if not tags:
        return None
    new = NEW_NAMES
    for commit, tag in _candidates(forge, project, sha, tags):
        try:
            likeness = names.likeness(None, project, commit)
            if likeness is None and new:
                new -= 1
                likeness = names.likeness(forge, project, commit)
        except (BuildFailed, NotFound):
            continue
        if likeness != wanted.likeness:
            continue
        found = forge.registry.tag(project, tag)
        if found is not None:
            return Twin(commit, found)
    return None


def _candidates(
    forge: Forge, project: Project, sha: str, tags: set[str]
) -> Iterator[tuple[str, str]]:
    """Commits that have a tag: those before ``sha`` first, then the others that a full sha names."""
    seen = set()
    for each in forge.commits(project, sha, per_page=NEAREST).items:
        tag = next((each.sha[:length] for length in LENGTHS if each.sha[:length] in tags), None)
        if tag is not None:
            seen.add(each.sha)
            yield each.sha, tag
    for tag in sorted(tags):
        if len(tag) == LENGTHS[0] and tag not in seen:
            yield tag, tag
