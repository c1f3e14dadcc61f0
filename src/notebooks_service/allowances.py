"""How much of the machine one server may have, for some people, projects and groups: the setting ``allowances``; pure.

``resources.for_whom`` brings it together with the settings that hold for everybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

LEAST_CPU = 0.1
LEAST_MEMORY = 256 * 2**20
"""Less is no server: processors, and bytes of memory."""


class Allowance(BaseModel):
    """One entry: whom it is for, and the most for one server in processors, bytes and GPUs; 0 says nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    people: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    cpu: float = Field(0.0, ge=0)
    memory: int = Field(0, ge=0)
    gpu: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> Allowance:
        if sum(map(bool, (self.people, self.projects, self.groups))) != 1:
            raise ValueError("an allowance needs one of `people`, `projects` and `groups`")
        if not (self.cpu or self.memory or self.gpu):
            raise ValueError("an allowance needs `cpu`, `memory` or `gpu`")
        if (self.cpu and self.cpu < LEAST_CPU) or (self.memory and self.memory < LEAST_MEMORY):
            raise ValueError(f"a server needs at least {LEAST_CPU} cpu and {LEAST_MEMORY} memory")
        return self

    def names(self, person: str, project: str) -> bool:
        """Whether it is for servers of this person in this project; case does not count, as at GitLab."""
        person, project = person.lower(), project.lower()
        groups = (f"{each.lower().strip('/')}/" for each in self.groups)
        return (
            person in map(str.lower, self.people)
            or project in map(str.lower, self.projects)
            or project.startswith(tuple(groups))
        )


def _named_once(entries: tuple[Allowance, ...]) -> tuple[Allowance, ...]:
    for kind in ("people", "projects", "groups"):
        names = [name.lower() for each in entries for name in getattr(each, kind)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two allowances name {twice[0]} in `{kind}`")
    return entries


Allowances = Annotated[tuple[Allowance, ...], AfterValidator(_named_once)]


class Most(NamedTuple):
    """Processors, bytes of memory, GPUs."""

    cpu: float
    memory: int
    gpu: int


def most(allowances: Sequence[Allowance], person: str, project: str) -> Most:
    """The least of what the entries that name this server say, 0 for none."""
    named = [each for each in allowances if each.names(person, project)]
    return Most(
        min((each.cpu for each in named if each.cpu), default=0.0),
        min((each.memory for each in named if each.memory), default=0),
        min((each.gpu for each in named if each.gpu), default=0),
    )
