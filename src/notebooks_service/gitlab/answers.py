"""From GitLab's JSON to our nouns; used by ``gitlab/forge.py``. Fields: https://docs.gitlab.com/api/"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from notebooks_service.domain import Commit, ForgeUser, Job, Project, Ref

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list. ``total`` is None where the forge does not count (over 10,000 rows)."""

    items: tuple[T, ...]
    page: int
    next_page: int | None
    total: int | None


@dataclass(frozen=True)
class RegistryTag:
    """A tag in a project's registry: ``<host>/<project>:<tag>`` and the digest it points at now."""

    reference: str
    digest: str | None


def user_from(data: Mapping[str, Any]) -> ForgeUser:
    """A person; their e-mail is the one that GitLab writes into their own commits."""
    email = data.get("commit_email") or data.get("email") or data.get("public_email") or ""
    username = data["username"]
    return ForgeUser(
        id=int(data["id"]), username=username, name=data.get("name") or username, email=email
    )


def project_from(data: Mapping[str, Any]) -> Project:
    """A project. GitLab leaves ``default_branch`` out for people who may not read the code."""
    return Project(
        id=int(data["id"]),
        path=data["path_with_namespace"],
        name=data.get("name") or data["path_with_namespace"].rsplit("/", 1)[-1],
        default_branch=data.get("default_branch") or None,
        visibility=data.get("visibility") or "private",
        web_url=data.get("web_url") or "",
        description=data.get("description") or "",
        empty=bool(data.get("empty_repo", False)),
        last_activity_at=data.get("last_activity_at") or "",
    )


def commit_from(data: Mapping[str, Any]) -> Commit:
    return Commit(
        sha=data["id"],
        title=data.get("title") or "",
        message=data.get("message") or data.get("title") or "",
        author_name=data.get("author_name") or "",
        author_email=data.get("author_email") or "",
        authored_at=data.get("authored_date") or data.get("created_at") or "",
        parents=tuple(data.get("parent_ids") or ()),
    )


def branch_from(data: Mapping[str, Any]) -> Ref:
    return Ref(
        kind="branch",
        name=data["name"],
        sha=data["commit"]["id"],
        default=bool(data.get("default", False)),
        protected=bool(data.get("protected", False)),
        can_push=bool(data.get("can_push", False)),
    )


def tag_from(data: Mapping[str, Any]) -> Ref:
    """A tag, with the *commit* it leads to (an annotated tag's own object is ``target``)."""
    return Ref(
        kind="tag",
        name=data["name"],
        sha=data["commit"]["id"],
        protected=bool(data.get("protected", False)),
    )


def job_from(data: Mapping[str, Any]) -> Job:
    pipeline = data.get("pipeline") or {}
    return Job(
        id=int(data["id"]),
        name=data["name"],
        status=data["status"],
        pipeline_id=int(pipeline.get("id") or 0),
        web_url=data.get("web_url") or "",
        created_at=data.get("created_at") or "",
        started_at=data.get("started_at"),
        finished_at=data.get("finished_at"),
        failure_reason=data.get("failure_reason"),
    )
