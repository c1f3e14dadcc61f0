"""The OAuth application that people sign in with: its id and secret, redirect address, scopes.

Nothing is granted by asking: a code that nobody was given is sent, and the kind of the refusal tells.
https://docs.gitlab.com/api/oauth2/ · https://docs.gitlab.com/api/applications/
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from notebooks_service.doctor.asking import Answer, Requester, location
from notebooks_service.doctor.findings import Finding, ok, plain, problem, unchecked, warning

NEEDED = ("read_user", "read_api", "read_repository", "write_repository", "read_registry")
REASONS = {
    "read_user": "nobody could sign in",
    "read_api": "no project could be read",
    "read_repository": "nothing could be cloned",
    "write_repository": "nothing could be pushed",
    "read_registry": "no image could be looked up",
}


@dataclass(frozen=True)
class Application:
    """``redirect``: our redirect address. ``token``: the answer to a wrong code, with the secret.
    ``authorize``: to the first step of a sign-in. ``listed``: the application as administrators see it.
    ``offered``: the scopes that the forge knows; empty if it does not say."""

    client_id: str
    has_secret: bool
    redirect: str
    scopes: tuple[str, ...]
    token: Answer | None = None
    authorize: Answer | None = None
    listed: dict[str, Any] | None = None
    offered: tuple[str, ...] = ()


async def ask_application(
    forge: Requester,
    discovery: Answer,
    *,
    client_id: str,
    secret: str,
    redirect: str,
    scopes: Sequence[str],
) -> Application:
    supported = discovery.mapping().get("scopes_supported")
    offered = tuple(each for each in supported or () if isinstance(each, str))
    token = authorize = listed = None
    if client_id and secret:
        form = {
            "grant_type": "authorization_code",
            "code": f"doctor-{secrets.token_hex(16)}",
            "client_id": client_id,
            "client_secret": secret,
            "redirect_uri": redirect,
        }
        token = await forge.post_form("/oauth/token", form)
    if client_id:
        asked = {
            "client_id": client_id,
            "redirect_uri": redirect,
            "response_type": "code",
            "scope": " ".join(scopes),
            "state": secrets.token_hex(8),
        }
        authorize = await forge.get(
            "/oauth/authorize", asked, follow=False, headers={"Accept": "text/html"}
        )
        rows = (await forge.get("/api/v4/applications", {"per_page": "100"}, token=True)).rows()
        listed = next((row for row in rows or () if row.get("application_id") == client_id), None)
    return Application(
        client_id, bool(secret), redirect, tuple(scopes), token, authorize, listed, offered
    )


def judge_application(facts: Application) -> list[Finding]:
    findings = _scopes(facts)
    if not facts.client_id:
        return [
            unchecked(
                "oauth.no-client",
                "No OAuth application is configured for this forge.",
                f"Register one with the redirect URI {facts.redirect} and set `forge_client_id` and `forge_client_secret`.",
            ),
            *findings,
        ]
    return [*_client(facts), *_redirect(facts), *findings]


def _client(facts: Application) -> list[Finding]:
    if facts.token is None:
        return [
            unchecked(
                "oauth.no-secret",
                "The OAuth application's secret is not known here, so it was not tried.",
                "Set NOTEBOOKS_FORGE_CLIENT_SECRET as for the hub, then ask again.",
            )
        ]
    error = facts.token.mapping().get("error")
    if error == "invalid_grant":
        return [
            ok("oauth.client", "The forge knows the OAuth application, and its secret is right.")
        ]
    if error == "invalid_client":
        return [
            problem(
                "oauth.client-refused",
                "The forge does not know this OAuth application, or its secret is another.",
                "Compare `forge_client_id` and `forge_client_secret` with the application at the forge; renew the secret there if it is lost.",
            )
        ]
    if facts.token.elsewhere:
        return [
            problem(
                "oauth.moved",
                f"The forge's /oauth/token sends us to {plain(facts.token.elsewhere)}: the hub would send the secret there.",
                "Give the forge's final address as `forge_url`.",
            )
        ]
    return [
        warning(
            "oauth.token-odd",
            f"The forge's /oauth/token answers oddly (HTTP {facts.token.status}, {plain(error or facts.token.trouble or 'no error named', 60)}).",
            "See that nothing before the forge changes what is sent to /oauth, and that the application allows the authorization code flow.",
        )
    ]


def _redirect(facts: Application) -> list[Finding]:
    if facts.listed is not None:
        uris = str(facts.listed.get("callback_url", "")).split()
        if facts.redirect in uris:
            return [
                ok("oauth.redirect", f"The application's redirect URI is ours, {facts.redirect}.")
            ]
        return [_other_redirect(facts)]
    answer = facts.authorize or Answer()
    target = location(answer, "http://here/")
    if answer.status in (302, 303) and target.path.endswith("/users/sign_in"):
        return [
            unchecked(
                "oauth.redirect-unseen",
                f"The forge sends people to its sign-in page first, so whether the application's redirect URI is {facts.redirect} shows only then.",
                "Compare it at the forge, or give an administrator's token. (The embedded forge would have refused a wrong one here.)",
            )
        ]
    if answer.status in (400, 401, 403, 422):
        return [_other_redirect(facts)]
    if 300 <= answer.status < 400 and "error=invalid_scope" in target.query:
        return [_missing(facts, "at least one of those asked for")]
    if answer.status == 200:
        return [
            unchecked(
                "oauth.redirect-unseen",
                f"The forge shows a page of its own first, so whether the application's redirect URI is {facts.redirect} shows only then.",
                "Compare it at the forge, or give an administrator's token.",
            )
        ]
    return [
        warning(
            "oauth.authorize-odd",
            f"The forge's /oauth/authorize answers oddly (HTTP {answer.status}).",
            "Open it in a browser and see what stands before it.",
        )
    ]


def _other_redirect(facts: Application) -> Finding:
    return problem(
        "oauth.other-redirect",
        "The application's redirect URI at the forge is another than ours, or the application is unknown.",
        f"Add {facts.redirect} to the application's redirect URIs, exactly so; `hub_url` decides what it is.",
    )


def _missing(facts: Application, what: str) -> Finding:
    return problem(
        "oauth.scopes-missing",
        f"The application at the forge lacks scopes that `forge_scopes` asks for: {plain(what)}.",
        "Tick them at the application; people who have signed in before sign in again.",
    )


def _scopes(facts: Application) -> list[Finding]:
    findings: list[Finding] = []
    asked = set(facts.scopes)
    if "api" not in asked:
        lacking = [each for each in NEEDED if each not in asked]
        if "read_repository" in lacking and "write_repository" in asked:
            lacking.remove("read_repository")
        if lacking:
            findings.append(
                problem(
                    "scopes.not-asked",
                    f"`forge_scopes` leaves out {', '.join(lacking)}: {REASONS[lacking[0]]}.",
                    f"Set `forge_scopes` to {', '.join(NEEDED)}; for a GitLab before 15.0 to api.",
                )
            )
    else:
        findings.append(
            warning(
                "scopes.wide",
                "`forge_scopes` asks for `api`, which lets the service's tokens change everything that a person may.",
                f"With GitLab 15.2 or newer ask for {', '.join(NEEDED)} instead.",
            )
        )
    unknown = sorted(asked - set(facts.offered))
    if facts.offered and unknown:
        findings.append(
            problem(
                "scopes.unknown",
                f"The forge does not know these scopes of `forge_scopes`: {plain(', '.join(unknown))}.",
                "read_registry is missing where GitLab's registry is switched off: leave out of `forge_scopes` what the forge does not have.",
            )
        )
    listed = facts.listed.get("scopes") if facts.listed else None
    if isinstance(listed, list):
        missing = sorted(asked - {str(each) for each in listed})
        if missing:
            findings.append(_missing(facts, ", ".join(missing)))
    if not findings:
        sure = " and the forge knows them all" if facts.offered else ""
        findings.append(ok("scopes.asked", f"`forge_scopes` asks for what is needed{sure}."))
    return findings
