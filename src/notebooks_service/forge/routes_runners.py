"""Runners as people see them: lists and details. All of this forge's are for the whole instance.

https://docs.gitlab.com/api/runners/
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from sqlalchemy import select

from notebooks_service.forge import access, ci_runners, errors
from notebooks_service.forge.authentication import Asks
from notebooks_service.forge.ci_bodies import runner_body
from notebooks_service.forge.ci_models import Job, Runner
from notebooks_service.forge.ci_parameters import Parameters, flag, text, words
from notebooks_service.forge.database import SessionDep, iso
from notebooks_service.forge.pagination import Paging, PagingDep
from notebooks_service.forge.permissions import Can

router = APIRouter(prefix="/api/v4")

RunnerId = Annotated[int, Path(ge=1, lt=2**63)]
STATUSES = ("active", "paused", "online", "offline", "never_contacted", "stale")
TYPES = ("instance_type", "group_type", "project_type")


def _busy(session: SessionDep) -> set[int]:
    running = select(Job.runner_id).where(Job.status == "running", Job.runner_id.is_not(None))
    return {one for one in session.scalars(running.distinct()) if one is not None}


def _body(runner: Runner, busy: set[int]) -> dict[str, Any]:
    return {
        **(runner_body(runner) or {}),
        "created_by": None,
        "created_at": iso(runner.created_at),
        "job_execution_status": "active" if runner.id in busy else "idle",
    }


def _fits(runner: Runner, wanted: str) -> bool:
    """Whether a runner has this status, or, by the old names, is of this kind."""
    if wanted in ("active", "paused"):
        return runner.paused == (wanted == "paused")
    if wanted in ("shared", "instance_type"):
        return True
    if wanted in ("specific", "group_type", "project_type"):
        return False
    return ci_runners.contact(runner) == wanted


def _checked(parameters: dict[str, Any], name: str, known: tuple[str, ...]) -> str | None:
    value = text(parameters, name)
    if value is not None and value not in known:
        if name == "scope":
            raise errors.bad_request("Scope contains invalid value")
        raise errors.ForgeError(400, {"error": f"{name} does not have a valid value"})
    return value


def _listed(
    session: SessionDep, paging: Paging, parameters: dict[str, Any], runners: list[Runner]
) -> list[dict[str, Any]]:
    filters = [
        _checked(parameters, "scope", (*STATUSES, "shared", "specific", *TYPES)),
        _checked(parameters, "type", TYPES),
        _checked(parameters, "status", STATUSES),
    ]
    paused = flag(parameters, "paused", None)
    if paused is not None:
        filters.append("paused" if paused else "active")
    tags = set(words(parameters, "tag_list"))
    version = text(parameters, "version_prefix") or ""
    kept = [
        one
        for one in runners
        if all(_fits(one, wanted) for wanted in filters if wanted)
        and tags <= set(ci_runners.tags_of(session, one))
        and str(one.info.get("version") or "").startswith(version)
    ]
    busy = _busy(session)
    return [_body(one, busy) for one in paging.items(kept)]


def _all(session: SessionDep) -> list[Runner]:
    return list(session.scalars(select(Runner).order_by(Runner.id.desc())).all())


@router.get("/runners")
def own_runners(
    asker: Asks, session: SessionDep, parameters: Parameters, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/runners/#list-owned-runners (none: a person owns those of their projects and groups only)"""
    asker.need_user()
    return _listed(session, paging, parameters, [])


@router.get("/runners/all")
def all_runners(
    asker: Asks, session: SessionDep, parameters: Parameters, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/runners/#list-all-runners (administrators)"""
    asker.need_user()
    if not asker.admin:
        raise errors.forbidden()
    return _listed(session, paging, parameters, _all(session))


@router.get("/runners/{runner_id}")
def get_runner(
    runner_id: RunnerId, asker: Asks, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/runners/#get-runners-details (everybody who has signed in)"""
    asker.need_user()
    runner = session.get(Runner, runner_id)
    if runner is None:
        raise errors.not_found("Runner")
    return {
        **_body(runner, _busy(session)),
        "tag_list": ci_runners.tags_of(session, runner),
        "run_untagged": runner.run_untagged,
        "locked": runner.locked,
        "maximum_timeout": runner.maximum_timeout,
        "access_level": "not_protected",
        "version": runner.info.get("version"),
        "revision": runner.info.get("revision"),
        "platform": runner.info.get("platform"),
        "architecture": runner.info.get("architecture"),
        "contacted_at": iso(runner.contacted_at),
        "maintenance_note": None,
        "projects": [],
        "groups": [],
    }


@router.get("/projects/{project_id:segment}/runners")
def project_runners(
    project_id: str, asker: Asks, session: SessionDep, parameters: Parameters, paging: PagingDep
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/runners/#list-projects-runners (Maintainer)"""
    asker.need_user()
    access.find_project(session, asker, project_id, Can.EDIT_PROJECT)
    return _listed(session, paging, parameters, _all(session))
