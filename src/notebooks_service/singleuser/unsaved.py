"""Says what a server's repository holds that its forge does not: ``unsaved.py REPOSITORY``.

The hub runs it when a server stops, outside the server: whatever the repository's own
configuration says, no hook, filter, fsmonitor, signature program or helper of it is run, nothing is
written and nothing goes to the network. Prints one JSON object:

- ``repository``: false if this is no repository that a clone of ours could have become
- ``files``: ``[{"path", "state"}]``, at most 100, changed against HEAD or untracked and not ignored (a
  wholly untracked directory is one entry ending with a slash); ``state`` is one of modified, added,
  deleted, renamed, untracked, conflict
- ``commits``: ``[{"sha", "title"}]``, at most 100, newest first: on any local branch or HEAD, on no branch of the
  remote that was seen, and not the commit of the launch or before it
- ``branches``: ``[{"name", "commits"}]``, at most 50: the local branches that hold such commits, and how many
- ``stashes``: their titles, at most 20
- ``more``: true if any of these lists was cut, or git took longer than its time
- ``clean``: true if there is nothing of all this

Ends with 0 whenever it printed that. Standard library only, Python 3.8 and newer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

SECONDS = 12.0
MOST_BYTES = 4 * 1024 * 1024
MOST_FILES = 100
MOST_COMMITS = 100
MOST_BRANCHES = 50
MOST_STASHES = 20
LONGEST = 300
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_POINTER = re.compile(
    rb"version https://[a-z.-]+/spec/v1\n(?:ext-[^\n]*\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)

# Every way in which git runs a program that a repository's configuration names.
QUIET = [
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.sshCommand=false",
    "core.gitProxy=false",
    "core.askPass=false",
    "core.pager=cat",
    "credential.helper=",
    "gpg.program=false",
    "log.showSignature=false",
    "diff.external=",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "status.submoduleSummary=false",
    "protocol.allow=never",
]


class Git:
    """Runs git in one repository, each call within what is left of the time for all of them."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._end = time.monotonic() + SECONDS
        self._options: list[str] = []
        for option in [*QUIET, f"safe.directory={repository}"]:
            self._options += ["-c", option]
        self.cut = False

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def without_filters(self) -> None:
        """Make every filter that the configuration defines do nothing."""
        names = self.run(
            "config", "--includes", "-z", "--name-only", "--get-regexp", r"^filter\..*"
        )
        for name in sorted({name.rpartition(".")[0] for name in _split(names or b"")}):
            if "=" in name or "\n" in name:
                # ``-c`` cannot name it, so nothing that could run it is asked.
                raise ValueError(name)
            for key, value in (
                ("clean", ""),
                ("smudge", ""),
                ("process", ""),
                ("required", "false"),
            ):
                self._options += ["-c", f"{name}.{key}={value}"]

    def run(self, *arguments: str) -> bytes | None:
        """What git printed, at most 4 MB of it; None if it failed or its time was over."""
        left = self._end - time.monotonic()
        if left <= 0:
            self.cut = True
            return None
        process = subprocess.Popen(
            ["git", "--no-pager", *self._options, "--git-dir=.git", "--work-tree=.", *arguments],
            cwd=str(self._repository),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        timer = threading.Timer(left, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            output = process.stdout.read(MOST_BYTES)
            if process.stdout.read(1):
                self.cut = True
                process.kill()
                process.wait()
                return output
            code = process.wait()
        finally:
            timer.cancel()
            if process.stdout is not None:
                process.stdout.close()
        if code < 0:
            self.cut = True
        return output if code == 0 else None


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return {
        **kept,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",
    }


def _split(output: bytes) -> list[str]:
    return [part.decode("utf-8", "replace") for part in output.split(b"\0") if part]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def read_status(output: bytes) -> list[dict[str, str]]:
    """Files and states out of ``git status --porcelain=v2 -z``; a last, cut entry is left out.

    https://git-scm.com/docs/git-status#_porcelain_format_version_2
    """
    files = []
    whole = output[: output.rfind(b"\0") + 1]
    entries = iter(_split(whole))
    for entry in entries:
        kind, _, rest = entry.partition(" ")
        if kind == "?":
            files.append((rest, "untracked"))
        elif kind == "u":
            files.append((rest.split(" ", 9)[-1], "conflict"))
        elif kind == "2":
            files.append((rest.split(" ", 8)[-1], "renamed"))
            next(entries, None)
        elif kind == "1":
            letters = rest[:2]
            state = "deleted" if "D" in letters else "added" if "A" in letters else "modified"
            files.append((rest.split(" ", 7)[-1], state))
    return [{"path": _short(path), "state": state} for path, state in files]


def _only_fetched(git: Git, repository: Path, path: str) -> bool:
    """Whether a file that looks modified is only the large file (Git LFS) of its own pointer.

    No filter is run here, so a large file that git has not looked at since it was written differs.
    """
    file = repository / path
    listed = git.run("ls-files", "-s", "-z", "--", f":(top,literal){path}") or b""
    blob = listed.split(b" ")[1:2]
    staged = git.run("cat-file", "blob", blob[0].decode()) if blob else None
    if staged is None or file.is_symlink() or not file.is_file():
        return False
    found = _POINTER.match(staged)
    if found is None or file.stat().st_size != int(found.group(2)):
        return False
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while git.seconds_left > 0:
            piece = content.read(1 << 20)
            if not piece:
                return digest.hexdigest() == found.group(1).decode()
            digest.update(piece)
    return False


def _unpushed(*tips: str) -> tuple[str, ...]:
    """The arguments of rev-list for what is at ``tips`` and nowhere at the remote."""
    return (*tips, "--not", "--remotes", "--glob=refs/notebooks/*")


def _commits(git: Git) -> list[dict[str, str]]:
    heads = ["--branches"]
    if git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}") is not None:
        heads.append("HEAD")
    output = git.run(
        "rev-list",
        f"--max-count={MOST_COMMITS + 1}",
        "--format=%H%x00%s",
        *_unpushed(*heads),
    )
    commits = []
    for line in (output or b"").decode("utf-8", "replace").splitlines():
        sha, mark, title = line.partition("\0")
        if mark:
            commits.append({"sha": sha, "title": _short(title)})
    return commits


def _branches(git: Git) -> list[dict[str, Any]]:
    names = git.run("for-each-ref", "--format=%(refname)", "--count=500", "refs/heads/")
    found: list[dict[str, Any]] = []
    for ref in (names or b"").decode("utf-8", "replace").splitlines():
        if len(found) > MOST_BRANCHES:
            break
        count = git.run("rev-list", "--count", *_unpushed(ref))
        if count is not None and int(count):
            found.append({"name": _short(ref[len("refs/heads/") :]), "commits": int(count)})
    return found


def _stashes(git: Git) -> list[str]:
    if git.run("rev-parse", "--verify", "--quiet", "refs/stash") is None:
        return []
    limit = f"--max-count={MOST_STASHES + 1}"
    output = git.run("log", "-g", "--no-show-signature", limit, "--format=%x00%gs", "refs/stash")
    lines = (output or b"").decode("utf-8", "replace").splitlines()
    return [_short(line[1:]) for line in lines if line.startswith("\0")]


def look(repository: Path) -> dict[str, Any]:
    """The object that is printed; see the top of this file."""
    nothing: dict[str, Any] = {
        "repository": False,
        "files": [],
        "commits": [],
        "branches": [],
        "stashes": [],
        "more": False,
        "clean": False,
    }
    directory = repository / ".git"
    # A link or a file there would lead git to a place of somebody else's choice.
    if repository.is_symlink() or directory.is_symlink() or not directory.is_dir():
        return nothing
    git = Git(repository.resolve())
    if git.run("rev-parse", "--git-dir") is None:
        return {**nothing, "more": git.cut}
    try:
        git.without_filters()
    except ValueError:
        return {**nothing, "more": True}
    status = git.run(
        "status", "--porcelain=v2", "-z", "--untracked-files=normal", "--ignore-submodules=dirty"
    )
    files = read_status(status) if status is not None else []
    files = [
        each
        for number, each in enumerate(files)
        if each["state"] != "modified"
        or number >= MOST_FILES
        or not _only_fetched(git, repository, each["path"])
    ]
    commits, branches, stashes = _commits(git), _branches(git), _stashes(git)
    more = git.cut or status is None
    more = more or len(files) > MOST_FILES or len(commits) > MOST_COMMITS
    more = more or len(branches) > MOST_BRANCHES or len(stashes) > MOST_STASHES
    return {
        "repository": True,
        "files": files[:MOST_FILES],
        "commits": commits[:MOST_COMMITS],
        "branches": branches[:MOST_BRANCHES],
        "stashes": stashes[:MOST_STASHES],
        "more": more,
        "clean": not (files or commits or stashes or more),
    }


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: unsaved.py REPOSITORY\n")
        return 2
    sys.stdout.write(json.dumps(look(Path(sys.argv[1]))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
