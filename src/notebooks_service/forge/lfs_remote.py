"""Reads large files (Git LFS) from another server, for an import from its address; for ``lfs_import``.

It asks without any credentials, so it gets what anybody may have. What the server names elsewhere is
fetched from public addresses only, as webhooks go; redirects are not followed.
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from notebooks_service.forge import outbound
from notebooks_service.forge.lfs_store import PIECE

log = logging.getLogger(__name__)

LFS_TYPE = "application/vnd.git-lfs+json"
AT_ONCE = 100
MOST_JSON = 4 << 20
TIMEOUT = httpx.Timeout(60, connect=10)
_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}")
_OURS = frozenset({"host", "connection", "content-length", "transfer-encoding", "accept-encoding"})


class NotHad(Exception):
    """The server does not give this object, or not in a way that may be followed."""


@dataclass(frozen=True)
class Place:
    """Where the server says that an object is, and what to send there."""

    href: str
    headers: Mapping[str, str] = field(default_factory=dict)


class RemoteObjects:
    """The large files of one repository at an http(s) address. ``transport`` is for tests."""

    def __init__(self, address: str, transport: httpx.BaseTransport | None = None) -> None:
        base = address.rstrip("/")
        self._endpoint = f"{base if base.endswith('.git') else base + '.git'}/info/lfs"
        self._origin = outbound.parse(address)
        # To the source itself as git goes there, by a proxy too; elsewhere without one, because a
        # proxy would resolve the checked name again. Neither reads a netrc file.
        self._client = httpx.Client(transport=transport, timeout=TIMEOUT)
        self._elsewhere = httpx.Client(transport=transport, timeout=TIMEOUT, trust_env=False)

    def close(self) -> None:
        self._client.close()
        self._elsewhere.close()

    def places(self, wanted: Mapping[str, int]) -> dict[str, Place]:
        """Of ``wanted`` (oid to size) those that the server has. Never raises: none, if it has no LFS."""
        found: dict[str, Place] = {}
        for some in _batches(list(wanted), AT_ONCE):
            objects = [{"oid": oid, "size": wanted[oid]} for oid in some]
            body = {"operation": "download", "transfers": ["basic"], "objects": objects}
            try:
                answer = self._ask(body)
            except (httpx.HTTPError, ValueError, RecursionError) as error:
                log.warning("no large files from %s: %s", self._endpoint, type(error).__name__)
                return found
            for one in answer:
                place = _place(one)
                if place is not None and one["oid"] in some:
                    found[one["oid"]] = place
        return found

    def _ask(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        headers = {"Accept": LFS_TYPE, "Content-Type": LFS_TYPE, "Accept-Encoding": "identity"}
        request = self._client.build_request(
            "POST", f"{self._endpoint}/objects/batch", content=json.dumps(body), headers=headers
        )
        response = self._client.send(request, stream=True)
        try:
            response.raise_for_status()
            read = b""
            for part in response.iter_raw():
                read += part
                if len(read) > MOST_JSON:
                    raise ValueError("too long")
        finally:
            response.close()
        answer = json.loads(read)
        objects = answer.get("objects") if isinstance(answer, dict) else None
        if not isinstance(objects, list):
            raise ValueError("no answer to a batch")
        return [one for one in objects if isinstance(one, dict) and isinstance(one.get("oid"), str)]

    def read(self, place: Place) -> Iterator[bytes]:
        """The bytes there. Raises ``NotHad``."""
        try:
            parts, host, port = outbound.parse(place.href)
            headers = {**place.headers, "Accept-Encoding": "identity"}
            if (parts.scheme, host, port) == (self._origin[0].scheme, *self._origin[1:]):
                client = self._client
                request = client.build_request("GET", place.href, headers=headers)
            else:
                if self._origin[0].scheme == "https" and parts.scheme != "https":
                    raise NotHad("it would come without TLS")
                target = outbound.resolve(place.href)
                client = self._elsewhere
                request = client.build_request(
                    "GET",
                    target.connect_url,
                    headers={**headers, "Host": target.host_header},
                    extensions={"sni_hostname": target.host},
                )
            response = client.send(request, stream=True, follow_redirects=False)
            try:
                if response.status_code != 200:
                    raise NotHad(f"HTTP {response.status_code}")
                yield from response.iter_raw(PIECE)
            finally:
                response.close()
        except (httpx.HTTPError, httpx.InvalidURL, outbound.NotAllowed, ValueError) as error:
            raise NotHad(str(error)) from None


def _batches(oids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(oids), size):
        yield oids[start : start + size]


def _place(one: dict[str, Any]) -> Place | None:
    """What a batch answer says of one object; None for an error, and for what is no answer."""
    actions = one.get("actions")
    action = actions.get("download") if isinstance(actions, dict) else None
    href = action.get("href") if isinstance(action, dict) else None
    if not isinstance(action, dict) or not isinstance(href, str):
        return None
    sent = action.get("header") or {}
    if not isinstance(sent, dict):
        return None
    headers = {}
    for name, value in sent.items():
        if not isinstance(value, str) or not _HEADER.fullmatch(name) or not value.isprintable():
            return None
        if not value.isascii():
            return None
        if name.lower() not in _OURS:
            headers[name] = value
    return Place(href, headers)
