"""Who may do what in a project: pure functions over levels and visibility, tested as a table.

The levels and what they may do: https://docs.gitlab.com/user/permissions/
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from notebooks_service.domain import AccessLevel

NONE = AccessLevel.NONE.number
GUEST = AccessLevel.GUEST.number
REPORTER = AccessLevel.REPORTER.number
DEVELOPER = AccessLevel.DEVELOPER.number
MAINTAINER = AccessLevel.MAINTAINER.number
OWNER = AccessLevel.OWNER.number

LEVELS = (GUEST, REPORTER, DEVELOPER, MAINTAINER, OWNER)
VISIBILITIES = ("private", "internal", "public")


class Can(Enum):
    """What somebody may want to do in a project."""

    READ_PROJECT = auto()
    READ_CODE = auto()
    READ_PIPELINES = auto()
    READ_REGISTRY = auto()
    READ_MEMBERS = auto()
    PUSH = auto()
    RUN_PIPELINES = auto()
    CHANGE_REGISTRY = auto()
    PUSH_PROTECTED = auto()
    EDIT_PROJECT = auto()
    EDIT_MEMBERS = auto()
    DELETE_PROJECT = auto()


_LEAST_LEVEL = {
    Can.READ_PROJECT: GUEST,
    Can.READ_CODE: REPORTER,
    # Projects have "public pipelines" by default: who sees the project sees its pipelines.
    # https://docs.gitlab.com/ci/pipelines/settings/#change-which-users-can-view-your-pipelines
    Can.READ_PIPELINES: GUEST,
    Can.READ_REGISTRY: REPORTER,
    Can.READ_MEMBERS: GUEST,
    Can.PUSH: DEVELOPER,
    Can.RUN_PIPELINES: DEVELOPER,
    Can.CHANGE_REGISTRY: DEVELOPER,
    Can.PUSH_PROTECTED: MAINTAINER,
    Can.EDIT_PROJECT: MAINTAINER,
    Can.EDIT_MEMBERS: MAINTAINER,
    Can.DELETE_PROJECT: OWNER,
}

_BY_VISIBILITY = frozenset(
    {Can.READ_PROJECT, Can.READ_CODE, Can.READ_PIPELINES, Can.READ_REGISTRY, Can.READ_MEMBERS}
)
"""What everybody may do in a project that is visible to them."""


def effective_level(direct: int | None, inherited: Iterable[int]) -> int:
    """The highest of a person's own level in the project and those of its groups; 0 if none.

    https://docs.gitlab.com/user/project/members/#membership-types
    """
    return max((direct or NONE, *inherited))


def is_visible(visibility: str, *, signed_in: bool) -> bool:
    """Whether somebody who is no member sees it. https://docs.gitlab.com/user/public_access/"""
    return visibility == "public" or (visibility == "internal" and signed_in)


def abilities(level: int, visibility: str, *, signed_in: bool, admin: bool = False) -> set[Can]:
    """Everything that somebody with this effective level may do in a project of this visibility."""
    if admin:
        return set(Can)
    allowed = {ability for ability, least in _LEAST_LEVEL.items() if level >= least}
    if is_visible(visibility, signed_in=signed_in):
        allowed |= _BY_VISIBILITY
    return allowed


def may_create_in_group(level: int, *, admin: bool = False) -> bool:
    """Developers and higher create projects in a group, as is GitLab's default."""
    return admin or level >= DEVELOPER


def may_create_subgroup(level: int, *, admin: bool = False) -> bool:
    """https://docs.gitlab.com/user/group/subgroups/#create-a-subgroup"""
    return admin or level >= MAINTAINER


def may_grant(own: int, level: int, *, admin: bool = False) -> bool:
    """Nobody gives away more than they have; Maintainers and Owners change members."""
    return admin or (own >= MAINTAINER and level <= own)


def fits_in(visibility: str, parent: str) -> bool:
    """A project or subgroup is never more visible than the group that it lies in."""
    return VISIBILITIES.index(visibility) <= VISIBILITIES.index(parent)
