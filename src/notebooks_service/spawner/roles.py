"""Roles, scopes and the service entry that the hub needs; each reason is in ``docs/security.md``.

Pure functions over JupyterHub's configuration values; called by ``configure``.
https://jupyterhub.readthedocs.io/en/stable/rbac/scopes.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SERVICE = "notebooks"
GIT_SCOPE = "custom:notebooks:git"

CUSTOM_SCOPES: dict[str, dict[str, Any]] = {
    GIT_SCOPE: {"description": "Git through the notebooks gateway, as the server in the filter."}
}

# `!user`, not unfiltered: a person must not be able to issue a token that names another's server.
USER_SCOPES = ("self", f"access:services!service={SERVICE}", f"{GIT_SCOPE}!user")

SERVICE_ROLE = "notebooks-service"
SERVICE_SCOPES = ("admin:auth_state", "read:users:name", "read:servers", "admin:server_state")

# What the service may do with a person's own OAuth token: start, stop, see and name their servers.
CLIENT_SCOPES = ("servers!user", "read:servers!user", "read:users:name!user")

STOCK_SERVER_SCOPES = ("users:activity!user", "access:servers!server")
SERVER_SCOPE = f"{GIT_SCOPE}!server"


def merge_roles(theirs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Their roles with ours added; a role of the same name keeps its scopes and members too."""
    ours = [
        {"name": "user", "scopes": list(USER_SCOPES)},
        {"name": SERVICE_ROLE, "scopes": list(SERVICE_SCOPES), "services": [SERVICE]},
    ]
    roles = {role["name"]: dict(role) for role in theirs}
    for role in ours:
        mine = roles.setdefault(role["name"], {"name": role["name"]})
        for key in ("scopes", "services"):
            if key in role:
                mine[key] = [*dict.fromkeys([*mine.get(key, ()), *role[key]])]
    return list(roles.values())


def merge_services(
    theirs: Iterable[Mapping[str, Any]], ours: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Their services with ours added; what they say about ours wins."""
    services = [dict(service) for service in theirs]
    for service in services:
        if service.get("name") == ours["name"]:
            service.update({**ours, **service})
            return services
    return [*services, dict(ours)]


def server_scopes(theirs: Any) -> Any:
    """``Spawner.server_token_scopes`` with ours: a list, or a callable if theirs is one."""
    if callable(theirs):

        async def both(spawner: Any) -> list[str]:
            asked = theirs(spawner)
            if hasattr(asked, "__await__"):
                asked = await asked
            return server_scopes(asked)  # type: ignore[no-any-return]

        return both
    return [*dict.fromkeys([*(theirs or STOCK_SERVER_SCOPES), SERVER_SCOPE])]
