"""Which webhooks an event concerns: puts a delivery for each of them into the queue.

``pushed`` is called after a push, by git or by the API. Jobs and pipelines need no caller: every
change of a status that a session of the forge commits is seen here, and its deliveries are written
in the same transaction. They are sent by ``web_hook_delivery``.
"""

from __future__ import annotations

import fnmatch
import logging
import uuid
from collections.abc import Sequence
from typing import Any

import re2  # type: ignore[import-untyped]
from sqlalchemy import event, func, or_, select
from sqlalchemy.orm import Session, attributes

from notebooks_service.forge import access, ci_processing, web_hook_payloads
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.ci_queue import JobQueue
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.models import Project, User
from notebooks_service.forge.web_hook_models import WaitingDelivery, WebHook
from notebooks_service.forge.web_hook_payloads import Pushed

log = logging.getLogger(__name__)

QUEUE = JobQueue()
"""Tells the sender that there is something to send."""

EVENTS = {
    "push_events": "push_hooks",
    "tag_push_events": "tag_push_hooks",
    "job_events": "job_hooks",
    "pipeline_events": "pipeline_hooks",
}
"""The events that happen here, and the name of each one's trigger."""
OTHER_EVENTS = (
    "issues_events",
    "confidential_issues_events",
    "merge_requests_events",
    "note_events",
    "confidential_note_events",
    "wiki_page_events",
    "deployment_events",
    "releases_events",
    "feature_flag_events",
    "milestone_events",
    "emoji_events",
    "resource_access_token_events",
    "vulnerability_events",
)
"""Events of things that this forge does not have: a hook may ask for them, they never happen."""

MOST_REFS = 3
"""A push of more branches (or more tags) triggers no hook of that kind (``push_event_hooks_limit``)."""
MOST_WAITING = 1000
"""Deliveries that wait for one hook; what comes on top is dropped, and the log says so."""

GRACE = 3
"""Failures in a row that change nothing (GitLab: ``TEMPORARILY_DISABLED_FAILURE_THRESHOLD``)."""
LAST = 39
"""One failure more and the hook is off until somebody tests or edits it."""


def alert_status(hook: WebHook) -> str:
    """``executable``, ``temporarily_disabled`` or ``disabled``, by GitLab's rules.

    https://docs.gitlab.com/user/project/integrations/webhooks/#auto-disabled-webhooks
    """
    if hook.recent_failures > LAST:
        return "disabled"
    if (
        hook.recent_failures > GRACE
        and hook.disabled_until is not None
        and hook.disabled_until >= now()
    ):
        return "temporarily_disabled"
    return "executable"


def branch_matches(hook: WebHook, ref: str) -> bool:
    """https://docs.gitlab.com/user/project/integrations/webhooks/#filter-push-events-by-branch"""
    if not ref.startswith("refs/heads/") or not hook.branch_filter:
        return True
    branch = ref.removeprefix("refs/heads/")
    if hook.branch_filter_strategy == "all_branches":
        return True
    if hook.branch_filter_strategy == "regex":
        pattern = compiled(hook.branch_filter)
        return pattern is not None and pattern.search(branch) is not None
    # GitLab's wildcard is the star alone.
    wildcard = hook.branch_filter.replace("[", "[[]").replace("?", "[?]")
    return fnmatch.fnmatchcase(branch, wildcard)


