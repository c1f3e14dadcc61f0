"""Large files (Git LFS) for git: a filter for every image, and ``git lfs`` where git-lfs is missing.

``lfs.py filter`` is git's long-running filter (https://git-scm.com/docs/gitattributes#_long_running_filter_process):
a pointer becomes the file if its object is here, a file becomes a pointer and its object is kept.
It asks no network. ``clone.py`` checks out with it, and where the image has no git-lfs the
server's git configuration names it, with an alias for ``lfs.py pull``, ``push`` and ``pre-push``.

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from notebooks_service.singleuser.clone_git import Failed
    from notebooks_service.singleuser.lfs_objects import (
        LARGEST_POINTER,
        PIECE,
        Missing,
        Pointer,
        Remote,
        Store,
        read_pointer,
    )
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from clone_git import Failed
    from lfs_objects import LARGEST_POINTER, PIECE, Missing, Pointer, Remote, Store, read_pointer

LONGEST_LINE = 65516
USAGE = (
    "This image has no git-lfs. In its place there are `git lfs pull`, which brings the large"
    " files of the commit that is checked out, and `git lfs push`, which a push runs by itself."
)


# -- the filter ------------------------------------------------------------------------------------


class Lines:
    """Git's packet lines. https://git-scm.com/docs/gitprotocol-common#_pkt_line_format"""

    def __init__(self, reading: BinaryIO, writing: BinaryIO) -> None:
        self._reading, self._writing = reading, writing

    def packets(self) -> Iterator[bytes]:
        """The packets up to a flush; raises ``EOFError`` at the end of all."""
        while True:
            head = self._reading.read(4)
            if len(head) < 4:
                raise EOFError
            size = int(head, 16)
            if size == 0:
                return
            yield self._reading.read(size - 4)

    def texts(self) -> list[str]:
        return [each.decode("utf-8", "surrogateescape").rstrip("\n") for each in self.packets()]

    def say(self, *texts: str) -> None:
        """These lines and a flush."""
        for text in texts:
            self._packet(text.encode("utf-8", "surrogateescape") + b"\n")
        self.flush()

    def send(self, content: Iterable[bytes]) -> None:
        for piece in content:
            for at in range(0, len(piece), LONGEST_LINE):
                self._packet(piece[at : at + LONGEST_LINE])
        self.flush()

    def flush(self) -> None:
        self._writing.write(b"0000")
        self._writing.flush()

    def _packet(self, data: bytes) -> None:
        self._writing.write(b"%04x" % (len(data) + 4) + data)


def run_filter(lines: Lines, store: Store) -> None:
    """Serve git until it closes the pipe."""
    lines.texts()
    lines.say("git-filter-server", "version=2")
    offered = lines.texts()
    lines.say(*(each for each in ("capability=clean", "capability=smudge") if each in offered))
    while True:
        try:
            asked = dict(each.partition("=")[::2] for each in lines.texts())
        except EOFError:
            return
        content = lines.packets()
        try:
            answer = (
                smudge(content, store) if asked["command"] == "smudge" else clean(content, store)
            )
            rest = sum(len(each) for each in content)
            assert rest == 0
        except OSError as error:
            for _ in content:
                pass
            sys.stderr.write(f"{asked.get('pathname')}: {error.strerror}\n")
            lines.say("status=error")
            continue
        lines.say("status=success")
        lines.send(answer)
        lines.flush()


def _beginning(content: Iterator[bytes]) -> bytes:
    """The first bytes of ``content``, at least as many as tell a pointer from another file."""
    first = b""
    for piece in content:
        first += piece
        if len(first) > LARGEST_POINTER:
            break
    return first


def smudge(content: Iterator[bytes], store: Store) -> Iterable[bytes]:
    """The file that the pointer stands for, if it is here; what is no pointer stays as it is."""
    first = _beginning(content)
    pointer = read_pointer(first)
    if pointer is None or not store.has(pointer):
        return _whole(first, content)
    return _file(store.path(pointer).open("rb"))


def clean(content: Iterator[bytes], store: Store) -> Iterable[bytes]:
    """The pointer of a file, whose content is kept; a pointer and an empty file stay themselves."""
    first = _beginning(content)
    if not first or read_pointer(first) is not None:
        return [first]
    return [store.take(itertools.chain([first], content)).text()]


def _whole(first: bytes, content: Iterator[bytes]) -> Iterator[bytes]:
    """Everything, read before any of it is given: git writes all of a file before it reads."""
    spool = tempfile.SpooledTemporaryFile(max_size=PIECE)  # noqa: SIM115 - ``_file`` closes it
    for piece in itertools.chain([first], content):
        spool.write(piece)
    spool.seek(0)
    return _file(spool)


