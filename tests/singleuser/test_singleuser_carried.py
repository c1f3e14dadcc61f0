"""What runs inside images that we did not build: old Pythons, the standard library, nothing of ours."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from singleuser_server import PROGRAMS

FILES = sorted(PROGRAMS.glob("*.py"))
OLDEST = (3, 8)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


def test_all_programs_are_there() -> None:
    names = {"clone.py", "credential_helper.py", "gitconfig.py", "unsaved.py"}
    assert names <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_carried_file_needs_nothing_but_an_old_python(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=OLDEST)
    assert imported(path) <= sys.stdlib_module_names
