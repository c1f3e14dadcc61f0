"""Quotas: who is counted, which entry is for whom, what is said."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.errors import SettingsInvalid
from notebooks_service.quotas import (
    Held,
    HoursUsed,
    Quota,
    QuotaReached,
    Spent,
    check,
    check_hours,
    limits_hours,
)
from notebooks_service.settings import load_settings


def held(
    user: str, project: str, *, running: bool = True, kept: bool = True, name: str = ""
) -> Held:
    return Held(user, name or f"s-{user}-{project}", project, running, kept)


ASKING = held("ada", "lab/course/one", name="new", kept=False)
OTHERS = [
    held("ada", "lab/course/two"),
    held("ada", "other/thing", running=False),
    held("bob", "lab/course/one"),
    held("bob", "lab/course/one", name="stopped", running=False),
    held("cy", "labor/x"),
    # A launch that was refused keeps nothing and runs nowhere.
    held("ada", "lab/course/two", name="refused", running=False, kept=False),
    # The same server, as it was before.
    held("ada", "lab/course/one", name="new", running=False),
]


@pytest.mark.parametrize(
    ("quotas", "says"),
    [
        ([], None),
        ([{"people": ["*"], "running": 1}], "You have 1 server running, as many as you may have here. Stop one"),
        ([{"people": ["*"], "running": 2}], None),
        ([{"people": ["*"], "kept": 2}], "You keep 2 servers, as many as you may have here. Stopped ones count. Delete"),
        ([{"people": ["*"], "kept": 3}], None),
        ([{"people": ["bob"], "running": 1}], None),
        # One's own entry goes before the one for each.
        ([{"people": ["*"], "running": 1}, {"people": ["ada"], "running": 5}], None),
        ([{"people": ["ada"]}, {"people": ["*"], "running": 1}], None),
        ([{"projects": ["*"], "running": 1}], "The project lab/course/one has 1 server running"),
        ([{"projects": ["Lab/Course/One"], "kept": 2}], "The project lab/course/one has 2 servers kept"),
        ([{"projects": ["lab/course/two"], "running": 1}], None),
        ([{"groups": ["lab"], "running": 2}], "The group lab has 2 servers running"),
        ([{"groups": ["lab"], "running": 3}], None),
        ([{"groups": ["LAB/course"], "kept": 3}], "The group LAB/course has 3 servers kept"),
        # All that it is in, the outer ones too.
        ([{"groups": ["lab/course"], "running": 9}, {"groups": ["lab"], "running": 2}], "The group lab has"),
        ([{"groups": ["la"], "running": 1}], None),
    ],
)  # fmt: skip
def test_who_may_have_one_more(quotas: list[dict[str, Any]], says: str | None) -> None:
    entries = [Quota(**each) for each in quotas]
    if says is None:
        check(entries, OTHERS, ASKING)
        return
    with pytest.raises(QuotaReached) as refused:
        check(entries, OTHERS, ASKING)
    assert refused.value.message.startswith(says)
    assert refused.value.status == 409


def test_what_is_kept_already_may_start_again() -> None:
    again = Held("ada", "new", "lab/course/one", running=True, kept=True)
    check([Quota(people=("*",), kept=1)], OTHERS, again)


SPENT = [
    Spent("ada", "lab/course/one", cpu=6, storage=100),
    Spent("ada", "other/thing", cpu=4.5, gpu=1),
    Spent("bob", "Lab/course/one", cpu=10),
    Spent("cy", "labor/x", cpu=1000, gpu=1000),
]


@pytest.mark.parametrize(
    ("quotas", "says"),
    [
        ([{"people": ["*"], "cpu_hours": 11}], None),
        ([{"people": ["*"], "cpu_hours": 10.5}], "You have used 10.5 CPU-hours this month, and may use 10.5. There are new ones from 1 January 2027 (UTC). What runs"),
        ([{"people": ["bob"], "cpu_hours": 1}], None),
        ([{"people": ["*"], "gpu_hours": 1}], "You have used 1.0 GPU-hours"),
        ([{"people": ["*"], "storage_hours": 99.5}], "You have used 100.0 GiB-hours of storage this month, and may use 99.5. There are new ones from 1 January 2027 (UTC). What is kept"),
        ([{"projects": ["*"], "cpu_hours": 16}], "The project lab/course/one has used 16.0"),
        ([{"projects": ["*"], "cpu_hours": 17}], None),
        ([{"groups": ["LAB"], "cpu_hours": 16}], "The group LAB has used 16.0 CPU-hours"),
        ([{"groups": ["lab"], "gpu_hours": 1}], None),
    ],
)  # fmt: skip
def test_who_may_begin_one_more_hour(quotas: list[dict[str, Any]], says: str | None) -> None:
    entries = [Quota(**each) for each in quotas]
    december = datetime(2026, 12, 31, 12, tzinfo=UTC)
    if says is None:
        check_hours(entries, SPENT, ASKING, december)
        return
    with pytest.raises(HoursUsed) as refused:
        check_hours(entries, SPENT, ASKING, december)
    assert refused.value.message.startswith(says)
    assert refused.value.status == 409


def test_hours_are_added_up_only_where_they_are_limited() -> None:
    assert not limits_hours([Quota(people=("*",), running=1)], ASKING)
    assert not limits_hours([Quota(people=("bob",), cpu_hours=1)], ASKING)
    assert limits_hours([Quota(groups=("lab",), storage_hours=1)], ASKING)


@pytest.mark.parametrize(
    ("quotas", "says"),
    [
        ([{"running": 1}], "quotas.0: Value error, a quota needs one of"),
        ([{"people": ["a"], "groups": ["b"]}], "needs one of"),
        ([{"groups": ["*"], "running": 1}], "named one by one"),
        ([{"people": ["*"], "running": -1}], "quotas.0.running"),
        ([{"people": ["a"]}, {"people": ["a"]}], "two quotas name a in `people`"),
        ([{"people": ["a"], "most": 1}], "quotas.0.most"),
    ],
)
def test_a_wrong_quota_ends_the_start(
    quotas: list[dict[str, Any]], says: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsInvalid) as error:
        load_settings(data=tmp_path, quotas=quotas)
    key, _, rest = says.partition(":")
    assert (key if rest else says) in error.value.message
