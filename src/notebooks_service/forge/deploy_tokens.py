"""Deploy tokens: making them, and knowing one again. For git over HTTP and for the registry.

``find`` and ``scopes_for`` are what a place that takes user name and password asks.
https://docs.gitlab.com/user/project/deploy_tokens/
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, errors
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.credentials import kept_secret, new_token, token_hash
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.models import Namespace, Project
from notebooks_service.forge.project_models import DeployToken

PREFIX = "gldt-"
FOR_JOBS = "gitlab-deploy-token"
"""The name of the token that jobs get as ``CI_DEPLOY_USER`` and ``CI_DEPLOY_PASSWORD``."""
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

KEY, FORMER_KEY = "forge-deploy-token-key", "forge-deploy-token-key.before"

_USERNAME = re.compile(r"[A-Za-z0-9._+-]{1,255}")


def create(
    session: Session,
    source: Project | Namespace,
    name: str,
    scopes: Sequence[str],
    *,
    username: str | None = None,
    expires_at: datetime | None = None,
    secrets: Path | None = None,
) -> tuple[DeployToken, str]:
    """A new one for a project or group, and the token itself, which is kept nowhere.

    But for one that is called ``FOR_JOBS``: that is sealed with a key in ``secrets``.
    """
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
        sealed=_box(secrets).encrypt(token.encode()).decode()
        if secrets and name == FOR_JOBS
        else None,
    )
    session.add(row)
    session.flush()
    row.username = row.username or f"gitlab+deploy-token-{row.id}"
    session.flush()
    return row, token


def _box(secrets: Path) -> MultiFernet:
    """Opens and closes sealed tokens; also what the key before closed, if a rotation was cut off."""
    keys = [kept_secret(secrets / KEY)]
    if (before := secrets / FORMER_KEY).exists():
        keys.append(before.read_text().strip())
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(digest)) for digest in digests])


def rotate_key(database: Database, secrets: Path) -> None:
    """Seal all that is sealed with a new key; nothing else may do so meanwhile."""
    key, before = secrets / KEY, secrets / FORMER_KEY
    if not key.exists():
        return  # nothing was ever sealed
    _seal_anew(database, secrets)  # what an earlier rotation may have left to do
    half = secrets / f"{KEY}.new"
    half.unlink(missing_ok=True)
    kept_secret(half)
    # In this order: whenever it is cut off, what opens the rows is in the one file or the other.
    before.unlink(missing_ok=True)
    before.hardlink_to(key)
    half.replace(key)
    _seal_anew(database, secrets)
    before.unlink()


def _seal_anew(database: Database, secrets: Path) -> None:
    box = _box(secrets)
    with database.write() as session:
        for row in session.scalars(select(DeployToken).where(DeployToken.sealed.is_not(None))):
            # One whose key was lost stays as it is: nobody can open it any more.
            with contextlib.suppress(InvalidToken):
                row.sealed = box.rotate((row.sealed or "").encode()).decode()


def for_jobs(session: Session, secrets: Path, project: Project) -> tuple[str, str] | None:
    """User name and token of the deploy token that jobs of this project get; a nearer one first.

    https://docs.gitlab.com/user/project/deploy_tokens/#gitlab-deploy-token
    """
    above = access.ancestors(session, project.namespace)
    places = [DeployToken.project_id == project.id]
    places += [DeployToken.namespace_id == one.id for one in above]
    for place in places:
        named = select(DeployToken).where(
            place, DeployToken.name == FOR_JOBS, DeployToken.revoked.is_(False)
        )
        for row in session.scalars(named.order_by(DeployToken.id)):
            if row.sealed is not None and not is_expired(row):
                try:
                    return row.username, _box(secrets).decrypt(row.sealed.encode()).decode()
                except InvalidToken:
                    continue  # The key was lost: nobody can open it any more.
    return None


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
