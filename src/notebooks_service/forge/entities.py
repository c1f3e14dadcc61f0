"""GitLab's JSON of people, groups, projects, members and refs; called by the routes.

https://docs.gitlab.com/api/users/ · /groups/ · /projects/ · /members/ · /branches/ · /tags/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from sqlalchemy.orm import Session

from notebooks_service.forge import access, permissions, repositories
from notebooks_service.forge.access import ProjectAccess
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.ci_git import CommitFacts
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import iso, now
from notebooks_service.forge.hooks import pre_receive
from notebooks_service.forge.hooks.pre_receive import Rules
from notebooks_service.forge.models import Member, Namespace, PersonalToken, Project, User
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.project_models import ProtectedRef
from notebooks_service.forge.repositories import RefRow, TreeEntry


def clean(text: str) -> str:
    """``text`` as JSON can hold it: bytes of a file name that are no UTF-8 become ``\ufffd``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def user_basic(config: ForgeConfig, user: User) -> dict[str, Any]:
    return {
        "id": user.id,
        "username": user.username,
        "public_email": "",
        "name": user.name,
        "state": user.state,
        "locked": False,
        "avatar_url": None,
        "web_url": f"{config.url}/{user.username}",
    }


def user_public(config: ForgeConfig, user: User) -> dict[str, Any]:
    return {
        **user_basic(config, user),
        "created_at": iso(user.created_at),
        "bio": "",
        "location": "",
        "linkedin": "",
        "twitter": "",
        "website_url": "",
        "organization": "",
        "job_title": "",
        "pronouns": None,
        "bot": False,
        "work_information": None,
        "followers": 0,
        "following": 0,
    }


def user_full(config: ForgeConfig, user: User) -> dict[str, Any]:
    """What a person sees of themselves, and an administrator of everybody."""
    return {
        **user_public(config, user),
        "last_sign_in_at": None,
        "confirmed_at": iso(user.created_at),
        "last_activity_on": None,
        "email": user.email,
        "commit_email": user.email,
        "theme_id": 1,
        "color_scheme_id": 1,
        "projects_limit": 100000,
        "current_sign_in_at": None,
        "identities": [],
        "can_create_group": True,
        "can_create_project": True,
        "two_factor_enabled": False,
        "external": False,
        "private_profile": False,
        **({"is_admin": True} if user.admin else {}),
    }


def personal_token(token: PersonalToken) -> dict[str, Any]:
    expired = token.expires_at is not None and token.expires_at <= now().date()
    return {
        "id": token.id,
        "name": token.name,
        "description": token.description,
        "revoked": token.revoked,
        "created_at": iso(token.created_at),
        "scopes": token.scopes.split(),
        "user_id": token.user_id,
        "last_used_at": None,
        "active": not token.revoked and not expired,
        "expires_at": token.expires_at.isoformat() if token.expires_at else None,
    }


def namespace(config: ForgeConfig, one: Namespace) -> dict[str, Any]:
    group = one.kind == "group"
    return {
        "id": one.id,
        "name": one.name,
        "path": one.path,
        "kind": one.kind,
        "full_path": one.full_path,
        "parent_id": one.parent_id,
        "avatar_url": None,
        "web_url": f"{config.url}/{'groups/' if group else ''}{one.full_path}",
    }


def full_name(session: Session, one: Namespace) -> str:
    return " / ".join(reversed([name.name for name in access.ancestors(session, one)]))


def group(config: ForgeConfig, session: Session, one: Namespace) -> dict[str, Any]:
    return {
        "id": one.id,
        "web_url": f"{config.url}/groups/{one.full_path}",
        "name": one.name,
        "path": one.path,
        "description": one.description,
        "visibility": one.visibility,
        "share_with_group_lock": False,
        "require_two_factor_authentication": False,
        "project_creation_level": "developer",
        "subgroup_creation_level": "maintainer",
        "auto_devops_enabled": None,
        "emails_enabled": True,
        "mentions_disabled": None,
        "lfs_enabled": True,
        "default_branch": None,
        "default_branch_protection": 2,
        "avatar_url": None,
        "request_access_enabled": False,
        "full_name": full_name(session, one),
        "full_path": one.full_path,
        "created_at": iso(one.created_at),
        "parent_id": one.parent_id,
    }


