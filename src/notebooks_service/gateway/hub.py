"""What the service asks the hub, over the hub's REST API; called by the gateway and by ``web``.

Two kinds of tokens go through here. A caller's own token (a person's or a server's) says who is
asking and does what that caller may do. The service's token only reads: the person's forge token
and the state of their servers. https://jupyterhub.readthedocs.io/en/stable/reference/rest-api.html
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

import httpx
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from notebooks_service.domain import LaunchRecord
from notebooks_service.errors import (
    Conflict,
    Forbidden,
    HubUnavailable,
    NotebooksError,
    NotFound,
    NotSignedIn,
    SignInExpired,
    StartFailed,
)

GIT_SCOPE = "custom:notebooks:git"
VERSION_SECONDS = 60.0
STOP_TRIES = 4
# The hub writes an empty line every 8 seconds into a progress stream; silence means that it is gone.
PROGRESS_SILENCE_SECONDS = 60.0

# httpcore's debug lines hold response headers, cookies included: they stay out of every log.
logging.getLogger("httpcore").setLevel(logging.WARNING)


class HubFailed(HubUnavailable):
    """The hub answered, and only that something went wrong in it: a full disk, for one."""

    code = "hub_failed"
    status = 502
    message = (
        "The hub failed at this. Nothing is lost; try again, and if it stays so, look into its log."
    )


@dataclass(frozen=True)
class Identity:
    """Who a token belongs to: ``name`` of a user (or of a service), and the scopes of that token."""

    name: str
    scopes: frozenset[str]
    kind: str = "user"
    admin: bool = False
    groups: tuple[str, ...] = ()
    session_id: str | None = None

    @property
    def servers(self) -> tuple[str, ...]:
        """Names of this user's servers that the token may do git for, one by one.

        A token with the git scope for anything wider than single servers of its own user (a
        person's own token, an administrator's) is no server's token and gets none.
        """
        prefix = f"{GIT_SCOPE}!server={self.name}/"
        scopes = [scope for scope in self.scopes if scope.partition("!")[0] == GIT_SCOPE]
        if self.kind != "user" or not all(scope.startswith(prefix) for scope in scopes):
            return ()
        return tuple(sorted(scope.removeprefix(prefix) for scope in scopes))


@dataclass(frozen=True)
class HubServer:
    """One named server as the hub's model has it; times are the hub's ISO strings.

    ``url`` is a path below the hub's host, or a full URL when the hub runs with subdomains.
    ``record`` is there for servers of ours only. A server is believed ready only by this model,
    never by a progress stream.
    """

    name: str
    display_name: str
    ready: bool
    pending: str | None
    stopped: bool
    url: str
    started: str | None
    last_activity: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    record: LaunchRecord | None = None


@dataclass(frozen=True)
class Person:
    """A hub user as the service's own token sees them."""

    name: str
    auth_state: Mapping[str, Any]
    servers: tuple[HubServer, ...]

    @property
    def forge_token(self) -> str:
        """The person's present token at the forge; raises ``SignInExpired`` if there is none."""
        token = self.auth_state.get("access_token")
        if not isinstance(token, str) or not token:
            raise SignInExpired
        return token


