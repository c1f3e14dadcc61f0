"""What images that others are built on are at present, as named registries tell it to anybody.

Used by the hub (``images/container_naming.py``) and by jobs (``images/container_command.py``), which
have to come to the same name: so both ask the same registries, as nobody, and take no answer for
none. A host that only a repository names is never contacted (decision 0193). Blocking.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx

from notebooks_service.errors import InvalidRequest, RegistryUnavailable, SettingsInvalid
from notebooks_service.images.registry import RegistryClient, registry_of

MOST_BASES = 10
"""Bases of one environment that are asked about; the digests of others count as not known."""
SECONDS = 5.0
"""How long an answer is kept: less than a build's tag may take to appear, so that a base which
moves between the hub's question and the job's is noticed."""
TIMEOUT = 10.0
MOST_KEPT = 1000

DOCKER_HUB = "docker.io"
# https://distribution.github.io/distribution/spec/auth/token/
HUB_ADDRESS = "registry-1.docker.io"
HUB_REALM = "https://auth.docker.io/token"
HUB_NAMES = ("docker.io", "index.docker.io", HUB_ADDRESS)

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?\Z|\[[0-9a-f:]+\](:[0-9]{1,5})?\Z")


class Named(NamedTuple):
    """A reference as docker reads it: ``python`` is ``docker.io/library/python:latest``."""

    host: str
    repository: str
    tag: str


def read_base(reference: str) -> Named:
    """https://github.com/distribution/reference/blob/main/normalize.go"""
    first, slash, rest = reference.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = DOCKER_HUB, reference
    host = first.lower()
    host = DOCKER_HUB if host in HUB_NAMES else host
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, tag = rest, "latest"
    if host == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    return Named(host, path, tag)


def read_registries(said: Iterable[str]) -> dict[str, str]:
    """Host to the address that gives its tokens, "" where the registry does that itself.

    Each is ``host``, ``host:port`` or ``host=https://address/of/tokens``. Raises ``SettingsInvalid``.
    """
    found: dict[str, str] = {}
    for each in said:
        host, _, realm = each.strip().partition("=")
        host = host.strip().lower()
        parts = urlsplit(realm.strip())
        if not _HOST.match(host) or (realm and (parts.scheme != "https" or not parts.hostname)):
            raise SettingsInvalid(
                f"`{each[:100]}` in `base_registries` is no registry; write a host such as `docker.io`, "
                "or `host=https://address/of/its/tokens`."
            )
        found[DOCKER_HUB if host in HUB_NAMES else host] = realm.strip()
    return found


def listed(text: str) -> list[str]:
    """The list in a variable: JSON, as the settings have it, or words between commas or blanks."""
    try:
        said = json.loads(text) if text.strip() else []
    except ValueError:
        said = [word for word in re.split(r"[\s,]+", text) if word]
    return [str(each) for each in said] if isinstance(said, list) else [text]


class BaseDigests:
    """Asks, with a short memory. Thread-safe; nothing is contacted before it is needed."""

    def __init__(
        self,
        registries: Iterable[str],
        forge: str = "",
        *,
        http: httpx.Client | None = None,
        keep: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``registries`` as ``read_registries`` takes them; ``forge``: the GitLab whose ``/jwt/auth``
        gives the tokens of a project's own registry; ``keep``: seconds that an answer is good for."""
        self._realms = read_registries(registries)
        self._forge = f"{forge.rstrip('/')}/jwt/auth" if forge else ""
        self._http = http
        self._keep = keep
        self._clock = clock
        self._clients: dict[str, RegistryClient] = {}
        self._known: dict[Named, tuple[str | None, float]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        if self._http is not None:
            self._http.close()

    def asking(self, own: str) -> Callable[[str], str | None]:
        """What ``BuildOptions.base_digest`` wants, for one environment of a project.

        ``own``: the host of the project's own registry, if it has one, as the forge says. The function
        raises ``RegistryUnavailable`` if a registry that should tell does not answer.
        """
        asked: set[str] = set()

        def digest(reference: str) -> str | None:
            if reference not in asked and len(asked) >= MOST_BASES:
                return None
            asked.add(reference)
            base = read_base(reference)
            if base.host not in self._realms and base.host != own.lower():
                return None
            return self._of(base)

        return digest

    def _of(self, base: Named) -> str | None:
        now = self._clock()
        with self._lock:
            known, until = self._known.get(base, (None, now))
            if now < until:
                return known
        found = self._ask(base)
        with self._lock:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            self._known[base] = (found, self._clock() + self._keep)
        return found

    def _ask(self, base: Named) -> str | None:
        try:
            return self._client(base.host).head(base.repository, base.tag)
        except InvalidRequest:
            return None  # no builder would find an image of such a name either
        except RegistryUnavailable as error:
            reason = str(error.detail.get("reason", ""))
            if reason.startswith("HTTP 3"):
                return None  # it leads elsewhere, and nobody has named that
            if reason == "realm":
                raise RegistryUnavailable(
                    f"{error.message} Whoever runs this service can name it with the registry, in "
                    "`base_registries`.",
                    **error.detail,
                ) from None
            raise RegistryUnavailable(
                f"The registry {base.host} does not say at the moment which image "
                f"`{base.repository}:{base.tag}` is, on which this one is built. Nothing is lost; try "
                "again in a minute.",
                **error.detail,
            ) from None

    def _client(self, host: str) -> RegistryClient:
        with self._lock:
            if self._http is None:
                self._http = httpx.Client(timeout=TIMEOUT, follow_redirects=False)
            if host not in self._clients:
                realm = self._realms.get(host) or self._forge
                url, _ = registry_of(f"{HUB_ADDRESS if host == DOCKER_HUB else host}/x")
                realms = [HUB_REALM] if host == DOCKER_HUB else [realm] if realm else []
                self._clients[host] = RegistryClient(url, realms=realms, http=self._http)
            return self._clients[host]
