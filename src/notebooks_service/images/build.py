"""Builds one environment with uv, from a recipe into a directory; called by ``EnvironmentStore``.

The project's own build never runs: what its notebooks import of the project is in their checkout.
Source distributions of its dependencies do run theirs, as ``pip install`` by hand would.
With a ``uv.lock`` the environment is what ``uv sync --frozen`` makes of it (its default groups
included) without the project and its workspace; else what ``uv pip install -r`` makes.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from notebooks_service.errors import BuildFailed, NoSpace
from notebooks_service.images.environment import RECORD_NAME, Environment
from notebooks_service.images.interpreters import Interpreter
from notebooks_service.images.kernel import add_kernel, installed
from notebooks_service.images.last_built import LastBuilt, say_packages
from notebooks_service.images.log import BuildLog
from notebooks_service.images.recipe import Recipe
from notebooks_service.images.uv import Uv

OWN_FILES = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})


def check_space(directory: Path, minimum: int) -> None:
    """Raises ``NoSpace`` if less than ``minimum`` bytes are free where ``directory`` lies."""
    free = shutil.disk_usage(directory).free
    if free < minimum:
        raise NoSpace(
            f"Only {free / 2**20:,.0f} MiB are free at {directory}, and an environment is not begun "
            f"with less than {minimum / 2**20:,.0f} MiB. Free some space, then try again."
        )


def build_environment(
    directory: Path,
    recipe: Recipe,
    interpreter: Interpreter,
    inputs: str,
    name: str,
    uv: Uv,
    log: BuildLog,
    last: LastBuilt | None = None,
) -> Environment:
    """Builds into the empty ``directory``; its ``image.json`` appears last, by a rename.

    ``inputs`` is the canonical text, ``name`` its fingerprint; ``last`` is what the log compares
    what is installed with. Raises ``BuildFailed`` or
    ``NoSpace``; what was begun then stays without ``image.json``, so nothing takes it for whole.
    """
    notes = [note for note in (*recipe.notes, interpreter.note) if note]
    for note in notes:
        log.line(f"Note: {note}")
    try:
        with tempfile.TemporaryDirectory(prefix="notebooks-build-") as scratch:
            work = Path(scratch)
            _write(work, recipe.files)
            python = directory / "bin" / "python"
            log.line(f"Python {interpreter.version} ({interpreter.path})")
            uv.run(
                log,
                work,
                "venv",
                "--no-project",
                "--no-config",
                "--python",
                interpreter.path,
                str(directory),
            )
            _install(recipe, python, work, uv, log)
            kernel = add_kernel(uv, log, directory, work)
            listing = installed(uv, python)
            say_packages(log, last, [f"{name}=={version}" for name, version in listing.items()])
        digest = content_digest(directory, interpreter, name)
        environment = Environment(
            fingerprint=name,
            digest=digest,
            path=directory,
            python=python,
            kernel_argv=kernel.argv,
            kernel_env={"VIRTUAL_ENV": str(directory)},
            display_name=f"Python {interpreter.version}",
            kernel=kernel.origin,
            notes=tuple(notes),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            inputs=inputs,
        )
        make_read_only(directory)
        record = directory / f".{RECORD_NAME}"
        record.write_text(environment.to_record())
        record.chmod(0o444)
        record.rename(directory / RECORD_NAME)
        directory.chmod(0o555)
    except OSError as error:
        if error.errno == 28:
            raise NoSpace from None
        raise BuildFailed(f"The environment could not be written: {error.strerror}.") from error
    log.line(f"Built in {log.seconds:.1f} s: {digest}")
    return environment


def _write(work: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        file = work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _install(recipe: Recipe, python: Path, work: Path, uv: Uv, log: BuildLog) -> None:
    if recipe.strategy == "nothing":
        return
    log.line(f"Installing what {recipe.strategy} asks for")
    if recipe.strategy == "uv.lock":
        uv.run(
            log,
            work,
            "sync",
            "--frozen",
            "--no-install-project",
            "--no-install-workspace",
            "--no-install-local",
            "--python",
            str(python),
            extra={"UV_PROJECT_ENVIRONMENT": str(python.parent.parent)},
        )
        return
    sources = [part for source in recipe.requirements for part in ("-r", source)]
    extras = [part for extra in recipe.extras for part in ("--extra", extra)]
    uv.run(
        log,
        work,
        "pip",
        "install",
        "--python",
        str(python),
        *sources,
        *extras,
    )


def content_digest(directory: Path, interpreter: Interpreter, name: str) -> str:
    """``sha256:…`` over what is installed: every distribution with the hashes in its RECORD.

    The fingerprint ``name`` is in it: a package can write any RECORD, and an environment that
    imitates another's must not be found in its place.

    Programs in ``bin`` are left out: their first line holds the directory's own path.
    https://packaging.python.org/en/latest/specifications/recording-installed-packages/
    """
    lines = [f"environment {name}"]
    lines += [f"python {interpreter.version} {platform.system().lower()} {platform.machine()}"]
    places = (*directory.glob("lib/python*/site-packages"), directory / "kernel")
    for place in places:
        for record in sorted(place.glob("*.dist-info/RECORD")):
            rows = record.read_text(errors="replace").splitlines()
            kept = [row for row in rows if _is_content(row)]
            content = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
            where = "kernel" if place.name == "kernel" else "environment"
            lines.append(f"{where} {record.parent.name} {content}")
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


def _is_content(row: str) -> bool:
    path = row.split(",", 1)[0].strip('"')
    if path.startswith(("../", "bin/")):
        return False
    return not (".dist-info/" in path and (path.rsplit("/", 1)[-1] in OWN_FILES or "uv_" in path))


def make_read_only(directory: Path) -> None:
    """Takes the right to write from everything below ``directory``, not from itself."""
    for top, _, files in os.walk(directory):
        for name in files:
            _protect(Path(top, name))
        if Path(top) != directory:
            _protect(Path(top))


def _protect(path: Path) -> None:
    mode = path.lstat().st_mode
    if not stat.S_ISLNK(mode):
        path.chmod(stat.S_IMODE(mode) & ~0o222)


def remove_tree(directory: Path) -> None:
    """Removes a directory although parts of it are read-only."""
    for top, _, _ in os.walk(directory):
        Path(top).chmod(0o700)
    shutil.rmtree(directory)
