"""A launch's record in the hub's database: how it goes into a spawner's state and comes out.

Called by the launch mixin; read by the service through the hub's API (``state.notebooks``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from notebooks_service.domain import (
    Commit,
    LaunchOutcome,
    LaunchRecord,
    LaunchStep,
    Project,
    new_launch_id,
)
from notebooks_service.errors import NotebooksError
from notebooks_service.spawner.options import LaunchOptions

STATE_KEY = "notebooks"
RESTARTED = "The hub was restarted during this launch; open the URL again."

log = logging.getLogger(__name__)


def now() -> str:
    """The time as records and events write it: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def read_record(state: Mapping[str, Any]) -> LaunchRecord | None:
    """The record in a spawner's state; a broken one counts as none and is logged."""
    data = state.get(STATE_KEY)
    if not isinstance(data, Mapping):
        return None
    try:
        return LaunchRecord.from_dict(data)
    except (KeyError, TypeError, ValueError) as error:
        log.error("The record of a launch cannot be read: %r", error)
        return None


def begin(options: LaunchOptions, previous: LaunchRecord | None) -> LaunchRecord:
    """The record of a launch that begins now; unsaved work noted by the last stop stays noted, and so
    does the image of the launches before, if it was one of the project's.
    """
    had = None if previous is None else previous.image or previous.had
    return LaunchRecord(
        id=new_launch_id(),
        project_id=0,
        project_path=options.project,
        commit=options.commit,
        branch=options.branch,
        requested_at=now(),
        work=previous.work if previous else None,
        had=had if had and had.digest else previous.had if previous else None,
    )


def with_project(record: LaunchRecord, project: Project, commit: Commit) -> LaunchRecord:
    """The record once the forge has said what the project and the commit are."""
    return replace(record, project_id=project.id, project_path=project.path, commit=commit.sha)


def failed(record: LaunchRecord, error: NotebooksError) -> LaunchRecord:
    """The record of a launch that ended with ``error``; watchers see its sentence as an event."""
    told = record.with_event(now(), record.step, error.message, code=error.code)
    return replace(
        told,
        outcome=LaunchOutcome.FAILED,
        failure={"code": error.code, "message": error.message},
    )


def cancelled(record: LaunchRecord) -> LaunchRecord:
    """The record of a launch that somebody cancelled."""
    told = record.with_event(now(), record.step, "Cancelled.")
    return replace(told, outcome=LaunchOutcome.CANCELLED)


def ready(record: LaunchRecord, message: str) -> LaunchRecord:
    """The record of a launch whose server answers."""
    told = record.with_event(now(), LaunchStep.READY, message)
    return replace(told, outcome=LaunchOutcome.READY)


def ended(record: LaunchRecord, why: str) -> LaunchRecord:
    """The record of a server that ended by itself: the launch was a good one, and this is what came."""
    told = record.with_event(now(), LaunchStep.READY, why, code="server_ended")
    return replace(told, failure={"code": "server_ended", "message": why})


def interrupted(record: LaunchRecord) -> LaunchRecord:
    """The record of a launch that a restart of the hub cut off."""
    told = record.with_event(now(), record.step, RESTARTED, code="hub_restarted")
    return replace(
        told,
        outcome=LaunchOutcome.FAILED,
        failure={"code": "hub_restarted", "message": RESTARTED},
        runtime={},
    )


def facts(record: LaunchRecord) -> dict[str, Any]:
    """What is noted beside a server's files in the trash."""
    return {
        "project": record.project_path,
        "project_id": record.project_id,
        "commit": record.commit,
        "branch": record.branch,
        "launch": record.id,
        "requested_at": record.requested_at,
        "work": record.work,
    }
