"""Commits, branches and tags that are made through the API: who may, and what follows.

The same rules as for a push: Developers push, protected branches have rules of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from notebooks_service.domain import is_commit_sha
from notebooks_service.forge import (
    changes,
    ci_pipelines,
    errors,
    protection,
    pushes,
    repositories,
    web_hooks,
)
from notebooks_service.forge.access import ProjectAccess
from notebooks_service.forge.changes import Change, ChangeRefused, Person
from notebooks_service.forge.ci_pipelines import RefChange
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database
from notebooks_service.forge.hooks import pre_receive
from notebooks_service.forge.models import User
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.web_hook_payloads import Pushed

NO_PUSH = "You are not allowed to push into this branch"


def check_push(session: Session, config: ForgeConfig, found: ProjectAccess, branch: str) -> None:
    """Raises GitLab's 403 for somebody who may not push to this branch."""
    found.need(Can.PUSH)
    rules = protection.rules(session, config, found, web=True)
    rule = pre_receive.branch_rule(rules, branch)
    allowed = rule["push"] if rule else not rules["empty"] or rules["maintainer"]
    if not allowed:
        raise errors.forbidden(NO_PUSH)


def check_ref(
    session: Session, config: ForgeConfig, found: ProjectAccess, ref: str, *, old: str, new: str
) -> None:
    """Raises GitLab's 403 for somebody who may not make, move or delete this branch or tag."""
    found.need(Can.PUSH)
    why = protection.update_refusal(session, config, found, ref, old=old, new=new)
    if why is not None:
        raise errors.forbidden(why.strip())


def check_branch_name(name: str) -> None:
    if not repositories.is_ref_name(name) or is_commit_sha(name):
        raise errors.bad_request("Branch name is invalid")


def commit(
    session: Session,
    database: Database,
    config: ForgeConfig,
    found: ProjectAccess,
    user: User,
    branch: str,
    start: str | None,
    every: Sequence[Change],
    message: str,
    author: Person,
) -> str:
    """Commit to ``branch``, which is made from ``start`` if it does not exist; the new sha."""
    check_branch_name(branch)
    check_push(session, config, found, branch)
    repository = config.repository(found.project.id)
    was_empty = repositories.is_empty(repository)
    row = repositories.one_ref(repository, "heads", branch)
    parent = row.commit if row else None
    if row is None and not was_empty:
        if not start:
            raise errors.bad_request("You can only create or edit files when you are on a branch")
        parent = repositories.resolve(repository, start)
        if parent is None:
            raise errors.bad_request(f"Can't find the start branch or commit {start}")
    elif row is not None and start and start != branch:
        raise errors.bad_request(
            f"A branch called '{branch}' already exists. Switch to that branch in order to make changes"
        )
    try:
        sha = changes.commit_files(
            repository,
            branch,
            parent,
            every,
            message,
            author,
            Person(user.name, user.email),
            old_tip=row.commit if row else None,
        )
    except ChangeRefused as refused:
        raise errors.bad_request(str(refused)) from None
    after_change(
        session,
        database,
        config,
        found,
        user,
        RefChange(f"refs/heads/{branch}", row.commit if row else changes.ZERO, sha),
        was_empty=was_empty,
    )
    return sha


def after_change(
    session: Session,
    database: Database,
    config: ForgeConfig,
    found: ProjectAccess,
    user: User,
    change: RefChange,
    *,
    was_empty: bool = False,
) -> None:
    """What also follows a push: activity, default branch, pipelines. Ends the request's transaction,
    because pipelines are made in their own."""
    session.commit()
    refs = [change.ref] if change.new.strip("0") else []
    pushes.note_push(database, config, found.project.id, refs, was_empty=was_empty)
    pushed = Pushed(change.ref, change.old, change.new)
    web_hooks.pushed(database, config, found.project.id, user.id, [pushed])
    ci_pipelines.pushed(database, config, found.project.id, user.id, [change])
