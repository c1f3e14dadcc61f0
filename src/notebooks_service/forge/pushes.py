"""What follows from a push that git has accepted: default branch, activity, pipelines."""

from __future__ import annotations

import logging

from starlette.datastructures import State

from notebooks_service.forge import ci_pipelines, protection, repositories, web_hooks
from notebooks_service.forge.ci_pipelines import RefChange
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.git_access import Permit
from notebooks_service.forge.git_hooks import Push
from notebooks_service.forge.models import Project
from notebooks_service.forge.web_hook_payloads import Pushed

log = logging.getLogger(__name__)


def accepted(state: State, permit: Permit, push: Push) -> None:
    """Note a push in the database and make its pipelines. Blocks; called in a thread."""
    config: ForgeConfig = state.config
    database: Database = state.database
    if permit.user_id is None or not push.updates:
        return
    log.info(
        "push by %s to project %d: %d refs", permit.username, permit.project_id, len(push.updates)
    )
    note_push(
        database,
        config,
        permit.project_id,
        [update.ref for update in push.updates if update.after.strip("0")],
        was_empty=permit.rules is not None and permit.rules["empty"],
    )
    web_hooks.pushed(
        database,
        config,
        permit.project_id,
        permit.user_id,
        [Pushed(update.ref, update.before, update.after, push.options) for update in push.updates],
    )
    ci_pipelines.pushed(
        database,
        config,
        permit.project_id,
        permit.user_id,
        [RefChange(update.ref, update.before, update.after) for update in push.updates],
        push.options,
    )


def note_push(
    database: Database, config: ForgeConfig, project_id: int, refs: list[str], *, was_empty: bool
) -> None:
    """The project was active now; the first branch of an empty repository is its default branch."""
    with database.write() as session:
        project = session.get(Project, project_id)
        if project is None:
            return
        project.last_activity_at = now()
        branches = [
            ref.removeprefix("refs/heads/") for ref in refs if ref.startswith("refs/heads/")
        ]
        if was_empty and branches and project.default_branch not in branches:
            project.default_branch = branches[0]
            repositories.set_head(config.repository(project_id), branches[0])
        if was_empty and branches:
            protection.protect_default(session, project)
