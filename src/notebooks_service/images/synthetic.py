"""The one commit that a build on demand is of: an environment's files and a CI file, nothing else.

Used by ``images/facts.py`` and ``images/on_demand.py``. Pure: the same environment gives the same
commit, whoever asks and however often, so a build of it is found again by its id alone.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from notebooks_service.errors import BuildFailed
from notebooks_service.gitlab.pack import Objects, TreeFile, commit, tree
from notebooks_service.images.recipe import read_yaml
from notebooks_service.images.tree import DIRECTORY, CommitFiles, Entry

CI_FILE = ".gitlab-ci.yml"
AUTHOR = "Notebooks <notebooks@localhost>"
SECONDS = 1_700_000_000  # any moment, always the same


@dataclass(frozen=True)
class Synthetic:
    """A commit that may not be at the forge yet, and what has to be pushed for it to be."""

    sha: str
    branch: str
    pack: bytes = field(repr=False)


def ci_file(own: str, job: str, fingerprint: str, variables: Mapping[str, str]) -> str | None:
    """The CI file of a build: ``own``, as the settings name it, else the built-in one.

    ``variables`` of the job say where its Dockerfile is. None if they cannot be said in it.
    """
    if any("$" in value for value in variables.values()):
        return None  # GitLab would look for variables in them
    if not own:
        return _built_in(job, fingerprint, variables)
    if not variables:
        return own
    try:
        data = read_yaml("on_demand_ci_file", own.encode())
    except BuildFailed:
        return None  # tags such as !reference are GitLab's own
    mine = data.get(job) if isinstance(data, dict) else None
    if not isinstance(mine, dict):
        return None
    given = mine.get("variables")
    mine["variables"] = {**(given if isinstance(given, dict) else {}), **variables}
    try:
        return json.dumps(data)  # which is YAML too
    except (TypeError, ValueError):
        return None


def _built_in(job: str, fingerprint: str, variables: Mapping[str, str]) -> str:
    said = {"GIT_LFS_SKIP_SMUDGE": "1", **variables}
    return (
        "# Builds one environment for whoever opens a commit that has it. Its files are beside this.\n"
        f"{json.dumps(job)}:\n"
        f"  resource_group: env-{fingerprint}\n"
        "  variables:\n"
        + "".join(f"    {name}: {json.dumps(value)}\n" for name, value in said.items())
        + "  script:\n"
        "    - notebooks image build\n"
    )


def synthetic_commit(fingerprint: str, inputs: Sequence[Entry], ci: str | None) -> Synthetic | None:
    """The commit; ``ci`` is None where the environment has a CI file among its own files.

    None if it has one and ``ci`` is another, or paths that are none.
    """
    if any(entry.path == CI_FILE for entry in inputs) != (ci is None):
        return None
    objects = Objects()
    files = [TreeFile(entry.path, entry.mode, entry.blob) for entry in inputs]
    if ci is not None:
        files.append(TreeFile(CI_FILE, "100644", objects.add("blob", ci.encode())))
    try:
        root = tree(objects, files)
    except ValueError:
        return None
    message = (
        f"Environment {fingerprint[:12]}\n\nMade to build the image of this environment on demand."
    )
    sha = commit(objects, root, AUTHOR, SECONDS, message)
    return Synthetic(sha, f"notebooks/env-{fingerprint}", objects.pack())


class SyntheticFiles:
    """Such a commit as its job reads it, before there is one. ``tree``: where the files are from.

    ``ci``: None if the CI file is among ``files``.
    """

    def __init__(self, tree: CommitFiles, files: Sequence[Entry], ci: str | None) -> None:
        self._tree = tree
        self._ci = None if ci is None else ci.encode()
        files = list(files)
        if self._ci is not None:
            head = b"blob %d\0" % len(self._ci)
            name = hashlib.sha1(head + self._ci, usedforsecurity=False).hexdigest()
            files.append(Entry(CI_FILE, "100644", name))
        self._whole = {each.path for each in files if each.mode == DIRECTORY}
        self._entries: dict[str, dict[str, Entry]] = {"": {}}
        for entry in files:
            path = entry.path
            while path:
                above, last = posixpath.split(path)
                here = self._entries.setdefault(above, {})
                # The id of a directory that is not there as a whole is not worked out: it is no
                # input, or the commit gets another name.
                here.setdefault(last, entry if path == entry.path else Entry(path, DIRECTORY, ""))
                path = above

    def listing(self, directory: str) -> Mapping[str, Entry]:
        if self._is_whole(directory):
            return self._tree.listing(directory)
        return self._entries.get(directory, {})

    def below(self, directory: Entry, limit: int) -> tuple[Entry, ...] | None:
        if self._is_whole(directory.path):
            return self._tree.below(directory, limit)
        found: list[Entry] = []
        for entry in self.listing(directory.path).values():
            found.append(entry)
            inner = self.below(entry, limit) if entry.mode == DIRECTORY else ()
            if inner is None:
                return None
            found += inner
        return None if len(found) > limit else tuple(found)

    def content(self, entry: Entry) -> bytes:
        if self._ci is not None and entry.path == CI_FILE:
            return self._ci
        return self._tree.content(entry)

    def _is_whole(self, directory: str) -> bool:
        while directory:
            if directory in self._whole:
                return True
            directory = posixpath.dirname(directory)
        return False
