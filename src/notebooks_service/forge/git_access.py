"""Decides whether a git request over HTTP may go on, in GitLab's codes and words.

Pure of HTTP streaming: ``routes_git`` calls ``permit`` in a thread and runs git with the answer.
https://docs.gitlab.com/topics/git/clone/ · https://docs.gitlab.com/user/permissions/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sqlalchemy.orm import Session

from notebooks_service.forge import access, deploy_tokens, errors, namespaces, protection
from notebooks_service.forge.authentication import (
    NOBODY,
    Asker,
    basic_credentials,
    from_token,
)
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import password_matches
from notebooks_service.forge.hooks.pre_receive import Rules
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.throttle import Throttle, guess_keys

Service = Literal["git-upload-pack", "git-receive-pack"]

DENIED = (
    "HTTP Basic: Access denied. If a password was provided for Git authentication, the password was "
    "incorrect or you're required to use a token instead of a password. If a token was provided, it "
    "was either incorrect, expired, or improperly scoped."
)
HIDDEN = (
    "The project you were looking for could not be found or you don't have permission to view it."
)
NO_DOWNLOAD = "You are not allowed to download code from this project."
NO_PUSH = "You are not allowed to push code to this project."


# https://docs.gitlab.com/user/project/repository/#repository-path-changes
MOVED = (
    "Project '{old}' was moved to '{new}'.\n\nPlease update your Git remote:\n\n"
    "  git remote set-url origin {url}/{new}.git\n"
)


class GitRefused(Exception):
    """An answer in plain text, which git shows after ``remote:``."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = {"WWW-Authenticate": 'Basic realm="GitLab"'} if status == 401 else {}


@dataclass(frozen=True)
class Permit:
    """What git runs with. ``rules`` are for a push; ``moved`` is for people, after one."""

    project_id: int
    user_id: int | None
    username: str
    rules: Rules | None = None
    moved: str = ""


def permit(
    session: Session,
    config: ForgeConfig,
    throttle: Throttle,
    path: str,
    service: Service,
    authorization: str,
    address: str = "",
) -> Permit:
    """The permit for this project and service. Raises ``GitRefused``; hidden is as missing."""
    asker = asker_of(session, throttle, authorization, address)
    project = access.project_by_path(session, path)
    moved = None if project is not None else access.moved_project(session, path)
    project = project or moved
    found = access.project_access(session, asker, project) if project else None
    if project is None or found is None or Can.READ_PROJECT not in found.can:
        raise GitRefused(401, DENIED) if asker.kind == "nobody" else GitRefused(404, HIDDEN)
    if Can.READ_CODE not in found.can:
        raise GitRefused(403, NO_DOWNLOAD)
    if service == "git-receive-pack":
        if asker.kind == "nobody":
            raise GitRefused(401, DENIED)
        if Can.PUSH not in found.can or not asker.has_scope("api", "write_repository"):
            raise GitRefused(403, NO_PUSH)
    pushes = service == "git-receive-pack"
    return Permit(
        project_id=project.id,
        user_id=asker.user.id if asker.user else None,
        username=asker.user.username if asker.user else "",
        rules=protection.rules(session, config, found) if pushes else None,
        moved=MOVED.format(old=path, new=project.full_path, url=config.url) if moved else "",
    )


NO_PERSONS = frozenset({"oauth2", "gitlab-ci-token"})
"""User names that say what kind of token the password is; no person has them."""


def asker_of(session: Session, throttle: Throttle, authorization: str, address: str = "") -> Asker:
    """Who a Basic ``Authorization`` header speaks for; nobody without one. Raises ``GitRefused``.

    ``address`` is where the request comes from: wrong passwords are counted for name and address.
    """
    asker = login_of(session, throttle, authorization, address)
    if asker.kind in ("oauth", "personal") and not asker.has_scope(
        "api", "read_repository", "write_repository"
    ):
        raise GitRefused(401, DENIED)
    return asker


def login_of(session: Session, throttle: Throttle, authorization: str, address: str = "") -> Asker:
    """As ``asker_of``, whatever a token is good for; the registry asks for other scopes than git."""
    if not authorization:
        return NOBODY
    credentials = basic_credentials(authorization)
    if credentials is None:
        raise GitRefused(401, DENIED)
    username, secret = credentials
    deploy = deploy_tokens.find(session, username, secret)
    if deploy is not None:
        return deploy_tokens.asker(deploy)
    try:
        return from_token(session, secret)
    except errors.ForgeError as error:
        if error.body != errors.unauthorized().body or username in NO_PERSONS:
            raise GitRefused(401, DENIED) from None
    return _by_password(session, throttle, username, secret, address)


def _by_password(
    session: Session, throttle: Throttle, username: str, password: str, address: str
) -> Asker:
    """GitLab also takes a person's own password for git; guessing is throttled as at sign-in.

    A name that nobody has takes as long, and is counted, as one that somebody has.
    """
    keys = guess_keys(username, address)
    if throttle.is_closed(*keys):
        raise GitRefused(429, "Too many failed sign-ins. Wait a few minutes, then try again.")
    user = namespaces.find_user(session, username)
    right = password_matches(user.password_hash if user else None, password)
    if user is None or not right or user.state != "active":
        throttle.failed(*keys)
        raise GitRefused(401, DENIED)
    throttle.succeeded(keys[0])
    scopes = frozenset({"read_repository", "write_repository"})
    return Asker(user, scopes, "password")
