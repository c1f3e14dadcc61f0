"""Writes the forge's git hooks to its data directory, and reads what they report of a push."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent / "hooks"
NAMES = ("pre-receive", "post-receive")


@dataclass(frozen=True)
class RefUpdate:
    """One ref that a push has changed; ``before`` or ``after`` is 40 zeros for a new or deleted one."""

    before: str
    after: str
    ref: str


@dataclass(frozen=True)
class Push:
    """What a push has done, after git accepted it."""

    updates: tuple[RefUpdate, ...] = ()
    options: tuple[str, ...] = ()


def install(directory: Path) -> None:
    """Write both hooks anew: the interpreter or this package may have moved since the last start."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    python, script = shlex.quote(sys.executable), shlex.quote(str(HERE / "pre_receive.py"))
    texts = {
        "pre-receive": f"#!/bin/sh\nexec {python} -I -S {script}\n",
        "post-receive": (HERE / "post_receive.sh").read_text(),
    }
    for name, text in texts.items():
        half = directory / f".{name}.new"
        half.write_text(text)
        half.chmod(0o700)
        half.rename(directory / name)


def read_report(report: Path) -> Push:
    """What ``post-receive`` wrote; nothing if git refused the push."""
    updates: list[RefUpdate] = []
    options: list[str] = []
    for line in report.read_bytes().decode("utf-8", "surrogateescape").splitlines():
        if line.startswith("option "):
            options.append(line.removeprefix("option "))
        elif line.count(" ") >= 2:
            updates.append(RefUpdate(*line.split(" ", 2)))
    return Push(tuple(updates), tuple(options))