def _file(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while True:
            piece = file.read(PIECE)
            if not piece:
                return
            yield piece


# -- pointers of a commit and of a push ------------------------------------------------------------


class Entry(NamedTuple):
    """A file of the index that is a pointer."""

    path: str
    pointer: Pointer


def git(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(
        ["git", "-c", "core.fsmonitor=false", *arguments], input=given, stdout=subprocess.PIPE
    )
    if done.returncode != 0:
        raise Failed("git_failed", f"`git {arguments[0]}` failed.")
    return done.stdout


def parse_index(listed: bytes) -> list[tuple[str, str]]:
    """Path and blob of each file in ``git ls-files -s -z``; links and submodules are left out."""
    found = []
    for entry in listed.split(b"\0"):
        facts, tab, path = entry.partition(b"\t")
        if tab and facts.startswith(b"100") and facts.endswith(b" 0"):
            name = path.decode("utf-8", "surrogateescape")
            found.append((name, facts.split(b" ")[1].decode()))
    return found


def parse_blobs(output: bytes) -> dict[str, Pointer]:
    """The pointers in the output of ``git cat-file --batch``, by blob."""
    found = {}
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        head = output[at:end].split()
        at = end + 1
        if len(head) != 3:
            continue
        size = int(head[2])
        pointer = read_pointer(output[at : at + size])
        if pointer is not None:
            found[head[0].decode()] = pointer
        at += size + 1
    return found


def small(checked: bytes) -> bytes:
    """The blobs in ``cat-file --batch-check`` that are small enough for a pointer, one a line."""
    rows = [line.split() for line in checked.splitlines()]
    kept = [
        row[0]
        for row in rows
        if len(row) == 3 and row[1] == b"blob" and 100 <= int(row[2]) <= LARGEST_POINTER
    ]
    return b"".join(oid + b"\n" for oid in kept)


def entries_of_index() -> list[Entry]:
    """The pointers among the files that are checked out and that attributes give to LFS."""
    files = parse_index(git("ls-files", "-s", "-z", "--", ":(top,attr:filter=lfs)"))
    asked = "".join(f"{blob}\n" for blob in sorted({blob for _, blob in files})).encode()
    pointers = parse_blobs(
        git("cat-file", "--batch", given=small(git("cat-file", "--batch-check", given=asked)))
    )
    return [Entry(path, pointers[blob]) for path, blob in files if blob in pointers]


def _here() -> tuple[str, Store]:
    """The project of the repository that we are in, and its store."""
    directory = Path(git("rev-parse", "--absolute-git-dir").decode().rstrip("\n"))
    url = git("config", "remote.origin.url").decode().strip()
    forge = os.environ.get("NOTEBOOKS_FORGE_URL", "").rstrip("/") + "/"
    if not url.startswith(forge):
        raise Failed("environment", "the remote `origin` is not at the forge of this server")
    path = url[len(forge) :]
    return path[: -len(".git")] if path.endswith(".git") else path, Store(directory)


def pull() -> str:
    """Bring the files of the commit that is checked out; a sentence about what came."""
    project, store = _here()
    entries = entries_of_index()
    missing = Remote(project, os.environ).fetch(
        {each.pointer for each in entries}, store, lambda _size: None
    )
    lost = {each.pointer for each in missing}
    top = Path(git("rev-parse", "--show-toplevel").decode().rstrip("\n"))
    ready = []
    for entry in entries:
        path = top / entry.path
        if entry.pointer in lost or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size <= LARGEST_POINTER and read_pointer(path.read_bytes()):
            path.unlink()
            ready.append(entry.path)
    if ready:
        given = b"".join(os.fsencode(path) + b"\0" for path in ready)
        os.chdir(str(top))
        git("checkout-index", "-q", "-f", "-u", "-z", "--stdin", given=given)
    return say_missing(missing) or f"{len(ready)} large files are there now."


def say_missing(missing: list[Missing]) -> str:
    """A sentence that names what could not be had; empty if all is there."""
    if not missing:
        return ""
    first = missing[0]
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return (
        f"The large file {first.pointer.oid[:12]}{more} could not be fetched ({first.reason});"
        " its pointer is there instead."
    )


def push(tips: Sequence[str], remote: str) -> str:
    """Send the objects that these commits have and the remote's branches have not."""
    project, store = _here()
    options = ["--objects", "--no-object-names", "--missing=allow-promisor"]
    listed = git("rev-list", *options, *tips, "--not", f"--remotes={remote}")
    pointers = parse_blobs(
        git("cat-file", "--batch", given=small(git("cat-file", "--batch-check", given=listed)))
    )
    here = {each for each in pointers.values() if store.has(each)}
    return f"{Remote(project, os.environ).send(here, store)} large files were sent."


def pre_push(remote: str, lines: Iterable[str]) -> None:
    """What git asks before a push. https://git-scm.com/docs/githooks#_pre_push"""
    tips = [line.split()[1] for line in lines if len(line.split()) == 4]
    new = [tip for tip in tips if set(tip) != {"0"}]
    if new:
        push(new, remote)


def main() -> int:
    action = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if action == "filter":
            directory = os.environ.get("GIT_DIR") or git("rev-parse", "--absolute-git-dir").decode()
            lines = Lines(sys.stdin.buffer, sys.stdout.buffer)
            run_filter(lines, Store(Path(directory.rstrip("\n")).resolve()))
        elif action in ("pull", "fetch", "checkout"):
            sys.stderr.write(pull() + "\n")
        elif action == "push":
            sys.stderr.write(push(["HEAD"], "origin") + "\n")
        elif action == "pre-push":
            pre_push(sys.argv[2] if len(sys.argv) > 2 else "origin", sys.stdin)
        else:
            sys.stderr.write(USAGE + "\n")
            return 1
    except Failed as failed:
        sys.stderr.write(failed.sentence + "\n")
        return failed.code
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
