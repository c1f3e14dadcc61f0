"""What lies between us and the forge: clocks, limits on requests, HTTP proxies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from notebooks_service.doctor.asking import Answer, is_loopback, shown
from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning

MOST_SKEW = 30.0
FEW = 0.1


def judge_clock(answer: Answer) -> list[Finding]:
    """The forge's ``Date`` against our time when its answer came."""
    try:
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError, OverflowError):
        return [unchecked("clock.unknown", "The forge does not say what time it is.")]
    ahead = answer.clock - theirs
    if abs(ahead) > MOST_SKEW:
        direction = "ahead of" if ahead > 0 else "behind"
        return [
            warning(
                "clock.apart",
                f"The clock of this machine is {abs(ahead):.0f} seconds {direction} the forge's.",
                "Let both follow a time server (`timedatectl set-ntp true`): tokens and certificates are judged by the clock.",
            )
        ]
    return [ok("clock.together", "The clocks of this machine and of the forge agree.")]


def judge_limits(answer: Answer) -> list[Finding]:
    """https://docs.gitlab.com/administration/settings/user_and_ip_rate_limits/#response-headers"""
    if answer.status == 429:
        wait = plain(answer.headers.get("retry-after", "some"), 20)
        return [
            problem(
                "limits.reached",
                f"The forge refuses further requests of this machine for {wait} seconds.",
                "Raise its rate limits for this address, or add it to the allowlist; the service asks about once a second for each launch that waits.",
            )
        ]
    left, seen = _count(answer, "ratelimit-remaining"), _count(answer, "ratelimit-observed")
    limit = _count(answer, "ratelimit-limit")
    # RateLimit-Limit is a rate for one minute, whatever the period; what is left is of the period.
    most = left + seen if left is not None and seen is not None else limit
    if most is None or left is None:
        return [note("limits.unseen", "The forge names no rate limit in its answers.")]
    if left < most * FEW:
        return [
            warning(
                "limits.near",
                f"Of {most} requests that the forge allows, {left} are left.",
                "See who else asks from this address, or raise the rate limits at the forge.",
            )
        ]
    return [ok("limits.far", f"Of {most} requests that the forge allows, {left} are left.")]


def _count(answer: Answer, name: str) -> int | None:
    said = answer.headers.get(name, "")
    return int(said) if re.fullmatch(r"[0-9]{1,11}", said) else None


@dataclass(frozen=True)
class Proxies:
    """``used``: the proxy for the forge's address, if any. ``direct``: it answers without one."""

    forge_url: str
    hub_url: str
    environ: Mapping[str, str]
    used: str = ""
    direct: bool = True


def proxy_for(url: str, environ: Mapping[str, str]) -> str:
    """The proxy that the environment names for ``url``; empty if none. As Python's urllib reads it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or _excepted(host, environ):
        return ""
    for name in (f"{parts.scheme}_proxy", "all_proxy"):
        # A CGI script's environment could hold a request header as HTTP_PROXY; ours is no CGI.
        if found := environ.get(name) or environ.get(name.upper()):
            return found
    return ""


def _excepted(host: str, environ: Mapping[str, str]) -> bool:
    listed = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    for entry in (each.strip().lower().lstrip(".") for each in listed.split(",")):
        if entry == "*" or (entry and (host == entry or host.endswith(f".{entry}"))):
            return True
    return False


def judge_proxies(facts: Proxies) -> list[Finding]:
    findings: list[Finding] = []
    named = sorted(
        name
        for name, value in facts.environ.items()
        if value and name.lower() in ("http_proxy", "https_proxy", "all_proxy")
    )
    if not named:
        return [ok("proxy.none", "No HTTP proxy is set in the environment.")]
    hub = urlsplit(facts.hub_url).hostname or ""
    if not _excepted("localhost", facts.environ) or not _excepted("127.0.0.1", facts.environ):
        findings.append(
            note(
                "proxy.loopback",
                "An HTTP proxy is set, and NO_PROXY leaves out localhost or 127.0.0.1.",
                "`notebooks up` adds both for its own parts; beside a hub of your own set NO_PROXY=localhost,127.0.0.1.",
            )
        )
    if hub and not is_loopback(hub) and not _excepted(hub, facts.environ):
        findings.append(
            warning(
                "proxy.hub",
                f"Requests to the hub's own host {plain(hub, 80)} would go through the HTTP proxy.",
                "Name the hub's host in NO_PROXY.",
            )
        )
    if not facts.used:
        findings.append(
            ok("proxy.passed-by", "An HTTP proxy is set; the forge is reached without it.")
        )
    elif facts.direct:
        findings.append(
            note(
                "proxy.used",
                f"The forge is reached through the HTTP proxy {plain(shown(facts.used), 80)}, and could be reached without it.",
                "Name the forge's host in NO_PROXY to spare the way round.",
            )
        )
    else:
        findings.append(
            warning(
                "proxy.needed",
                f"The forge is reached only through the HTTP proxy {plain(shown(facts.used), 80)}: JupyterHub's own sign-in does not read the environment, and would not get through.",
                'Set `c.OAuthenticator.http_request_kwargs = {"proxy_host": …, "proxy_port": …}` (it needs pycurl), or let the forge be reached directly.',
            )
        )
    return findings
