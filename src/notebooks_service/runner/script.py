"""The bash script of a step, as GitLab's shell executor writes it. Pure.

The commands are the project's own text; that bash runs them is what continuous integration is.
Nothing else that people choose is put into the script.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

GREEN, RED, YELLOW, CYAN, BOLD, RESET = (
    f"\x1b[{code}m" for code in ("32;1", "31;1", "0;33", "36;1", "0;1", "0")
)


def bash_script(commands: Sequence[str]) -> str:
    """Each command is shown in green and then run; the first that fails ends the script."""
    lines = ["set -eo pipefail", "set +o noclobber"]
    for command in commands:
        shown = command.strip("\n")
        first, newline, _ = shown.partition("\n")
        text = f"{first} # collapsed multi-line command" if newline else first
        lines.append(f"printf '%s\\n' {shlex.quote(f'{GREEN}$ {text}{RESET}')}")
        lines.append(command)
    return "\n".join(lines) + "\n"
