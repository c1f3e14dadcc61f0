"""Hours of processors, memory, GPUs and storage, made of what was recorded; pure.

Asked by ``notebooks usage``, the service's ``GET usage`` and the quotas of hours.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import pairwise
from typing import Literal, get_args

from notebooks_service.errors import InvalidRequest
from notebooks_service.usage.records import Run, Size

By = Literal["person", "project", "group", "server"]
WAYS: tuple[By, ...] = get_args(By)
HOUR = 3600.0
GIB = 2**30


@dataclass(frozen=True)
class Hours:
    """How many runs there were, and hours: of servers, and times what each might use or kept."""

    runs: int = 0
    hours: float = 0.0
    cpu_hours: float = 0.0
    memory_gib_hours: float = 0.0
    gpu_hours: float = 0.0
    storage_gib_hours: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(*(getattr(self, each) + getattr(other, each) for each in NUMBERS))


NUMBERS = tuple(each.name for each in fields(Hours))


@dataclass(frozen=True)
class ServerHours:
    """The hours of one server; ``project`` is the newest path that its project was seen at."""

    user: str
    server: str
    project_id: int
    project: str
    hours: Hours


@dataclass(frozen=True)
class Period:
    """From ``since`` to before ``until``, in seconds since the epoch."""

    since: float
    until: float

    def hours(self, begin: float, end: float) -> float:
        """How many hours of that time lie within."""
        return max(min(end, self.until) - max(begin, self.since), 0.0) / HOUR


def read_period(since: str | None, until: str | None, now: float) -> Period:
    """The period that two dates name, each the beginning of a day in UTC; never beyond ``now``.

    Without ``since``: the month's beginning. Raises ``InvalidRequest``.
    """
    end = min(now if until is None else _day("until", until), now)
    begin = month_of(now)[0].timestamp() if since is None else _day("since", since)
    if until is not None and begin >= _day("until", until):
        raise InvalidRequest("`until` must be a later day than `since`; that day itself is not in.")
    return Period(begin, end)


def _day(name: str, text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        raise InvalidRequest(f"`{name}` must be a day such as 2026-11-30.") from None


def month_of(now: float) -> tuple[datetime, datetime]:
    """The beginnings of this month and the next, in UTC."""
    first = datetime.fromtimestamp(now, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first, following


def by_server(runs: Iterable[Run], sizes: Iterable[Size], period: Period) -> list[ServerHours]:
    """The hours of every server that has some in ``period``."""
    runs, sizes = list(runs), list(sizes)
    found: dict[tuple[str, str, int], Hours] = {}

    def add(record: Run | Size, more: Hours) -> None:
        key = (record.user, record.server, record.project_id)
        found[key] = found.get(key, Hours()) + more

    for run in runs:
        if hours := period.hours(run.began, run.seen):
            add(
                run,
                Hours(1, hours, run.cpu * hours, run.memory / GIB * hours, run.gpus * hours),
            )
    for size, end in _until_the_next(sizes, period.until):
        if kept := size.bytes / GIB * period.hours(size.at, end):
            add(size, Hours(storage_gib_hours=kept))
    paths = newest_paths([*runs, *sizes])
    return [
        ServerHours(user, server, project, paths[project], hours)
        for (user, server, project), hours in sorted(found.items())
    ]


def _until_the_next(sizes: Sequence[Size], end: float) -> Iterable[tuple[Size, float]]:
    """Each size and when it ends: a server keeps what it was seen to keep until it is looked at again."""
    ordered = sorted(sizes, key=lambda each: (each.user, each.server, each.at))
    for size, following in pairwise([*ordered, None]):
        assert size is not None
        same = following is not None and (size.user, size.server) == (
            following.user,
            following.server,
        )
        yield size, following.at if same and following is not None else end


def newest_paths(records: Iterable[Run | Size]) -> dict[int, str]:
    """Where each project was last: projects are renamed."""
    found: dict[int, tuple[float, str]] = {}
    for each in records:
        at = each.began if isinstance(each, Run) else each.at
        if each.project_id not in found or found[each.project_id][0] <= at:
            found[each.project_id] = (at, each.project)
    return {project: path for project, (_, path) in found.items()}


def table(servers: Iterable[ServerHours], by: By) -> list[dict[str, str]]:
    """Rows by ``by``, each with its columns in order. A group's hours are those of all projects in it, at
    any depth: the same hours are in the groups around it too.
    """
    found: dict[tuple[str, ...], Hours] = {}
    for each in servers:
        for key in _keys(each, by):
            found[key] = found.get(key, Hours()) + each.hours
    names = COLUMNS[by]
    return [
        dict(zip(names, key, strict=True))
        | {name: _number(getattr(hours, name)) for name in NUMBERS}
        for key, hours in sorted(found.items())
    ]


COLUMNS: dict[By, tuple[str, ...]] = {
    "person": ("person",),
    "project": ("project", "project_id"),
    "group": ("group",),
    "server": ("person", "project", "project_id", "server"),
}


def _keys(each: ServerHours, by: By) -> list[tuple[str, ...]]:
    if by == "person":
        return [(each.user,)]
    if by == "project":
        return [(each.project, str(each.project_id))]
    if by == "group":
        return [(group,) for group in groups_of(each.project)]
    return [(each.user, each.project, str(each.project_id), each.server)]


def groups_of(project: str) -> list[str]:
    """The groups that a project is in, the outermost first."""
    parts = project.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def as_csv(rows: Iterable[dict[str, str]], by: By) -> str:
    """Comma-separated values, with a line of names (RFC 4180 but for its line ends)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS[by], *NUMBERS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
