"""Makes a commit out of files that a repository has already, as a pack to push; used by ``images/synthetic.py``.

Only trees, the commit and the few contents that are new are in the pack: a push may refer to whatever
the repository holds. So nothing is downloaded for it, and no byte can differ.
https://git-scm.com/docs/gitformat-pack · https://git-scm.com/docs/git-mktree
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["commit", "tree", "blob"]
NUMBERS: Mapping[Kind, int] = {"commit": 1, "tree": 2, "blob": 3}
DIRECTORY = "040000"


@dataclass(frozen=True)
class TreeFile:
    """A file (or link, submodule, whole directory) by git's six-digit mode and its object's id."""

    path: str
    mode: str
    blob: str


@dataclass
class Objects:
    """New objects, each once."""

    _objects: dict[str, tuple[Kind, bytes]] = field(default_factory=dict)

    def add(self, kind: Kind, content: bytes) -> str:
        """The id of an object, which is in the pack from now on."""
        head = f"{kind} {len(content)}\0".encode()
        name = hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
        self._objects[name] = (kind, content)
        return name

    def pack(self) -> bytes:
        """All of them, whole (no deltas)."""
        out = bytearray(b"PACK" + (2).to_bytes(4, "big") + len(self._objects).to_bytes(4, "big"))
        for kind, content in self._objects.values():
            out += _entry_head(NUMBERS[kind], len(content)) + zlib.compress(content)
        return bytes(out) + hashlib.sha1(out, usedforsecurity=False).digest()


def tree(objects: Objects, files: Iterable[TreeFile]) -> str:
    """The id of the tree that holds ``files``. Raises ``ValueError`` for a path that is no path."""
    here: dict[str, TreeFile] = {}
    below: dict[str, list[TreeFile]] = {}
    for file in files:
        name, slash, rest = file.path.partition("/")
        if name in ("", ".", "..", ".git") or "\0" in name or (slash and not rest):
            raise ValueError(f"no path: {file.path!r}")
        if slash:
            below.setdefault(name, []).append(TreeFile(rest, file.mode, file.blob))
        else:
            here[name] = file
    for name, inner in below.items():
        if name in here:
            raise ValueError(f"both a file and a directory: {name!r}")
        here[name] = TreeFile(name, DIRECTORY, tree(objects, inner))
    content = b"".join(
        f"{file.mode.lstrip('0')} ".encode() + _bytes(name) + b"\0" + bytes.fromhex(file.blob)
        for name, file in sorted(here.items(), key=lambda item: _order(item[0], item[1].mode))
    )
    return objects.add("tree", content)


def commit(objects: Objects, root: str, author: str, seconds: int, message: str) -> str:
    """The id of a commit without parents. The same arguments make the same commit."""
    who = f"{author} {seconds} +0000"
    text = f"tree {root}\nauthor {who}\ncommitter {who}\n\n{message}\n"
    return objects.add("commit", text.encode())


def _order(name: str, mode: str) -> bytes:
    """git sorts a directory as if its name ended with a slash."""
    return _bytes(name) + (b"/" if mode == DIRECTORY else b"")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _entry_head(kind: int, size: int) -> bytes:
    byte, size = (kind << 4) | (size & 0x0F), size >> 4
    out = bytearray()
    while size:
        out.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    return bytes(out) + bytes([byte])
