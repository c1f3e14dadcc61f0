"""The store of local environments: content-addressed, per project, immutable once built.

Used by ``notebooks image build`` (which builds), the embedded forge's registry API (which lists
tags) and the spawner (which finds what to run). On disk, below the store's root:

- ``<project id>/<fingerprint>/``: one environment, whole if and only if its ``image.json`` exists;
- ``<project id>/.tags/<sha>``: the fingerprint of that commit's environment;
- ``<project id>/.locks/<fingerprint>``: held while that environment is built;
- ``default/<fingerprint>/``: the default environments, of no project.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, TextIO

from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import ImageUnavailable, InvalidRequest
from notebooks_service.images.build import build_environment, check_space, remove_tree
from notebooks_service.images.cache import in_use
from notebooks_service.images.environment import RECORD_NAME, Environment
from notebooks_service.images.fingerprint import canonical_text, fingerprint
from notebooks_service.images.interpreters import Interpreter, find_interpreter
from notebooks_service.images.kernel import normal
from notebooks_service.images.last_built import LastBuilt, say_inputs
from notebooks_service.images.limits import VARIABLES, BuildLimits, Watchdog
from notebooks_service.images.lock import held, try_lock
from notebooks_service.images.log import BuildLog
from notebooks_service.images.recipe import Recipe, read_recipe
from notebooks_service.images.tree import CheckoutTree, Entry
from notebooks_service.images.uv import Uv

__all__ = ["Environment", "EnvironmentStore"]

DEFAULT: Literal["default"] = "default"
"""In the place of a project's id: the environments of no project."""
Place = int | Literal["default"]
FINGERPRINT = re.compile(r"[0-9a-f]{64}\Z")
MINIMUM_FREE = 512 * 2**20


