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
    """What a file imports when it runs, which is not what it imports for a type checker."""
    names = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))
    return {name.partition(".")[0] for name in names}


def test_all_programs_are_there() -> None:
    names = {"clone.py", "clone_git.py", "credential_helper.py", "gitconfig.py", "unsaved.py"}
    assert names <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_carried_file_needs_nothing_but_an_old_python(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=OLDEST)
    beside = {other.stem for other in FILES}
    assert imported(path) <= sys.stdlib_module_names | beside
