"""Has the images of a whole history built, as if each of its commits had been pushed by itself.

Called by ``notebooks up`` for the bundled sample only: an import runs nothing, and without this no
commit of the sample would have an environment of its own to show.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from notebooks_service.forge import ci_pipelines, namespaces
from notebooks_service.forge.administration import Administration
from notebooks_service.forge.ci_pipelines import RefChange


def queue_pipelines(administration: Administration, project_id: int, username: str) -> int:
    """Make one pipeline for each commit of each branch, by ``username``; how many were made.

    The newest comes first, because people open that one first.
    """
    config = administration.config
    with administration.database.read() as session:
        user = namespaces.find_user(session, username)
        user_id = user.id if user else 0
    made: list[int] = []
    for change in pushes(config.repository(project_id)):
        made += ci_pipelines.pushed(administration.database, config, project_id, user_id, [change])
    return len(made)


def pushes(repository: Path) -> list[RefChange]:
    """A push for each commit, newest first; the default branch's commits are pushed to that one."""
    default = _git(repository, "symbolic-ref", "HEAD")
    branches = _git(repository, "for-each-ref", "--format=%(refname)", "refs/heads/").split()
    known: set[str] = set()
    changes: list[RefChange] = []
    for branch in sorted(branches, key=lambda name: (name != default, name)):
        for line in _git(repository, "rev-list", "--parents", branch).splitlines():
            commit, *parents = line.split()
            if commit not in known:
                known.add(commit)
                changes.append(RefChange(branch, parents[0] if parents else "0" * 40, commit))
    return changes


def _git(repository: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--git-dir", str(repository), *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
