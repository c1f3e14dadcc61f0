"""Variables of projects and groups for CI jobs.

https://docs.gitlab.com/api/project_level_variables/ · https://docs.gitlab.com/api/group_level_variables/
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, errors, permissions
from notebooks_service.forge.authentication import Asker, Asks
from notebooks_service.forge.ci_models import GroupVariable, Variable
from notebooks_service.forge.ci_parameters import Parameters, flag, text
from notebooks_service.forge.ci_variables import OwnVariable
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import Namespace, Project
from notebooks_service.forge.pagination import PagingDep
from notebooks_service.forge.permissions import Can

router = APIRouter(prefix="/api/v4")
BASE = "/{kind:members_of}/{source_id:segment}/variables"

KEY = re.compile(r"[A-Za-z0-9_]{1,255}")
_MASKABLE = re.compile(r"\S{8,}")
_SCOPE = re.compile(r"[A-Za-z0-9_/${}. *-]{1,255}")
MOST = 8000
AMBIGUOUS = (
    "There are multiple variables with provided parameters. Please use 'filter[environment_scope]'"
)


def _source(session: Session, asker: Asker, kind: str, source_id: str) -> Project | Namespace:
    """The project, for its Maintainers, or the group, for its Owners."""
    asker.need_user()
    if kind == "projects":
        return access.find_project(session, asker, source_id, Can.EDIT_PROJECT).project
    group = access.find_group(session, asker, source_id)
    if not asker.admin and group.level < permissions.OWNER:
        raise errors.forbidden()
    return group.group


def _query(source: Project | Namespace) -> Any:
    if isinstance(source, Project):
        return select(Variable).where(Variable.project_id == source.id).order_by(Variable.id)
    of_group = select(GroupVariable).where(GroupVariable.namespace_id == source.id)
    return of_group.order_by(GroupVariable.id)


def variable_body(variable: OwnVariable) -> dict[str, Any]:
    return {
        "variable_type": variable.variable_type,
        "key": variable.key,
        "value": None if variable.hidden else variable.value,
        "hidden": variable.hidden,
        "protected": variable.protected,
        "masked": variable.masked,
        "raw": variable.raw,
        "environment_scope": variable.environment_scope,
        "description": variable.description,
    }


def variable_type(parameters: dict[str, Any]) -> str:
    kind = text(parameters, "variable_type") or "env_var"
    if kind not in ("env_var", "file"):
        raise errors.ForgeError(400, {"error": "variable_type does not have a valid value"})
    return kind


def _change(variable: OwnVariable, parameters: dict[str, Any]) -> None:
    value = text(parameters, "value")
    if value is not None:
        variable.value = value
    if "variable_type" in parameters:
        variable.variable_type = variable_type(parameters)
    for name in ("protected", "masked", "raw"):
        given = flag(parameters, name, None)
        if given is not None:
            setattr(variable, name, given)
    if "description" in parameters:
        variable.description = text(parameters, "description", limit=255)
    scope = text(parameters, "environment_scope", limit=255)
    if scope is not None:
        if not _SCOPE.fullmatch(scope):
            raise errors.invalid(
                "environment_scope",
                "can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', and spaces, "
                "or '*'",
            )
        variable.environment_scope = scope
    if variable.hidden and not variable.masked:
        raise errors.invalid("base", "The visibility of a hidden variable cannot be changed")
    if variable.masked and not _MASKABLE.fullmatch(variable.value):
        raise errors.invalid("value", "is invalid")


def _need_free(session: Session, source: Project | Namespace, variable: OwnVariable) -> None:
    for one in session.scalars(_query(source)).all():
        if one is not variable and (one.key, one.environment_scope) == (
            variable.key,
            variable.environment_scope,
        ):
            raise errors.invalid("key", f"({variable.key}) has already been taken")


def _find(
    session: Session, source: Project | Namespace, key: str, parameters: dict[str, Any]
) -> OwnVariable:
    """The variable of this key, and of the scope in ``filter`` if there is one."""
    sent = parameters.get("filter")
    scope = sent.get("environment_scope") if isinstance(sent, dict) else None
    scope = scope or parameters.get("filter[environment_scope]")
    found: list[OwnVariable] = [
        one
        for one in session.scalars(_query(source)).all()
        if one.key == key and (scope is None or one.environment_scope == scope)
    ]
    if not found:
        raise errors.not_found("Variable")
    if len(found) > 1:
        raise errors.conflict(AMBIGUOUS)
    return found[0]


@router.get(BASE)
def list_variables(
    kind: str, source_id: str, asker: Asks, session: SessionDep, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/project_level_variables/#list-project-variables (Maintainer)"""
    source = _source(session, asker, kind, source_id)
    return [variable_body(one) for one in paging.rows(session, _query(source))]


@router.post(BASE, status_code=201)
def create_variable(
    kind: str, source_id: str, parameters: Parameters, asker: Asks, session: SessionDep
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_level_variables/#create-a-variable"""
    source = _source(session, asker, kind, source_id)
    key, value = text(parameters, "key"), text(parameters, "value")
    if key is None or value is None:
        raise errors.ForgeError(400, {"error": f"{'key' if key is None else 'value'} is missing"})
    if not KEY.fullmatch(key):
        raise errors.invalid("key", "can contain only letters, digits and '_'.")
    if len(session.scalars(_query(source)).all()) >= MOST:
        raise errors.invalid("base", f"Maximum number of ci variables ({MOST}) exceeded")
    hidden = bool(flag(parameters, "masked_and_hidden"))
    values: dict[str, Any] = {
        "key": key,
        "value": value,
        "variable_type": "env_var",
        "protected": False,
        "masked": hidden,
        "raw": False,
        "hidden": hidden,
        "environment_scope": "*",
    }
    variable: OwnVariable
    if isinstance(source, Project):
        variable = Variable(project_id=source.id, **values)
    else:
        variable = GroupVariable(namespace_id=source.id, **values)
    _change(variable, {"masked": hidden or None} | parameters if hidden else parameters)
    _need_free(session, source, variable)
    session.add(variable)
    return variable_body(variable)


@router.get(BASE + "/{key:segment}")
def get_variable(
    kind: str,
    source_id: str,
    key: str,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_level_variables/#get-a-single-variable"""
    source = _source(session, asker, kind, source_id)
    return variable_body(_find(session, source, key, parameters))


@router.put(BASE + "/{key:segment}")
def update_variable(
    kind: str,
    source_id: str,
    key: str,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/project_level_variables/#update-a-variable"""
    source = _source(session, asker, kind, source_id)
    variable = _find(session, source, key, parameters)
    with session.no_autoflush:
        _change(variable, parameters)
        _need_free(session, source, variable)
    return variable_body(variable)


@router.delete(BASE + "/{key:segment}", status_code=204)
def delete_variable(
    kind: str,
    source_id: str,
    key: str,
    parameters: Parameters,
    asker: Asks,
    session: SessionDep,
) -> Response:
    """https://docs.gitlab.com/api/project_level_variables/#delete-a-variable"""
    source = _source(session, asker, kind, source_id)
    session.delete(_find(session, source, key, parameters))
    return Response(status_code=204)
