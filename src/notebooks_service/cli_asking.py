"""A question to the person at the terminal, for commands that remove or write something."""

from __future__ import annotations

import sys
from collections.abc import Callable


def asker() -> Callable[[str], bool] | None:
    """Asks the person at the terminal; None where there is none."""
    if not sys.stdin or not sys.stdin.isatty():
        return None

    def ask(question: str) -> bool:
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask
