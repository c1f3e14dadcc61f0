"""What a ``jupyterhub_config.py`` makes of the settings that the service needs.

``python -m notebooks_service.doctor.hub_config FILE`` runs the file as JupyterHub would, in a process
of its own, and prints a few facts as JSON: no secret is among them. ``judge_hub_config`` judges them.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning

SECONDS = 60

REQUIRED: tuple[tuple[str, str, Any, str], ...] = (
    ("named_servers", "JupyterHub.allow_named_servers", True, "a launch is a named server"),
    ("spawn_limit", "JupyterHub.concurrent_spawn_limit", 0, "the hub's own limit counts those who wait for a build"),
    ("cleanup_servers", "JupyterHub.cleanup_servers", False, "stopping the hub would end people's servers"),
    ("slow_spawn", 'JupyterHub.tornado_settings["slow_spawn_timeout"]', 0, "launches take longer than that"),
    ("failure_limit", "Spawner.consecutive_failure_limit", 0, "a few refused launches would end the hub"),
    ("auth_state", "Authenticator.enable_auth_state", True, "forge tokens could not be kept"),
    ("crypt_key", "CryptKeeper.keys or JUPYTERHUB_CRYPT_KEY", True, "forge tokens could not be kept encrypted"),
    ("hook", "OAuthenticator.refresh_user_hook", True, "forge tokens would not be renewed safely"),
    ("launches", "JupyterHub.spawner_class", True, "servers of commits would not be launched"),
    ("service", "JupyterHub.services", True, "the service has no way in"),
    ("roles", "JupyterHub.load_roles", True, "people or the service lack their rights"),
)  # fmt: skip


def read_config(file: Path) -> dict[str, Any]:
    """Run the configuration file and give the facts; raises whatever the file raises."""
    from traitlets.config.loader import LazyConfigValue, PyFileConfigLoader

    from notebooks_service.spawner import roles
    from notebooks_service.spawner.launch import LaunchMixin

    c = PyFileConfigLoader(file.name, path=str(file.parent)).load_config()

    def value(section: str, name: str, default: Any) -> Any:
        if section not in c or name not in c[section]:
            return default
        found = c[section][name]
        return found.get_value(default) if isinstance(found, LazyConfigValue) else found

    spawner = value("JupyterHub", "spawner_class", None)
    wanted = {role["name"]: set(role["scopes"]) for role in roles.merge_roles([])}
    given = {
        role.get("name"): set(role.get("scopes", ()))
        for role in value("JupyterHub", "load_roles", [])
    }
    services = value("JupyterHub", "services", [])
    people = value("Authenticator", "allowed_users", None) or value(
        "OAuthenticator", "allowed_users", None
    )
    return {
        "named_servers": value("JupyterHub", "allow_named_servers", False),
        "spawn_limit": value("JupyterHub", "concurrent_spawn_limit", 100),
        "cleanup_servers": value("JupyterHub", "cleanup_servers", True),
        "slow_spawn": value("JupyterHub", "tornado_settings", {}).get("slow_spawn_timeout", 10),
        "failure_limit": value("Spawner", "consecutive_failure_limit", 5),
        "auth_state": value("Authenticator", "enable_auth_state", False),
        "crypt_key": bool(
            value("CryptKeeper", "keys", []) or os.environ.get("JUPYTERHUB_CRYPT_KEY")
        ),
        "hook": value("OAuthenticator", "refresh_user_hook", None) is not None,
        "launches": isinstance(spawner, type) and issubclass(spawner, LaunchMixin),
        "service": any(one.get("name") == roles.SERVICE and one.get("url") for one in services),
        "roles": all(scopes <= given.get(name, set()) for name, scopes in wanted.items()),
        "proxy_own": value("ConfigurableHTTPProxy", "should_start", True) is not False,
        "subdomain_host": bool(value("JupyterHub", "subdomain_host", "")),
        "people": len(people) if isinstance(people, list | set | tuple | frozenset) else None,
    }


def judge_hub_config(
    facts: Mapping[str, Any], *, runtime: str, unwalled: bool = False
) -> list[Finding]:
    """``facts`` of ``read_config``; with the key ``error`` instead if the file could not be run."""
    if "error" in facts:
        return [
            problem(
                "config.fails",
                f"The hub's configuration file does not run: {plain(facts['error'], 300)}",
                "Correct it, and give the doctor the environment that the hub has.",
            )
        ]
    wrong = [
        (name, why) for key, name, wanted, why in REQUIRED if facts.get(key, object()) != wanted
    ]
    findings = [
        problem(
            "config.required",
            f"{name} is not as the service needs it: {why}.",
            "Call `configure(c)` at the very end of the hub's configuration file, and set nothing of this after it.",
        )
        for name, why in wrong
    ]
    if not wrong:
        findings.append(
            ok("config.complete", "The hub's configuration has all that the service needs.")
        )
    if facts.get("proxy_own"):
        findings.append(
            warning(
                "config.own-proxy",
                "The hub starts the proxy itself: when it stops, everybody's servers go off the net.",
                "Run configurable-http-proxy as a process of its own and set c.ConfigurableHTTPProxy.should_start = False.",
            )
        )
    return [
        *findings,
        *judge_origin(
            bool(facts.get("subdomain_host")), facts.get("people"), runtime, unwalled=unwalled
        ),
    ]


def judge_origin(
    subdomain_host: bool, people: int | None, runtime: str, *, unwalled: bool = False
) -> list[Finding]:
    """Whether a server's page is of another origin than the hub. ``people``: how many, if it is known.

    https://jupyterhub.readthedocs.io/en/stable/explanation/websecurity.html
    """
    if subdomain_host:
        return [ok("origin.own", "Every server has a host of its own (`subdomains`).")]
    what = "a page that a notebook shows can act on hub and service as whoever looks at it"
    advice = "Set `subdomains` for hub and service, with a wildcard name and certificate."
    if people == 1:
        return [
            note(
                "origin.one-person",
                f"Servers and hub share one host; {what}. Only one person is allowed in.",
                advice,
            )
        ]
    if runtime == "local" and not unwalled:
        return [
            note(
                "origin.local",
                f"Servers and hub share one host: {what}.",
                "Open only projects whose people you would let do that.",
            )
        ]
    return [
        problem(
            "origin.shared",
            f"This is not safe for more than one person: servers and hub share one host, so {what}.",
            advice,
        )
    ]


async def run_config(file: Path) -> dict[str, Any]:
    """The facts about ``file``, found in a process of its own; it may take 60 seconds.

    ``file`` is absolute.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", __name__, str(file)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return {"error": f"it did not end within {SECONDS} seconds."}
    try:
        facts = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"its process ended with code {process.returncode}."}
    return facts if isinstance(facts, dict) else {"error": "it printed something else."}


def unread() -> list[Finding]:
    return [
        unchecked(
            "config.unread",
            "The hub's configuration was not looked at.",
            "For a hub of your own give its file with --hub-config; it is run, as JupyterHub runs it.",
        )
    ]


def main() -> int:
    from notebooks_service.errors import NotebooksError

    file = Path(sys.argv[1])
    try:
        facts = read_config(file)
    except NotebooksError as error:
        facts = {"error": error.message}
    except BaseException as error:  # whatever somebody's file does
        # Not the message: it may quote a secret of the file.
        line = ""
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(file):
                line = f" in line {trace.tb_lineno}"
            trace = trace.tb_next
        facts = {"error": f"{type(error).__name__}{line}."}
    print(json.dumps(facts), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
