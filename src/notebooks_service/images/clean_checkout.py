"""Gives a builder the files of a commit and no others; used by ``images/container_build.py``.

What is fingerprinted is the commit. A file that lies beside it in the checkout, the artifact of an
earlier job perhaps, would get into the image of this commit and so into that of all who share it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from notebooks_service.errors import BuildFailed
from notebooks_service.images.log import BuildLog


@contextmanager
def clean_checkout(checkout: Path, sha: str, log: BuildLog) -> Iterator[Path]:
    """A directory with the commit's files: the checkout itself if it has just them, else a copy.

    Raises ``BuildFailed`` if there is no such commit, or it has submodules that a copy would lack.
    """
    top = Path(git(checkout, "rev-parse", "--show-toplevel").strip())
    here = git(top, "rev-parse", "HEAD").strip()
    beside = git(
        top, "status", "--porcelain", "--untracked-files=normal", "--ignored", "--ignore-submodules=none"
    )  # fmt: skip
    if here == sha and not beside:
        yield top
        return
    rows = git(top, "ls-tree", "-r", "-z", sha).split("\0")
    if any(row.startswith("160000 ") for row in rows):
        raise BuildFailed(
            "The commit has submodules, so its image is built from a checkout that has its files and no "
            "others: `git checkout` the commit with its submodules, and remove what is not in it."
        )
    if here == sha:
        log.line(
            "The checkout holds more than the commit (or less): building from a copy of the commit"
        )
    with tempfile.TemporaryDirectory(prefix="notebooks-commit-") as scratch:
        copy = Path(scratch) / "files"
        copy.mkdir()
        places = {
            "GIT_DIR": git(top, "rev-parse", "--absolute-git-dir").strip(),
            "GIT_WORK_TREE": str(copy),
            "GIT_INDEX_FILE": str(Path(scratch) / "index"),
        }
        git(copy, "read-tree", sha, **places)
        git(copy, "checkout-index", "--all", "--force", **places)
        yield copy


def git(cwd: Path, *arguments: str, **places: str) -> str:
    """What a git command prints. A runner's checkout may belong to another user than this process."""
    done = subprocess.run(
        ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", *arguments],
        cwd=cwd,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", **places},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        first = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise BuildFailed(f"The commit's files cannot be read: {first[:300]}")
    return done.stdout.decode(errors="surrogateescape")
