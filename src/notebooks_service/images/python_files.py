"""Finds what a container environment depends on without a Dockerfile; used by ``images/container.py``.

Where the files may lie is repo2docker's rule: ``binder/`` or ``.binder/`` alone if there is one, else
the root. https://repo2docker.readthedocs.io/en/latest/configuration/
"""

from __future__ import annotations

import posixpath
from fnmatch import fnmatchcase

from notebooks_service.images.inputs import Found, Input
from notebooks_service.images.recipe import pip_part
from notebooks_service.images.requirements import ARCHIVE, read_requirements
from notebooks_service.images.tree import DIRECTORY, SUBMODULE, CommitFiles, Entry, follow

# In this order they are explained.
FILES = {
    "requirements*.txt": "packages for pip",
    "environment.yml": "packages for conda",
    "environment.yaml": "packages for conda",
    "pyproject.toml": "the project's dependencies",
    "uv.lock": "the lock of pyproject.toml",
    "poetry.lock": "the lock of pyproject.toml",
    "pdm.lock": "the lock of pyproject.toml",
    "pylock.toml": "the lock of pyproject.toml",
    "pylock.*.toml": "the lock of pyproject.toml",
    "uv.toml": "where packages come from",
    "setup.py": "the project's dependencies",
    "setup.cfg": "the project's dependencies",
    "runtime.txt": "the version of Python",
    ".python-version": "the version of Python",
    "apt.txt": "packages of the system",
    "postBuild": "runs at the end of the build",
    "start": "runs before each server",
}
LOCKS = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "pylock.*.toml")
# Alone these describe no environment.
ASIDE = ("uv.toml", "setup.cfg", "start", *LOCKS)

UNSURE = {
    "postBuild": (
        "`{path}` may read any file of the repository and anything of the network; repo2docker runs "
        "it over the whole repository. Only the file itself counts."
    ),
    "setup.py": "`{path}` is a program: whatever else it reads does not count.",
}


def python_environment(files: CommitFiles, place: str) -> Found:
    """What lies at ``place`` ("", ``binder`` or ``.binder``).

    Raises ``BuildFailed`` for requirements that include what is not there, or are no text.
    """
    return _Finder(files, place).find()


class _Finder:
    def __init__(self, files: CommitFiles, place: str) -> None:
        self._files = files
        self._place = place
        self._inputs: dict[str, Input] = {}
        self._moving: list[str] = []
        self._unsure: list[str] = []

    def find(self) -> Found:
        described = False
        names = sorted(self._files.listing(self._place))
        for pattern, why in FILES.items():
            for name in (each for each in names if fnmatchcase(each, pattern)):
                path = posixpath.join(self._place, name)
                entry = self._take(path, why)
                if entry is None:
                    continue
                described = described or pattern not in ASIDE
                if pattern == "requirements*.txt":
                    self._includes(path, self._files.content(entry))
                elif name.startswith("environment."):
                    self._includes(path, pip_part(path, self._files.content(entry)))
                if name in UNSURE:
                    self._unsure.append(UNSURE[name].format(path=path))
        if not described:
            return Found("none")
        return Found(
            "python",
            inputs=tuple(self._inputs.values()),
            moving=tuple(dict.fromkeys(self._moving)),
            unsure=tuple(dict.fromkeys(self._unsure)),
        )

    def _take(self, path: str, why: str) -> Entry | None:
        links, entry = follow(self._files, path)
        if entry is None or entry.mode in (DIRECTORY, SUBMODULE):
            return None
        for link in links:
            self._add(link, f"{why}, by a symbolic link")
        self._add(entry, why)
        return entry

    def _add(self, entry: Entry, why: str) -> None:
        self._inputs.setdefault(entry.path, Input(entry.path, entry.mode, entry.blob, why))

    def _includes(self, path: str, content: bytes) -> None:
        def load(included: str) -> bytes | None:
            entry = self._take(included, f"named in {path}")
            if entry is None:
                return None
            # Of a package only its id is needed, and it may be large.
            return b"" if ARCHIVE.match(included) else self._files.content(entry)

        found = read_requirements(path, content, load)
        self._moving += found.from_network
        if found.leaves_out:
            self._unsure.append(
                f"`{path}` installs files of the repository (such as `-e .`); only what is listed "
                "here counts, as notebooks import the project from their checkout."
            )
