"""Whether the forge can be reached, is a GitLab, and is called what we call it."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from notebooks_service.doctor.asking import (
    NO_ANSWER,
    Answer,
    Requester,
    is_loopback,
    location,
    origin,
    shown,
)
from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning

SIGN_IN = "/users/sign_in"


@dataclass(frozen=True)
class Reach:
    """``api``: the version, asked with the token if there is one. ``front``: the first page of the
    forge's origin, not followed. ``discovery``: its OpenID configuration."""

    url: str
    with_token: bool
    api: Answer
    front: Answer = NO_ANSWER
    discovery: Answer = NO_ANSWER

    @property
    def is_gitlab(self) -> bool:
        """Whether what answered speaks GitLab's API: a version, or its own refusal."""
        said = self.api.mapping()
        if self.api.status == 200:
            return "version" in said
        return self.api.status in (401, 403) and ("message" in said or "error" in said)


async def ask_reach(forge: Requester, *, with_token: bool) -> Reach:
    """https://docs.gitlab.com/api/metadata/ · before 15.2: https://docs.gitlab.com/api/version/"""
    api = await forge.get("/api/v4/metadata", token=True)
    if api.status == 404:
        api = await forge.get("/api/v4/version", token=True)
    if api.trouble or api.elsewhere:
        return Reach(forge.url, with_token, api)
    parts = urlsplit(forge.url)
    path = parts.path
    # The origin's first page, above a relative root: it may say where the GitLab really is.
    front = await forge.get("/" if not path else f"{path}/", follow=False)
    discovery = await forge.get("/.well-known/openid-configuration")
    return Reach(forge.url, with_token, api, front, discovery)


def judge_reach(facts: Reach) -> list[Finding]:
    at = shown(facts.url)
    api = facts.api
    if api.trouble == "tls" or api.status == 429:
        return []  # said by the checks of the certificate and of the limits
    if api.trouble == "address":
        return [
            problem(
                "forge.unknown-host",
                f"The name {urlsplit(facts.url).hostname} has no address here.",
                "Check the spelling of --forge or `forge_url`, and the name server of this machine.",
            )
        ]
    if api.trouble == "refused":
        return [
            problem(
                "forge.refused",
                f"Nothing accepts a connection at {at}.",
                "Start the forge, or check host and port, and the firewalls between here and there.",
            )
        ]
    if api.trouble == "time":
        return [
            problem(
                "forge.slow",
                f"{at} gave no whole answer in time.",
                "Look at the load of the forge and at what sits before it; a firewall that drops packets looks the same.",
            )
        ]
    if api.trouble == "proxy":
        return [
            problem(
                "forge.proxy-fails",
                f"The HTTP proxy of the environment did not let us through to {at}.",
                "Correct HTTP_PROXY or HTTPS_PROXY, or name the forge's host in NO_PROXY.",
            )
        ]
    if api.elsewhere:
        return [
            problem(
                "forge.moved",
                f"{at} sends us to {plain(api.elsewhere)}, which we do not follow: tokens go only to the address that was configured.",
                "Give the final address as --forge and `forge_url`.",
            )
        ]
    if api.trouble or not facts.is_gitlab:
        return [_no_gitlab(facts)]
    return [ok("forge.answers", f"A GitLab's API answers at {at}."), *_name(facts), *_scheme(facts)]


def _no_gitlab(facts: Reach) -> Finding:
    at = shown(facts.url)
    root = _root(facts)
    if root:
        return problem(
            "forge.relative-root",
            f"The GitLab of this host lives below {plain(root)}, and the address given is {at}.",
            f"Give the whole address, {plain(_below(facts.url, root))}, as --forge and `forge_url`.",
        )
    if facts.api.status >= 500:
        return problem(
            "forge.failing",
            f"{at} answers with an error of its own (HTTP {facts.api.status}).",
            "Look at the forge's log and health page; then ask again.",
        )
    what = {"large": "far more than a version", "broken": "no answer that can be read"}.get(
        facts.api.trouble, f"HTTP {facts.api.status} and no JSON of GitLab's"
    )
    return problem(
        "forge.no-gitlab",
        f"What answers at {at} is no GitLab: its API gave {what}.",
        "Check the address; a relative root (such as /gitlab) belongs to it. A sign-in page before the forge must let /api and /oauth through.",
    )


def _root(facts: Reach) -> str:
    """The relative root that a redirect to the sign-in page shows, if it is of the same origin."""
    found = location(facts.front, facts.url)
    if origin(found.geturl()) != origin(facts.url) or not found.path.endswith(SIGN_IN):
        return ""
    root = found.path.removesuffix(SIGN_IN)
    return root if root.strip("/") and root != urlsplit(facts.url).path else ""


def _below(url: str, root: str) -> str:
    parts = urlsplit(shown(url))
    return f"{parts.scheme}://{parts.netloc}{root}"


def _name(facts: Reach) -> list[Finding]:
    """GitLab's own idea of its address (``external_url``): links and sign-ins lead there."""
    issuer = facts.discovery.mapping().get("issuer")
    if not isinstance(issuer, str):
        return [
            unchecked(
                "forge.name-unknown",
                "The forge does not say which address it thinks it has (no OpenID configuration).",
            )
        ]
    ours, theirs = urlsplit(facts.url), urlsplit(shown(issuer))
    same_path = ours.path.rstrip("/") == theirs.path.rstrip("/")
    if origin(issuer) == origin(facts.url) and same_path:
        return [ok("forge.name", f"The forge calls itself {plain(shown(issuer))}, as we do.")]
    return [
        warning(
            "forge.other-name",
            f"The forge calls itself {plain(shown(issuer))}, and we call it {shown(facts.url)}: its links, clones and sign-in pages lead to the other address.",
            "Give the forge's own address as `forge_url`, or correct external_url at the forge.",
        )
    ]


def _scheme(facts: Reach) -> list[Finding]:
    parts = urlsplit(facts.url)
    if parts.scheme == "https" or is_loopback(parts.hostname or ""):
        return []
    return [
        warning(
            "forge.no-tls",
            f"{shown(facts.url)} is reached without TLS: tokens and code can be read on the way.",
            "Serve the forge over https and give that address.",
        )
    ]


def judge_token(facts: Reach) -> list[Finding]:
    """Whether the token that the doctor was given is good for asking."""
    if not facts.with_token:
        return [
            unchecked(
                "token.none",
                "No token was given, so nothing was looked at that the forge shows only to people.",
                "Give one with --token-file, --ask-token or NOTEBOOKS_DOCTOR_TOKEN: a personal token of scope read_api; a Maintainer's sees runners and tag rules.",
            )
        ]
    if facts.api.status == 401:
        return [
            problem(
                "token.refused",
                "The forge does not accept the token that the doctor was given.",
                "Give one that is neither expired nor revoked, made at this forge.",
            )
        ]
    if facts.api.status == 403:
        return [
            note(
                "token.narrow",
                "The token that the doctor was given may not even ask for the version.",
                "Give one of scope read_api.",
            )
        ]
    return [ok("token.accepted", "The forge accepts the token that the doctor was given.")]
