"""Deploy tokens of projects and groups, and whose jobs may come into a project.

https://docs.gitlab.com/api/deploy_tokens/ · https://docs.gitlab.com/api/project_job_token_scopes/
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, deploy_tokens, entities, errors, permissions
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_parameters import Parameters, flag, number, text, words
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep, iso
from notebooks_service.forge.models import Namespace, Project
from notebooks_service.forge.pagination import Paging, PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.project_models import DeployToken, JobTokenAccess

router = APIRouter(prefix="/api/v4")
BASE = "/{kind:members_of}/{source_id:segment}/deploy_tokens"
SCOPE = "/projects/{project_id:segment}/job_token_scope"

TokenId = Annotated[int, Path(ge=1, lt=2**63)]
ProjectId = Annotated[int, Path(ge=1, lt=2**63)]


def _source(session: Session, asker: Asker, kind: str, source_id: str) -> Project | Namespace:
    """The project, for its Maintainers, or the group, for its Owners."""
    asker.need_user()
    if kind == "projects":
        return access.find_project(session, asker, source_id, Can.EDIT_PROJECT).project
    group = access.find_group(session, asker, source_id)
    if not asker.admin and group.level < permissions.OWNER:
        raise errors.forbidden()
    return group.group


def _of(source: Project | Namespace) -> Any:
    if isinstance(source, Project):
        return DeployToken.project_id == source.id
    return DeployToken.namespace_id == source.id


def _body(row: DeployToken) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "username": row.username,
        "expires_at": iso(row.expires_at),
        "scopes": row.scopes.split(),
        "revoked": row.revoked,
        "expired": deploy_tokens.is_expired(row),
    }


def _listed(
    session: Session, paging: Paging, parameters: dict[str, Any], condition: Any
) -> list[dict[str, Any]]:
    rows = session.scalars(select(DeployToken).where(condition).order_by(DeployToken.id)).all()
    if flag(parameters, "active"):
        rows = [row for row in rows if not row.revoked and not deploy_tokens.is_expired(row)]
    return [_body(row) for row in paging.items(rows)]


@router.get("/deploy_tokens")
def every_token(
    asker: Asks, session: SessionDep, parameters: Parameters, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/deploy_tokens/#list-all-deploy-tokens (administrators)"""
    asker.need_user()
    if not asker.admin:
        raise errors.forbidden()
    return _listed(session, paging, parameters, DeployToken.id > 0)


