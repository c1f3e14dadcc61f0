"""How many servers may run and be kept, and for how many hours: of a person, a project, a group; pure.

The launch asks before it clones or starts anything; the settings hold the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from notebooks_service.errors import NotebooksError

EACH = "*"
"""In ``people`` and ``projects``: each one that no other entry names."""

Of = Literal["person", "project", "group"]
Limited = Literal["cpu", "gpu", "storage"]
HOURS: dict[Limited, str] = {
    "cpu": "CPU-hours",
    "gpu": "GPU-hours",
    "storage": "GiB-hours of storage",
}


class QuotaReached(NotebooksError):
    code = "quota"
    status = 409
    message = "There are as many servers as there may be. Stop one, or delete one, then try again."


class HoursUsed(NotebooksError):
    code = "quota"
    status = 409
    message = "The hours of this month are used."


class Quota(BaseModel):
    """One entry of the setting: whom it is for, and how much at the most; 0 for no limit.

    Servers are counted at a time, hours in a calendar month (UTC).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    people: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    running: int = Field(0, ge=0)
    kept: int = Field(0, ge=0)
    cpu_hours: float = Field(0, ge=0)
    gpu_hours: float = Field(0, ge=0)
    storage_hours: float = Field(0, ge=0)
    builds: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Quota:
        if sum(map(bool, (self.people, self.projects, self.groups))) != 1:
            raise ValueError("a quota needs one of `people`, `projects` and `groups`")
        if EACH in self.groups:
            raise ValueError("a quota's `groups` are named one by one")
        return self

    def hours(self, what: Limited) -> float:
        most: float = getattr(self, f"{what}_hours")
        return most


@dataclass(frozen=True)
class Building:
    """A build on demand: who asked for it first, and of which project it is."""

    person: str
    project: str


@dataclass(frozen=True)
class Spent:
    """Hours of one server in this month; those of storage times GiB."""

    user: str
    project: str
    cpu: float = 0.0
    gpu: float = 0.0
    storage: float = 0.0


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


def limits_hours(quotas: Sequence[Quota], asking: Held) -> bool:
    """Whether any entry for this server does: only then somebody has to add hours up."""
    return any(quota.hours(what) for _, _, quota in applying(quotas, asking) for what in HOURS)


def check_hours(
    quotas: Sequence[Quota], spent: Iterable[Spent], asking: Held, now: datetime
) -> None:
    """Whether ``asking`` may start after what was ``spent`` in the month of ``now`` (UTC).

    Raises ``HoursUsed`` with how much that is, and when there are new ones.
    """
    servers = list(spent)
    for of, name, quota in applying(quotas, asking):
        for what, unit in HOURS.items():
            most = quota.hours(what)
            used = sum(getattr(each, what) for each in servers if _counts(of, name, each))
            if most and used >= most:
                raise _used(of, name, what, unit, used, most, now)


@dataclass(frozen=True)
class BuildQuotas:
    """How many builds on demand there may be at once; what an entry says of a person or project goes before
    the numbers for each of them (0: no limit)."""

    quotas: tuple[Quota, ...] = ()
    per_person: int = 0
    per_project: int = 0

    def held_up(self, under_way: Sequence[Building], asking: Building) -> str:
        """Whose builds have to end before this one may begin, for a sentence; empty if it may."""
        most: dict[tuple[Of, str], int] = {
            ("person", asking.person): self.per_person,
            ("project", asking.project.lower()): self.per_project,
        }
        for of, name, quota in applying(self.quotas, _as_held(asking)):
            if quota.builds:
                most[of, name] = quota.builds
        for (of, name), number in most.items():
            here = sum(_counts(of, name, _as_held(each)) for each in under_way)
            if number and here >= number:
                return {"person": "yours", "project": "this project"}.get(of, f"the group {name}")
        return ""


def _as_held(build: Building) -> Held:
    return Held(build.person, "", build.project, running=False, kept=False)


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


def _counts(of: Of, name: str, server: Held | Spent) -> bool:
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


def _used(
    of: Of, name: str, what: Limited, unit: str, used: float, most: float, now: datetime
) -> HoursUsed:
    whose = "You have" if of == "person" else f"The {of} {name} has"
    free = now.replace(year=now.year + now.month // 12, month=now.month % 12 + 1, day=1)
    do = (
        " What is kept counts, stopped servers too: delete those that nobody needs, or it goes on."
        if what == "storage"
        else " What runs goes on, and stopped servers keep their work."
    )
    return HoursUsed(
        f"{whose} used {used:,.1f} {unit} this month, and may use {most:,.10g}. There are new ones from "
        f"{free.day} {free:%B %Y} (UTC).{do}",
        of=of, what=f"{what}_hours", now=round(used, 3), most=most,
    )  # fmt: skip
