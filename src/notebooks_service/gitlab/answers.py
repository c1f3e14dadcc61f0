"""From GitLab's JSON to our nouns; used by ``gitlab/forge.py``,
``gitlab/ci.py`` and ``gitlab/registry.py``. Fields: https://docs.gitlab.com/api/"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from notebooks_service.domain import Commit, ForgeUser, Job, Project, Ref, is_commit_sha
from notebooks_service.errors import ForgeUnavailable

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


def read(convert: Callable[[Mapping[str, Any]], T], data: Any) -> T:
    """``convert(data)``; an answer without the fields that GitLab documents is no answer."""
    try:
        return convert(data)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ForgeUnavailable(reason="an answer with other fields than GitLab's") from None


def _text(value: object) -> str:
    """A text of an answer, empty where it has none. Raises ``TypeError`` for anything else."""
    if value is None or isinstance(value, str):
        return value or ""
    raise TypeError(f"{type(value).__name__} in place of a text")


def _needed(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("no text where one is needed")
    return value


def _sha(value: object) -> str:
    if not isinstance(value, str) or not is_commit_sha(value):
        raise ValueError("no full commit id where one is needed")
    return value


def user_from(data: Mapping[str, Any]) -> ForgeUser:
    """A person; their e-mail is the one that GitLab writes into their own commits."""
    email = data.get("commit_email") or data.get("email") or data.get("public_email")
    username = _needed(data["username"])
    name = _text(data.get("name")) or username
    return ForgeUser(id=int(data["id"]), username=username, name=name, email=_text(email))


def project_from(data: Mapping[str, Any]) -> Project:
    """A project. GitLab leaves ``default_branch`` out for people who may not read the code."""
    path = _needed(data["path_with_namespace"])
    return Project(
        id=int(data["id"]),
        path=path,
        name=_text(data.get("name")) or path.rsplit("/", 1)[-1],
        default_branch=_text(data.get("default_branch")) or None,
        visibility=_text(data.get("visibility")) or "private",
        web_url=_text(data.get("web_url")),
        description=_text(data.get("description")),
        empty=bool(data.get("empty_repo", False)),
        last_activity_at=_text(data.get("last_activity_at")),
        registry=_text(data.get("container_registry_image_prefix")),
    )


def commit_from(data: Mapping[str, Any]) -> Commit:
    return Commit(
        sha=_sha(data["id"]),
        title=_text(data.get("title")),
        message=_text(data.get("message") or data.get("title")),
        author_name=_text(data.get("author_name")),
        author_email=_text(data.get("author_email")),
        authored_at=_text(data.get("authored_date") or data.get("created_at")),
        parents=tuple(_sha(parent) for parent in data.get("parent_ids") or ()),
    )


def branch_from(data: Mapping[str, Any]) -> Ref:
    return Ref(
        kind="branch",
        name=_needed(data["name"]),
        sha=_sha(data["commit"]["id"]),
        default=bool(data.get("default", False)),
        protected=bool(data.get("protected", False)),
        can_push=bool(data.get("can_push", False)),
    )


def tag_from(data: Mapping[str, Any]) -> Ref:
    """A tag, with the *commit* it leads to (an annotated tag's own object is ``target``)."""
    return Ref(
        kind="tag",
        name=_needed(data["name"]),
        sha=_sha(data["commit"]["id"]),
        protected=bool(data.get("protected", False)),
    )


def job_from(data: Mapping[str, Any]) -> Job:
    pipeline = data.get("pipeline") or {}
    return Job(
        id=int(data["id"]),
        name=_needed(data["name"]),
        status=_needed(data["status"]),
        pipeline_id=int(pipeline.get("id") or 0),
        web_url=_text(data.get("web_url")),
        created_at=_text(data.get("created_at")),
        started_at=_text(data.get("started_at")) or None,
        finished_at=_text(data.get("finished_at")) or None,
        failure_reason=_text(data.get("failure_reason")) or None,
    )


def registry_tag_from(data: Mapping[str, Any]) -> RegistryTag:
    return RegistryTag(_needed(data["location"]), _text(data.get("digest")) or None)


def registry_token_from(data: Mapping[str, Any]) -> tuple[str, float]:
    """The token, and the seconds that it lives; a minute where that is not said."""
    token = _needed(data.get("token") or data["access_token"])
    if not token.isascii() or not token.isprintable():
        raise ValueError("a token that no header can hold")
    return token, float(data.get("expires_in") or 60)


def permission_from(data: Mapping[str, Any]) -> int:
    """The highest level in a project's ``permissions``; 0 if it names none.

    https://docs.gitlab.com/api/projects/#get-a-single-project
    """
    given = data.get("permissions") or {}
    levels = (given.get("project_access") or {}, given.get("group_access") or {})
    return max(int(level.get("access_level") or 0) for level in levels)


def child_from(bridge: Mapping[str, Any], project_id: int) -> int | None:
    """The pipeline that a bridge has started in this project, if it has."""
    pipeline = bridge.get("downstream_pipeline") or {}
    if not pipeline.get("id") or pipeline.get("project_id", project_id) != project_id:
        return None
    return int(pipeline["id"])
