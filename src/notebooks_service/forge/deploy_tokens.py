"""Deploy tokens: making them, and knowing one again. For git over HTTP and for the registry.

``find`` and ``scopes_for`` are what a place that takes user name and password asks.
https://docs.gitlab.com/user/project/deploy_tokens/
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, errors
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.credentials import new_token, token_hash
from notebooks_service.forge.database import now
from notebooks_service.forge.models import Namespace, Project
from notebooks_service.forge.project_models import DeployToken

PREFIX = "gldt-"
SCOPES = (
    "read_repository",
    "read_registry",
    "write_registry",
    "read_virtual_registry",
    "write_virtual_registry",
    "read_package_registry",
    "write_package_registry",
)
"""What GitLab knows. There are no packages and no virtual registries here: those open nothing."""

_USERNAME = re.compile(r"[A-Za-z0-9._+-]{1,255}")


def create(
    session: Session,
    source: Project | Namespace,
    name: str,
    scopes: Sequence[str],
    *,
    username: str | None = None,
    expires_at: datetime | None = None,
) -> tuple[DeployToken, str]:
    """A new one for a project or group, and the token itself, which is kept nowhere."""
    if username is not None and not _USERNAME.fullmatch(username):
        raise errors.invalid("username", "can contain only letters, digits, '_', '-', '+', and '.'")
    token = new_token(PREFIX)
    row = DeployToken(
        project_id=source.id if isinstance(source, Project) else None,
        namespace_id=source.id if isinstance(source, Namespace) else None,
        name=name,
        username=username or "",
        token_hash=token_hash(token),
        scopes=" ".join(scopes),
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    row.username = row.username or f"gitlab+deploy-token-{row.id}"
    session.flush()
    return row, token


def is_expired(row: DeployToken) -> bool:
    return row.expires_at is not None and row.expires_at <= now()


def find(session: Session, username: str, token: str) -> DeployToken | None:
    """The deploy token that these two are; None for none, a wrong name, an expired or revoked one."""
    if not token.startswith(PREFIX):
        return None
    row = session.scalar(select(DeployToken).where(DeployToken.token_hash == token_hash(token)))
    if row is None or row.revoked or is_expired(row):
        return None
    same = hmac.compare_digest(row.username.encode(), username.encode("utf-8", "replace"))
    return row if same else None


def scopes_for(session: Session, row: DeployToken, project: Project) -> frozenset[str]:
    """What this token may do in this project: all of its scopes, or nothing."""
    above = [one.id for one in access.ancestors(session, project.namespace)]
    reaches = row.project_id == project.id or row.namespace_id in above
    return frozenset(row.scopes.split()) if reaches else frozenset()


def asker(row: DeployToken) -> Asker:
    """It speaks for nobody; ``access`` knows what it may."""
    return Asker(None, frozenset(row.scopes.split()), "deploy", row.id)
