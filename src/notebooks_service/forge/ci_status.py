"""The state machine of jobs and pipelines as pure functions; called by ``ci_pipelines``.

Follows GitLab's ``lib/gitlab/ci/status/composite.rb`` and ``app/services/ci/process_build_service.rb``.
"""

from __future__ import annotations

from collections.abc import Iterable

ACTIVE = frozenset({"pending", "running"})
ALIVE = frozenset({"created", "pending", "running", "manual", "scheduled"})
COMPLETED = frozenset({"success", "failed", "canceled", "skipped"})
CANCELABLE = ALIVE
RETRYABLE = frozenset({"success", "failed", "canceled"})
PLAYABLE = frozenset({"manual", "scheduled"})
STATUSES = (
    "created",
    "waiting_for_resource",
    "preparing",
    "waiting_for_callback",
    "pending",
    "running",
    "success",
    "failed",
    "canceling",
    "canceled",
    "skipped",
    "manual",
    "scheduled",
)

# https://docs.gitlab.com/ci/jobs/job_troubleshooting/ ; the runner's own words among them.
FAILURE_REASONS = frozenset(
    [
        "unknown_failure",
        "script_failure",
        "api_failure",
        "stuck_or_timeout_failure",
        "runner_system_failure",
        "missing_dependency_failure",
        "runner_unsupported",
        "stale_schedule",
        "job_execution_timeout",
        "archived_failure",
        "unmet_prerequisites",
        "scheduler_failure",
        "data_integrity_failure",
        "forward_deployment_failure",
        "user_blocked",
        "project_deleted",
        "ci_quota_exceeded",
        "pipeline_loop_detected",
        "no_matching_runner",
        "trace_size_exceeded",
        "builds_disabled",
        "environment_creation_failure",
        "deployment_rejected",
        "config_error",
        "downstream_pipeline_creation_failed",
        "job_token_expired",
        "runner_configuration_error",
    ]
)


def composite(jobs: Iterable[tuple[str, bool]], *, dag: bool = False) -> str | None:
    """The status of a stage or pipeline whose jobs have these (status, allow_failure); None for none.

    With ``dag`` they are the jobs that one job ``needs``.
    """
    kinds: set[str] = set()
    for status, allow_failure in jobs:
        if allow_failure and status in ("failed", "canceled"):
            kinds.add("warned")
        elif allow_failure and status == "manual":
            kinds.add("ignored")
        else:
            kinds.add(status)
    if not kinds:
        return None
    if dag and kinds & {"skipped", "ignored"}:
        return "skipped"
    if dag and not kinds <= {"success", "failed", "canceled", "warned"}:
        return "pending"
    exact = (
        ("skipped", {"skipped", "ignored"}),
        ("success", {"success", "skipped", "warned", "ignored"}),
        ("created", {"created", "warned", "ignored"}),
        ("canceled", {"canceled", "success", "skipped", "warned", "ignored"}),
        ("pending", {"pending", "created", "skipped", "warned", "ignored"}),
    )
    for status, allowed in exact:
        if kinds <= allowed:
            return status
    if kinds & {"running", "pending"}:
        return "running"
    for status in ("manual", "scheduled"):
        if status in kinds:
            return status
    return "running" if "created" in kinds else "failed"


def next_status(when: str, prior: str | None, *, dag: bool, delayed: bool) -> str | None:
    """What a created job becomes now that the jobs before it are ``prior``; None: it still waits."""
    status = "success" if prior is None else prior
    if status not in COMPLETED:
        return None
    fine = {"success"} if dag else {"success", "skipped"}
    valid = {
        "on_success": fine,
        "manual": fine,
        "delayed": fine,
        "on_failure": {"failed"},
        "always": {"success", "failed", "skipped"},
    }.get(when, set())
    if status not in valid:
        return "skipped"
    if when == "manual":
        return "manual"
    return "scheduled" if delayed else "pending"