def project_basic(
    config: ForgeConfig, session: Session, one: Project, *, code: bool
) -> dict[str, Any]:
    """A project in few words. ``code``: whether the asker may read it."""
    url = f"{config.url}/{one.full_path}"
    return {
        "id": one.id,
        "description": one.description,
        "name": one.name,
        "name_with_namespace": f"{full_name(session, one.namespace)} / {one.name}",
        "path": one.path,
        "path_with_namespace": one.full_path,
        "created_at": iso(one.created_at),
        **({"default_branch": one.default_branch} if code else {}),
        "tag_list": [],
        "topics": [],
        "ssh_url_to_repo": "",
        "http_url_to_repo": f"{url}.git",
        "web_url": url,
        "readme_url": None,
        "forks_count": 0,
        "avatar_url": None,
        "star_count": 0,
        "last_activity_at": iso(one.last_activity_at),
        "visibility": one.visibility,
        "namespace": namespace(config, one.namespace),
    }


def project(
    config: ForgeConfig, session: Session, found: ProjectAccess, asker: Asker
) -> dict[str, Any]:
    """A project as somebody sees it who is signed in, with their ``permissions``."""
    one = found.project
    code = Can.READ_CODE in found.can
    api = f"{config.url}/api/v4/projects/{one.id}"
    body = {
        **project_basic(config, session, one, code=code),
        "container_registry_image_prefix": f"{config.registry_host}/{one.full_path.lower()}",
        "_links": {
            "self": api,
            "repo_branches": f"{api}/repository/branches",
            "members": f"{api}/members",
        },
        "empty_repo": repositories.is_empty(config.repository(one.id)),
        "archived": False,
        "packages_enabled": False,
        "issues_enabled": False,
        "merge_requests_enabled": False,
        "wiki_enabled": False,
        "jobs_enabled": True,
        "snippets_enabled": False,
        "container_registry_enabled": True,
        "container_registry_access_level": "enabled",
        "repository_access_level": "enabled",
        "builds_access_level": "enabled",
        "lfs_enabled": True,
        "shared_runners_enabled": True,
        "creator_id": one.creator_id,
        "import_status": "none",
        "import_error": None,
        "ci_config_path": None,
        "ci_default_git_depth": 20,
        "ci_job_token_scope_enabled": False,
        "keep_latest_artifact": one.keep_latest_artifact,
        "public_jobs": True,
        "shared_with_groups": [],
        "merge_method": "merge",
        "updated_at": iso(one.updated_at),
        "permissions": {
            "project_access": _access(found.direct),
            "group_access": _access(found.group if one.namespace.kind == "group" else None),
        },
    }
    if one.namespace.owner_id is not None:
        owner = session.get_one(User, one.namespace.owner_id)
        body["owner"] = user_basic(config, owner)
    return body


def _access(level: int | None) -> dict[str, int] | None:
    return None if level is None else {"access_level": level, "notification_level": 3}


def member(config: ForgeConfig, user: User, level: int, row: Member | None) -> dict[str, Any]:
    """``row`` is None for the owner of a personal namespace, who is in no table."""
    return {
        **user_basic(config, user),
        "access_level": level,
        "created_at": iso(row.created_at if row else user.created_at),
        "expires_at": row.expires_at.isoformat() if row and row.expires_at else None,
        "membership_state": "active",
    }


def commit(config: ForgeConfig, project: Project, facts: CommitFacts) -> dict[str, Any]:
    return facts.body(f"{config.url}/{project.full_path}")


def branch(
    config: ForgeConfig,
    found: ProjectAccess,
    row: RefRow,
    tip: CommitFacts,
    merged: bool,
    rules: Rules,
    protected: Sequence[ProtectedRef],
) -> dict[str, Any]:
    """``protected`` are the rows that cover this branch, ``rules`` what the asker may."""
    project = found.project
    rule = pre_receive.branch_rule(rules, row.name)
    developers = range(1, permissions.DEVELOPER + 1)
    return {
        "name": row.name,
        "commit": commit(config, project, tip),
        "merged": merged,
        "protected": bool(protected),
        "developers_can_push": any(one.push_level in developers for one in protected),
        "developers_can_merge": any(one.merge_level in developers for one in protected),
        "can_push": rule["push"] if rule else Can.PUSH in found.can,
        "default": row.name == project.default_branch,
        "web_url": f"{config.url}/{project.full_path}/-/tree/{quote(row.name)}",
    }


def tag(
    config: ForgeConfig, project: Project, row: RefRow, tip: CommitFacts, protected: bool
) -> dict[str, Any]:
    return {
        "name": row.name,
        "message": row.message or "",
        "target": row.target,
        "commit": commit(config, project, tip),
        "release": None,
        "protected": protected,
        "created_at": tip.committed_at if row.message is not None else None,
    }


def tree_entry(entry: TreeEntry) -> dict[str, Any]:
    path = clean(entry.path)
    return {
        "id": entry.sha,
        "name": path.rsplit("/", 1)[-1],
        "type": entry.kind,
        "path": path,
        "mode": entry.mode,
    }