@router.get(BASE)
def list_tokens(
    kind: str,
    source_id: str,
    asker: Asks,
    session: SessionDep,
    parameters: Parameters,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/deploy_tokens/#list-project-deploy-tokens"""
    source = _source(session, asker, kind, source_id)
    return _listed(session, paging, parameters, _of(source))


@router.post(BASE, status_code=201)
def create_token(
    kind: str,
    source_id: str,
    asker: Asks,
    session: SessionDep,
    parameters: Parameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/deploy_tokens/#create-a-project-deploy-token"""
    source = _source(session, asker, kind, source_id)
    name, scopes = text(parameters, "name", limit=255), words(parameters, "scopes")
    if not name or not scopes:
        raise errors.ForgeError(400, {"error": f"{'scopes' if name else 'name'} is missing"})
    if not set(scopes) <= set(deploy_tokens.SCOPES):
        raise errors.ForgeError(400, {"error": "scopes does not have a valid value"})
    row, token = deploy_tokens.create(
        session,
        source,
        name,
        [scope for scope in deploy_tokens.SCOPES if scope in scopes],
        username=text(parameters, "username") or None,
        expires_at=_moment(text(parameters, "expires_at")),
        secrets=request.app.state.config.secrets,
    )
    return {**_body(row), "token": token}


def _moment(value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        found = datetime.fromisoformat(value)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise errors.ForgeError(400, {"error": "expires_at is invalid"}) from None


def _find(session: Session, source: Project | Namespace, token_id: int) -> DeployToken:
    row = session.scalar(select(DeployToken).where(_of(source), DeployToken.id == token_id))
    if row is None:
        raise errors.not_found()
    return row


@router.get(BASE + "/{token_id}")
def get_token(
    kind: str, source_id: str, token_id: TokenId, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/deploy_tokens/#retrieve-a-project-deploy-token"""
    return _body(_find(session, _source(session, asker, kind, source_id), token_id))


@router.delete(BASE + "/{token_id}", status_code=204)
def delete_token(
    kind: str, source_id: str, token_id: TokenId, asker: Asks, session: SessionDep
) -> Response:
    """https://docs.gitlab.com/api/deploy_tokens/#delete-a-project-deploy-token"""
    session.delete(_find(session, _source(session, asker, kind, source_id), token_id))
    return Response(status_code=204)


# Job tokens -----------------------------------------------------------------------------------


def _guarded(session: Session, asker: Asker, project_id: str) -> Project:
    asker.need_user()
    return access.find_project(session, asker, project_id, Can.EDIT_PROJECT).project


@router.get(SCOPE)
def get_scope(project_id: str, asker: Asks, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_job_token_scopes/#get-a-projects-cicd-job-token-access-settings"""
    project = _guarded(session, asker, project_id)
    return {"inbound_enabled": project.job_token_scope_enabled, "outbound_enabled": False}


@router.patch(SCOPE, status_code=204)
def change_scope(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters
) -> Response:
    """https://docs.gitlab.com/api/project_job_token_scopes/#patch-a-projects-cicd-job-token-access-settings"""
    project = _guarded(session, asker, project_id)
    enabled = flag(parameters, "enabled", None)
    if enabled is None:
        raise errors.ForgeError(400, {"error": "enabled is missing"})
    project.job_token_scope_enabled = enabled
    return Response(status_code=204)


@router.get(SCOPE + "/allowlist")
def allowlist(
    project_id: str, asker: Asks, session: SessionDep, paging: PagingDep, request: Request
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/project_job_token_scopes/#get-a-projects-cicd-job-token-inbound-allowlist

    The project itself is always among them.
    """
    project = _guarded(session, asker, project_id)
    named = select(JobTokenAccess.source_id).where(JobTokenAccess.project_id == project.id)
    rows = select(Project).where(Project.id.in_(named) | (Project.id == project.id))
    config: ForgeConfig = request.app.state.config
    return [
        entities.project_basic(config, session, one, code=False)
        for one in paging.rows(session, rows.order_by(Project.id))
    ]


@router.post(SCOPE + "/allowlist", status_code=201)
def let_in(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, int]:
    """https://docs.gitlab.com/api/project_job_token_scopes/#add-a-project-to-a-cicd-job-token-inbound-allowlist"""
    project = _guarded(session, asker, project_id)
    wanted = number(parameters, "target_project_id")
    if wanted is None:
        raise errors.ForgeError(400, {"error": "target_project_id is missing"})
    source = access.find_project(session, asker, str(wanted)).project
    known = session.get(JobTokenAccess, (project.id, source.id))
    if source.id == project.id or known is not None:
        raise errors.bad_request("This project is already in the job token allowlist.")
    session.add(JobTokenAccess(project_id=project.id, source_id=source.id))
    return {"source_project_id": project.id, "target_project_id": source.id}


@router.delete(SCOPE + "/allowlist/{target_id}", status_code=204)
def keep_out(project_id: str, target_id: ProjectId, asker: Asks, session: SessionDep) -> Response:
    """https://docs.gitlab.com/api/project_job_token_scopes/#remove-a-project-from-a-cicd-job-token-inbound-allowlist"""
    project = _guarded(session, asker, project_id)
    row = session.get(JobTokenAccess, (project.id, target_id))
    if row is None:
        raise errors.not_found()
    session.delete(row)
    return Response(status_code=204)
