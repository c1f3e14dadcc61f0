"""The files of a commit as the forge's API gives them, without a clone; read like a checkout's tree.

Used by ``images/naming.py``. Blocking, with the token of the person it is for.
"""

from __future__ import annotations

from collections.abc import Mapping

from notebooks_service.domain import Project
from notebooks_service.errors import BuildFailed, ForgeUnavailable
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.tree import LARGEST_FILE, Entry


class ForgeTree:
    """One commit of one project. Each directory and each file is asked for once."""

    def __init__(self, forge: Forge, project: Project, sha: str) -> None:
        self._forge = forge
        self._project = project
        self._sha = sha
        self._listings: dict[str, dict[str, Entry]] = {}
        self._contents: dict[str, bytes] = {}

    def listing(self, directory: str) -> Mapping[str, Entry]:
        if directory not in self._listings:
            rows = self._forge.listing(self._project, self._sha, directory)
            try:
                self._listings[directory] = {
                    str(row["name"]): Entry(str(row["path"]), str(row["mode"]), str(row["id"]))
                    for row in rows
                }
            except KeyError:
                raise ForgeUnavailable(reason="a tree with other fields than GitLab's") from None
        return self._listings[directory]

    def content(self, entry: Entry) -> bytes:
        if entry.path not in self._contents:
            found = self._forge.file(self._project, self._sha, entry.path, LARGEST_FILE + 1)
            if found is None:
                raise BuildFailed(f"`{entry.path}` cannot be read at the forge.")
            if len(found) > LARGEST_FILE:
                raise BuildFailed(f"`{entry.path}` is too large to describe an environment.")
            self._contents[entry.path] = found
        return self._contents[entry.path]
