"""Puts the repository of a server where the person works, at exactly the commit of the launch.

Run at every start of a server, before Jupyter. Reads NOTEBOOKS_WORK_DIR (the repository becomes
``<work>/<project's folder>``), NOTEBOOKS_FORGE_URL, NOTEBOOKS_GATEWAY_URL, NOTEBOOKS_PROJECT,
NOTEBOOKS_PROJECT_ID, NOTEBOOKS_COMMIT, NOTEBOOKS_BRANCH, and what ``gitconfig.py`` reads, which it
runs first. The token goes from JUPYTERHUB_API_TOKEN through the credential helper. These may be
missing: NOTEBOOKS_LFS_AUTO_FETCH (``0``: leave pointers of large files), NOTEBOOKS_SUBMODULES (JSON,
see ``clone_submodules.py``), NOTEBOOKS_REPOSITORY_BYTES (the repository's size; else unknown),
NOTEBOOKS_PARTIAL_CLONE_FROM, NOTEBOOKS_DISK_MARGIN (bytes), NOTEBOOKS_CHECKOUT_FILES (most of them).

The first time: a clone beside the folder, renamed into place when it is whole, so a killed clone is
never taken for one. If the commit is the tip of the branch, that branch is checked out and tracks
its remote; else a local branch ``<branch>-<sha8>`` starts there without upstream, so that a push
makes a new branch. Ever after: nothing of the person's is touched.

Prints JSON lines: ``{"message", "phase", "percent"?, "objects"?, "total"?, "bytes"?}`` as it goes;
the last says how it ended: ``{"message", "phase": "done", "folder", "branch", "upstream", "commit",
"head", "new", "moved", "notes", ...}``, or ``{"message", "phase": "failed", "error"}``. git's own words go to stderr.

==== ==============================================================================================
code what happened
==== ==============================================================================================
0    the repository is there
2    ``environment``: a variable is missing or wrong
10   ``git_missing``: no git on the path, or one older than 2.32 where GIT_CONFIG_GLOBAL is set
11   ``network``: gateway or forge did not answer, or broke off
12   ``refused``: the forge or the gateway did not accept who asked
13   ``not_found``: no such repository, or none that the person may see
14   ``commit_missing``: the repository is there and does not hold the commit
15   ``no_space``: the disk is full
16   ``git_failed``: git failed otherwise
17   ``no_room``: the repository, the commit or its large files are larger than the free disk
18   ``too_many_files``: the commit has more files than may be checked out
19   ``unsafe_path``: the commit holds a path that git refuses to write
143  ``cancelled``: told to stop; the half clone was removed
==== ==============================================================================================

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

HERE = Path(__file__).resolve().parent
LONGEST_PART = 230
"""Bytes of a branch's last part that go into the name of a branch of ours."""


if TYPE_CHECKING:
    from notebooks_service.singleuser import clone_submodules
    from notebooks_service.singleuser.clone_fill import Limits, Source, fetch, fill
    from notebooks_service.singleuser.clone_git import SENTENCES, Failed, Git, Stop, check_git, say
else:
    # ``python -I`` leaves the program's own directory out of the path.
    sys.path.insert(0, str(HERE))
    import clone_submodules
    from clone_fill import Limits, Source, fetch, fill
    from clone_git import SENTENCES, Failed, Git, Stop, check_git, say

LAUNCHED = "refs/notebooks/launched"


class Wanted(NamedTuple):
    """What the environment asks for."""

    work: Path
    folder: str
    url: str
    forge_url: str
    project: str
    project_id: str
    commit: str
    branch: str
    bytes: int | None
    limits: Limits
    submodules: list[clone_submodules.Submodule]


# -- what is wanted ------------------------------------------------------------------------------


