"""Puts the repository of a server where the person works, at exactly the commit of the launch.

Run at every start of a server, before Jupyter. Reads NOTEBOOKS_WORK_DIR (the repository becomes
``<work>/<project's folder>``), NOTEBOOKS_FORGE_URL, NOTEBOOKS_GATEWAY_URL, NOTEBOOKS_PROJECT,
NOTEBOOKS_PROJECT_ID, NOTEBOOKS_COMMIT, NOTEBOOKS_BRANCH, and what ``gitconfig.py`` reads, which it
runs first. The token goes from JUPYTERHUB_API_TOKEN through the credential helper.

The first time: a clone beside the folder, renamed into place when it is whole, so a killed clone is
never taken for one. If the commit is the tip of the branch, that branch is checked out and tracks
its remote; else a local branch ``<branch>-<sha8>`` starts there without upstream, so that a push
makes a new branch. Ever after: nothing of the person's is touched.

Prints JSON lines: ``{"message", "phase", "percent"?, "objects"?, "total"?, "bytes"?}`` as it goes;
the last says how it ended: ``{"message", "phase": "done", "folder", "branch", "upstream", "commit",
"head", "new", "moved"}``, or ``{"message", "phase": "failed", "error"}``. git's own words go to stderr.

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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

HERE = Path(__file__).resolve().parent

if TYPE_CHECKING:
    from notebooks_service.singleuser.clone_git import Failed, Git, check_git, say
else:
    # ``python -I`` leaves the program's own directory out of the path.
    sys.path.insert(0, str(HERE))
    from clone_git import Failed, Git, check_git, say

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


# -- what is wanted ------------------------------------------------------------------------------


def read_environment(environ: Mapping[str, str]) -> Wanted:
    """The variables, checked. Raises ``Failed("environment")`` with the name of a wrong one."""

    def need(name: str, pattern: str) -> str:
        value = environ.get(name, "")
        if not re.fullmatch(pattern, value) or not value.isprintable():
            raise Failed("environment", name)
        return value

    forge = need("NOTEBOOKS_FORGE_URL", r"https?://[^\s]+").rstrip("/")
    project = need("NOTEBOOKS_PROJECT", r"[^/\\]+(/[^/\\]+)+")
    if any(segment in (".", "..", ".git") for segment in project.split("/")):
        raise Failed("environment", "NOTEBOOKS_PROJECT")
    return Wanted(
        work=Path(need("NOTEBOOKS_WORK_DIR", r"/.*")),
        folder=project.rsplit("/", 1)[-1],
        url=f"{forge}/{project}.git",
        forge_url=forge,
        project=project,
        project_id=need("NOTEBOOKS_PROJECT_ID", r"\d+"),
        commit=need("NOTEBOOKS_COMMIT", r"[0-9a-f]{40}"),
        branch=need("NOTEBOOKS_BRANCH", r"[^-].*"),
    )


def local_branch(branch: str, commit: str, tip: str | None, taken: set[str]) -> tuple[str, bool]:
    """The local branch for ``commit`` and whether it tracks ``origin/<branch>``.

    ``tip`` is where the remote has the branch (None: nowhere), ``taken`` the remote's branches. A
    name of ours that is taken there gets a number, so that a push can never add to another's branch.
    """
    if tip == commit:
        return branch, True
    name = base = f"{branch}-{commit[:8]}"
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
        raise Failed("environment", done.stderr.decode("utf-8", "replace").strip().rstrip("."))


# -- the clone -------------------------------------------------------------------------------------


def clone(wanted: Wanted) -> dict[str, Any]:
    """Clone beside, check out, rename into place; what is there then."""
    prefix = f".{wanted.folder}.cloning-"
    for stale in wanted.work.glob(glob_escape(prefix) + "*"):
        shutil.rmtree(str(stale), ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=prefix, dir=str(wanted.work)))
    try:
        say("Asking the forge for the repository.", "connecting")
        arguments = ["clone", "--progress", "--no-checkout", "--no-recurse-submodules"]
        arguments += ["--template=", "--origin=origin", "--", wanted.url, str(beside)]
        Git(wanted.work).do(*arguments)
        facts = check_out(Git(beside), wanted)
        beside.chmod(0o755)
        beside.rename(wanted.work / wanted.folder)
    except BaseException:
        shutil.rmtree(str(beside), ignore_errors=True)
        raise
    return facts


def glob_escape(text: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", text)


def check_out(git: Git, wanted: Wanted) -> dict[str, Any]:
    """Check out the commit on the right local branch (``local_branch``), and note the launch."""
    commit = wanted.commit
    if not has_commit(git, commit):
        # Not on any branch or tag, but the forge may still hold it: a merge request's, or one that
        # a force-push has left behind.
        try:
            git.do("fetch", "--progress", "--no-tags", "origin", commit)
        except Failed as error:
            if error.kind not in ("commit_missing", "git_failed"):
                raise
        if not has_commit(git, commit):
            raise Failed("commit_missing", commit)
    git.do("update-ref", LAUNCHED, commit)
    tip = git.ask("rev-parse", "--verify", "--quiet", "refs/remotes/origin/" + wanted.branch)
    seen = git.ask("for-each-ref", "--format=%(refname)", "refs/remotes/origin/") or ""
    taken = {ref[len("refs/remotes/origin/") :] for ref in seen.splitlines()}
    branch, tracks = local_branch(wanted.branch, commit, tip, taken)
    git.do("check-ref-format", "refs/heads/" + branch)
    say("Writing files.", "files")
    git.do("checkout", "--progress", "--no-track", "-B", branch, commit, "--")
    if tracks:
        git.do("branch", "--quiet", "--set-upstream-to=origin/" + branch, branch)
    # The clone has made a local branch for the remote's default one; nobody asked for it.
    locals_ = git.ask("for-each-ref", "--format=%(refname:strip=2)", "refs/heads/") or ""
    for other in locals_.splitlines():
        if other != branch:
            git.do("branch", "--quiet", "-D", "--", other)
    git.do("config", "notebooks.project", wanted.project)
    git.do("config", "notebooks.projectId", wanted.project_id)
    (git.directory / ".git" / "info").mkdir(exist_ok=True)
    return facts_of(git, wanted, new=True)


def has_commit(git: Git, commit: str) -> bool:
    return git.ask("cat-file", "-e", commit + "^{commit}") is not None


def facts_of(git: Git, wanted: Wanted, *, new: bool) -> dict[str, Any]:
    """What is checked out now."""
    head = git.ask("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    branch = git.ask("symbolic-ref", "--quiet", "--short", "HEAD")
    upstream = git.ask("rev-parse", "--abbrev-ref", "--symbolic-full-name", "@{upstream}")
    return {
        "folder": wanted.folder,
        "branch": branch,
        "upstream": upstream,
        "commit": wanted.commit,
        "head": head,
        "new": new,
        "moved": head != wanted.commit,
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


def _stop(_number: int, _frame: object) -> None:
    raise Failed("cancelled")


def main() -> int:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
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
