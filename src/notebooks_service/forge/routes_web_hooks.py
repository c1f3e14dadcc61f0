"""Webhooks of projects and groups. https://docs.gitlab.com/api/project_webhooks/"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import ColumnElement, Integer, cast, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from notebooks_service.forge import (
    access,
    ci_processing,
    errors,
    permissions,
    web_hook_payloads,
    web_hooks,
)
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_models import Job, Pipeline
from notebooks_service.forge.ci_parameters import Parameters, flag, text
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import Database, SessionDep, iso, now
from notebooks_service.forge.models import Namespace, Project, User
from notebooks_service.forge.outbound import NotAllowed, without_password
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.throttle import Throttle
from notebooks_service.forge.web_hook_delivery import (
    INTERNAL_ERROR,
    KEPT,
    Deliveries,
    forget_old,
    log_entry,
    note,
)
from notebooks_service.forge.web_hook_models import DeliveryLog, WebHook

router = APIRouter(prefix="/api/v4")
BASE = "/{kind:members_of}/{source_id:segment}/hooks"
ONE = BASE + "/{hook_id}"

Kind = Literal["projects", "groups"]
HookId = Annotated[int, Path(ge=1, lt=2**63)]

MOST_HOOKS = 100
"""Hooks of one project, as on GitLab."""
STRATEGIES = ("wildcard", "regex", "all_branches")
TOO_OFTEN = "This endpoint has been requested too many times. Try again later."
CATEGORIES = {
    "successful": (200, 299),
    "client_failure": (400, 499),
    "server_failure": (500, 599),
}


@dataclass(frozen=True)
class Source:
    """The project or group whose hooks are asked about, by somebody who may."""

    project: Project | None
    group: Namespace | None

    @property
    def own(self) -> ColumnElement[bool]:
        if self.project is not None:
            return WebHook.project_id == self.project.id
        assert self.group is not None
        return WebHook.namespace_id == self.group.id


def _source(session: Session, asker: Asker, kind: Kind, source_id: str) -> Source:
    """Projects take Maintainers, groups Owners; a CI job's token is nobody here."""
    asker.need_user()
    if kind == "projects":
        found = access.find_project(session, asker, source_id, Can.EDIT_PROJECT)
        return Source(found.project, None)
    group = access.find_group(session, asker, source_id)
    if not group.admin and group.level < permissions.OWNER:
        raise errors.forbidden()
    return Source(None, group.group)


def _hook(session: Session, source: Source, hook_id: int) -> WebHook:
    hook = session.scalar(select(WebHook).where(source.own, WebHook.id == hook_id))
    if hook is None:
        raise errors.not_found()
    return hook


def _body(hook: WebHook) -> dict[str, Any]:
    """A hook without its secret, and without a password that its URL has."""
    asked = {name: name in hook.events for name in (*web_hooks.EVENTS, *web_hooks.OTHER_EVENTS)}
    owner = (
        {"project_id": hook.project_id}
        if hook.project_id is not None
        else {"group_id": hook.namespace_id}
    )
    return {
        "id": hook.id,
        "url": without_password(hook.url),
        "name": hook.name,
        "description": hook.description,
        "created_at": iso(hook.created_at),
        **owner,
        **asked,
        "push_events_branch_filter": hook.branch_filter or None,
        "branch_filter_strategy": hook.branch_filter_strategy,
        "enable_ssl_verification": hook.enable_ssl_verification,
        "repository_update_events": False,
        "alert_status": web_hooks.alert_status(hook),
        "disabled_until": iso(hook.disabled_until)
        if web_hooks.alert_status(hook) == "temporarily_disabled"
        else None,
        "url_variables": [],
        "custom_webhook_template": None,
        "custom_headers": [],
    }


