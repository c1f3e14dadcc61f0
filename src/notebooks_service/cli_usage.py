"""``notebooks usage``, for ``cli.py``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

from notebooks_service.errors import PlatformFailed

Add = Callable[..., argparse.ArgumentParser]


def add_usage_command(commands: Any, add: Add) -> None:
    """Adds it to ``commands``."""
    usage = add(
        commands, "usage", _usage, "print who used how much, as CSV: hours of processors, memory, GPUs, storage", json=False
    )  # fmt: skip
    usage.add_argument(
        "--since", metavar="DATE", help="from this day, UTC (default: the first of this month)"
    )
    usage.add_argument(
        "--until", metavar="DATE", help="to before this day, UTC (default: until now)"
    )
    usage.add_argument(
        "--by",
        choices=["person", "project", "group", "server"],
        default="person",
        help="one line for each of these (default: person)",
    )


def _usage(parsed: argparse.Namespace) -> int:
    from notebooks_service.settings import load_settings
    from notebooks_service.usage.ledger import Ledger, ledger_file
    from notebooks_service.usage.report import as_csv, by_server, read_period, table

    settings = load_settings(**({"data": parsed.data} if parsed.data is not None else {}))
    ledger = Ledger(ledger_file(settings.data))
    if not ledger.file.exists():
        raise PlatformFailed(
            f"Nobody has used anything yet with the data in {settings.data}; name another with --data."
        )
    period = read_period(parsed.since, parsed.until, time.time())
    rows = table(by_server(*ledger.read(period), period), parsed.by)
    sys.stdout.write(as_csv(rows, parsed.by))
    return 0
