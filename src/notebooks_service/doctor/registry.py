"""The forge's container registry: is there one, where, and who gives out its tokens.

A registry names the place of its tokens in its first answer (the realm); a credential must not go
where an answer says, so the realm has to be the forge's own.
https://distribution.github.io/distribution/spec/auth/token/
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from notebooks_service.doctor.asking import NO_ANSWER, Answer, Requester, is_loopback, origin, shown
from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning
from notebooks_service.doctor.project import ProjectFacts

_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}(:\d{1,5})?\Z|\[[0-9a-fA-F:]{2,39}\](:\d{1,5})?\Z")


@dataclass(frozen=True)
class Registry:
    """``host``: as the project names it; empty if it names none. ``ping``: the answer of ``/v2/``,
    asked without any credential. ``token``: the forge's answer to our asking for a token."""

    forge_url: str
    host: str
    ping: Answer = NO_ANSWER
    token: Answer | None = None


def registry_host(facts: ProjectFacts) -> str:
    """The host in ``container_registry_image_prefix``, if it is a host and nothing else."""
    prefix = facts.project.mapping().get("container_registry_image_prefix")
    host = prefix.split("/", 1)[0] if isinstance(prefix, str) else ""
    return host if _HOST.match(host) else ""


def read_challenge(header: str) -> dict[str, str]:
    """``Bearer realm="…",service="…"`` as a mapping; empty for anything else."""
    if header[:7].lower() != "bearer ":
        return {}
    return dict(re.findall(r'([a-z_]{1,20})="([^"]{0,500})"', header[7:2000]))


async def ask_registry(
    forge: Requester,
    facts: ProjectFacts,
    connect: Callable[[str], Requester],
) -> Registry:
    """``connect`` makes the requester for the registry's address; it has no credential."""
    host = registry_host(facts)
    if not host:
        return Registry(forge.url, "")
    plain_http = forge.url.startswith("http:") or is_loopback(host.rsplit(":", 1)[0])
    ping = NO_ANSWER
    for scheme in ("https", "http") if plain_http else ("https",):
        async with connect(f"{scheme}://{host}") as registry:
            ping = await registry.get("/v2/", follow=False)
        if not ping.trouble:
            break
    challenge = read_challenge(ping.headers.get("www-authenticate", ""))
    token = None
    if _ours(challenge.get("realm", ""), forge.url):
        path = str(facts.project.mapping().get("path_with_namespace", "")).lower()
        asked = {
            "service": challenge.get("service", "container_registry"),
            "scope": f"repository:{path}:pull",
        }
        token = await forge.get("/jwt/auth", asked, basic=True)
    return Registry(forge.url, host, ping, token)


def _ours(realm: str, forge_url: str) -> bool:
    root = urlsplit(forge_url).path.rstrip("/")
    return origin(realm) == origin(forge_url) and urlsplit(realm).path == f"{root}/jwt/auth"


def judge_registry(facts: Registry) -> list[Finding]:
    if not facts.host:
        return [
            note(
                "registry.off",
                "The project names no container registry: it is switched off at the forge or in the project.",
                "Switch it on if images shall come from it; the `local` runtime needs none.",
            )
        ]
    host = plain(facts.host, 100)
    if facts.ping.trouble:
        return [
            problem(
                "registry.unreachable",
                f"The registry {host} cannot be reached from here ({_trouble(facts.ping)}).",
                "Check its name, its certificate (`forge_ca_file` counts for it too) and the firewalls between.",
            )
        ]
    if facts.ping.status == 200:
        return [
            warning(
                "registry.open",
                f"The registry {host} lets anybody in without a token.",
                "Switch on its token authentication: images of private projects can be read by everybody now.",
            )
        ]
    challenge = read_challenge(facts.ping.headers.get("www-authenticate", ""))
    if facts.ping.status != 401 or not challenge:
        return [
            problem(
                "registry.none-there",
                f"What answers at {host} is no registry with tokens (HTTP {facts.ping.status} at /v2/).",
                "Check registry_external_url at the forge, and what stands before the registry.",
            )
        ]
    realm = challenge.get("realm", "")
    if not _ours(realm, facts.forge_url):
        return [
            problem(
                "registry.other-realm",
                f"The registry {host} sends for its tokens to {plain(shown(realm))}, which is not the forge's /jwt/auth: no credential will go there.",
                f"Let the registry's realm be {shown(facts.forge_url)}/jwt/auth, or correct `forge_url`.",
            )
        ]
    return [ok("registry.realm", f"The registry {host} takes tokens of the forge."), *_token(facts)]


def _token(facts: Registry) -> list[Finding]:
    answer = facts.token or Answer()
    said = answer.mapping()
    if answer.status == 200 and isinstance(said.get("token") or said.get("access_token"), str):
        return [ok("registry.token", "The forge gives out tokens for the registry.")]
    if answer.status in (401, 403):
        return [
            unchecked(
                "registry.token-refused",
                "The forge gives no registry token for the token that the doctor was given.",
                "Give one with the scope read_registry as well.",
            )
        ]
    return [
        problem(
            "registry.no-tokens",
            f"The forge's /jwt/auth gives no token (HTTP {answer.status}).",
            "Let what stands before the forge pass /jwt/auth on; see the forge's log.",
        )
    ]


def _trouble(answer: Answer) -> str:
    words = {
        "address": "its name has no address",
        "refused": "nothing accepts the connection",
        "time": "no answer in time",
        "tls": "its certificate is not trusted",
        "proxy": "the HTTP proxy did not let us through",
    }
    return words.get(answer.trouble, "no answer that can be read")
