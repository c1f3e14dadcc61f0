"""docs/doctor.md names every finding that the code can make, as the code words it, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from doctor_findings import findings

from notebooks_service.doctor.version import NEWEST, OLDEST, ONLY_API_SCOPE_BEFORE

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_every_finding_is_documented_as_it_is_worded() -> None:
    known = {one.row for one in findings()}
    assert len(known) > 150
    text = PAGE.read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `[a-z]+\.[a-z-]+` \|.*$", text, flags=re.MULTILINE))
    assert documented == known


def test_a_code_has_one_level() -> None:
    levels: dict[str, set[str]] = {}
    for one in findings():
        levels.setdefault(one.code, set()).add(one.level)
    assert not [code for code, found in levels.items() if len(found) > 1]


def test_what_is_wrong_says_what_to_do() -> None:
    assert not [
        one.code for one in findings() if one.level in ("problem", "warning") and not one.advice
    ]


def test_the_supported_versions_are_stated() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"| {OLDEST[0]}.{OLDEST[1]} to {NEWEST} |" in text
    assert f"| before {ONLY_API_SCOPE_BEFORE[0]}.{ONLY_API_SCOPE_BEFORE[1]} |" in text
    assert f"| {NEWEST + 1} and later |" in text


def test_every_finding_is_tried() -> None:
    """Each code stands in a test, as what is expected of some facts."""
    tests = Path(__file__).parents[1]
    files = [*tests.glob("doctor/test_doctor_*.py"), tests / "stack" / "test_stack_doctor.py"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert not [one.code for one in findings() if f'"{one.code}"' not in text]
