"""The end of a server's log as the page shows it when a launch fails; called by the runtimes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_SECRET = re.compile(
    r"(?i)(token|authorization|cookie|_xsrf|code|secret)([\"'=: ]+)((?:bearer|basic|token) +)?[^\s&\"']+"
)


def log_tail(path: Path, environment: Mapping[str, str], lines: int = 8) -> str:
    """The last lines of a server's log for a person, without anything that looks like a secret."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    for name, value in environment.items():
        if name.endswith("TOKEN") and value:
            text = text.replace(value, "[hidden]")
    text = _SECRET.sub(r"\1\2[hidden]", text)
    kept = [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]
    return "\nIts log ends:\n" + "\n".join(kept) if kept else ""
