"""What the doctor says: findings, made by the checks and printed by ``report``.

A finding's code and level are written where it is made, as ``problem("tls.expired", …)``: a test
reads them there and holds ``docs/doctor.md`` to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["ok", "note", "warning", "problem", "not checked"]

LONGEST = 200
_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e]")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what is so, in a sentence, and what to do about it."""

    code: str
    level: Level
    sentence: str
    advice: str = ""


def ok(code: str, sentence: str) -> Finding:
    return Finding(code, "ok", sentence)


def note(code: str, sentence: str, advice: str = "") -> Finding:
    return Finding(code, "note", sentence, advice)


def warning(code: str, sentence: str, advice: str) -> Finding:
    return Finding(code, "warning", sentence, advice)


def problem(code: str, sentence: str, advice: str) -> Finding:
    return Finding(code, "problem", sentence, advice)


def unchecked(code: str, sentence: str, advice: str = "") -> Finding:
    return Finding(code, "not checked", sentence, advice)


def eased(findings: Iterable[Finding]) -> list[Finding]:
    """The same, for something that this installation does not use: worth a note at most."""
    return [
        replace(each, level="note") if each.level in ("warning", "problem") else each
        for each in findings
    ]


def plain(text: object, longest: int = LONGEST) -> str:
    """What somebody else wrote, as text for a terminal: one line, no control characters, not long."""
    line = " ".join(_UNPRINTABLE.sub(" ", str(text)[: 4 * longest]).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def without(findings: Iterable[Finding], secrets: Iterable[str]) -> list[Finding]:
    """The findings with every secret blotted out: a hostile forge may answer with what we sent it."""
    kept = sorted((each for each in secrets if len(each) >= 4), key=len, reverse=True)

    def blot(text: str) -> str:
        for secret in kept:
            text = text.replace(secret, "[hidden]")
        return text

    return [
        replace(each, sentence=blot(each.sentence), advice=blot(each.advice)) for each in findings
    ]
