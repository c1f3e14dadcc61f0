"""Rules that protect tags of images: who may push and delete which; used by ``routes_tag_rules``,
``routes_registry`` (deleting) and ``registry_tokens`` (GitLab's registry reads it in its tokens).

https://docs.gitlab.com/user/packages/container_registry/protected_container_tags/
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import re2  # type: ignore[import-untyped,unused-ignore]
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import permissions
from notebooks_service.forge.access import ProjectAccess
from notebooks_service.forge.project_models import TagRule

Action = Literal["push", "delete"]

LEVELS = {"maintainer": permissions.MAINTAINER, "owner": permissions.OWNER, "admin": 60}
MOST_RULES = 5
LONGEST_PATTERN = 100
_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 1 << 20


def is_pattern(pattern: str) -> bool:
    """Whether this is a regular expression that RE2, and so GitLab, takes."""
    if not 0 < len(pattern) <= LONGEST_PATTERN:
        return False
    try:
        re2.compile(pattern, _OPTIONS)
    except re2.error:
        return False
    return True


def rows(session: Session, project_id: int) -> Sequence[TagRule]:
    return session.scalars(
        select(TagRule).where(TagRule.project_id == project_id).order_by(TagRule.id)
    ).all()


def denied(session: Session, found: ProjectAccess, action: Action) -> list[str]:
    """The patterns of tags that somebody may not push, or not delete."""
    return [
        row.pattern
        for row in rows(session, found.project.id)
        if not found.admin
        and found.level < LEVELS[row.push_level if action == "push" else row.delete_level]
    ]


def covers(patterns: Iterable[str], name: str) -> bool:
    """Whether one of these says something about this tag; they are not anchored."""
    return any(re2.compile(pattern, _OPTIONS).search(name) for pattern in patterns)
