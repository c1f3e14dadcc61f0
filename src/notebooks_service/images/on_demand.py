"""Has the project's own CI build a commit that nobody has built; called by ``images/watch.py``.

A pipeline needs a ref, so a branch is made at the commit with the person's own right, and removed as
soon as the forge has made its pipeline of it. GitLab keeps a pipeline's commits by a ref of its own.
https://docs.gitlab.com/ci/pipelines/  https://docs.gitlab.com/ci/troubleshooting/
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from notebooks_service.domain import Project
from notebooks_service.errors import NotebooksError
from notebooks_service.gitlab.forge import Forge

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds that a forge may take from a push to its pipeline."""

LOOK = 0.25

Thread = Callable[..., Awaitable[Any]]


def branch_name(sha: str) -> str:
    """The short-lived branch of a build; two that ask for the same commit meet in it."""
    return f"notebooks/build-{sha[:12]}"


async def have_it_built(
    thread: Thread,
    sleep: Callable[[float], Awaitable[Any]],
    clock: Callable[[], float],
    forge: Forge,
    project: Project,
    sha: str,
) -> None:
    """Return when the commit has a pipeline, or could not get one; whoever asked looks again.

    ``thread`` runs a blocking call. A refusal is logged and no error: the decision that follows
    says that nothing was started.
    """
    branch = branch_name(sha)
    try:
        await thread(forge.create_branch, project, branch, sha)
    except NotebooksError as error:
        log.warning("No build of %s in %s: %s", sha, project.path, error.code)
        return
    log.info("Building %s in %s on demand", sha, project.path)
    try:
        until = clock() + PATIENCE
        while not await thread(forge.has_pipeline, project, sha) and clock() < until:
            await sleep(LOOK)
    except NotebooksError as error:
        log.warning("No news of the build of %s in %s: %s", sha, project.path, error.code)
    finally:
        try:
            await thread(forge.delete_branch, project, branch, sha)
        except NotebooksError as error:
            log.warning("The branch %s of %s is left behind: %s", branch, project.path, error.code)