@router.get(BASE)
def list_hooks(
    kind: Kind, source_id: str, asker: Asks, session: SessionDep, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/project_webhooks/#list-webhooks-for-a-project"""
    source = _source(session, asker, kind, source_id)
    query = select(WebHook).where(source.own).order_by(WebHook.id)
    return [_body(hook) for hook in paging.rows(session, query)]


@router.get(ONE)
def get_hook(
    kind: Kind, source_id: str, hook_id: HookId, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_webhooks/#get-a-project-webhook"""
    return _body(_hook(session, _source(session, asker, kind, source_id), hook_id))


def _change(request: Request, hook: WebHook, parameters: dict[str, Any], *, new: bool) -> None:
    """Takes over what was sent. Raises GitLab's 400 and 422."""
    for name in ("custom_headers", "custom_webhook_template", "url_variables"):
        if parameters.get(name):
            raise errors.not_implemented(f"{name} of webhooks")
    url = text(parameters, "url", limit=2048)
    if new and not url:
        raise errors.ForgeError(400, {"error": "url is missing"})
    if url and (new or url != without_password(hook.url)):
        deliveries: Deliveries = request.app.state.deliveries
        try:
            deliveries.sender.check(url)
        except NotAllowed:
            raise errors.unprocessable("Invalid url given") from None
        if not new and url != hook.url:
            # Whoever may edit a hook must not send its secret to an address of their own.
            hook.token = None
        hook.url = url
    for name, limit in (("name", 255), ("description", 2048)):
        if name in parameters:
            setattr(hook, name, text(parameters, name, limit=limit) or None)
    if "token" in parameters:
        token = text(parameters, "token", limit=255) or None
        if token is not None and not re.fullmatch(r"[\x20-\x7e]+", token):
            raise errors.invalid("token", "must be printable")
        hook.token = token
    strategy = text(parameters, "branch_filter_strategy") or hook.branch_filter_strategy
    pattern = text(parameters, "push_events_branch_filter", limit=5000)
    hook.branch_filter = hook.branch_filter if pattern is None else pattern
    if strategy not in STRATEGIES:
        raise errors.ForgeError(
            400, {"error": "branch_filter_strategy does not have a valid value"}
        )
    hook.branch_filter_strategy = strategy
    if not _is_filter(strategy, hook.branch_filter):
        raise errors.unprocessable("Invalid branch filter given")
    hook.enable_ssl_verification = bool(
        flag(parameters, "enable_ssl_verification", hook.enable_ssl_verification)
    )
    wanted = set(hook.events)
    for name in (*web_hooks.EVENTS, *web_hooks.OTHER_EVENTS):
        if flag(parameters, name, name in wanted):
            wanted.add(name)
        else:
            wanted.discard(name)
    hook.events = sorted(wanted)
    # Somebody has looked at it: it is tried again.
    hook.recent_failures = 0
    hook.disabled_until = None


def _is_filter(strategy: str, pattern: str) -> bool:
    if strategy != "regex" or not pattern:
        return not re.search(r"[\x00-\x20\x7f]", pattern)
    return web_hooks.compiled(pattern) is not None


@router.post(BASE, status_code=201)
def add_hook(
    kind: Kind,
    source_id: str,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_webhooks/#add-a-webhook-to-a-project"""
    _source(session, asker, kind, source_id)
    hook = WebHook(
        events=["push_events"],
        branch_filter="",
        branch_filter_strategy="wildcard",
        enable_ssl_verification=True,
    )
    # Asks DNS, which takes as long as it takes: not while others wait for the write lock.
    session.commit()
    _change(request, hook, parameters, new=True)
    source = _source(session, asker, kind, source_id)
    if len(session.scalars(select(WebHook.id).where(source.own)).all()) >= MOST_HOOKS:
        raise errors.unprocessable(f"Maximum number of project hooks ({MOST_HOOKS}) exceeded")
    hook.project_id = source.project.id if source.project else None
    hook.namespace_id = source.group.id if source.group else None
    session.add(hook)
    session.flush()
    return _body(hook)


@router.put(ONE)
def edit_hook(
    kind: Kind,
    source_id: str,
    hook_id: HookId,
    request: Request,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_webhooks/#edit-a-project-webhook

    A new URL forgets the secret, as on GitLab. A URL whose password is shown as stars stays as it is.
    """
    changed = _hook(session, _source(session, asker, kind, source_id), hook_id)
    session.commit()
    session.expunge(changed)
    _change(request, changed, parameters, new=False)
    _hook(session, _source(session, asker, kind, source_id), hook_id)
    return _body(session.merge(changed))


@router.delete(ONE, status_code=204)
def delete_hook(
    kind: Kind, source_id: str, hook_id: HookId, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/project_webhooks/#delete-project-webhook"""
    session.delete(_hook(session, _source(session, asker, kind, source_id), hook_id))
    return Response(status_code=204)


# Deliveries -----------------------------------------------------------------------------------


@router.get(ONE + "/events")
def list_events(
    kind: Kind,
    source_id: str,
    hook_id: HookId,
    asker: Asks,
    session: SessionDep,
    paging: PagingDep,
    status: str = "",
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/project_webhooks/#get-a-list-of-project-webhook-events"""
    hook = _hook(session, _source(session, asker, kind, source_id), hook_id)
    query = select(DeliveryLog).where(
        DeliveryLog.hook_id == hook.id, DeliveryLog.created_at >= now() - KEPT
    )
    if status in CATEGORIES:
        number = cast(DeliveryLog.response_status, Integer)
        query = query.where(number.between(*CATEGORIES[status]))
    elif re.fullmatch(r"[0-9]{3}", status):
        query = query.where(DeliveryLog.response_status == status)
    elif status:
        raise errors.ForgeError(400, {"error": "status does not have a valid value"})
    rows = paging.rows(session, query.order_by(DeliveryLog.id.desc()))
    return [_event_body(row) for row in rows]


def _event_body(row: DeliveryLog) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.url,
        "trigger": row.trigger,
        "request_headers": row.request_headers,
        "request_data": row.request_data,
        "response_headers": row.response_headers,
        "response_body": row.response_body,
        "execution_duration": row.milliseconds / 1000,
        "response_status": row.response_status,
    }


@router.post(ONE + "/events/{event_id}/resend", status_code=201)
async def resend(
    kind: Kind,
    source_id: str,
    hook_id: HookId,
    event_id: HookId,
    request: Request,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_webhooks/#resend-a-project-webhook-event"""

    def find() -> tuple[WebHook, DeliveryLog]:
        hook = _hook(session, _source(session, asker, kind, source_id), hook_id)
        row = session.get(DeliveryLog, event_id)
        if row is None or row.hook_id != hook.id:
            raise errors.not_found()
        # Whatever the receiver takes its time for, nobody waits for the write lock.
        session.commit()
        return hook, row

    hook, row = await run_in_threadpool(find)
    _not_too_often(request, asker, f"resend {hook.id}")
    if row.url != without_password(hook.url):
        raise errors.unprocessable("The hook URL has changed. Unable to retry")
    key = row.request_headers.get("Idempotency-Key", "")
    event_uuid = row.request_headers.get("X-Gitlab-Event-UUID", "")
    outcome = await _send_now(request, hook, row.trigger, row.request_data, key, event_uuid)
    if outcome == INTERNAL_ERROR:
        raise errors.unprocessable("internal error")
    return {"response_status": int(outcome)}


@router.post(ONE + "/test/{trigger:segment}", status_code=201)
async def test_hook(
    kind: Kind,
    source_id: str,
    hook_id: HookId,
    trigger: str,
    request: Request,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_webhooks/#trigger-a-test-project-webhook

    Waits for the answer of the hook's receiver. A hook that was switched off is on again if it is
    a good one.
    """

    def prepare() -> tuple[WebHook, dict[str, Any]]:
        source = _source(session, asker, kind, source_id)
        hook = _hook(session, source, hook_id)
        if trigger not in web_hooks.EVENTS:
            raise errors.ForgeError(400, {"error": "trigger does not have a valid value"})
        project = source.project or _a_project(session, source)
        if project is None:
            raise errors.unprocessable("Ensure the group has a project with commits.")
        config: ForgeConfig = request.app.state.config
        session.commit()
        payload = _sample(session, config, project, asker.need_user(), trigger)
        session.commit()
        return hook, payload

    hook, payload = await run_in_threadpool(prepare)
    _not_too_often(request, asker, f"test {kind} {source_id}")
    outcome = await _send_now(request, hook, web_hooks.EVENTS[trigger], payload)
    if outcome == INTERNAL_ERROR:
        raise errors.unprocessable("The receiver did not answer, or may not be reached from here")
    if not 200 <= int(outcome) < 400:
        raise errors.unprocessable(f"The receiver answered {outcome}")
    return {"message": "201 Created"}


def _a_project(session: Session, source: Source) -> Project | None:
    assert source.group is not None
    query = select(Project).where(Project.namespace_id == source.group.id).order_by(Project.id)
    return session.scalars(query.limit(1)).first()


def _sample(
    session: Session, config: ForgeConfig, project: Project, user: User, trigger: str
) -> dict[str, Any]:
    """What a test sends: the newest of what the project has. 422 if it has none."""
    if trigger in ("push_events", "tag_push_events"):
        payload = web_hook_payloads.sample_push(
            session, config, project, user, tag=trigger == "tag_push_events"
        )
        if payload["checkout_sha"] is None:
            raise errors.unprocessable("Ensure the project has at least one commit.")
        return payload
    query: Any
    if trigger == "job_events":
        query = select(Job).where(Job.project_id == project.id, Job.kind == "build")
        job = session.scalars(query.order_by(Job.id.desc()).limit(1)).first()
        if job is None:
            raise errors.unprocessable("Ensure the project has CI jobs.")
        payload = web_hook_payloads.job_body(session, config, job)
        return web_hook_payloads.add_commit(config, project, payload, job.pipeline.sha)
    query = select(Pipeline).where(Pipeline.project_id == project.id)
    pipeline = session.scalars(query.order_by(Pipeline.id.desc()).limit(1)).first()
    if pipeline is None:
        raise errors.unprocessable("Ensure the project has CI pipelines.")
    jobs: Sequence[Job] = ci_processing.latest_jobs(session, pipeline)
    payload = web_hook_payloads.pipeline_body(session, config, pipeline, jobs)
    return web_hook_payloads.add_commit(config, project, payload, pipeline.sha)


def _not_too_often(request: Request, asker: Asker, what: str) -> None:
    """Five a minute for each person: https://docs.gitlab.com/api/project_webhooks/"""
    throttle: Throttle = request.app.state.hook_throttle
    key = f"{asker.need_user().id} {what}"
    if throttle.is_closed(key):
        raise errors.ForgeError(429, {"message": {"error": TOO_OFTEN}})
    throttle.failed(key)


async def _send_now(
    request: Request,
    hook: WebHook,
    trigger: str,
    payload: dict[str, Any],
    key: str = "",
    event_uuid: str = "",
) -> str:
    """Sends at once, once; the answer's status or ``internal error``. The log has it too."""
    deliveries: Deliveries = request.app.state.deliveries
    headers, outcome = await deliveries.now(hook, trigger, payload, key, event_uuid)

    def keep() -> str:
        database: Database = request.app.state.database
        with database.write() as session:
            found = session.get(WebHook, hook.id)
            entry = log_entry(hook, trigger, headers, payload, outcome)
            if found is not None:
                note(found, outcome)
                session.add(entry)
                session.flush()
                forget_old(session, hook.id)
        return entry.response_status

    return await run_in_threadpool(keep)
