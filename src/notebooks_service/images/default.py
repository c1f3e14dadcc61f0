"""The default environment, built as a project's is: in a process of its own, behind the wall.

Whoever runs the service names its packages, but a source package runs code of its own while it is built,
and every package does when its kernel is tried. ``LocalRuntime`` calls ``default_environment``; the
process runs this file as a program.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import TextIO

from notebooks_service.errors import BuildFailed, BuildsWait, NoSpace, NotebooksError
from notebooks_service.high_water import Gauge
from notebooks_service.images.environment import Environment
from notebooks_service.images.environments import DEFAULT, EnvironmentStore, default_recipe
from notebooks_service.images.fingerprint import canonical_text, fingerprint
from notebooks_service.images.interpreters import find_interpreter
from notebooks_service.images.lock import held
from notebooks_service.images.publish import STAGING, Expected, Staging, remove_left
from notebooks_service.walls.wall import SUPERVISOR, Inside, Walls

WHO = f"project:{DEFAULT}"
NO_COMMIT = "0" * 40
REQUIREMENTS = "NOTEBOOKS_DEFAULT_REQUIREMENTS"
STORE = "NOTEBOOKS_ENVIRONMENTS"
GRACE = "3"
NO_SPACE = 15
LONGEST = 2000


def default_environment(
    store: EnvironmentStore,
    requirements: tuple[str, ...],
    walls: Walls,
    log: TextIO,
    gauge: Gauge,
) -> Environment:
    """The default environment, built at first need; ``log`` is a file. Blocks, for minutes.

    Raises ``BuildFailed``, ``NoSpace``, or ``BuildsWait`` beyond a high-water mark.
    """
    expected = _expect(store, requirements)
    found = store.get(DEFAULT, expected.fingerprint)
    if found is not None:
        return found
    place = store.root / DEFAULT
    (place / ".locks").mkdir(parents=True, exist_ok=True)
    with held(place / ".locks" / "hub", lambda: None):
        found = store.get(DEFAULT, expected.fingerprint)
        if found is not None:
            return found
        if why := gauge.waits(place):
            raise BuildsWait(
                f"The default environment is not there yet, and it is not built now. {why} Try again then."
            )
        for left in (place / STAGING).glob("*"):  # of a hub that was killed
            remove_left(left)
        if not walls.hold:
            _run(store, requirements, walls, Inside(WHO), log)
        else:
            _build_behind(store, requirements, walls, expected, log)
    found = store.get(DEFAULT, expected.fingerprint)
    if found is None:
        raise BuildFailed("The default environment could not be built: it is not whole.")
    return found


def _expect(store: EnvironmentStore, requirements: tuple[str, ...]) -> Expected:
    recipe = default_recipe(requirements)
    interpreter = find_interpreter(recipe.python, store.uv())
    inputs = canonical_text(recipe, interpreter.minor)
    notes = tuple(note for note in (*recipe.notes, interpreter.note) if note)
    return Expected(DEFAULT, NO_COMMIT, fingerprint(inputs), inputs, interpreter, notes)


def _build_behind(
    store: EnvironmentStore,
    requirements: tuple[str, ...],
    walls: Walls,
    expected: Expected,
    log: TextIO,
) -> None:
    staging = Staging(store, expected)
    staging.make()
    temporary = staging.directory.with_name(f"{secrets.token_hex(8)}.tmp")
    cache = store.cache.with_name(DEFAULT)
    try:
        for path in (temporary, cache):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (temporary, cache, staging.directory):
            walls.own(path, WHO)
        _run(store, requirements, walls, Inside(WHO, staging.mounts(cache), temporary), log)
        staging.take()
    finally:
        staging.remove()
        remove_left(temporary)


def _run(
    store: EnvironmentStore,
    requirements: tuple[str, ...],
    walls: Walls,
    inside: Inside,
    log: TextIO,
) -> None:
    """Runs the program below; nothing of it is left when this returns."""
    program = [sys.executable, "-P", "-m", "notebooks_service.images.default"]
    environment = store.build_variables | {
        STORE: str(store.root),
        REQUIREMENTS: json.dumps(requirements),
    }
    if walls.hold:
        environment |= {"HOME": "/tmp", "TMPDIR": "/tmp"}  # noqa: S108 - its own
    command = [sys.executable, "-I", "-S", str(SUPERVISOR), GRACE, *program]
    with walls.around(
        inside, command, directory=Path("/"), environment=environment, umask=0o022
    ) as call:
        process = subprocess.Popen(
            call.command,
            env=call.environment,
            cwd=call.directory,
            pass_fds=call.descriptors,
            # Its end tells the supervisor that the hub is gone.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    assert process.stdin is not None and process.stderr is not None
    with process, process.stdin:
        said = process.stderr.read(LONGEST * 100).decode(errors="replace").strip()[-LONGEST:]
        code = process.wait()
    if code == NO_SPACE:
        raise NoSpace(said)
    if code:
        last = said.splitlines()[-1:] or ["its process ended without a word."]
        raise BuildFailed(last[0])


def main() -> int:
    """The build itself: exit code 0, or another one after a sentence on standard error."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    store = EnvironmentStore(Path(os.environ[STORE]))
    try:
        built = store.default(tuple(json.loads(os.environ[REQUIREMENTS])), sys.stdout)
        store.tag(DEFAULT, NO_COMMIT, built.fingerprint)
    except NotebooksError as error:
        sys.stderr.write(" ".join(error.message.split()) + "\n")
        return NO_SPACE if isinstance(error, NoSpace) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