def compiled(pattern: str) -> Any:
    """A branch filter's regular expression, in RE2 as on GitLab; None if it is none."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    try:
        return re2.compile(pattern, options)
    except re2.error:
        return None


def hooks_of(session: Session, project: Project, trigger_event: str) -> list[WebHook]:
    """The hooks, of the project and of the groups it lies in, that may be told of such an event."""
    groups = [one.id for one in access.ancestors(session, project.namespace)]
    found = session.scalars(
        select(WebHook)
        .where(or_(WebHook.project_id == project.id, WebHook.namespace_id.in_(groups)))
        .order_by(WebHook.id)
    ).all()
    return [
        hook
        for hook in found
        if trigger_event in hook.events and alert_status(hook) == "executable"
    ]


def add(
    session: Session,
    hook: WebHook,
    project_id: int,
    trigger_event: str,
    payload: dict[str, Any],
    commit: str | None = None,
) -> None:
    """One more delivery for ``hook``; sent once the session is committed."""
    waiting = session.scalar(
        select(func.count()).select_from(WaitingDelivery).where(WaitingDelivery.hook_id == hook.id)
    )
    if (waiting or 0) >= MOST_WAITING:
        log.warning("hook %d has too many deliveries waiting; one is dropped", hook.id)
        return
    session.add(
        WaitingDelivery(
            hook_id=hook.id,
            project_id=project_id,
            trigger=EVENTS[trigger_event],
            payload=payload,
            commit=commit,
            idempotency_key=str(uuid.uuid4()),
            event_uuid=str(uuid.uuid4()),
        )
    )


def pushed(
    database: Database,
    config: ForgeConfig,
    project_id: int,
    user_id: int,
    changes: Sequence[Pushed],
) -> None:
    """What a push changed. Raises nothing: the push has happened, and its pipelines come next."""
    try:
        _pushed(database, config, project_id, user_id, changes)
    except Exception:
        log.exception("no webhooks for a push to project %d", project_id)


def _pushed(
    database: Database,
    config: ForgeConfig,
    project_id: int,
    user_id: int,
    changes: Sequence[Pushed],
) -> None:
    """Reads the repository only if somebody wants to know."""
    for trigger_event, prefix in (
        ("push_events", "refs/heads/"),
        ("tag_push_events", "refs/tags/"),
    ):
        wanted = [change for change in changes if change.ref.startswith(prefix)]
        if not 0 < len(wanted) <= MOST_REFS:
            continue
        with database.read() as session:
            project, user = session.get(Project, project_id), session.get(User, user_id)
            if project is None or user is None:
                return
            found = hooks_of(session, project, trigger_event)
            payloads = [
                (hook.id, web_hook_payloads.push_body(session, config, project, user, change))
                for change in wanted
                for hook in found
                if branch_matches(hook, change.ref)
            ]
        if not payloads:
            continue
        with database.write() as session:
            for hook_id, payload in payloads:
                hook = session.get(WebHook, hook_id)
                if hook is not None:
                    add(session, hook, project_id, trigger_event, payload)
        QUEUE.changed()


# Jobs and pipelines ---------------------------------------------------------------------------

_CHANGED = "statuses changed"


def watch(database: Database, config: ForgeConfig) -> None:
    """Watch the sessions of this database; called once, by the forge's application."""

    def flushed(session: Session, context: Any) -> None:
        """Notes each status that a flush writes: one transaction may go through several."""
        for one in [*session.new, *session.dirty]:
            if isinstance(one, (Job, Pipeline)) and (
                one in session.new or attributes.get_history(one, "status").has_changes()
            ):
                session.info.setdefault(_CHANGED, []).append((one, one.status))

    def before_commit(session: Session) -> None:
        if not session.get_bind().get_execution_options().get("forge_write", False):
            return
        session.flush()
        for one, status in session.info.pop(_CHANGED, []):
            _status_changed(session, config, one, status)

    def rolled_back(session: Session) -> None:
        session.info.pop(_CHANGED, None)

    event.listen(database.session_class, "after_flush", flushed)
    event.listen(database.session_class, "before_commit", before_commit)
    event.listen(database.session_class, "after_rollback", rolled_back)


def _status_changed(
    session: Session, config: ForgeConfig, one: Job | Pipeline, status: str
) -> None:
    if one not in session:
        return
    if isinstance(one, Job):
        # Trigger jobs are excluded: https://docs.gitlab.com/user/project/integrations/webhook_events/#job-events
        trigger_event, pipeline = "job_events", one.pipeline
        if one.kind == "bridge" or (one.user is not None and one.user.state != "active"):
            return
    else:
        trigger_event, pipeline = "pipeline_events", one
        if status == "created":
            return
    found = hooks_of(session, pipeline.project, trigger_event)
    if not found:
        return
    if isinstance(one, Job):
        payload = web_hook_payloads.job_body(session, config, one)
        payload["build_status"] = status
    else:
        jobs = ci_processing.latest_jobs(session, one)
        payload = web_hook_payloads.pipeline_body(session, config, one, jobs)
        payload["object_attributes"]["status"] = status
        payload["object_attributes"]["detailed_status"] = web_hook_payloads.label(status)
    for hook in found:
        add(session, hook, pipeline.project_id, trigger_event, payload, pipeline.sha)
    QUEUE.changed_on_commit(session)
