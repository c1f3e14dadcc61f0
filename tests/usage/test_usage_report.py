"""Usage: how runs and sizes become hours, who they are counted for, and what is printed."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from notebooks_service.cli import main
from notebooks_service.errors import InvalidRequest
from notebooks_service.usage.ledger import Ledger, ledger_file
from notebooks_service.usage.records import Run, Size
from notebooks_service.usage.report import (
    By,
    Period,
    as_csv,
    by_server,
    month_of,
    read_period,
    table,
)

GIB = 2**30
HOUR = 3600.0
DAY = 24 * HOUR
JUNE = datetime(2026, 6, 1, tzinfo=UTC).timestamp()


def run(
    launch: str, began: float, seen: float, *, user: str = "ada", server: str = "s1",
    project: str = "lab/course/one", project_id: int = 1, cpu: float = 2, memory: int = 4 * GIB,
    gpus: int = 0, ended: bool = True,
) -> Run:  # fmt: skip
    return Run(
        launch, user, server, project_id, project, "docker", cpu, memory, gpus,
        JUNE + began * HOUR, JUNE + seen * HOUR, ended,
    )  # fmt: skip


def size(at: float, amount: int, *, user: str = "ada", server: str = "s1") -> Size:
    return Size(user, server, 1, "lab/course/one", JUNE + at * HOUR, amount)


def hours(since: float, until: float) -> Period:
    return Period(JUNE + since * HOUR, JUNE + until * HOUR)


@pytest.mark.parametrize(
    ("records", "period", "expected"),
    [
        # runs, hours, CPU-, memory-, GPU-, storage-hours
        ([run("a", 1, 4)], hours(0, 10), (1, 3, 6, 12, 0, 0)),
        # Only the part that is in the period; what only touches it is not in.
        ([run("a", 1, 4)], hours(2, 3), (1, 1, 2, 4, 0, 0)),
        ([run("a", 1, 4)], hours(4, 5), None),
        ([run("a", 1, 4)], hours(0, 1), None),
        # One that still runs, or whose end nobody saw, counts up to where it was last seen.
        ([run("a", 1, 2, ended=False)], hours(0, 10), (1, 1, 2, 4, 0, 0)),
        ([run("a", 1, 2, gpus=3), run("b", 3, 4)], hours(0, 9), (2, 2, 4, 8, 3, 0)),
        # A size counts until the next look, the last one until the end, also while nothing runs.
        ([size(0, GIB), size(2, 3 * GIB)], hours(0, 4), (0, 0, 0, 0, 0, 8)),
        ([size(-5, GIB)], hours(0, 4), (0, 0, 0, 0, 0, 4)),
        ([size(0, GIB), size(1, 0)], hours(0, 4), (0, 0, 0, 0, 0, 1)),
        ([size(3, GIB // 2)], hours(0, 4), (0, 0, 0, 0, 0, 0.5)),
        ([size(0, GIB), size(1, 0)], hours(2, 4), None),
    ],
)  # fmt: skip
def test_hours_of_one_server(
    records: list[Run | Size], period: Period, expected: tuple[float, ...] | None
) -> None:
    runs = [each for each in records if isinstance(each, Run)]
    sizes = [each for each in records if isinstance(each, Size)]
    found = by_server(runs, sizes, period)
    if expected is None:
        assert found == []
        return
    [one] = found
    numbers = one.hours
    assert (
        numbers.runs, numbers.hours, numbers.cpu_hours, numbers.memory_gib_hours,
        numbers.gpu_hours, numbers.storage_gib_hours,
    ) == pytest.approx(expected)  # fmt: skip


def test_sizes_of_two_servers_do_not_end_each_other() -> None:
    found = by_server([], [size(0, GIB), size(1, GIB, server="s2"), size(1, GIB, user="bob")], hours(0, 4))  # fmt: skip
    assert [each.hours.storage_gib_hours for each in found] == pytest.approx([4, 3, 3])


RUNS = [
    run("a", 0, 1),
    run("b", 0, 2, user="bob", server="s2"),
    # The project's name is what it was called last, and its groups are those of that name.
    run("c", 0, 4, server="s3", project_id=2, project="old/name"),
    run("d", 5, 6, server="s3", project_id=2, project="lab/name"),
]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("person", {("ada",): 12, ("bob",): 4}),
        ("project", {("lab/course/one", "1"): 6, ("lab/name", "2"): 10}),
        # Hours of a group are those of all that is in it.
        ("group", {("lab",): 16, ("lab/course",): 6}),
        (
            "server",
            {
                ("ada", "lab/course/one", "1", "s1"): 2,
                ("ada", "lab/name", "2", "s3"): 10,
                ("bob", "lab/course/one", "1", "s2"): 4,
            },
        ),
    ],
)
def test_whose_hours(by: By, expected: dict[tuple[str, ...], float]) -> None:
    rows = list(
        csv.DictReader(io.StringIO(as_csv(table(by_server(RUNS, [], hours(0, 9)), by), by)))
    )
    found = {tuple(list(row.values())[:-6]): float(row["cpu_hours"]) for row in rows}
    assert found == pytest.approx(expected)


def test_a_name_with_a_comma_is_one_field() -> None:
    text = as_csv(table(by_server([run("a", 0, 1, user='a,"b')], [], hours(0, 9)), "person"), "person")  # fmt: skip
    assert list(csv.reader(io.StringIO(text)))[1][0] == 'a,"b'


@pytest.mark.parametrize(
    ("since", "until", "expected"),
    [
        (None, None, (JUNE, JUNE + 5.5 * DAY)),
        ("2026-06-02", "2026-06-04", (JUNE + DAY, JUNE + 3 * DAY)),
        ("2026-06-02", "2026-08-01", (JUNE + DAY, JUNE + 5.5 * DAY)),
        ("2026-06-04", "2026-06-04", None),
        ("2026-06-31", None, None),
        ("yesterday", None, None),
        (None, "1", None),
    ],
)
def test_the_period_asked_for(
    since: str | None, until: str | None, expected: tuple[float, float] | None
) -> None:
    now = JUNE + 5.5 * DAY
    if expected is None:
        with pytest.raises(InvalidRequest):
            read_period(since, until, now)
    else:
        assert read_period(since, until, now) == Period(*expected)


def test_months_end_in_utc() -> None:
    first, following = month_of(datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp())
    assert (first, following) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


# -- the ledger ------------------------------------------------------------------------------


def test_a_run_is_written_again_and_again_and_keeps_its_beginning(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "hub" / "usage.sqlite")
    assert ledger.read(hours(0, 9)) == ([], [])
    assert not ledger.file.exists()
    ledger.write([run("a", 1, 2, ended=False)])
    # A hub that came after the first has only seen it since.
    ledger.write([run("a", 3, 4, ended=False)])
    assert ledger.read(hours(0, 9))[0] == [run("a", 1, 4, ended=False)]
    ledger.write([], ["a"])
    assert ledger.read(hours(0, 9))[0] == [run("a", 1, 4)]
    assert ledger.file.stat().st_mode & 0o077 == 0


def test_what_is_read_is_what_has_a_part_in_the_period(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.sqlite")
    runs = [run("a", 0, 2), run("b", 2, 4), run("c", 5, 6)]
    sizes = [size(0, 1), size(1, 2), size(3, 3), size(8, 4), size(0, 9, server="s2")]
    ledger.write(runs, sizes=sizes)
    found, kept = ledger.read(hours(2, 5))
    assert found == [runs[1]]
    assert sorted(each.bytes for each in kept) == [2, 3, 9]


def test_which_servers_may_keep_something(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.sqlite")
    ledger.write(
        [
            run("a", 0, 2, server="looked-at"),
            run("b", 0, 2, server="removed"),
            run("c", 0, 2, server="new"),
            run("d", 4, 5, server="again"),
        ],
        sizes=[
            size(3, 7, server="looked-at"), size(3, 0, server="removed"),
            size(3, 0, server="again"),
        ],
    )  # fmt: skip
    assert {each.server: each.bytes for each in ledger.kept()} == {
        "looked-at": 7,
        "new": -1,
        "again": -1,
    }


def test_old_usage_goes_and_what_is_still_kept_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.sqlite")
    ledger.write(
        [run("a", 0, 2), run("b", 0, 6)],
        sizes=[
            size(0, 1),
            size(2, 2),
            size(6, 3),
            size(0, 4, server="s2"),
            size(1, 0, server="s2"),
        ],
    )
    before = by_server(*ledger.read(hours(4, 9)), hours(4, 9))
    ledger.forget(JUNE + 4 * HOUR)
    found, kept = ledger.read(hours(-9, 9))
    assert [each.launch for each in found] == ["b"]
    assert sorted(each.bytes for each in kept) == [2, 3]
    assert by_server(*ledger.read(hours(4, 9)), hours(4, 9)) == before


# -- the command -----------------------------------------------------------------------------


def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(ledger_file(tmp_path)).write(RUNS)
    asked = ["usage", "--data", str(tmp_path), "--since", "2026-06-01", "--until", "2026-06-02"]
    assert main([*asked, "--by", "project"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "project,project_id,runs,hours,cpu_hours,memory_gib_hours,gpu_hours,storage_gib_hours",
        "lab/course/one,1,2,3.000,6.000,12.000,0.000,0.000",
        "lab/name,2,2,5.000,10.000,20.000,0.000,0.000",
    ]
    assert main([*asked[:-1], "2026-05-01"]) == 1
    assert "must be a later day" in capsys.readouterr().err
    assert main(["usage", "--data", str(tmp_path / "none")]) == 1
    assert "Nobody has used anything yet" in capsys.readouterr().err
