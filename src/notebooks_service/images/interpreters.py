"""Which Python of this host an environment gets; used by ``images/environments.py``.

Nothing is downloaded: a version that is not here is a sentence that names it and what is.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.errors import BuildFailed
from notebooks_service.images.recipe import EXACT, PythonRequest
from notebooks_service.images.uv import Uv


@dataclass(frozen=True)
class Interpreter:
    """A Python of this host. ``note`` says if it is not exactly the one that was asked for."""

    path: str
    version: str
    note: str = ""

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])


def own_interpreter() -> Interpreter:
    """The Python below the service's own virtual environment: the default for every environment."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Interpreter(os.path.realpath(base), platform.python_version())


def search_path(path: str, home: Path, pyenv_root: str | None = None) -> str:
    """Where interpreters are looked for: our own first, then ``path``, then pyenv's versions.

    pyenv's shims are skipped: most of them only print that their version is not active.
    """
    root = Path(pyenv_root) if pyenv_root else home / ".pyenv"
    kept = [part for part in path.split(os.pathsep) if part and Path(part).name != "shims"]
    try:
        versions = sorted(str(found) for found in root.glob("versions/*/bin"))
    except OSError:
        versions = []
    own = str(Path(own_interpreter().path).parent)
    parts = [own, *kept, *versions, "/usr/local/bin", "/usr/bin"]
    return os.pathsep.join(dict.fromkeys(parts))


def find_interpreter(request: PythonRequest | None, uv: Uv) -> Interpreter:
    """The interpreter for ``request``. Raises ``BuildFailed`` if this host has none that fits.

    A patch version (``3.11.4``) that is not here is served by the same minor version, with a note.
    """
    own = own_interpreter()
    if request is None:
        return own
    exact = EXACT.match(request.version)
    if exact:
        minor, patch = exact["minor"], exact["patch"] or ""
        if own.version == minor + patch or (own.minor == minor and not patch):
            return own
        found = _find(minor + patch, uv)
        if found is None and patch:
            found = own if own.minor == minor else _find(minor, uv)
            if found is not None:
                note = (
                    f"{request.source} asks for Python {minor}{patch}; "
                    f"this host has {found.version}, which is used."
                )
                return Interpreter(found.path, found.version, note)
    else:
        found = _find(re.sub(r"\s+", "", request.version).rstrip(","), uv)
    if found is None:
        here = ", ".join(installed(uv)) or "none that uv can find"
        raise BuildFailed(
            f"{request.source} asks for Python {request.version}, which is not on this host. "
            f"Here are: {here}. Install it, or change the version."
        )
    return found


def _search(uv: Uv) -> str:
    environ = uv.environ
    home = Path(environ.get("HOME") or "/")
    return search_path(environ.get("PATH", ""), home, environ.get("PYENV_ROOT"))


def _find(version: str, uv: Uv) -> Interpreter | None:
    asked = ("python", "find", "--system", "--no-project", "--no-config", "--resolve-links")
    path = _search(uv)
    answer = uv.ask(*asked, version, path=path)
    if answer.returncode or not answer.stdout.strip():
        return None
    shown = uv.ask(*asked, "--show-version", version, path=path).stdout.strip()
    return Interpreter(answer.stdout.strip(), shown)


def installed(uv: Uv) -> list[str]:
    """The versions of the Pythons on this host, oldest first."""
    answer = uv.ask(
        "python",
        "list",
        "--only-installed",
        "--no-config",
        "--output-format",
        "json",
        path=_search(uv),
    )
    try:
        rows = json.loads(answer.stdout or "[]")
        versions = {str(row["version"]) for row in rows if row["implementation"] == "cpython"}
    except (ValueError, KeyError, TypeError):
        return []
    return sorted(versions, key=lambda v: [int(part) for part in re.findall(r"\d+", v)])
