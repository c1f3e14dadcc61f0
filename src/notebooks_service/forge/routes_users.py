"""People and their personal access tokens."""

from __future__ import annotations

from datetime import date
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from notebooks_service.forge import credentials, entities, errors, namespaces
from notebooks_service.forge.authentication import (
    API_SCOPES,
    Asker,
    Asks,
    AsksAboutUsers,
    AsksWithAnyScope,
)
from notebooks_service.forge.ci_parameters import Parameters, flag, text, words
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.models import PersonalToken, User
from notebooks_service.forge.pagination import PagingDep

router = APIRouter(prefix="/api/v4")


@router.get("/user")
def me(asker: AsksAboutUsers, request: Request) -> dict[str, Any]:
    """https://docs.gitlab.com/api/users/#retrieve-the-current-user"""
    return entities.user_full(request.app.state.config, asker.need_user())


@router.get("/users")
def list_users(
    asker: AsksAboutUsers,
    session: SessionDep,
    paging: PagingDep,
    request: Request,
    username: str = "",
    search: str = "",
    active: bool | None = None,
    blocked: bool | None = None,
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/users/#list-all-users"""
    if not asker.signed_in and not username:
        raise errors.forbidden("Not authorized to access /api/v4/users")
    query = select(User).order_by(User.id.desc())
    if username:
        query = query.where(User.username == username)
    if search:
        like = f"%{_escaped(search)}%"
        conditions = [User.username.ilike(like, escape="\\"), User.name.ilike(like, escape="\\")]
        query = query.where(or_(*conditions, User.email == search))
    if active:
        query = query.where(User.state == "active")
    if blocked:
        query = query.where(User.state == "blocked")
    shape = entities.user_full if asker.admin else entities.user_basic
    return [shape(request.app.state.config, user) for user in paging.rows(session, query)]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


@router.get("/users/{user_id}")
def get_user(
    user_id: int, asker: AsksAboutUsers, session: SessionDep, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/users/#retrieve-a-user"""
    asker.need_user()
    user = _user(session, user_id)
    shape = entities.user_full if asker.admin else entities.user_public
    return shape(request.app.state.config, user)


def _user(session: Session, user_id: int) -> User:
    user = session.get(User, user_id) if user_id < 2**63 else None
    if user is None:
        raise errors.not_found("User")
    return user


@router.post("/users", status_code=201)
def create_user(
    asker: Asks, session: SessionDep, parameters: Parameters, request: Request
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/users/#create-a-user (administrators)"""
    _need_admin(asker)
    email, username, name = (_needed(parameters, key) for key in ("email", "username", "name"))
    password = text(parameters, "password", limit=1024)
    random = flag(parameters, "force_random_password") or flag(parameters, "reset_password")
    if not password and not random:
        raise errors.bad_request(
            "password, reset_password, force_random_password are missing, at least one parameter must be provided"
        )
    if password and len(password) < 8:
        raise errors.invalid("password", "is too short (minimum is 8 characters)")
    user = namespaces.create_user(
        session,
        username,
        name,
        email,
        password_hash=credentials.password_hash(password or credentials.new_password()),
        admin=bool(flag(parameters, "admin")),
    )
    return entities.user_full(request.app.state.config, user)


def _need_admin(asker: Asker) -> User:
    user = asker.need_user()
    if not asker.admin:
        raise errors.forbidden()
    return user


def _needed(parameters: dict[str, Any], name: str) -> str:
    value = text(parameters, name)
    if not value:
        raise errors.ForgeError(400, {"error": f"{name} is missing"})
    return value


@router.post("/users/{user_id}/block", status_code=201)
def block(user_id: int, asker: Asks, session: SessionDep) -> bool:
    """https://docs.gitlab.com/api/user_moderation/#block-access-to-a-user (administrators)"""
    admin = _need_admin(asker)
    user = _user(session, user_id)
    if user.id == admin.id:
        raise errors.forbidden("You cannot block yourself")
    user.state = "blocked"
    return True


@router.post("/users/{user_id}/unblock", status_code=201)
def unblock(user_id: int, asker: Asks, session: SessionDep) -> bool:
    """https://docs.gitlab.com/api/user_moderation/#unblock-access-to-a-user (administrators)"""
    _need_admin(asker)
    _user(session, user_id).state = "active"
    return True


@router.post("/users/{user_id}/personal_access_tokens", status_code=201)
def create_token(
    user_id: int, asker: Asks, session: SessionDep, parameters: Parameters
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/user_tokens/#create-a-personal-access-token (administrators)"""
    _need_admin(asker)
    user = _user(session, user_id)
    scopes = words(parameters, "scopes")
    if not scopes or set(scopes) - set(API_SCOPES):
        raise errors.ForgeError(400, {"error": "scopes does not have a valid value"})
    expires = text(parameters, "expires_at")
    try:
        end = date.fromisoformat(expires) if expires else None
    except ValueError:
        raise errors.ForgeError(400, {"error": "expires_at is invalid"}) from None
    token = credentials.new_token("glpat-")
    row = PersonalToken(
        user_id=user.id,
        name=_needed(parameters, "name"),
        description=text(parameters, "description"),
        scopes=" ".join(scopes),
        token_hash=credentials.token_hash(token),
        expires_at=end,
    )
    session.add(row)
    session.flush()
    return {**entities.personal_token(row), "token": token}


@router.get("/personal_access_tokens")
def list_tokens(
    asker: Asks, session: SessionDep, paging: PagingDep, user_id: int | None = None
) -> list[dict[str, Any]]:
    """https://docs.gitlab.com/api/personal_access_tokens/#list-all-personal-access-tokens"""
    user = asker.need_user()
    query = select(PersonalToken).order_by(PersonalToken.id)
    if not asker.admin:
        if user_id not in (None, user.id):
            raise errors.unauthorized()
        query = query.where(PersonalToken.user_id == user.id)
    elif user_id is not None:
        query = query.where(PersonalToken.user_id == user_id)
    return [entities.personal_token(row) for row in paging.rows(session, query)]


@router.get("/personal_access_tokens/{token_id:segment}")
def get_token(token_id: str, asker: AsksWithAnyScope, session: SessionDep) -> dict[str, Any]:
    """https://docs.gitlab.com/api/personal_access_tokens/#retrieve-a-personal-access-token"""
    return entities.personal_token(_token(session, asker, token_id))


@router.delete("/personal_access_tokens/{token_id:segment}", status_code=204)
def revoke_token(token_id: str, asker: AsksWithAnyScope, session: SessionDep) -> Response:
    """https://docs.gitlab.com/api/personal_access_tokens/#revoke-a-personal-access-token"""
    _token(session, asker, token_id).revoked = True
    return Response(status_code=204)


def _token(session: Session, asker: Asker, token_id: str) -> PersonalToken:
    """``self`` is the token that asks, whatever its scopes; a number needs the right to it."""
    user = asker.need_user()
    if token_id == "self":  # noqa: S105
        if asker.kind != "personal":
            raise errors.not_found()
        return session.get_one(PersonalToken, asker.token_id)
    if not asker.has_scope("api", "read_api"):
        raise errors.insufficient_scope(["api"])
    row = session.get(PersonalToken, int(token_id)) if token_id.isdecimal() else None
    if row is None or (row.user_id != user.id and not asker.admin):
        raise errors.not_found() if asker.admin else errors.unauthorized()
    return row
