"""``notebooks init``: puts a CI file, a Dockerfile and requirements into a repository; called by the CLI."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from uuid import uuid4

from notebooks_service.errors import Conflict, InvalidRequest

STARTING_FILES = {
    "gitlab-ci.yml": ".gitlab-ci.yml",
    "Dockerfile": "Dockerfile",
    "requirements.txt": "requirements.txt",
}


def init(directory: Path, *, ask: Callable[[str], bool] | None, yes: bool) -> list[str]:
    """Writes the three files into a repository; one sentence for each.

    ``ask`` puts a question to a person, None where nobody can be asked: then a file that is there
    with other content raises ``Conflict`` before anything is written, unless ``yes``.
    """
    if not (directory / ".git").exists():
        raise InvalidRequest(
            f"{directory} is no git repository's top directory; name one, or run `git init` there first."
        )
    templates = files("notebooks_service") / "templates"
    contents = {name: (templates / source).read_bytes() for source, name in STARTING_FILES.items()}
    present = {name: _present(directory / name) for name in contents}
    other = [name for name, old in present.items() if old is not None and old != contents[name]]
    if other and not yes and ask is None:
        raise Conflict(
            f"{' and '.join(other)} would be overwritten, and there is no terminal to ask at. Nothing "
            "was written; --yes overwrites."
        )
    said = []
    for name, content in contents.items():
        if present[name] == content:
            said.append(f"{name} is there already.")
        elif name in other and not yes and not (ask and ask(f"Overwrite {name}?")):
            said.append(f"{name} was left as it is.")
        else:
            _write(directory / name, content)
            said.append(f"{name} was written.")
    return said


def _present(path: Path) -> bytes | None:
    """What is there now; something that is no file counts as other content."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b"" if path.is_symlink() else None
    except OSError:
        return b""


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; a link is replaced and not followed."""
    half = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        half.write_bytes(content)
        os.replace(half, path)  # noqa: PTH105
    except OSError:
        half.unlink(missing_ok=True)
        raise
