"""OpenID Connect: what the forge says of a person to an application that has the scope ``openid``.

The claims are GitLab's. https://docs.gitlab.com/integration/openid_connect_provider/
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, permissions
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import kept_secret
from notebooks_service.forge.database import now
from notebooks_service.forge.models import Member, Namespace, User
from notebooks_service.forge.signing import SigningKeys

LIFETIME = 120
"""Seconds that an ID token is good for, as GitLab's: it is read once, at sign-in."""

SCOPES = ("openid", "profile", "email")
OWNED = "https://gitlab.org/claims/groups/"


def signing_keys(config: ForgeConfig) -> SigningKeys:
    """The keys of ID tokens."""
    return SigningKeys(config.secrets / "forge-openid-keys")


def salt(config: ForgeConfig) -> str:
    """What the old form of ``sub`` is hashed with."""
    return kept_secret(config.secrets / "forge-openid-salt")


def _groups(session: Session, user: User) -> list[str]:
    """Paths of the groups that a person is in, directly or through a group above."""
    _, ids = access.member_source_ids(session, user)
    query = select(Namespace.full_path).where(Namespace.kind == "group", Namespace.id.in_(ids))
    return list(session.scalars(query.order_by(Namespace.id)))


def _direct_groups(session: Session, user: User, *levels: int) -> list[str]:
    query = (
        select(Namespace.full_path)
        .join(Member, Member.namespace_id == Namespace.id)
        .where(Namespace.kind == "group", Member.user_id == user.id, access.current())
        .order_by(Namespace.id)
    )
    if levels:
        query = query.where(Member.access_level.in_(levels))
    return list(session.scalars(query))


def _who(config: ForgeConfig, user: User, scopes: set[str]) -> dict[str, Any]:
    """Claims that are in both places."""
    legacy = hashlib.sha256(f"{user.id}-{salt(config)}".encode()).hexdigest()
    found: dict[str, Any] = {"sub": str(user.id), "sub_legacy": legacy}
    if "email" in scopes:
        # Who made the account said so; nobody here can change an address and claim another's.
        found |= {"email": user.email, "email_verified": True}
    return found


def user_info(
    session: Session, config: ForgeConfig, user: User, scopes: set[str]
) -> dict[str, Any]:
    """The answer of ``/oauth/userinfo``."""
    levels = {
        "owner": permissions.OWNER,
        "maintainer": permissions.MAINTAINER,
        "developer": permissions.DEVELOPER,
    }
    by_level = {
        f"{OWNED}{name}": found
        for name, level in levels.items()
        if (found := _direct_groups(session, user, level))
    }
    return {
        **_who(config, user, scopes),
        "name": user.name,
        "nickname": user.username,
        "preferred_username": user.username,
        "profile": f"{config.url}/{user.username}",
        "groups": _groups(session, user),
        **by_level,
    }


def id_token(
    session: Session,
    config: ForgeConfig,
    user: User,
    *,
    client_id: str,
    scopes: set[str],
    nonce: str | None,
    signed_in_at: datetime | None,
) -> str:
    """An ID token for one application. https://openid.net/specs/openid-connect-core-1_0.html#IDToken"""
    moment = int(now().timestamp())
    claims: dict[str, Any] = {
        "iss": config.url,
        "aud": client_id,
        "exp": moment + LIFETIME,
        "iat": moment,
        **_who(config, user, scopes),
        "groups_direct": _direct_groups(session, user),
    }
    if nonce is not None:
        claims["nonce"] = nonce
    if signed_in_at is not None:
        claims["auth_time"] = int(signed_in_at.timestamp())
    return signing_keys(config).newest().sign(claims)


def discovery(config: ForgeConfig, scopes: tuple[str, ...]) -> dict[str, Any]:
    """https://openid.net/specs/openid-connect-discovery-1_0.html"""
    url = config.url
    return {
        "issuer": url,
        "authorization_endpoint": f"{url}/oauth/authorize",
        "token_endpoint": f"{url}/oauth/token",
        "revocation_endpoint": f"{url}/oauth/revoke",
        "userinfo_endpoint": f"{url}/oauth/userinfo",
        "jwks_uri": f"{url}/oauth/discovery/keys",
        "scopes_supported": [*scopes],
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": ["authorization_code", "refresh_token"],
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
        "claim_types_supported": ["normal"],
        "claims_supported": [
            "iss",
            "sub",
            "aud",
            "exp",
            "iat",
            "sub_legacy",
            "name",
            "nickname",
            "preferred_username",
            "email",
            "email_verified",
            "profile",
            "groups",
            "groups_direct",
            *(f"{OWNED}{name}" for name in ("owner", "maintainer", "developer")),
        ],
        "code_challenge_methods_supported": ["plain", "S256"],
    }