class HubClient:
    """A connection to the hub's API at ``api_url``; one per process, shared by all requests.

    Every method raises ``HubUnavailable`` when the hub does not answer or makes no sense.
    """

    def __init__(
        self, api_url: str, service_token: str, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._api_url = api_url.rstrip("/")
        self._service_token = service_token
        # A refresh of the person's forge token may happen within a request: 20 s for the forge
        # and the hub's own time come before our patience ends.
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(60.0, connect=10.0),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=5.0),
            transport=transport,
            trust_env=False,
        )
        self._version: tuple[tuple[int, ...], float] | None = None
        self._starts: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def aclose(self) -> None:
        await self._client.aclose()

    def derived_key(self, purpose: bytes) -> bytes:
        """32 secret bytes for one purpose, the same after a restart: made of the service's token."""
        info = b"notebooks-service gateway " + purpose
        made = HKDF(algorithm=SHA256(), length=32, salt=None, info=info)
        return made.derive(self._service_token.encode())

    async def version(self) -> tuple[int, ...]:
        """The hub's version, such as ``(6, 1)``."""
        now = time.monotonic()
        if self._version is None or self._version[1] < now:
            answer = await self._request("GET", "/", token=None)
            numbers = str(_json(answer).get("version", "")).split(".")[:2]
            if not all(number.isdigit() for number in numbers):
                raise HubUnavailable
            self._version = (tuple(map(int, numbers)), now + VERSION_SECONDS)
        return self._version[0]

    async def identify(self, token: str) -> Identity:
        """Whose token this is. Raises ``NotSignedIn`` for a token that the hub does not know.

        The hub refreshes the person's forge token within this request if it is due.
        """
        answer = await self._request("GET", "/user", token)
        if answer.status_code in (401, 403):
            raise NotSignedIn
        model = _json(answer)
        try:
            return Identity(
                name=model["name"],
                scopes=frozenset(model["scopes"]),
                kind=model["kind"],
                admin=bool(model.get("admin")),
                groups=tuple(model.get("groups", ())),
                session_id=model.get("session_id"),
            )
        except (KeyError, TypeError) as error:
            raise HubUnavailable from error

    async def person(self, name: str, *, stopped: bool = False) -> Person:
        """The person's forge token and servers (stopped ones only if asked for), in one request."""
        query = "?include_stopped_servers=1" if stopped else ""
        answer = await self._request("GET", f"/users/{_segment(name)}{query}", self._service_token)
        if answer.status_code == 404:
            raise NotFound
        model = _json(answer)
        if "auth_state" not in model or "servers" not in model:
            raise HubUnavailable(
                "The hub does not let the notebooks service read servers and sign-ins: its role"
                " needs the scopes admin:auth_state, read:servers and admin:server_state."
            )
        return Person(
            name=name,
            auth_state=model["auth_state"] or {},
            servers=tuple(_server(server) for server in model["servers"].values()),
        )

    async def forge_token(self, name: str) -> str:
        """The person's token at the forge. Raises ``SignInExpired`` if the hub holds none."""
        return (await self.person(name)).forge_token

    async def servers(self, name: str) -> list[HubServer]:
        """All servers of the person, stopped ones too, the default server included."""
        return list((await self.person(name, stopped=True)).servers)

    async def server(self, name: str, server: str) -> HubServer | None:
        """One server of the person, or None."""
        if await self.version() < (6,):
            return next((each for each in await self.servers(name) if each.name == server), None)
        answer = await self._request("GET", _server_path(name, server), self._service_token)
        return None if answer.status_code == 404 else _server(_json(answer))

    async def start_server(
        self, token: str, name: str, server: str, display_name: str, options: dict[str, Any]
    ) -> bool:
        """Start a server with the caller's own token; True if this call did it, False if it was there.

        A server that is starting keeps the options it was started with: the hub drops those of a
        second request without saying so. Raises ``Conflict`` (it is stopping, or too many servers),
        ``SignInExpired``, ``Forbidden``, ``NotFound``, ``StartFailed``, each with the hub's sentence.
        """
        body: dict[str, Any] = options
        if await self.version() >= (6,):
            body = {"display_name": display_name, "user_options": options}
        # The hub answers 202 both to the request that starts a server and to a second one while
        # it starts. One at a time, with a look first, tells them apart.
        async with self._starts.setdefault((name, server), asyncio.Lock()):
            present = await self.server(name, server)
            if present is not None and present.pending == "spawn":
                return False
            answer = await self._request("POST", _server_path(name, server), token, body)
            if answer.status_code in (201, 202):
                return True
            if answer.status_code == 400:
                present = await self.server(name, server)
                if present is not None and (present.ready or present.pending == "spawn"):
                    return False
        raise _refusal(answer)

    async def stop_server(
        self, token: str, name: str, server: str, *, remove: bool = False
    ) -> None:
        """Stop a server, or cancel its start; ``remove`` also makes the hub forget it.

        Returns when the hub has begun. Raises ``NotFound``, ``Forbidden``, ``Conflict``.
        """
        body = {"remove": True} if remove else None
        for _ in range(STOP_TRIES):
            answer = await self._request("DELETE", _server_path(name, server), token, body)
            if answer.status_code in (202, 204):
                return
            # The hub gives a cancelled start one second to end and answers 500 if it takes longer.
            if answer.status_code != 500:
                break
            if not remove and (present := await self.server(name, server)) and present.stopped:
                return
        raise _refusal(answer)

    async def progress(self, token: str, name: str, server: str) -> AsyncIterator[dict[str, Any]]:
        """The hub's progress events of a server, as they come, until the hub ends the stream.

        Raises ``Conflict`` if it is not starting, ``NotFound``. Close it with ``contextlib.aclosing``.
        """
        request = self._client.build_request(
            "GET",
            f"{self._api_url}{_server_path(name, server)}/progress",
            headers={**_headers(token), "Accept": "text/event-stream"},
            timeout=httpx.Timeout(PROGRESS_SILENCE_SECONDS, connect=10.0),
        )
        try:
            answer = await self._client.send(request, stream=True)
            try:
                if answer.status_code != 200:
                    await answer.aread()
                    raise _refusal(answer)
                async for line in answer.aiter_lines():
                    if line.startswith("data:"):
                        event = json.loads(line.removeprefix("data:"))
                        if isinstance(event, dict):
                            yield event
            finally:
                await answer.aclose()
        except (httpx.HTTPError, ValueError) as error:
            raise HubUnavailable from error

    async def _request(
        self, method: str, path: str, token: str | None, body: dict[str, Any] | None = None
    ) -> httpx.Response:
        """One exchange; what only a broken hub or proxy answers becomes ``HubUnavailable``."""
        try:
            answer = await self._client.request(
                method, f"{self._api_url}{path}", headers=_headers(token), json=body
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HubUnavailable from error
        if answer.status_code in (502, 503, 504) or answer.is_redirect:
            raise HubUnavailable
        return answer


def _headers(token: str | None) -> dict[str, str]:
    if token is None:
        return {}
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise NotSignedIn
    return {"Authorization": f"token {token}"}


def _segment(name: str) -> str:
    if name in ("", ".", ".."):
        raise NotFound
    return quote(name, safe="")


def _server_path(name: str, server: str) -> str:
    if not server:
        return f"/users/{_segment(name)}/server"
    return f"/users/{_segment(name)}/servers/{_segment(server)}"


def _json(answer: httpx.Response) -> dict[str, Any]:
    """The object in a good answer; raises what the hub's refusal means in any other."""
    if not answer.is_success:
        raise _refusal(answer)
    try:
        model = answer.json()
    except ValueError as error:
        raise HubUnavailable from error
    if not isinstance(model, dict):
        raise HubUnavailable
    return model


def _server(model: Mapping[str, Any]) -> HubServer:
    """One server out of the hub's model (``server_model`` in jupyterhub/apihandlers/base.py)."""
    try:
        return HubServer(
            name=model["name"],
            display_name=model.get("display_name") or model["name"],
            ready=bool(model["ready"]),
            pending=model["pending"],
            stopped=bool(model.get("stopped", False)),
            url=model["url"],
            started=model.get("started"),
            last_activity=model.get("last_activity"),
            options=model.get("user_options") or {},
            record=_record(model.get("state")),
        )
    except (KeyError, TypeError) as error:
        raise HubUnavailable from error


def _record(state: object) -> LaunchRecord | None:
    """Our record in a spawner's state; a foreign or unreadable one is none."""
    data = state.get("notebooks") if isinstance(state, dict) else None
    if not isinstance(data, dict):
        return None
    try:
        return LaunchRecord.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _refusal(answer: httpx.Response) -> NotebooksError:
    """The hub's refusal as one of our errors, with the hub's sentence where it is for people."""
    status = answer.status_code
    try:
        model = answer.json()
        message = model.get("message") if isinstance(model, dict) else None
    except ValueError:
        message = None
    message = message[:1000] if isinstance(message, str) and message else None
    if status == 401:
        return NotSignedIn()
    if status == 403:
        if message is None or "Missing or invalid credentials" in message:
            return NotSignedIn()
        if "auth has expired" in message:
            return SignInExpired()
        return Forbidden(message)
    if status == 404:
        return NotFound()
    if status == 429:
        error = HubUnavailable(message)
        if (after := answer.headers.get("Retry-After", "")).isdigit():
            error.detail["retry_after"] = int(after)
        return error
    if status in (400, 409):
        return Conflict(message)
    if status == 500 and message in (None, "Internal Server Error"):
        return HubFailed()
    if status >= 500 and message and answer.request.method == "POST":
        return StartFailed(message)
    return HubUnavailable()
