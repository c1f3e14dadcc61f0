"""The forge's OAuth 2 provider: oauthlib's endpoints over our tables.

The protocol is oauthlib's; what is kept, for how long, and what a second use means is decided here.
https://docs.gitlab.com/api/oauth2/ · https://www.rfc-editor.org/rfc/rfc6749 · PKCE: RFC 7636
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

from oauthlib.common import Request
from oauthlib.oauth2 import (
    AuthorizationCodeGrant,
    AuthorizationEndpoint,
    BearerToken,
    RefreshTokenGrant,
    RequestValidator,
    RevocationEndpoint,
    TokenEndpoint,
)
from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from notebooks_service.forge import openid
from notebooks_service.forge.authentication import basic_credentials
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import new_token, token_hash
from notebooks_service.forge.database import now
from notebooks_service.forge.models import OAuthApplication, OAuthGrant, OAuthToken, User

log = logging.getLogger(__name__)

CODE_LIFETIME = timedelta(minutes=5)
REUSE_GRACE = timedelta(seconds=60)
"""A refresh token that is used twice within this time was used by two parts of one client at once."""
DEFAULT_SCOPE = "api"
"""What a request without ``scope`` asks for, as on GitLab."""

DESCRIPTIONS = {
    "invalid_grant": "The provided authorization grant is invalid, expired, revoked, does not match "
    "the redirection URI used in the authorization request, or was issued to another client.",
    "invalid_client": "Client authentication failed due to unknown client, no client authentication "
    "included, or unsupported authentication method.",
    "invalid_scope": "The requested scope is invalid, unknown, or malformed.",
    "unsupported_grant_type": "The authorization grant type is not supported by the authorization server.",
    "unauthorized_client": "You are not authorized to revoke this token",
}
"""The sentences of GitLab (of doorkeeper, its OAuth library)."""


class Provider(AuthorizationEndpoint, TokenEndpoint, RevocationEndpoint):  # type: ignore[misc]
    """Authorization code and refresh token grants, and revocation; one object a request."""

    def __init__(self, session: Session, config: ForgeConfig) -> None:
        lifetime = config.oauth_token_lifetime
        validator = _Validator(session, config)
        code = AuthorizationCodeGrant(validator)
        refresh = RefreshTokenGrant(validator)
        for grant in (code, refresh):
            grant.register_token_modifier(validator.add_id_token)
        bearer = BearerToken(
            validator,
            token_generator=lambda request: new_token(),
            expires_in=lifetime,
        )
        AuthorizationEndpoint.__init__(
            self,
            default_response_type="code",
            default_token_type=bearer,
            response_types={"code": code},
        )
        TokenEndpoint.__init__(
            self,
            default_grant_type="authorization_code",
            default_token_type=bearer,
            grant_types={"authorization_code": code, "refresh_token": refresh},
        )
        RevocationEndpoint.__init__(self, validator)
        # Each base sets the methods of its own; a request's path decides which base is asked.
        self.valid_request_methods = ["POST"]


def find_application(session: Session, client_id: str | None) -> OAuthApplication | None:
    if not client_id:
        return None
    return session.scalar(select(OAuthApplication).where(OAuthApplication.client_id == client_id))


def consented(
    session: Session, user: User, application: OAuthApplication, scopes: list[str]
) -> bool:
    """Whether this person need not be asked: a trusted application, or one that holds a token of
    theirs with these scopes already."""
    if application.trusted:
        return True
    granted = session.scalars(
        select(OAuthToken.scopes).where(
            OAuthToken.user_id == user.id,
            OAuthToken.application_id == application.id,
            OAuthToken.revoked_at.is_(None),
        )
    )
    return any(set(scopes) <= set(one.split()) for one in granted)


class _Validator(RequestValidator):  # type: ignore[misc]
    """What oauthlib asks of us. Method names and arguments are oauthlib's."""

    def __init__(self, session: Session, config: ForgeConfig) -> None:
        super().__init__()
        self._session = session
        self._config = config

    # Clients

    def client_authentication_required(self, request: Request, *args: Any, **kwargs: Any) -> bool:
        client_id, _ = _client_credentials(request)
        application = find_application(self._session, client_id)
        return application is None or application.confidential

    def authenticate_client(self, request: Request, *args: Any, **kwargs: Any) -> bool:
        client_id, secret = _client_credentials(request)
        application = find_application(self._session, client_id)
        if application is None or not secret or application.secret_hash is None:
            return False
        if not hmac.compare_digest(application.secret_hash, token_hash(secret)):
            return False
        request.client = application
        return True

    def authenticate_client_id(
        self, client_id: str, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        application = find_application(self._session, client_id)
        if application is None or application.confidential:
            return False
        request.client = application
        return True

    def validate_client_id(
        self, client_id: str, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        request.client = find_application(self._session, client_id)
        return request.client is not None

    def validate_redirect_uri(
        self, client_id: str, redirect_uri: str, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        """Exactly one of the registered ones: no prefixes, no patterns."""
        return redirect_uri in request.client.redirect_uris.split("\n")

    def get_default_redirect_uri(
        self, client_id: str, request: Request, *args: Any, **kwargs: Any
    ) -> str | None:
        uris: list[str] = request.client.redirect_uris.split("\n") if request.client else []
        return uris[0] if len(uris) == 1 else None

    def is_pkce_required(self, client_id: str, request: Request) -> bool:
        application = find_application(self._session, client_id)
        return application is not None and not application.confidential

    def validate_response_type(
        self, client_id: str, response_type: str, client: Any, request: Request, *a: Any, **k: Any
    ) -> bool:
        return response_type == "code"

    def validate_grant_type(
        self, client_id: str, grant_type: str, client: Any, request: Request, *a: Any, **k: Any
    ) -> bool:
        return grant_type in ("authorization_code", "refresh_token")

    def get_default_scopes(
        self, client_id: str, request: Request, *args: Any, **kwargs: Any
    ) -> list[str]:
        return [DEFAULT_SCOPE]

    def validate_scopes(
        self, client_id: str, scopes: list[str], client: Any, request: Request, *a: Any, **k: Any
    ) -> bool:
        return bool(scopes) and set(scopes) <= set(request.client.scopes.split())

    # Codes

    def save_authorization_code(
        self, client_id: str, code: Mapping[str, str], request: Request, *a: Any, **k: Any
    ) -> None:
        self._session.add(
            OAuthGrant(
                application_id=request.client.id,
                user_id=request.user.id,
                code_hash=token_hash(code["code"]),
                redirect_uri=request.redirect_uri,
                scopes=" ".join(request.scopes),
                code_challenge=request.code_challenge,
                code_challenge_method=request.code_challenge_method
                if request.code_challenge is not None
                else None,
                nonce=request.nonce,
                signed_in_at=getattr(request, "signed_in_at", None),
                expires_at=now() + CODE_LIFETIME,
            )
        )

    def _grant(self, code: str) -> OAuthGrant | None:
        return self._session.scalar(
            select(OAuthGrant).where(OAuthGrant.code_hash == token_hash(code))
        )

    def validate_code(
        self, client_id: str, code: str, client: Any, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        """A second use of a code revokes what the first one gave: somebody has stolen one of them.
        https://www.rfc-editor.org/rfc/rfc6749#section-4.1.2"""
        grant = self._grant(code)
        if grant is None or grant.application_id != client.id:
            return False
        if grant.used_at is not None:
            log.warning("an authorization code of %s was used again", grant.user.username)
            self._session.execute(
                update(OAuthToken)
                .where(OAuthToken.grant_id == grant.id, OAuthToken.revoked_at.is_(None))
                .values(revoked_at=now())
            )
            return False
        if grant.expires_at <= now() or grant.user.state != "active":
            return False
        request.user = grant.user
        request.scopes = grant.scopes.split()
        request.forge_grant = grant
        return True

    def get_code_challenge(self, code: str, request: Request) -> str | None:
        grant = self._grant(code)
        return grant.code_challenge if grant else None

    def get_code_challenge_method(self, code: str, request: Request) -> str | None:
        grant = self._grant(code)
        return grant.code_challenge_method if grant else None

    def confirm_redirect_uri(
        self,
        client_id: str,
        code: str,
        redirect_uri: str,
        client: Any,
        request: Request,
        *args: Any,
        **kwargs: Any,
    ) -> bool:
        grant = self._grant(code)
        return grant is not None and grant.redirect_uri == redirect_uri

    def invalidate_authorization_code(
        self, client_id: str, code: str, request: Request, *args: Any, **kwargs: Any
    ) -> None:
        grant = self._grant(code)
        if grant is not None:
            grant.used_at = now()

    # Tokens

    def add_id_token(self, token: dict[str, Any], handler: Any, request: Request) -> dict[str, Any]:
        """With the scope ``openid`` every answer has an ID token, as GitLab's has."""
        scopes = set(request.scopes)
        if "openid" not in scopes:
            return token
        grant: OAuthGrant | None = getattr(request, "forge_grant", None)
        old: OAuthToken | None = getattr(request, "forge_refreshed", None)
        if grant is None and old is not None and old.grant_id is not None:
            grant = self._session.get(OAuthGrant, old.grant_id)
        token["id_token"] = openid.id_token(
            self._session,
            self._config,
            request.user,
            client_id=request.client.client_id,
            scopes=scopes,
            nonce=grant.nonce if grant and old is None else None,
            signed_in_at=grant.signed_in_at if grant else None,
        )
        return token

    def save_bearer_token(
        self, token: dict[str, Any], request: Request, *args: Any, **kwargs: Any
    ) -> None:
        moment = now()
        old: OAuthToken | None = getattr(request, "forge_refreshed", None)
        grant: OAuthGrant | None = getattr(request, "forge_grant", None)
        if old is not None:
            # The old pair ends here, both of its tokens.
            old.revoked_at = moment
        self._session.add(
            OAuthToken(
                application_id=request.client.id,
                user_id=request.user.id,
                grant_id=grant.id if grant else old.grant_id if old else None,
                access_hash=token_hash(token["access_token"]),
                refresh_hash=token_hash(token["refresh_token"]),
                scopes=token["scope"],
                created_at=moment,
                expires_at=moment + timedelta(seconds=token["expires_in"]),
            )
        )
        token["created_at"] = int(moment.timestamp())
        log.info("OAuth tokens for %s to %s", request.user.username, request.client.name)

    def validate_refresh_token(
        self, refresh_token: str, client: Any, request: Request, *args: Any, **kwargs: Any
    ) -> bool:
        found = self._session.scalar(
            select(OAuthToken).where(OAuthToken.refresh_hash == token_hash(refresh_token))
        )
        if found is None or found.application_id != client.id:
            return False
        if found.revoked_at is not None:
            self._used_again(found)
            return False
        if found.user.state != "active":
            return False
        request.user = found.user
        request.forge_refreshed = found
        return True

    def _used_again(self, old: OAuthToken) -> None:
        """Ends everything that came of the same sign-in: one of the two who used it has stolen it.

        https://www.rfc-editor.org/rfc/rfc9700#section-4.14.2
        """
        if old.grant_id is None or old.revoked_at is None or now() - old.revoked_at < REUSE_GRACE:
            return
        family = (OAuthToken.grant_id == old.grant_id, OAuthToken.revoked_at.is_(None))
        if self._session.scalar(select(OAuthToken.id).where(*family)) is None:
            return
        log.warning(
            "a refresh token of %s was used again; the sign-in that it came from has ended",
            old.user.username,
        )
        self._session.execute(update(OAuthToken).where(*family).values(revoked_at=now()))

    def get_original_scopes(
        self, refresh_token: str, request: Request, *args: Any, **kwargs: Any
    ) -> list[str]:
        scopes: str = request.forge_refreshed.scopes
        return scopes.split()

    def rotate_refresh_token(self, request: Request) -> bool:
        return True

    def revoke_token(
        self, token: str, token_type_hint: str, request: Request, *args: Any, **kwargs: Any
    ) -> None:
        hashed = token_hash(token)
        self._session.execute(
            update(OAuthToken)
            .where(
                or_(OAuthToken.access_hash == hashed, OAuthToken.refresh_hash == hashed),
                OAuthToken.application_id == request.client.id,
                OAuthToken.revoked_at.is_(None),
            )
            .values(revoked_at=now())
        )


def _client_credentials(request: Request) -> tuple[str | None, str | None]:
    """Id and secret from the Basic header or the body. https://www.rfc-editor.org/rfc/rfc6749#section-2.3.1"""
    basic = basic_credentials(request.headers.get("Authorization", ""))
    if basic is not None:
        return unquote(basic[0]), unquote(basic[1])
    return request.client_id, request.client_secret
