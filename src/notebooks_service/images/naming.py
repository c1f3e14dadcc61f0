"""What a commit's environment is called, worked out from the forge's API, and what its files pin.

Used by ``images/facts.py``. Blocking. What cannot change is kept (``images/kept_names.py``); what
depends on this host, such as which Python fits, is asked each time.
"""

from __future__ import annotations

import threading
import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from notebooks_service.domain import Project
from notebooks_service.errors import BuildFailed, ImageUnavailable
from notebooks_service.gitlab.files import ForgeFiles, KnownObjects
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.fingerprint import BUILDER, canonical_text, fingerprint
from notebooks_service.images.interpreters import find_interpreter
from notebooks_service.images.kept_names import KeptNames
from notebooks_service.images.recipe import PythonRequest, Recipe, read_recipe
from notebooks_service.images.tree import CommitFiles, Entry, Tree, follow

PROJECT_FILE = ".notebooks.toml"
PINS = "pin 1"
UNBUILDABLE = "unbuildable"
MOST_PROJECTS = 50
SHOWN = {"most": 20, "largest": 16 * 1024, "largest_tree": 200}


@dataclass(frozen=True)
class Buildable:
    """What a commit that is built on demand holds beside its CI file, and what that says in variables.

    ``own_ci``: the CI file is the environment's own, among ``files``.
    """

    files: tuple[Entry, ...]
    variables: tuple[tuple[str, str], ...] = ()
    own_ci: bool = False


@dataclass(frozen=True)
class Named:
    """An environment's fingerprint, and the entries that it was computed from.

    ``volatile``: what in it may give another image at the next build, in words. ``bases``: what
    registries have just said of images that it is built on, as reference and digest. ``likeness``:
    ``Namer.likeness``'s. ``build``: None if it cannot be built on demand; ``unbuilt`` says why, in words
    that complete "It cannot be built on demand: …".
    """

    fingerprint: str
    kind: str
    inputs: tuple[Entry, ...]
    volatile: tuple[str, ...] = ()
    bases: tuple[tuple[str, str], ...] = ()
    likeness: str = ""
    build: Buildable | None = None
    unbuilt: str = ""


class Namer(Protocol):
    """How one kind of image is named. Two steps: what a commit says for ever, and what that means."""

    @property
    def builder(self) -> str:
        """Who describes, with a version: other descriptions are not read."""

    def describe(self, tree: CommitFiles) -> dict[str, Any]:
        """What the commit's files say, as JSON. Raises ``BuildFailed`` if nothing can be built."""

    def name(self, described: Mapping[str, Any], project: Project) -> Named:
        """What that is called here and now. Raises ``BuildFailed`` likewise."""

    def check(self, tree: CommitFiles, described: Mapping[str, Any]) -> None:
        """Reads what a name does without. Raises ``BuildFailed`` if nothing can be built after all."""

    def likeness(self, described: Mapping[str, Any]) -> str:
        """The same for commits whose images may stand for each other; asks nobody."""


class LocalNamer:
    """Environments of this machine, as ``notebooks image build`` names them."""

    builder = BUILDER

    def __init__(self, store: EnvironmentStore) -> None:
        self._store = store

    def describe(self, tree: Tree) -> dict[str, Any]:
        recipe = read_recipe(tree)
        python = recipe.python
        return {
            "strategy": recipe.strategy,
            "python": [python.version, python.source] if python else None,
            "inputs": [[entry.path, entry.mode, entry.blob] for entry in recipe.inputs],
        }

    def name(self, described: Mapping[str, Any], project: Project) -> Named:
        inputs = tuple(Entry(*row) for row in described["inputs"])
        found = self.likeness(described)
        kind = f"local: {described['strategy']}"
        return Named(found, kind, inputs, likeness=found, build=Buildable(inputs))

    def check(self, tree: CommitFiles, described: Mapping[str, Any]) -> None:
        pass  # `describe` has read it all

    def likeness(self, described: Mapping[str, Any]) -> str:
        inputs = tuple(Entry(*row) for row in described["inputs"])
        python = PythonRequest(*described["python"]) if described["python"] else None
        recipe = Recipe(described["strategy"], python, inputs)
        interpreter = find_interpreter(python, self._store.uv())
        return fingerprint(canonical_text(recipe, interpreter.minor))