def read_environment(environ: Mapping[str, str]) -> Wanted:
    """The variables, checked. Raises ``Failed("environment")`` with the name of a wrong one."""

    def need(name: str, pattern: str) -> str:
        value = environ.get(name, "")
        if not re.fullmatch(pattern, value) or not value.isprintable():
            raise Failed("environment", name)
        return value

    def number(name: str, default: int) -> int:
        return int(need(name, r"\d{1,18}")) if environ.get(name) else default

    forge = need("NOTEBOOKS_FORGE_URL", r"https?://[^\s]+").rstrip("/")
    project = need("NOTEBOOKS_PROJECT", r"[^/\\]+(/[^/\\]+)+")
    if any(segment in (".", "..", ".git") for segment in project.split("/")):
        raise Failed("environment", "NOTEBOOKS_PROJECT")
    known = bool(environ.get("NOTEBOOKS_REPOSITORY_BYTES"))
    return Wanted(
        work=Path(need("NOTEBOOKS_WORK_DIR", r"/.*")),
        folder=project.rsplit("/", 1)[-1],
        url=f"{forge}/{project}.git",
        forge_url=forge,
        project=project,
        project_id=need("NOTEBOOKS_PROJECT_ID", r"\d+"),
        commit=need("NOTEBOOKS_COMMIT", r"[0-9a-f]{40}"),
        branch=need("NOTEBOOKS_BRANCH", r"[^-].*"),
        bytes=number("NOTEBOOKS_REPOSITORY_BYTES", -1) if known else None,
        limits=Limits(
            partial_from=number("NOTEBOOKS_PARTIAL_CLONE_FROM", 0),
            margin=number("NOTEBOOKS_DISK_MARGIN", 0),
            most_files=number("NOTEBOOKS_CHECKOUT_FILES", 1_000_000),
            large_files=environ.get("NOTEBOOKS_LFS_AUTO_FETCH", "1") != "0",
        ),
        submodules=clone_submodules.read(environ.get("NOTEBOOKS_SUBMODULES", "")),
    )


def local_branch(branch: str, commit: str, tip: str | None, taken: set[str]) -> tuple[str, bool]:
    """The local branch for ``commit`` and whether it tracks ``origin/<branch>``.

    ``tip`` is where the remote has the branch (None: nowhere), ``taken`` the remote's branches. A
    name of ours that is taken there gets a number, so that a push can never add to another's branch.
    """
    if tip == commit:
        return branch, True
    # The last part is a file of git's, beside which it makes one with ".lock": 255 bytes at most.
    head, slash, last = branch.rpartition("/")
    last = last.encode()[:LONGEST_PART].decode("utf-8", "ignore")
    name = base = f"{head}{slash}{last}-{commit[:8]}"
    number = 2
    while name in taken:
        name = f"{base}-{number}"
        number += 1
    return name, False


def write_gitconfig() -> None:
    done = subprocess.run(
        [sys.executable, "-I", str(HERE / "gitconfig.py")], stderr=subprocess.PIPE
    )
    if done.returncode != 0:
        if done.returncode == SENTENCES["no_space"][0]:
            raise Failed("no_space")
        raise Failed("environment", done.stderr.decode("utf-8", "replace").strip().rstrip("."))


# -- the clone -------------------------------------------------------------------------------------


def clone(wanted: Wanted) -> dict[str, Any]:
    """Clone beside, check out, rename into place; what is there then."""
    prefix = f".{wanted.folder}.cloning-"
    for stale in wanted.work.glob(glob_escape(prefix) + "*"):
        shutil.rmtree(str(stale), ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=prefix, dir=str(wanted.work)))
    source = Source(wanted.url, wanted.project, wanted.commit, wanted.bytes)
    try:
        say("Asking the forge for the repository.", "connecting")
        git = fetch(Git(wanted.work, margin=wanted.limits.margin), source, beside, wanted.limits)
        facts = check_out(git, wanted, source)
        beside.chmod(0o755)
        beside.rename(wanted.work / wanted.folder)
    except BaseException:
        remove(beside)
        raise
    return facts


def remove(half: Path) -> None:
    """Remove half a clone; helpers of a git that was ended may write for another moment."""
    for _ in range(20):
        shutil.rmtree(str(half), ignore_errors=True)
        if not half.exists():
            return
        time.sleep(0.05)


