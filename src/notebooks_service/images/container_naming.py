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
from notebooks_service.images.ci_job import in_variables
from notebooks_service.images.fingerprint import (
    CONTAINER_BUILDER,
    TEXT_VERSION,
    BuildOptions,
    Described,
    describe,
    interval_at,
    name,
)
from notebooks_service.images.naming import Buildable, Named
from notebooks_service.images.synthetic import CI_FILE, SyntheticFiles, ci_file
from notebooks_service.images.tree import DIRECTORY, SUBMODULE, CommitFiles, Entry, follow

NO_FINGERPRINT = "0" * 64


class ContainerNamer:
    """Container images. What a commit's files say is kept; what moves is asked for each time."""

    def __init__(
        self,
        job: str,
        digests: BaseDigests,
        *,
        rebuild_after: float,
        ci: str = "",
        now: Callable[[], float] = time.time,
    ) -> None:
        """``job``: the CI job that builds; ``digests`` and ``rebuild_after`` as jobs have them; ``ci``:
        the CI file of builds on demand, empty for the built-in one. ``now``: seconds since 1970, by
        the clock that jobs go by too."""
        self._options = BuildOptions(runtime="container", job=job)
        self._digests = digests
        self._rebuild_after = rebuild_after
        self._ci = ci
        self._now = now

    @property
    def builder(self) -> str:
        """All that a description depends on beside the commit's files."""
        said = "\0".join((self._options.job, self._options.platform, self._ci))
        mark = hashlib.sha256(said.encode()).hexdigest()[:16]
        return f"{CONTAINER_BUILDER} {TEXT_VERSION} {__version__} {mark}"

    def describe(self, tree: CommitFiles) -> dict[str, Any]:
        found = describe(tree, self._options)
        if found.kind == "none":
            raise BuildFailed(
                "no file of this commit describes an environment: there is no Dockerfile, and no "
                "requirements.txt or the like."
            )
        build = self._buildable(tree, found) if found.kind == "dockerfile" else None
        return {
            "environment": found.to_dict(),
            "build": build
            and {
                "more": [[each.path, each.mode, each.blob] for each in build.files],
                "variables": dict(build.variables),
            },
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
            build = Buildable((*inputs, *more), tuple(build["variables"].items()))
        return Named(
            found.fingerprint,
            f"container: {found.kind}",
            inputs,
            found.not_reproducible,
            bases=found.bases,
            likeness=self.likeness(described),
            build=build,
        )

    def likeness(self, described: Mapping[str, Any]) -> str:
        return name(Described.from_dict(described["environment"]), self._options).fingerprint

    def _buildable(self, tree: CommitFiles, found: Described) -> Buildable | None:
        """What a commit that has this environment and nothing else must hold; ``files`` are those
        beside the inputs. None if there is none: it would get another name.

        Found out by reading such a commit as its job would.
        """
        inputs = _entries(found)
        more = _ignore_files(tree, found, {each.path for each in inputs})
        where = in_variables(found.dockerfile, found.context, "", {})
        whole = in_variables(found.dockerfile, found.context, found.target, dict(found.build_args))
        wanted = name(found, self._options).fingerprint
        for variables in ({}, where) if where == whole else ({}, where, whole):
            ci = ci_file(self._ci, self._options.job, NO_FINGERPRINT, variables)
            if ci is None or any(each.path == CI_FILE for each in inputs):
                continue
            synthetic = SyntheticFiles(tree, (*inputs, *more), ci)
            try:
                read = describe(synthetic, self._options)
            except BuildFailed:
                continue
            if name(read, self._options).fingerprint == wanted:
                return Buildable(more, tuple(variables.items()))
        return None


def _entries(found: Described) -> tuple[Entry, ...]:
    rows = sorted(found.inputs, key=lambda each: each.path)
    return tuple(Entry(each.path, each.mode, each.blob) for each in rows)


def _ignore_files(tree: CommitFiles, found: Described, known: set[str]) -> tuple[Entry, ...]:
    """What says which files a build leaves out: no input, but without it there would be others."""
    context = f"{found.context}/" if found.context else ""
    more: dict[str, Entry] = {}
    for path in (f"{found.dockerfile}.dockerignore", f"{context}.dockerignore"):
        links, entry = follow(tree, path)
        if entry is not None and entry.mode not in (DIRECTORY, SUBMODULE):
            more |= {each.path: each for each in (*links, entry)}
    return tuple(each for path, each in more.items() if path not in known)
