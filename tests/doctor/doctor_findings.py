"""Every finding that the doctor can make, read from its source; and the rows of its page in the docs.

``python tests/doctor/doctor_findings.py`` prints the rows as the page must have them.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "notebooks_service" / "doctor"
MAKERS = {
    "ok": "ok",
    "note": "note",
    "warning": "warning",
    "problem": "problem",
    "unchecked": "not checked",
}


@dataclass(frozen=True)
class Known:
    """``sentence`` and ``advice`` with … for what is filled in."""

    code: str
    level: str
    sentence: str
    advice: str

    @property
    def row(self) -> str:
        cells = [f"`{self.code}`", self.level, self.sentence, self.advice or "–"]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(node: ast.expr, known: dict[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.Name):
        return known.get(node.id, "…")
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part.value if isinstance(part, ast.FormattedValue) else part, known)
            for part in node.values
        )
    return "…"


def findings() -> list[Known]:
    """All of them, in the order of the source."""
    found: list[Known] = []
    for file in sorted(SOURCE.glob("*.py")):
        if file.name == "findings.py":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        known = {
            node.targets[0].id: node.value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        }
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in MAKERS:
                code, sentence, *advice = [_text(each, known) for each in node.args]
                found.append(
                    Known(code, MAKERS[node.func.id], sentence, advice[0] if advice else "")
                )
    return sorted(set(found), key=lambda one: one.code)


if __name__ == "__main__":
    for one in findings():
        print(one.row)
