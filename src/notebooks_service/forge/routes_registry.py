"""The registry's API: one repository of images for each project, tagged with commits' shas.

https://docs.gitlab.com/api/container_registry/
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy.orm import Session

from notebooks_service.forge import access, errors, tag_rules
from notebooks_service.forge.authentication import Asker, asks
from notebooks_service.forge.ci_parameters import Parameters, flag
from notebooks_service.forge.ci_variables import registry_image
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import SessionDep, iso
from notebooks_service.forge.models import Project
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.registry import Registry, Tag

router = APIRouter(prefix="/api/v4")
BASE = "/projects/{project_id:segment}/registry/repositories"

AsksForImages = Annotated[Asker, Depends(asks("read_registry"))]
RepositoryId = Annotated[int, Path(ge=1, lt=2**63)]


def _registry(request: Request) -> Registry:
    found: Registry = request.app.state.registry
    return found


def _tag_body(config: ForgeConfig, project: Project, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"{project.full_path.lower()}:{name}",
        "location": f"{registry_image(config, project)}:{name}",
    }


def _detail_body(config: ForgeConfig, project: Project, tag: Tag) -> dict[str, Any]:
    return {
        **_tag_body(config, project, tag.name),
        "revision": tag.revision or None,
        "short_revision": tag.revision[:9] or None,
        "digest": tag.digest,
        "created_at": tag.created_at or None,
        "total_size": tag.size,
    }


def _repository_body(config: ForgeConfig, project: Project) -> dict[str, Any]:
    """Its id is the project's: there is one for each, for ever."""
    return {
        "id": project.id,
        "name": "",
        "path": project.full_path.lower(),
        "project_id": project.id,
        "location": registry_image(config, project),
        "created_at": iso(project.created_at),
        "cleanup_policy_started_at": None,
        "status": None,
    }


def _find(
    session: Session,
    asker: Asker,
    project_id: str,
    repository_id: int | None = None,
    need: Can = Can.READ_REGISTRY,
) -> Project:
    found = access.find_project(session, asker, project_id, need)
    if repository_id is not None and repository_id != found.project.id:
        raise errors.not_found()
    return found.project


def _with_tags(
    body: dict[str, Any], request: Request, project: Project, parameters: dict[str, Any]
) -> dict[str, Any]:
    config: ForgeConfig = request.app.state.config
    names = _registry(request).names(project)
    if flag(parameters, "tags_count"):
        body["tags_count"] = len(names)
    if flag(parameters, "tags"):
        body["tags"] = [_tag_body(config, project, name) for name in names]
    return body


@router.get(BASE)
def list_repositories(
    project_id: str,
    request: Request,
    parameters: Parameters,
    asker: AsksForImages,
    session: SessionDep,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/container_registry/#list-registry-repositories

    Empty as long as the project has no image.
    """
    project = _find(session, asker, project_id)
    found = [project] if _registry(request).names(project) else []
    bodies = [_repository_body(request.app.state.config, one) for one in paging.items(found)]
    return [_with_tags(body, request, project, parameters) for body in bodies]


@router.get("/registry/repositories/{repository_id}")
def get_repository(
    repository_id: RepositoryId,
    request: Request,
    parameters: Parameters,
    asker: AsksForImages,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/container_registry/#get-details-of-a-single-repository"""
    project = _find(session, asker, str(repository_id))
    body = _repository_body(request.app.state.config, project)
    return _with_tags(body, request, project, parameters)


@router.get(BASE + "/{repository_id}/tags")
def list_tags(
    project_id: str,
    repository_id: RepositoryId,
    request: Request,
    asker: AsksForImages,
    session: SessionDep,
    paging: PagingDep,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/container_registry/#list-registry-repository-tags"""
    project = _find(session, asker, project_id, repository_id)
    names = _registry(request).names(project)
    return [_tag_body(request.app.state.config, project, name) for name in paging.items(names)]


@router.get(BASE + "/{repository_id}/tags/{name:segment}")
def get_tag(
    project_id: str,
    repository_id: RepositoryId,
    name: str,
    request: Request,
    asker: AsksForImages,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/container_registry/#get-details-of-a-registry-repository-tag"""
    project = _find(session, asker, project_id, repository_id)
    tag = _registry(request).tag(project, name)
    if tag is None:
        raise errors.not_found("Tag")
    return _detail_body(request.app.state.config, project, tag)


@router.delete(BASE + "/{repository_id}/tags/{name:segment}")
def delete_tag(
    project_id: str,
    repository_id: RepositoryId,
    name: str,
    request: Request,
    asker: AsksForImages,
    session: SessionDep,
) -> Response:
    """https://docs.gitlab.com/api/container_registry/#delete-a-registry-repository-tag

    Only this tag: other tags of the same environment stay, and so does the environment. A registry that
    cannot do that, such as docker's own before version 3, is answered for with GitLab's 400.
    """
    if asker.kind != "job" and not asker.has_scope("api"):
        raise errors.insufficient_scope(["api"])
    asker.need_user()
    project = _find(session, asker, project_id, repository_id, Can.CHANGE_REGISTRY)
    found = access.project_access(session, asker, project)
    if tag_rules.covers(tag_rules.denied(session, found, "delete"), name):
        raise errors.forbidden()
    # Asking a registry takes its time, and nobody else could write meanwhile.
    session.commit()
    removed = _registry(request).remove_tag(project, name)
    if removed is None:
        raise errors.bad_request("400 Bad request - another tag of the registry has this image")
    if not removed:
        raise errors.not_found("Tag")
    return Response("null", media_type="application/json")
