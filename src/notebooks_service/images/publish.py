"""Takes what a walled job has built into the store; called by the runner, never by the job.

A job may write into a place of its own that only looks like the store. What its commit's environment
is called is worked out here before any code of the project runs; afterwards only that one environment
is taken, and everything that others will believe of it is written anew. So a hostile job can spoil the
environment of its own files, which are its own business, and no other.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooks_service.errors import BuildFailed
from notebooks_service.images.build import content_digest, remove_tree
from notebooks_service.images.environment import RECORD_NAME, Environment
from notebooks_service.images.environments import DEFAULT, EnvironmentStore, Place
from notebooks_service.images.fingerprint import canonical_text, fingerprint
from notebooks_service.images.interpreters import Interpreter, find_interpreter
from notebooks_service.images.kernel import kernel_command
from notebooks_service.images.lock import held
from notebooks_service.images.recipe import read_recipe
from notebooks_service.images.tree import CheckoutTree
from notebooks_service.walls.ownership import seal
from notebooks_service.walls.view import Mount, interpreter_paths, reading

STAGING = ".staging"
ORIGINS = ("project", "added", "beside")
LARGEST_RECORD = 64 * 2**20


@dataclass(frozen=True)
class Expected:
    """The one environment that a job of this commit may build, or the one of no project."""

    project_id: Place
    sha: str
    fingerprint: str
    inputs: str
    interpreter: Interpreter
    notes: tuple[str, ...]


def expect(store: EnvironmentStore, project_id: int, checkout: Path, sha: str) -> Expected:
    """What the commit's files ask for; the checkout is as git made it, nothing of it has run.

    Raises ``BuildFailed`` if they ask for nothing that can be built here.
    """
    recipe = read_recipe(CheckoutTree(checkout, sha))
    interpreter = find_interpreter(recipe.python, store.uv())
    inputs = canonical_text(recipe, interpreter.minor)
    notes = tuple(note for note in (*recipe.notes, interpreter.note) if note)
    return Expected(project_id, sha, fingerprint(inputs), inputs, interpreter, notes)


class Staging:
    """One job's own place to build in, on the store's disk so that taking it over is a rename."""

    def __init__(self, store: EnvironmentStore, expected: Expected) -> None:
        self._store = store
        self._expected = expected
        self._project = store.root / str(expected.project_id)
        self.directory = self._project / STAGING / secrets.token_hex(8)

    def make(self) -> None:
        for path in (self.directory.parent, self.directory):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (".tags", ".locks"):
            (self.directory / name).mkdir(mode=0o700)

    def mounts(self, cache: Path) -> tuple[Mount, ...]:
        """What the job sees as the store: the environment if it is there, else room to build it.

        ``cache`` is the project's own: what one project downloads, or pretends to have downloaded,
        is not what another installs.
        """
        expected = self._expected
        here = str(self._project)
        mounts: list[Mount] = []
        if self._store.get(expected.project_id, expected.fingerprint) is None:
            mounts.append(Mount("write", here, str(self.directory)))
            # For the log, which says what changed since then.
            last = self._store.newest(expected.project_id)
            mounts += reading(last.path) if last is not None else ()
        else:
            mounts += reading(self._project / expected.fingerprint)
            for name in (".tags", ".locks"):
                mounts.append(Mount("write", f"{here}/{name}", str(self.directory / name)))
        mounts.append(Mount("write", str(self._store.cache), str(cache)))
        return (*mounts, *reading(*interpreter_paths(Path(expected.interpreter.path))))

    def take(self) -> Environment | None:
        """What the job has tagged, now in the store; None if it tagged nothing.

        Nothing of the job runs any more. Raises ``BuildFailed`` if what it built is not harmless.
        """
        expected = self._expected
        tagged = _plain_text(self.directory / ".tags" / expected.sha, 100)
        if tagged is None:
            return None
        if tagged.strip() != expected.fingerprint:
            raise BuildFailed(
                "The environment was not taken: it is not the one of this commit's files."
            )
        found = self._store.get(expected.project_id, expected.fingerprint)
        if found is None:
            found = self._publish(self.directory / expected.fingerprint)
        self._store.tag(expected.project_id, expected.sha, expected.fingerprint)
        return found

    def remove(self) -> None:
        if self.directory.is_dir():
            remove_tree(self.directory)

    def _publish(self, built: Path) -> Environment:
        expected = self._expected
        if built.is_symlink() or not built.is_dir():
            raise BuildFailed("The environment was not taken: nothing was built.")
        final = self._project / expected.fingerprint
        said = _record(built)
        # Its links are made for the place where it will be, and checked as if it were there.
        seal(built, final, Path(expected.interpreter.path), LARGEST_RECORD)
        origin = str(said.get("kernel"))
        if origin not in ORIGINS:
            raise BuildFailed("The environment was not taken: it has no kernel of ours.")
        environment = Environment(
            fingerprint=expected.fingerprint,
            digest=content_digest(built, expected.interpreter, expected.fingerprint),
            path=final,
            python=final / "bin" / "python",
            kernel_argv=kernel_command(final, origin),
            kernel_env={"VIRTUAL_ENV": str(final)},
            display_name=f"Python {expected.interpreter.version}",
            kernel=origin,
            notes=expected.notes,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            inputs=expected.inputs,
        )
        python = built / "bin" / "python"
        if python.resolve() != Path(expected.interpreter.path).resolve():
            raise BuildFailed(
                f"The environment was not taken: its Python is not {expected.interpreter.path}."
            )
        record = built / RECORD_NAME
        record.unlink()
        record.write_text(environment.to_record())
        record.chmod(0o444)
        locks = self._project / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with held(locks / expected.fingerprint, lambda: None):
            other = self._store.get(expected.project_id, expected.fingerprint)
            if other is not None:
                return other
            if final.exists():
                remove_tree(final)  # what a build that was killed has left
            built.rename(final)
            final.chmod(0o555)
        return environment


def clear(root: Path) -> None:
    """Remove what jobs of a runner that was killed have left; the default's builds are the hub's."""
    for path in root.glob(f"*/{STAGING}/*"):
        if path.relative_to(root).parts[0] != DEFAULT:
            remove_left(path)


def remove_left(path: Path) -> None:
    """Remove one such place, whatever it is."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _record(built: Path) -> dict[str, Any]:
    text = _plain_text(built / RECORD_NAME, 2**20)
    try:
        said = json.loads(text or "")
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise BuildFailed("The environment was not taken: it is not whole.")
    return said


def _plain_text(path: Path, longest: int) -> str | None:
    """The text of a file that somebody else wrote: no link, no device, not more than that."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return file.read(longest).decode(errors="replace")
