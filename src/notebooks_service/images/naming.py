"""What a commit's environment is called, worked out from the forge's API, and what its files pin.

Used by ``images/facts.py``. Blocking. What cannot change is kept (``images/kept_names.py``); what
depends on this host, such as which Python fits, is asked each time.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from notebooks_service.domain import Project
from notebooks_service.errors import BuildFailed, ImageUnavailable
from notebooks_service.gitlab.files import ForgeFiles
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.fingerprint import BUILDER, canonical_text, fingerprint
from notebooks_service.images.interpreters import find_interpreter
from notebooks_service.images.kept_names import KeptNames
from notebooks_service.images.recipe import PythonRequest, Recipe, read_recipe
from notebooks_service.images.tree import Entry, Tree, follow

PROJECT_FILE = ".notebooks.toml"
PINS = "pin 1"
UNBUILDABLE = "unbuildable"


@dataclass(frozen=True)
class Named:
    """An environment's fingerprint, and the entries that it was computed from.

    ``volatile``: what in it may give another image at the next build, in words.
    """

    fingerprint: str
    kind: str
    inputs: tuple[Entry, ...]
    volatile: tuple[str, ...] = ()


class Namer(Protocol):
    """How one kind of image is named. Two steps: what a commit says for ever, and what that means."""

    @property
    def builder(self) -> str:
        """Who describes, with a version: other descriptions are not read."""

    def describe(self, tree: Tree) -> dict[str, Any]:
        """What the commit's files say, as JSON. Raises ``BuildFailed`` if nothing can be built."""

    def name(self, described: Mapping[str, Any]) -> Named:
        """What that is called here and now. Raises ``BuildFailed`` likewise."""


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

    def name(self, described: Mapping[str, Any]) -> Named:
        inputs = tuple(Entry(*row) for row in described["inputs"])
        python = PythonRequest(*described["python"]) if described["python"] else None
        recipe = Recipe(described["strategy"], python, inputs)
        interpreter = find_interpreter(python, self._store.uv())
        text = canonical_text(recipe, interpreter.minor)
        return Named(fingerprint(text), f"local: {recipe.strategy}", inputs)


class Names:
    """Names commits' environments, and reads what they pin, with as few questions as can be."""

    def __init__(self, namer: Namer | None, kept: KeptNames) -> None:
        """Without a ``namer`` no commit has an environment."""
        self.namer = namer
        self._kept = kept

    def of(
        self, forge: Forge, project: Project, sha: str, tree: ForgeFiles | None = None
    ) -> Named | None:
        """The commit's environment. Raises ``BuildFailed``, and what the forge does.

        ``tree``: the commit's files, if somebody has begun to read them.
        """
        if self.namer is None:
            return None
        known = self.known(project, sha)
        if known is not None:
            return known
        try:
            described = self.namer.describe(tree or ForgeFiles(forge, project, sha))
        except BuildFailed as error:
            self._kept.put(project.id, sha, self.namer.builder, {UNBUILDABLE: error.message})
            raise
        self._kept.put(project.id, sha, self.namer.builder, described)
        return self.namer.name(described)

    def known(self, project: Project, sha: str) -> Named | None:
        """The same, if it can be said without asking the forge."""
        if self.namer is None:
            return None
        described = self._kept.get(project.id, sha, self.namer.builder)
        if described is not None and UNBUILDABLE in described:
            raise BuildFailed(str(described[UNBUILDABLE]))
        try:
            return self.namer.name(described) if described is not None else None
        except (KeyError, TypeError):
            return None

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
