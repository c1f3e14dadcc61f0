"""Rules that protect tags of a project's images. Maintainers only, as in GitLab.

https://docs.gitlab.com/api/container_registry_protection_tag_rules/
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from notebooks_service.forge import access, errors, tag_rules
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_parameters import Parameters, text
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import Project
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.project_models import TagRule

router = APIRouter(prefix="/api/v4")
BASE = "/projects/{project_id:segment}/registry/protection/tag/rules"

RuleId = Annotated[int, Path(ge=1, lt=2**63)]
_LEVELS = ("minimum_access_level_for_push", "minimum_access_level_for_delete")


def _project(session: Session, asker: Asker, project_id: str) -> Project:
    asker.need_user()
    return access.find_project(session, asker, project_id, Can.EDIT_PROJECT).project


def _find(session: Session, project: Project, rule_id: int) -> TagRule:
    row = session.get(TagRule, rule_id)
    if row is None or row.project_id != project.id:
        raise errors.not_found()
    return row


def _body(row: TagRule) -> dict[str, Any]:
    return {
        "id": row.id,
        "project_id": row.project_id,
        "tag_name_pattern": row.pattern,
        "minimum_access_level_for_push": row.push_level,
        "minimum_access_level_for_delete": row.delete_level,
    }


def _refused(why: str) -> errors.ForgeError:
    return errors.ForgeError(422, {"message": [why]})


def _pattern(
    session: Session, project: Project, parameters: dict[str, Any], row: TagRule | None = None
) -> str | None:
    pattern = text(parameters, "tag_name_pattern")
    if pattern is None:
        return None
    if not tag_rules.is_pattern(pattern):
        raise _refused("Tag name pattern not valid RE2 syntax or too long (maximum is 100)")
    for other in tag_rules.rows(session, project.id):
        if other is not row and other.pattern == pattern:
            raise _refused("Tag name pattern has already been taken")
    return pattern


def _level(parameters: dict[str, Any], name: str) -> str | None:
    level = text(parameters, name)
    if level == "" or (level is not None and level not in tag_rules.LEVELS):
        raise errors.ForgeError(400, {"error": f"{name} does not have a valid value"})
    return level


@router.get(BASE)
def list_rules(project_id: str, asker: Asks, session: SessionDep) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/container_registry_protection_tag_rules/#list-container-registry-protection-tag-rules"""
    project = _project(session, asker, project_id)
    return [_body(row) for row in tag_rules.rows(session, project.id)]


@router.post(BASE, status_code=201)
def create_rule(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/container_registry_protection_tag_rules/"""
    project = _project(session, asker, project_id)
    missing = [one for one in ("tag_name_pattern", *_LEVELS) if not parameters.get(one)]
    if missing:
        raise errors.ForgeError(400, {"error": ", ".join(f"{one} is missing" for one in missing)})
    push, delete = (_level(parameters, name) for name in _LEVELS)
    pattern = _pattern(session, project, parameters)
    if len(tag_rules.rows(session, project.id)) >= tag_rules.MOST_RULES:
        raise _refused("Maximum number of protection rules have been reached.")
    row = TagRule(project_id=project.id, pattern=pattern, push_level=push, delete_level=delete)
    session.add(row)
    session.flush()
    return _body(row)


@router.patch(BASE + "/{rule_id}")
def change_rule(
    project_id: str, rule_id: RuleId, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/container_registry_protection_tag_rules/#update-a-container-registry-protection-tag-rule"""
    project = _project(session, asker, project_id)
    row = _find(session, project, rule_id)
    push, delete = (_level(parameters, name) for name in _LEVELS)
    row.pattern = _pattern(session, project, parameters, row) or row.pattern
    row.push_level, row.delete_level = push or row.push_level, delete or row.delete_level
    return _body(row)


@router.delete(BASE + "/{rule_id}", status_code=204)
def delete_rule(project_id: str, rule_id: RuleId, asker: Asks, session: SessionDep) -> Response:
    """https://docs.gitlab.com/api/container_registry_protection_tag_rules/"""
    session.delete(_find(session, _project(session, asker, project_id), rule_id))
    return Response(status_code=204)
