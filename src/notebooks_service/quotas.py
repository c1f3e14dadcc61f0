"""How many servers may run and be kept: of a person, of a project, of a group; pure.

The launch asks before it clones or starts anything; the settings hold the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from notebooks_service.errors import NotebooksError

EACH = "*"
"""In ``people`` and ``projects``: each one that no other entry names."""

Of = Literal["person", "project", "group"]


class QuotaReached(NotebooksError):
    code = "quota"
    status = 409
    message = "There are as many servers as there may be. Stop one, or delete one, then try again."


class Quota(BaseModel):
    """One entry of the setting: whom it is for, and how many servers at the most; 0 for no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    people: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    running: int = Field(0, ge=0)
    kept: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Quota:
        if sum(map(bool, (self.people, self.projects, self.groups))) != 1:
            raise ValueError("a quota needs one of `people`, `projects` and `groups`")
        if EACH in self.groups:
            raise ValueError("a quota's `groups` are named one by one")
        return self


@dataclass(frozen=True)
class Held:
    """One server: whose it is, of which project, whether it runs (or starts) and keeps work."""

    user: str
    server: str
    project: str
    running: bool
    kept: bool


def named_once(quotas: tuple[Quota, ...]) -> tuple[Quota, ...]:
    for kind in ("people", "projects", "groups"):
        names = [name.lower() for quota in quotas for name in getattr(quota, kind)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two quotas name {twice[0]} in `{kind}`")
    return quotas


Quotas = Annotated[tuple[Quota, ...], AfterValidator(named_once)]


def check(quotas: Sequence[Quota], others: Iterable[Held], asking: Held) -> None:
    """Whether ``asking`` may start beside ``others``; ``asking.kept``: it has its work already.

    Raises ``QuotaReached`` with what to do.
    """
    servers = [each for each in others if (each.user, each.server) != (asking.user, asking.server)]
    for of, name, quota in applying(quotas, asking):
        here = [each for each in servers if _counts(of, name, each)]
        running = sum(each.running for each in here)
        if quota.running and running >= quota.running:
            raise _reached(of, name, "running", running, quota.running)
        kept = sum(each.kept for each in here)
        if quota.kept and not asking.kept and kept >= quota.kept:
            raise _reached(of, name, "kept", kept, quota.kept)


def applying(quotas: Sequence[Quota], asking: Held) -> list[tuple[Of, str, Quota]]:
    """The entries for this server: the person's, the project's, and those of all groups it is in.

    An entry that names a person or a project goes before the one for each of them.
    """
    found: list[tuple[Of, str, Quota]] = []
    project = asking.project.lower()
    for name in (asking.user, EACH):
        if person := next((each for each in quotas if name in each.people), None):
            found.append(("person", asking.user, person))
            break
    for name in (project, EACH):
        lowered = ((each, {path.lower() for path in each.projects}) for each in quotas)
        if of_project := next((each for each, paths in lowered if name in paths), None):
            found.append(("project", project, of_project))
            break
    for each in quotas:
        for group in each.groups:
            if _is_below(project, group):
                found.append(("group", group, each))
    return found


def _counts(of: Of, name: str, server: Held) -> bool:
    if of == "person":
        return server.user == name
    if of == "project":
        return server.project.lower() == name
    return _is_below(server.project.lower(), name)


def _is_below(project: str, group: str) -> bool:
    return project.startswith(f"{group.strip('/').lower()}/")


def _reached(
    of: Of, name: str, what: Literal["running", "kept"], now: int, most: int
) -> QuotaReached:
    if of == "person":
        has = "You have {} server{} running" if what == "running" else "You keep {} server{}"
        may = "as many as you may have here"
    else:
        has = f"The {of} {name} has {{}} server{{}} {what}"
        may = "as many as it may have here"
    do = (
        "Stop one that you do not need now; its work is kept. Then open this again."
        if what == "running"
        else "Stopped ones count. Delete one that you no longer need, then open this again."
    )
    if of != "person":
        do += " None of them yours? Ask its people, or whoever runs this service."
    sentence = f"{has.format(now, '' if now == 1 else 's')}, {may}. {do}"
    return QuotaReached(sentence, of=of, what=what, now=now, most=most)
