"""The hub and the service as a browser reaches them: through every reverse proxy on the way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from notebooks_service.doctor.asking import NO_ANSWER, Answer, Requester, is_loopback, shown
from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning

OLDEST, NEWEST = (5, 4), 6
SERVICE = "/services/notebooks"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "ZG9jdG9yZG9jdG9yZG9jdA==",
}
APART = 0.2
"""Seconds. The service sends the pieces of its test stream 0.3 s apart."""


@dataclass(frozen=True)
class Hub:
    """``reach``: what the service says of the request that came to it; ``upgrade``: the same, asked
    to become a websocket; ``arrivals``: seconds at which the pieces of its test stream came."""

    url: str
    api: Answer
    health: Answer = NO_ANSWER
    reach: Answer = NO_ANSWER
    upgrade: Answer = NO_ANSWER
    arrivals: tuple[float, ...] = ()


async def ask_hub(hub: Requester) -> Hub:
    """https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html"""
    api = await hub.get("/hub/api/")
    if api.trouble:
        return Hub(hub.url, api)
    health = await hub.get(f"{SERVICE}/health")
    if health.status != 200:
        return Hub(hub.url, api, health)
    reach = await hub.get(f"{SERVICE}/-/reach")
    upgrade = await hub.get(f"{SERVICE}/-/reach", headers=UPGRADE)
    arrivals = await hub.arrivals(f"{SERVICE}/-/stream")
    return Hub(hub.url, api, health, reach, upgrade, tuple(arrivals))


def judge_hub(facts: Hub) -> list[Finding]:
    at = shown(facts.url)
    if facts.api.trouble == "tls":
        return [
            problem(
                "hub.certificate",
                f"The certificate of the hub's address {at} is not trusted from here.",
                "Renew it, or have it issued for this name by an authority that browsers know.",
            )
        ]
    if facts.api.trouble:
        return [
            problem(
                "hub.unreachable",
                f"The hub does not answer at {at}.",
                "Start it; check `hub_url` or --hub, and what stands before the hub.",
            )
        ]
    version = _version(facts.api.mapping().get("version"))
    if facts.api.status != 200 or version is None:
        return [
            problem(
                "hub.no-hub",
                f"What answers at {at} is no JupyterHub (HTTP {facts.api.status} at /hub/api/).",
                "Give the hub's base URL, with its base path if it has one, as --hub and `hub_url`.",
            )
        ]
    name = ".".join(map(str, version))
    if version[:2] < OLDEST:
        findings = [
            problem(
                "hub.old",
                f"The hub is JupyterHub {name}; 5.4 or newer is needed.",
                "Update JupyterHub.",
            )
        ]
    elif version[0] > NEWEST:
        findings = [
            warning(
                "hub.new",
                f"The hub is JupyterHub {name}, newer than {NEWEST}, the last that was tried.",
                "Look for a newer version of this service.",
            )
        ]
    else:
        findings = [ok("hub.version", f"The hub is JupyterHub {name}.")]
    findings += _plain_http(facts.url)
    return findings + (
        _service(facts) or [*_forwarded(facts), *_websockets(facts), *_stream(facts)]
    )


def _version(said: object) -> tuple[int, ...] | None:
    found = re.match(r"(\d{1,4})\.(\d{1,4})\.(\d{1,6})", said) if isinstance(said, str) else None
    return tuple(int(part) for part in found.groups()) if found else None


def _plain_http(url: str) -> list[Finding]:
    parts = urlsplit(url)
    if parts.scheme == "https" or is_loopback(parts.hostname or ""):
        return []
    return [
        warning(
            "hub.no-tls",
            f"{shown(url)} is reached without TLS: sign-ins and everything in a notebook can be read on the way.",
            "Put TLS before the hub and give the https address as `hub_url`.",
        )
    ]


def _service(facts: Hub) -> list[Finding]:
    """Findings if the service is not well enough to ask it more."""
    said = facts.health.mapping()
    if facts.health.status != 200 or "status" not in said:
        return [
            problem(
                "service.missing",
                f"The hub has no way to the notebooks service (HTTP {facts.health.status} at {SERVICE}/health).",
                "Start the service, then the hub: its route appears only if the service answers when the hub starts.",
            )
        ]
    if said.get("status") != "ok":
        away = [name for name in ("hub", "forge") if not _reachable(said.get(name))]
        return [
            problem(
                "service.degraded",
                f"The service answers, but does not reach the {' and the '.join(away) or 'hub or the forge'}.",
                "See its log; `forge_url` and JUPYTERHUB_API_URL must be right for the service's process too.",
            )
        ]
    return []


def _reachable(said: object) -> bool:
    return isinstance(said, dict) and said.get("reachable") is True


def _forwarded(facts: Hub) -> list[Finding]:
    said = facts.reach.mapping()
    parts = urlsplit(facts.url)
    findings = [ok("service.answers", "The notebooks service answers and reaches hub and forge.")]
    if facts.reach.status != 200 or not said:
        return [
            *findings,
            unchecked(
                "hub.way-unknown",
                "The service does not say how requests reach it: it is of an older version.",
                "Update the service.",
            ),
        ]
    if said.get("scheme") != parts.scheme:
        findings.append(
            problem(
                "hub.scheme-lost",
                f"The service is told that requests come by {plain(said.get('scheme'), 20)}, and the address is {shown(facts.url)}.",
                "Let the reverse proxy before the hub set X-Forwarded-Proto.",
            )
        )
    if str(said.get("host", "")).lower() != parts.netloc.rpartition("@")[2].lower():
        findings.append(
            problem(
                "hub.host-lost",
                f"The service is told that requests are for {plain(said.get('host'), 80)}, and the address is {shown(facts.url)}: writes from pages would be refused.",
                "Let the reverse proxy before the hub pass the Host header on.",
            )
        )
    return findings


def _websockets(facts: Hub) -> list[Finding]:
    said = facts.upgrade.mapping().get("upgrade")
    if facts.upgrade.status in (101, 403) or said == "websocket":
        return [ok("hub.websockets", "Websockets come through to the hub's services.")]
    if facts.upgrade.status == 200:
        return [
            problem(
                "hub.websockets-lost",
                "Something before the hub takes the wish for a websocket out of requests: kernels and terminals would not connect.",
                "Let the reverse proxy pass Upgrade and Connection on, with HTTP/1.1 (nginx: proxy_http_version 1.1).",
            )
        ]
    return [
        warning(
            "hub.websockets-odd",
            f"A request that asks for a websocket is answered oddly (HTTP {facts.upgrade.status}).",
            "See what the reverse proxy before the hub does with Upgrade: kernels need it.",
        )
    ]


def _stream(facts: Hub) -> list[Finding]:
    if not facts.arrivals:
        return [unchecked("hub.stream-unseen", "The service's test stream gave nothing in time.")]
    if facts.arrivals[-1] - facts.arrivals[0] < APART:
        return [
            warning(
                "hub.stream-held",
                "Something before the hub holds streams back until they end: a launch would show no progress.",
                "Switch buffering off for the hub (nginx: proxy_buffering off), and give streams an hour (proxy_read_timeout 3600s).",
            )
        ]
    return [
        ok("hub.stream", "Streams come through piece by piece."),
        note(
            "hub.stream-long",
            "How long a quiet stream or websocket may last was not waited for.",
            "Where a reverse proxy is before the hub, give it an hour (nginx: proxy_read_timeout 3600s).",
        ),
    ]


def judge_webhooks(hub_url: str, forge_url: str, *, service_answers: bool | None) -> list[Finding]:
    """Whether the forge could call us. Only a hook would tell for sure, and the doctor makes none.

    https://docs.gitlab.com/security/webhooks/
    """
    hub, forge = urlsplit(hub_url), urlsplit(forge_url)
    address = f"{hub.hostname}:{hub.port or {'https': 443}.get(hub.scheme, 80)}"
    if is_loopback(hub.hostname or "") and not is_loopback(forge.hostname or ""):
        return [
            note(
                "webhooks.unreachable",
                f"A forge on another machine cannot call {shown(hub_url)}; nothing needs it to: the service asks the forge.",
                "",
            )
        ]
    here = (
        ""
        if service_answers is None
        else (
            " From here the service answers."
            if service_answers
            else " Not even from here does the service answer."
        )
    )
    return [
        unchecked(
            "webhooks.untried",
            f"Whether the forge can reach {shown(hub_url)} shows only with a webhook, which the doctor does not make; the service needs none.{here}",
            f"For webhooks to receivers of your own there, let the forge send to {address} (GitLab: Admin, Network, Outbound requests; embedded: `webhook_allowed_addresses`).",
        )
    ]
