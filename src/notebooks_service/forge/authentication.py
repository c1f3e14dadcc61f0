"""Who asks: OAuth and personal tokens, job tokens, and for git also passwords; and their scopes.

Every API route takes ``Asks`` (or ``asks(...)`` with further scopes). Errors and codes are GitLab's:
https://docs.gitlab.com/api/rest/authentication/
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import errors
from notebooks_service.forge.credentials import token_hash
from notebooks_service.forge.database import SessionDep, now
from notebooks_service.forge.models import OAuthToken, PersonalToken, User

API_SCOPES = (
    "api",
    "read_api",
    "read_user",
    "read_repository",
    "write_repository",
    "read_registry",
    "write_registry",
)
"""Scopes that a token of ours may have. https://docs.gitlab.com/user/profile/personal_access_tokens/#personal-access-token-scopes"""

REVOKED = "Token was revoked. You have to re-authorize from the user."
EXPIRED = "Token is expired. You can either do re-authorization or token refresh."


@dataclass(frozen=True)
class Asker:
    """Who asks, and by what. ``project_id`` is set for a CI job's token: only that project.

    A deploy token is nobody's (``user`` is None); ``token_id`` says which one it is.
    """

    user: User | None
    scopes: frozenset[str]
    kind: Literal["nobody", "oauth", "personal", "job", "password", "browser", "deploy"]
    token_id: int | None = None
    project_id: int | None = None

    @property
    def signed_in(self) -> bool:
        return self.user is not None

    @property
    def admin(self) -> bool:
        """Administrators act as such, but a job never does."""
        return self.user is not None and self.user.admin and self.kind != "job"

    def need_user(self) -> User:
        """The person. Raises GitLab's 401 for nobody."""
        if self.user is None:
            raise errors.unauthorized()
        return self.user

    def has_scope(self, *scopes: str) -> bool:
        return not self.scopes.isdisjoint(scopes)


NOBODY = Asker(None, frozenset(), "nobody")

Resolver = Callable[[Session, str], Asker | None]
JOB_TOKENS: list[Resolver] = []
"""How a CI job's token is looked up; ``ci_*`` adds its own. Asked last, after tokens of people."""


def from_token(session: Session, token: str) -> Asker:
    """Who this token speaks for. Raises 401 for one that is unknown, expired or revoked."""
    hashed = token_hash(token)
    oauth = session.scalar(select(OAuthToken).where(OAuthToken.access_hash == hashed))
    if oauth is not None:
        if oauth.revoked_at is not None:
            raise errors.invalid_token(REVOKED)
        if oauth.expires_at <= now():
            raise errors.invalid_token(EXPIRED)
        return _active(Asker(oauth.user, frozenset(oauth.scopes.split()), "oauth", oauth.id))
    personal = session.scalar(select(PersonalToken).where(PersonalToken.token_hash == hashed))
    if personal is not None:
        if personal.revoked:
            raise errors.invalid_token(REVOKED)
        if personal.expires_at is not None and personal.expires_at <= now().date():
            raise errors.invalid_token(EXPIRED)
        scopes = frozenset(personal.scopes.split())
        return _active(Asker(personal.user, scopes, "personal", personal.id))
    for resolve in JOB_TOKENS:
        found = resolve(session, token)
        if found is not None:
            return _active(found)
    raise errors.unauthorized()


def _active(asker: Asker) -> Asker:
    if asker.user is not None and asker.user.state != "active":
        raise errors.forbidden("Your account has been blocked.")
    return asker


def sent_token(request: Request) -> str | None:
    """The token of an API request, wherever GitLab looks for one."""
    headers, query = request.headers, request.query_params
    for value in (
        headers.get("private-token"),
        query.get("private_token"),
        headers.get("job-token"),
        query.get("job_token"),
    ):
        if value:
            return value
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return query.get("access_token") or None


def basic_credentials(header: str) -> tuple[str, str] | None:
    """User and password of a Basic ``Authorization`` header; None if it is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except ValueError:
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon else None


FOR_JOBS = ("/api/v4/projects/", "/api/v4/job")
"""What a CI job's token may read; it changes nothing. https://docs.gitlab.com/ci/jobs/ci_job_token/"""


def asks(*also: str) -> Callable[[Request, Session], Asker]:
    """A dependency that gives who asks; a token needs ``api``, for reading ``read_api``, or one of ``also``.

    A request without a token is nobody's, which is no error yet.
    """

    def dependency(request: Request, session: SessionDep) -> Asker:
        token = sent_token(request)
        if token is None:
            return NOBODY
        asker = from_token(session, token)
        reads = request.method in ("GET", "HEAD")
        if asker.kind == "job" and not (reads and request.url.path.startswith(FOR_JOBS)):
            # As on GitLab, an endpoint that is not for job tokens does not know them.
            raise errors.unauthorized()
        enough = ["api", *(["read_api"] if reads else []), *also]
        if asker.kind != "job" and not asker.has_scope(*enough):
            raise errors.insufficient_scope(enough)
        return asker

    return dependency


Asks = Annotated[Asker, Depends(asks())]
"""Who asks, for a route that any token with ``api`` (or ``read_api`` for reading) may use."""
AsksAboutUsers = Annotated[Asker, Depends(asks("read_user"))]
AsksForFiles = Annotated[Asker, Depends(asks("read_repository"))]
AsksWithAnyScope = Annotated[Asker, Depends(asks(*API_SCOPES))]