def glob_escape(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def check_out(git: Git, wanted: Wanted, source: Source) -> dict[str, Any]:
    """Check out the commit on the right local branch (``local_branch``), and note the launch."""
    commit = wanted.commit
    git.do("update-ref", LAUNCHED, commit)
    tip = git.ask("rev-parse", "--verify", "--quiet", "refs/remotes/origin/" + wanted.branch)
    seen = git.ask("for-each-ref", "--format=%(refname)", "refs/remotes/origin/") or ""
    taken = {ref[len("refs/remotes/origin/") :] for ref in seen.splitlines()}
    branch, tracks = local_branch(wanted.branch, commit, tip, taken)
    git.do("check-ref-format", "refs/heads/" + branch)
    filled = fill(git, source, wanted.limits, "--quiet", "--no-track", "-B", branch, commit, "--")
    if tracks:
        # By its keys: a tag ``origin/<branch>`` would make the short name ambiguous.
        git.do("config", f"branch.{branch}.remote", "origin")
        git.do("config", f"branch.{branch}.merge", "refs/heads/" + branch)
    # The clone has made a local branch for the remote's default one; nobody asked for it.
    locals_ = git.ask("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads/") or ""
    for other in locals_.splitlines():
        if other != branch:
            git.do("update-ref", "-d", "refs/heads/" + other)
            git.ask("config", "--remove-section", "branch." + other)
    git.do("config", "notebooks.project", wanted.project)
    git.do("config", "notebooks.projectId", wanted.project_id)
    (git.directory / ".git" / "info").mkdir(exist_ok=True)
    notes = filled.notes + clone_submodules.add(
        git, wanted.submodules, wanted.forge_url, wanted.limits
    )
    notes += clone_submodules.mend(git)
    return {
        **facts_of(git, wanted, new=True),
        "partial": filled.partial,
        "large_files": filled.large_files,
        "pointers": filled.pointers,
        "notes": notes,
    }


def facts_of(git: Git, wanted: Wanted, *, new: bool) -> dict[str, Any]:
    """What is checked out now."""
    head = git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    head_ref = git.ask("symbolic-ref", "--quiet", "HEAD") or ""
    branch = head_ref[len("refs/heads/") :] or None
    # The whole names: a tag of the same name or one ``origin/<branch>`` would change how git shortens it.
    full = git.ask("for-each-ref", "--format=%(upstream)", f"refs/heads/{branch}") if branch else ""
    upstream = (full or "").replace("refs/remotes/", "", 1) or None
    return {
        "folder": wanted.folder,
        "branch": branch,
        "upstream": upstream,
        "commit": wanted.commit,
        "head": head,
        "new": new,
        "moved": head != wanted.commit,
        "notes": [],
    }


# -- what is there already -------------------------------------------------------------------------


def find_existing(wanted: Wanted) -> Path | None:
    """The person's folder from an earlier start, renamed if the project's last name has changed."""
    target = wanted.work / wanted.folder
    if target.is_symlink() or target.exists():
        empty = target.is_dir() and not target.is_symlink() and not any(target.iterdir())
        return None if empty else target
    for other in sorted(wanted.work.iterdir()) if wanted.work.is_dir() else []:
        if other.name.startswith(".") or other.is_symlink() or not (other / ".git").is_dir():
            continue
        if Git(other).ask("config", "--local", "notebooks.projectId") == wanted.project_id:
            other.rename(target)
            return target
    return None


def keep(folder: Path, wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """Leave the person's work as it is; a sentence about it, and what is checked out."""
    git = Git(folder)
    if not (folder / ".git").is_dir() or git.ask("rev-parse", "--git-dir") is None:
        facts = facts_nothing(wanted)
        return "Your folder is as you left it; it is no git repository.", facts
    note = ""
    before = git.ask("config", "--local", "notebooks.project")
    if before and before != wanted.project:
        # The project has moved: the gateway knows it by its new path only.
        old = f"{wanted.forge_url}/{before}.git"
        if git.ask("config", "--local", "remote.origin.url") == old:
            git.do("config", "remote.origin.url", wanted.url)
            note = f" The project is now called {wanted.project}."
        git.do("config", "notebooks.project", wanted.project)
    facts = facts_of(git, wanted, new=False)
    if not facts["moved"]:
        return "Your work is as you left it." + note, facts
    where = (facts["head"] or "no commit")[:8]
    on = " on {}".format(facts["branch"]) if facts["branch"] else ""
    sentence = "Your work is as you left it, at {}{} and no longer at {}.{}"
    return sentence.format(where, on, wanted.commit[:8], note), facts


def facts_nothing(wanted: Wanted) -> dict[str, Any]:
    return {
        "folder": wanted.folder,
        "branch": None,
        "upstream": None,
        "commit": wanted.commit,
        "head": None,
        "new": False,
        "moved": True,
        "notes": [],
    }


# -- from start to end -----------------------------------------------------------------------------


def run() -> None:
    """All of it; raises ``Failed`` or ``OSError``."""
    wanted = read_environment(os.environ)
    check_git(os.environ)
    write_gitconfig()
    wanted.work.mkdir(parents=True, exist_ok=True)
    existing = find_existing(wanted)
    if existing is not None:
        sentence, facts = keep(existing, wanted)
    else:
        facts = clone(wanted)
        sentence = "The repository is at {} on {}.".format(wanted.commit[:8], facts["branch"])
    say(sentence, "done", **facts)


def main() -> int:
    signal.signal(signal.SIGTERM, Stop.on_signal)
    signal.signal(signal.SIGINT, Stop.on_signal)
    try:
        run()
    except Failed as error:
        failure = error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        failure = Failed("no_space") if full else Failed("git_failed", str(error))
    else:
        return 0
    say(failure.sentence, "failed", error=failure.kind)
    return failure.code


if __name__ == "__main__":
    sys.exit(main())