class EnvironmentStore:
    """The environments below one directory. Any number of processes may use it at once."""

    def __init__(
        self,
        root: Path,
        *,
        minimum_free: int = MINIMUM_FREE,
        environ: Mapping[str, str] | None = None,
        limits: BuildLimits | None = None,
    ) -> None:
        """``minimum_free``: bytes without which no build begins. ``environ``: what uv inherits.

        ``limits``: what a build may take; without them, what ``environ`` says.
        """
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - symbolic links stay as they are
        self._minimum_free = minimum_free
        self._environ = dict(os.environ if environ is None else environ)
        self._limits = limits or BuildLimits.from_environ(self._environ)

    # Finding

    def tags(self, project_id: int) -> dict[str, Environment]:
        """Commit sha to environment, for every tag of the project whose environment is whole."""
        whole: dict[str, Environment | None] = {}
        found: dict[str, Environment] = {}
        directory = self.root / str(project_id) / ".tags"
        for file in sorted(directory.glob("*")) if directory.is_dir() else ():
            if is_commit_sha(file.name):
                name = _read(file)
                if name not in whole:
                    whole[name] = self.get(project_id, name)
                environment = whole[name]
                if environment is not None:
                    found[file.name] = environment
        return found

    def tagged(self, project_id: int, sha: str) -> Environment | None:
        """The environment of one commit."""
        if not is_commit_sha(sha):
            return None
        return self.get(project_id, _read(self.root / str(project_id) / ".tags" / sha))

    def get(self, project_id: Place, name: str) -> Environment | None:
        """The environment with the fingerprint ``name``, if it is whole."""
        return self._load(str(project_id), name)

    def whole(self, project_id: int) -> list[Environment]:
        """Every whole environment of the project."""
        return self._whole(str(project_id))

    def newest(self, project_id: Place) -> Environment | None:
        """The one that was built last."""
        return self._newest(str(project_id))

    def find(self, project_id: int, digest: str) -> Environment | None:
        """The project's environment with this digest."""
        return next((one for one in self.whole(project_id) if one.digest == digest), None)

    def tag(self, project_id: Place, sha: str, fingerprint: str) -> None:
        """Makes ``fingerprint`` the environment of the commit ``sha``.

        Raises ``InvalidRequest`` if ``sha`` is no full sha, ``ImageUnavailable`` if there is no
        such environment.
        """
        if not is_commit_sha(sha):
            raise InvalidRequest("An image is tagged with a full commit sha of 40 hex digits.")
        if self.get(project_id, fingerprint) is None:
            raise ImageUnavailable("There is no whole environment with this fingerprint.")
        directory = self.root / str(project_id) / ".tags"
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".{sha}.{secrets.token_hex(4)}"
        temporary.write_text(fingerprint)
        temporary.rename(directory / sha)

    def untag(self, project_id: int, sha: str) -> bool:
        """Takes a commit's tag away, whether there was one; its environment stays."""
        if not is_commit_sha(sha):
            return False
        try:
            (self.root / str(project_id) / ".tags" / sha).unlink()
        except FileNotFoundError:
            return False
        return True

    # Building

    def fingerprint(self, checkout: Path, commit: str = "HEAD") -> str:
        """The fingerprint of a commit's environment. Raises ``BuildFailed`` if it has none here."""
        recipe = read_recipe(CheckoutTree(checkout, commit))
        interpreter = find_interpreter(recipe.python, self.uv())
        return fingerprint(canonical_text(recipe, interpreter.minor))

    def build(
        self, project_id: int, checkout: Path, log: TextIO, commit: str = "HEAD"
    ) -> Environment:
        """The environment of a commit, built if nobody has yet; two builders at once build it once.

        Blocks, for minutes. Raises ``BuildFailed`` (the sentence says what in the project is wrong)
        or ``NoSpace``.
        """
        recipe = read_recipe(CheckoutTree(checkout, commit))
        return self._build(str(project_id), recipe, BuildLog(log), checkout)

    def default(self, requirements: tuple[str, ...], log: TextIO) -> Environment:
        """The default environment, built at first need. ``requirements`` as pip reads them."""
        return self._build(DEFAULT, default_recipe(requirements), BuildLog(log))

    def _build(
        self, place: str, recipe: Recipe, log: BuildLog, checkout: Path | None = None
    ) -> Environment:
        interpreter = find_interpreter(recipe.python, self.uv())
        inputs = canonical_text(recipe, interpreter.minor)
        name = fingerprint(inputs)
        found = self._load(place, name)
        if found is not None:
            log.line(f"This environment is built already: {found.digest}")
            return found
        return self._build_locked(place, recipe, interpreter, inputs, name, log, checkout)

    def _build_locked(
        self,
        place: str,
        recipe: Recipe,
        interpreter: Interpreter,
        inputs: str,
        name: str,
        log: BuildLog,
        checkout: Path | None,
    ) -> Environment:
        directory = self.root / place / name
        locks = self.root / place / ".locks"
        locks.mkdir(parents=True, exist_ok=True)

        def waiting() -> None:
            log.line("Another build of the same environment is under way: waiting for it")

        with held(locks / name, waiting) as descriptor:
            found = self._load(place, name)
            if found is not None:
                log.line(f"Another build has just made this environment: {found.digest}")
                return found
            self._sweep(place, name)
            check_space(self.root / place, self._minimum_free)
            log.line(f"Building environment {name[:12]}")
            last = last_built(self._newest(place))
            say_inputs(log, last, inputs, checkout)
            directory.mkdir(parents=True)
            try:
                uv = self.uv((descriptor,))
                uv.watchdog = Watchdog(
                    self._limits, directory, uv.cache, Path(tempfile.gettempdir())
                )
                with in_use(uv.cache):
                    return build_environment(
                        directory, recipe, interpreter, inputs, name, uv, log, last
                    )
            except BaseException:
                remove_tree(directory)
                raise

    def _sweep(self, place: str, name: str) -> None:
        """Removes what killed builds have left: directories without ``image.json`` that nobody locks."""
        for directory in (self.root / place).iterdir():
            if not FINGERPRINT.match(directory.name) or (directory / RECORD_NAME).exists():
                continue
            if directory.name == name:
                remove_tree(directory)
                continue
            descriptor = try_lock(self.root / place / ".locks" / directory.name)
            if descriptor is None:
                continue
            try:
                if not (directory / RECORD_NAME).exists():
                    remove_tree(directory)
            finally:
                os.close(descriptor)

    def _whole(self, place: str) -> list[Environment]:
        directory = self.root / place
        names = [path.parent.name for path in sorted(directory.glob(f"*/{RECORD_NAME}"))]
        found = (self._load(place, name) for name in names)
        return [environment for environment in found if environment is not None]

    def _newest(self, place: str) -> Environment | None:
        return max(self._whole(place), key=lambda one: one.created_at, default=None)

    def _load(self, place: str, name: str) -> Environment | None:
        return (
            Environment.from_record(self.root / place / name) if FINGERPRINT.match(name) else None
        )

    @property
    def build_variables(self) -> dict[str, str]:
        """What a build in another process gets: what uv inherits, and the limits."""
        limits = {VARIABLES[name]: str(value) for name, value in vars(self._limits).items()}
        return self._environ | limits

    @property
    def cache(self) -> Path:
        """Where uv keeps what it downloads."""
        return self.root.parent / "cache" / "uv"

    def uv(self, inherited: tuple[int, ...] = ()) -> Uv:
        """The package manager as this store calls it; ``inherited``: descriptors that it keeps."""
        return Uv(self.cache, self._environ, inherited)


def default_recipe(requirements: tuple[str, ...]) -> Recipe:
    """The recipe of the default environment, as if a commit had these requirements."""
    content = "".join(f"{line}\n" for line in requirements).encode()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's
    return Recipe(
        strategy="requirements.txt",
        inputs=(Entry("requirements.txt", "100644", blob),),
        files={"requirements.txt": content},
        requirements=("requirements.txt",),
    )


def last_built(environment: Environment | None) -> LastBuilt | None:
    """The environment as a log compares with it. Nothing of it runs."""
    if environment is None or not environment.inputs:
        return None
    places = (*environment.path.glob("lib/python*/site-packages"),)
    names = [
        path.name.removesuffix(".dist-info") for one in places for path in one.glob("*.dist-info")
    ]
    rows = (name.rpartition("-") for name in sorted(names))
    return LastBuilt(
        f"environment {environment.fingerprint[:12]} of {environment.created_at[:10]}",
        environment.inputs,
        tuple(f"{normal(name)}=={version}" for name, _, version in rows),
    )


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
