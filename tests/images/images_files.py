"""Commits that are plain dictionaries: read directly, by GitLab's API without a network, or from git.

A file is its bytes; ``Link``, ``Program`` and ``Gitlink`` are what git knows beside plain files.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import requests

from notebooks_service.domain import Entry, Project
from notebooks_service.errors import BuildFailed
from notebooks_service.gitlab.files import LARGEST_FILE, MOST_LISTED, ForgeFiles, KnownObjects
from notebooks_service.gitlab.forge import Forge

PROJECT = Project(1, "g/p", "p", "main", "private", "")
SHA = "c" * 40


class Link(bytes):
    """A symbolic link to what its bytes name."""


class Program(bytes):
    """An executable file."""


class Gitlink(bytes):
    """A submodule, at the commit of 40 hex digits."""


Tree = Mapping[str, bytes]


def mode_of(content: bytes) -> str:
    kinds = {Link: "120000", Program: "100755", Gitlink: "160000"}
    return kinds.get(type(content), "100644")


def _object(kind: bytes, content: bytes) -> str:
    return hashlib.sha1(kind + b" %d\0" % len(content) + content).hexdigest()


class MemoryFiles:
    """The files of a commit, with the ids that git would give them."""

    def __init__(self, tree: Tree) -> None:
        self.contents: dict[str, bytes] = {}
        self.directories: dict[str, dict[str, Entry]] = {"": {}}
        self.asked: list[str] = []
        places: dict[str, dict[str, bytes]] = {"": {}}
        for path, content in tree.items():
            parent = posixpath.dirname(path)
            places.setdefault(parent, {})[path] = content
            while parent:
                parent = posixpath.dirname(parent)
                places.setdefault(parent, {})
        for place in sorted(places, key=lambda each: (-each.count("/"), each == "", each)):
            self._directory(place, places)

    def _directory(self, place: str, places: Mapping[str, Mapping[str, bytes]]) -> None:
        entries = self.directories.setdefault(place, {})
        for path, content in places[place].items():
            link = isinstance(content, Gitlink)
            blob = content.decode() if link else _object(b"blob", content)
            self.contents[blob] = bytes(content)
            entries[posixpath.basename(path)] = Entry(path, mode_of(content), blob)
        rows = sorted(entries.items(), key=lambda r: r[0] + "/" * (r[1].mode == "040000"))
        body = b"".join(
            f"{e.mode.lstrip('0')} {name}\0".encode() + bytes.fromhex(e.blob) for name, e in rows
        )
        if place:
            parent, name = posixpath.split(place)
            entry = Entry(place, "040000", _object(b"tree", body))
            self.directories.setdefault(parent, {})[name] = entry

    def listing(self, directory: str) -> Mapping[str, Entry]:
        self.asked.append(f"list {directory}")
        found = self.directories.get(directory, {})
        if len(found) > MOST_LISTED:
            raise BuildFailed("too many")
        return found

    def below(self, directory: Entry, limit: int) -> tuple[Entry, ...] | None:
        self.asked.append(f"below {directory.path}")
        rows = tuple(self.rows(directory.path))
        return None if len(rows) > limit else rows

    def content(self, entry: Entry) -> bytes:
        self.asked.append(f"read {entry.path}")
        found = self.contents[entry.blob]
        if len(found) > LARGEST_FILE:
            raise BuildFailed("too large")
        return found

    def rows(self, directory: str, recursive: bool = True) -> list[Entry]:
        found: list[Entry] = []
        for entry in self.directories.get(directory, {}).values():
            found.append(entry)
            if recursive and entry.mode == "040000":
                found += self.rows(entry.path)
        return found


class MemoryGitLab(requests.adapters.BaseAdapter):
    """GitLab's answers about the files of a commit, in pages; counts what it is asked."""

    def __init__(self, tree: Tree, *, page: int = 100, reverse: bool = False) -> None:
        super().__init__()
        self._files = MemoryFiles(tree)
        self._page = page
        self._reverse = reverse
        self.requests: list[str] = []

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        parts = urlsplit(str(request.url))
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix("/api/v4/projects/1/repository/")
        self.requests.append(f"{path} {query.get('path', '')}".strip())
        answer = requests.Response()
        answer.request, answer.url = request, str(request.url)
        if path == "tree" and query["ref"] == SHA:
            self._tree(answer, query)
        elif path.startswith("blobs/") and path.endswith("/raw"):
            content = self._files.contents.get(path.split("/")[1])
            answer.status_code = 200 if content is not None else 404
            answer.raw = io.BytesIO(content or b"")
        else:
            answer.status_code = 404
            answer._content = b"{}"
        return answer

    def _tree(self, answer: requests.Response, query: dict[str, str]) -> None:
        rows = self._files.rows(query.get("path", ""), "recursive" in query)
        if not rows and query.get("path"):
            answer.status_code, answer._content = 404, b'{"message": "404 Tree Not Found"}'
            return
        if self._reverse:
            rows.reverse()
        start = int(query.get("page_token", "0"))
        size = min(int(query["per_page"]), self._page)
        kinds = {"040000": "tree", "160000": "commit"}
        found = [
            {
                "id": e.blob, "name": posixpath.basename(e.path), "path": e.path, "mode": e.mode,
                "type": kinds.get(e.mode, "blob"),
            }
            for e in rows[start : start + size]
        ]  # fmt: skip
        if start + size < len(rows):
            following = urlencode({**query, "page_token": str(start + size)})
            answer.headers["Link"] = f'<http://elsewhere/tree?{following}>; rel="next"'
        answer.status_code, answer._content = 200, json.dumps(found).encode()

    def close(self) -> None:
        pass

    def files(self, known: KnownObjects | None = None) -> ForgeFiles:
        session = requests.Session()
        session.mount("https://", self)
        forge = Forge("https://gitlab.example.org", "token", session=session)
        return ForgeFiles(forge, PROJECT, SHA, known)


def fast_import(repository: Path, tree: Tree) -> str:
    """Makes one commit of the tree in the bare repository, by one git; gives its sha."""
    out = [b"commit refs/heads/x\nmark :1\ncommitter A <a@b> 0 +0000\ndata 0\ndeleteall\n"]
    for path, content in tree.items():
        name = json.dumps(path).encode() if path.isascii() else b'"' + path.encode() + b'"'
        if isinstance(content, Gitlink):
            out.append(b"M 160000 %s %s\n" % (bytes(content), name))
        else:
            body = bytes(content)
            head = (mode_of(content).encode(), name, len(body))
            out.append(b"M %s inline %s\ndata %d\n" % head + body + b"\n")
    out.append(b"get-mark :1\n")
    done = subprocess.run(
        ["git", "-C", str(repository), "fast-import", "--quiet", "--force", "--cat-blob-fd=1"],
        input=b"".join(out),
        capture_output=True,
        check=True,
    )
    return done.stdout.decode().strip()


def write_out(directory: Path, tree: Tree) -> None:
    """The tree as files of a directory."""
    for path, content in tree.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            file.symlink_to(content.decode())
        elif not isinstance(content, Gitlink):
            file.write_bytes(bytes(content))