class Names:
    """Names commits' environments, and reads what they pin, with as few questions as can be."""

    def __init__(self, namer: Namer | None, kept: KeptNames) -> None:
        """Without a ``namer`` no commit has an environment."""
        self.namer = namer
        self._kept = kept
        self._shown: OrderedDict[int, KnownObjects] = OrderedDict()
        self._lock = threading.Lock()

    def files(self, forge: Forge, project: Project, sha: str) -> ForgeFiles:
        """The commit's files as this person may see them. What other commits of the project have shown
        is not read again; the last few of that, of the last few projects."""
        with self._lock:
            shown = self._shown.setdefault(project.id, KnownObjects(**SHOWN))
            self._shown.move_to_end(project.id)
            if len(self._shown) > MOST_PROJECTS:
                self._shown.popitem(last=False)
        return ForgeFiles(forge, project, sha, shown)

    def of(
        self, forge: Forge, project: Project, sha: str, tree: ForgeFiles | None = None
    ) -> Named | None:
        """The commit's environment. Raises ``BuildFailed``, and what the forge does.

        ``tree``: the commit's files, if somebody has begun to read them.
        """
        if self.namer is None:
            return None
        described = self._kept_description(project, sha)
        if described is not None:
            try:
                return self.namer.name(described, project)
            except (KeyError, TypeError):
                pass  # of another form than ours
        return self.namer.name(self._describe(self.namer, forge, project, sha, tree), project)

    def likeness(self, forge: Forge | None, project: Project, sha: str) -> str | None:
        """``Namer.likeness`` of a commit; None if that is not known, and there is no ``forge`` to ask.

        Raises as ``of``.
        """
        if self.namer is None:
            return None
        described = self._kept_description(project, sha)
        if described is not None:
            try:
                return self.namer.likeness(described)
            except (KeyError, TypeError):
                pass
        if forge is None:
            return None
        return self.namer.likeness(self._describe(self.namer, forge, project, sha))

    def check(self, forge: Forge, project: Project, sha: str, tree: ForgeFiles) -> None:
        """Raises ``BuildFailed`` if the environment that was named can be built by nobody.

        Apart from ``of``, as it may take more questions, for nothing where the image is there.
        """
        described = None if self.namer is None else self._kept_description(project, sha)
        if self.namer is None or described is None:
            return
        key = f"{self.namer.builder} checked"
        kept = self._kept.get(project.id, sha, key)
        if kept is None:
            kept = {UNBUILDABLE: ""}
            try:
                self.namer.check(tree, described)
            except BuildFailed as error:
                kept = {UNBUILDABLE: error.message}
            self._kept.put(project.id, sha, key, kept)
        if kept.get(UNBUILDABLE):
            raise BuildFailed(str(kept[UNBUILDABLE]))

    def _describe(
        self,
        namer: Namer,
        forge: Forge,
        project: Project,
        sha: str,
        tree: ForgeFiles | None = None,
    ) -> dict[str, Any]:
        try:
            described = namer.describe(tree or self.files(forge, project, sha))
        except BuildFailed as error:
            self._kept.put(project.id, sha, namer.builder, {UNBUILDABLE: error.message})
            raise
        self._kept.put(project.id, sha, namer.builder, described)
        return described

    def _kept_description(self, project: Project, sha: str) -> dict[str, Any] | None:
        assert self.namer is not None
        described = self._kept.get(project.id, sha, self.namer.builder)
        if described is not None and UNBUILDABLE in described:
            raise BuildFailed(str(described[UNBUILDABLE]))
        return described

    def pinned(self, project: Project, sha: str, tree: ForgeFiles) -> str:
        """The image that the commit's ``.notebooks.toml`` names; empty if none.

        Raises ``ImageUnavailable`` for a file that says something that cannot be understood.
        """
        kept = self._kept.get(project.id, sha, PINS)
        if kept is not None and isinstance(kept.get("image"), str):
            return str(kept["image"])
        image = read_pin(tree)
        self._kept.put(project.id, sha, PINS, {"image": image})
        return image


def read_pin(tree: Tree) -> str:
    """``image`` in ``.notebooks.toml``; empty if there is none."""
    _, entry = follow(tree, PROJECT_FILE)
    if entry is None:
        return ""
    try:
        said = tomllib.loads(tree.content(entry).decode()).get("image", "")
    except (ValueError, RecursionError):
        raise ImageUnavailable(
            f"`{PROJECT_FILE}` of this commit is no valid TOML, so the image that it may ask for is "
            "not known. Correct the file, or start another commit."
        ) from None
    if not isinstance(said, str):
        raise ImageUnavailable(f"`image` in `{PROJECT_FILE}` of this commit is no text.")
    return said.strip()
