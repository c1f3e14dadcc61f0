"""Which images of a project servers run in, as a hub tells an administrator; used by ``image prune``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import Forbidden, HubUnavailable, InvalidRequest
from notebooks_service.images.prune import InUse

PAGE = 200
MOST_PAGES = 10_000
PAGINATION = "application/jupyterhub-pagination+json"


def images_in_use(hub: str, token: str, project: str, http: httpx.Client | None = None) -> InUse:
    """What the servers of ``project`` (its full path) run in, stopped ones too, for they come back.

    ``token`` needs ``list:users``, ``read:servers`` and, to know digests too, ``admin:server_state``.
    Raises ``Forbidden`` or ``HubUnavailable``: nothing is taken for unused because nobody said so.
    """
    parts = urlsplit(hub)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(
            "--hub wants the hub's address, such as https://notebooks.example.org/"
        )
    client = http or httpx.Client(timeout=60)
    try:
        digests: set[str] = set()
        commits: set[str] = set()
        for server in _servers(client, hub.rstrip("/"), token):
            _note(server, project.lower(), digests, commits)
        return InUse(frozenset(digests), frozenset(commits))
    finally:
        if http is None:
            client.close()


def _note(server: Mapping[str, Any], project: str, digests: set[str], commits: set[str]) -> None:
    state = server.get("state")
    record = state.get("notebooks") if isinstance(state, dict) else None
    # What it runs in, and what it ran in before and may be asked to go back to.
    for name in ("image", "had") if isinstance(record, dict) else ():
        image = record.get(name) if isinstance(record, dict) else None
        digest = image.get("digest") if isinstance(image, dict) else None
        if isinstance(digest, str):
            digests.add(digest)
    options = server.get("user_options")
    asked = options.get("notebooks") if isinstance(options, dict) else None
    if isinstance(asked, dict) and str(asked.get("project", "")).lower() == project:
        commit = asked.get("commit")
        if isinstance(commit, str) and is_commit_sha(commit):
            commits.add(commit)


def _servers(client: httpx.Client, hub: str, token: str) -> Iterator[dict[str, Any]]:
    """https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html#operation/get-users"""
    offset = 0
    for _ in range(MOST_PAGES):
        try:
            answer = client.get(
                f"{hub}/hub/api/users",
                params={"include_stopped_servers": "1", "limit": str(PAGE), "offset": str(offset)},
                headers={"Authorization": f"token {token}", "Accept": PAGINATION},
                follow_redirects=False,
            )
            page = answer.json() if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            raise HubUnavailable from None
        if answer.status_code in (401, 403):
            raise Forbidden(
                "The hub does not list its users to this token; take an administrator's, with the "
                "scopes list:users, read:servers and admin:server_state."
            )
        items = page.get("items") if isinstance(page, dict) else None
        if not isinstance(items, list):
            raise HubUnavailable
        for user in items:
            servers = user.get("servers") if isinstance(user, dict) else None
            if not isinstance(servers, dict):
                raise Forbidden(
                    "The hub does not show servers to this token; it needs the scope read:servers."
                )
            yield from (one for one in servers.values() if isinstance(one, dict))
        following = (page or {}).get("_pagination", {}).get("next")
        if not isinstance(following, dict) or not isinstance(following.get("offset"), int):
            return
        offset = following["offset"]
    raise HubUnavailable
