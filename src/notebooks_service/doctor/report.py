"""How findings look on a terminal, and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from notebooks_service.doctor.findings import Finding

WIDTH = 100
_INDENT = " " * 13


def as_facts(findings: Sequence[Finding], **about: Any) -> dict[str, Any]:
    counts: Counter[str] = Counter(each.level for each in findings)
    levels = ("ok", "note", "warning", "problem", "not checked")
    return {
        **about,
        "counts": {level: counts[level] for level in levels},
        "findings": [asdict(each) for each in findings],
    }


def as_text(findings: Sequence[Finding]) -> str:
    lines: list[str] = []
    for each in findings:
        label = f"{each.level:<11}  "
        text = f"{each.sentence} [{each.code}]"
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=label,
            subsequent_indent=_INDENT,
            break_on_hyphens=False,
            break_long_words=False,
        )
        if each.advice:
            lines += textwrap.wrap(
                f"→ {each.advice}",
                WIDTH,
                initial_indent=_INDENT,
                subsequent_indent=f"{_INDENT}  ",
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join([*lines, "", summary(findings)])


def summary(findings: Sequence[Finding]) -> str:
    counts: Counter[str] = Counter(each.level for each in findings)
    words = [
        f"{counts[level]} {level}{'s' if counts[level] != 1 and level in ('problem', 'warning', 'note') else ''}"
        for level in ("problem", "warning", "note", "ok", "not checked")
        if counts[level]
    ]
    end = "" if counts["problem"] else " Nothing stands in the way."
    return f"{', '.join(words)}.{end}"
