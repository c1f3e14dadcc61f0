"""What a commit's container image is called, read from the forge without a clone.

Used by ``images/naming.py``'s ``Names`` where images are containers. It comes to the very name that
``notebooks image build`` gives in a job of the commit: the same description, the same options.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from notebooks_service import __version__
from notebooks_service.domain import Project
from notebooks_service.errors import BuildFailed, ForgeUnavailable, RegistryUnavailable
from notebooks_service.images.base_digests import BaseDigests
from notebooks_service.images.ci_job import in_variables, own_build
from notebooks_service.images.fingerprint import (
    CONTAINER_BUILDER,
    TEXT_VERSION,
    BuildOptions,
    Described,
    describe,
    interval_at,
    name,
)
from notebooks_service.images.generated import generate
from notebooks_service.images.naming import Buildable, Named
from notebooks_service.images.synthetic import CI_FILE, SyntheticFiles, ci_file
from notebooks_service.images.tree import DIRECTORY, SUBMODULE, CommitFiles, Entry, follow

NO_FINGERPRINT = "0" * 64
OTHER_NAME = "the image of such a build would get another name"
ADDED = "its Dockerfile takes in the whole repository, also the CI file that such a build would add"


class ContainerNamer:
    """Container images. What a commit's files say is kept; what moves is asked for each time."""

    def __init__(
        self,
        job: str,
        digests: BaseDigests,
        *,
        rebuild_after: float,
        base: str = "",
        ci: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        """``job``: the CI job that builds; ``digests``, ``rebuild_after`` and ``base``, the image for what
        has no Dockerfile, as jobs have them; ``ci``: the CI file of builds on demand, empty for the
        built-in one. ``now``: seconds since 1970, by the clock that jobs go by too."""
        self._options = BuildOptions(runtime="container", job=job, base=base)
        self._digests = digests
        self._rebuild_after = rebuild_after
        self._ci = ci
        self._now = now

    @property
    def builder(self) -> str:
        """All that a description depends on beside the commit's files."""
        said = "\0".join((self._options.job, self._options.platform, self._ci, self._options.base))
        mark = hashlib.sha256(said.encode()).hexdigest()[:16]
        return f"{CONTAINER_BUILDER} {TEXT_VERSION} {__version__} {mark}"

    def describe(self, tree: CommitFiles) -> dict[str, Any]:
        found = describe(tree, self._options)
        if found.kind == "none":
            raise BuildFailed(
                "no file of this commit describes an environment: there is no Dockerfile, and no "
                "requirements.txt or the like."
            )
        build = self._buildable(tree, found)
        if isinstance(build, str):
            return {"environment": found.to_dict(), "build": None, "unbuilt": build}
        return {
            "environment": found.to_dict(),
            "build": {
                "more": [[each.path, each.mode, each.blob] for each in build.files],
                "variables": dict(build.variables),
                "own_ci": build.own_ci,
            },
            "unbuilt": "",
        }

    def name(self, described: Mapping[str, Any], project: Project) -> Named:
        """Raises ``ForgeUnavailable`` if a registry that should tell the digest of a base is away."""
        environment = Described.from_dict(described["environment"])
        options = replace(
            self._options,
            interval=interval_at(self._now(), self._rebuild_after),
            base_digest=self._digests.asking(project.registry.partition("/")[0]),
        )
        try:
            found = name(environment, options)
        except RegistryUnavailable as error:
            raise ForgeUnavailable(error.message, **error.detail) from None
        inputs = _entries(environment)
        build = described["build"]
        if build is not None:
            more = tuple(Entry(*row) for row in build["more"])
            files = (*inputs, *more)
            build = Buildable(files, tuple(build["variables"].items()), bool(build["own_ci"]))
        return Named(
            found.fingerprint,
            f"container: {found.kind}",
            inputs,
            found.not_reproducible,
            bases=found.bases,
            likeness=self.likeness(described),
            build=build,
            unbuilt=str(described["unbuilt"]),
        )

    def check(self, tree: CommitFiles, described: Mapping[str, Any]) -> None:
        environment = Described.from_dict(described["environment"])
        if environment.kind == "python" and self._options.base:
            generate(tree, environment.context, self._options.base, "words")

    def likeness(self, described: Mapping[str, Any]) -> str:
        return name(Described.from_dict(described["environment"]), self._options).fingerprint

    def _buildable(self, tree: CommitFiles, found: Described) -> Buildable | str:
        """What a commit that has this environment and nothing else must hold; ``files`` are those
        beside the inputs. Why there is none, if there is none: it would get another name.

        Found out by reading such a commit as its job would.
        """
        if found.kind != "dockerfile" and not self._options.base:
            return (
                "it has no Dockerfile, and the setting `base_image` names no image that its Python "
                "environment could be built on"
            )
        inputs = _entries(found)
        more = _ignore_files(tree, found, {each.path for each in inputs})
        wanted = name(found, self._options).fingerprint
        if any(each.path == CI_FILE for each in inputs):
            own = SyntheticFiles(tree, (*inputs, *more), None)
            if why := own_build(own, self._options.job):
                return f"its environment takes in `{CI_FILE}`, {why}"
            read = self._read(own)
            same = read is not None and name(read, self._options).fingerprint == wanted
            return Buildable(more, own_ci=True) if same else OTHER_NAME
        why = OTHER_NAME
        for variables in self._ways(found):
            ci = ci_file(self._ci, self._options.job, NO_FINGERPRINT, variables)
            if ci is None:
                why = "where its Dockerfile is cannot be said in the CI file of such a build"
                continue
            read = self._read(SyntheticFiles(tree, (*inputs, *more), ci))
            if read is None:
                continue
            if name(read, self._options).fingerprint == wanted:
                return Buildable(more, tuple(variables.items()))
            why = OTHER_NAME
            if any(each.path == CI_FILE for each in read.inputs):
                why = ADDED
        return why

    def _ways(self, found: Described) -> list[dict[str, str]]:
        """The variables to try, those that say least first."""
        if found.kind != "dockerfile":
            return [{}]
        where, args = (found.dockerfile, found.context), dict(found.build_args)
        least, most = in_variables(*where, "", {}), in_variables(*where, found.target, args)
        return [{}, least] if least == most else [{}, least, most]

    def _read(self, files: CommitFiles) -> Described | None:
        try:
            return describe(files, self._options)
        except BuildFailed:
            return None


def _entries(found: Described) -> tuple[Entry, ...]:
    rows = sorted(found.inputs, key=lambda each: each.path)
    return tuple(Entry(each.path, each.mode, each.blob) for each in rows)


def _ignore_files(tree: CommitFiles, found: Described, known: set[str]) -> tuple[Entry, ...]:
    """What says which files a build leaves out: no input, but without it there would be others."""
    if found.kind != "dockerfile":
        return ()
    context = f"{found.context}/" if found.context else ""
    more: dict[str, Entry] = {}
    for path in (f"{found.dockerfile}.dockerignore", f"{context}.dockerignore"):
        links, entry = follow(tree, path)
        if entry is not None and entry.mode not in (DIRECTORY, SUBMODULE):
            more |= {each.path: each for each in (*links, entry)}
    return tuple(each for path, each in more.items() if path not in known)
