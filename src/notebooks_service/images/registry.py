"""A small client of container registries: reads, copies and removes tags; moves no layer.

Used by ``notebooks image …`` (``images/container.py``, ``images/prune.py``). Blocking.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md

A password goes to the configured registry (Basic) or to a configured realm (Bearer), and nowhere
else: what a response names as realm is only compared. Hidden and missing are the same answer.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urljoin, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

import httpx

from notebooks_service.errors import Forbidden, InvalidRequest, RegistryUnavailable

MEDIA_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*\Z"
)
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")

NO_PUSH = "The registry does not let this login push to the project's images."

LARGEST_MANIFEST = 4 * 2**20
LARGEST_CONFIG = 4 * 2**20
LARGEST_ANSWER = 256 * 2**10
MOST_PAGES = 1000
TAGS_A_PAGE = 1000
MOST_REDIRECTS = 3
TRIES = 3
LONGEST_ANSWER = 120.0
"""Seconds until an answer, none of which is large, is there as a whole."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries; a registry that asks for a longer pause is not waited for."""


@dataclass(frozen=True)
class Login:
    """What a registry or its token service is told; never shown."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Manifest:
    """A manifest as it lies in the registry, byte for byte: its digest is over these bytes."""

    media_type: str
    content: bytes
    digest: str

    @property
    def config(self) -> str | None:
        """The digest of the image's configuration; None for a list of images."""
        try:
            found = json.loads(self.content)["config"]["digest"]
        except (ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) and DIGEST.match(found) else None


def registry_of(image: str) -> tuple[str, str]:
    """The registry's base URL and the repository of ``host[:port]/path``.

    HTTP on this machine's loopback, as docker has it, otherwise HTTPS. Raises ``InvalidRequest``.
    """
    host, _, repository = image.partition("/")
    try:
        parts = urlsplit(f"//{host}")
    except ValueError:
        parts = urlsplit("")
    if not parts.hostname or not REPOSITORY.match(repository) or "@" in host:
        raise InvalidRequest(
            f"`{image[:200]}` names no image; give one such as registry.example.org/group/project."
        )
    plain = parts.hostname == "localhost" or re.match(r"(127\.[\d.]+|::1)\Z", parts.hostname)
    return f"{'http' if plain else 'https'}://{host}", repository


class RegistryClient:
    """One registry, asked as one login (or as nobody)."""

    def __init__(
        self,
        url: str,
        *,
        realms: Iterable[str] = (),
        login: Login | None = None,
        http: httpx.Client | None = None,
        blob_hosts: Iterable[str] = (),
        sign: Callable[[str], tuple[str, float]] | None = None,
        longest: float = LONGEST_ANSWER,
        tries: int = TRIES,
    ) -> None:
        """``realms``: the token services that may be given ``login``, as whole URLs.

        ``blob_hosts``: hosts (``host`` or ``host:port``) besides the registry that it may send us to
        for a blob; they get no credentials. ``sign``: gives a token for a scope and how many seconds it
        lives, for whom the registry believes; nobody is asked for one then. ``longest``: seconds for
        one answer as a whole. ``tries``: how often a registry that does not answer is asked.
        """
        self.url = url.rstrip("/")
        self._realms = {_plain(realm) for realm in realms}
        self._login = login
        self._http = http or httpx.Client(timeout=30, follow_redirects=False)
        self._blob_hosts = frozenset(blob_hosts)
        self._sign = sign
        self._longest = longest
        self._tries = tries
        self._challenge: tuple[str, str] | None = None
        self._basic = False
        self._tokens: dict[str, tuple[str, float]] = {}

    def close(self) -> None:
        self._http.close()

    # Reading

    def head(self, repository: str, reference: str) -> str | None:
        """The digest that a tag (or digest) points at now; None if there is none, or it is hidden."""
        answer = self._manifest("HEAD", repository, reference)
        if answer is None:
            return None
        digest: str = answer.headers.get("docker-content-digest", "")
        if DIGEST.match(digest):
            return digest
        found = self.manifest(repository, reference)
        return found.digest if found else None

    def manifest(self, repository: str, reference: str) -> Manifest | None:
        """The manifest, its digest computed and compared; None if there is none, or it is hidden."""
        answer = self._manifest("GET", repository, reference)
        if answer is None:
            return None
        digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
        said = answer.headers.get("docker-content-digest", digest)
        if said != digest or (DIGEST.match(reference) and reference != digest):
            raise RegistryUnavailable(
                "The registry's answer is not what its digest says, so it was not believed.",
                reason="digest",
            )
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in MEDIA_TYPES:
            raise RegistryUnavailable(
                f"The registry keeps `{reference}` in a form that is not an image's "
                f"({kind[:80] or 'none'}).",
                reason="media type",
            )
        return Manifest(kind, answer.content, digest)

    def config(self, repository: str, manifest: Manifest) -> Mapping[str, Any]:
        """The configuration of an image (labels are below ``config.Labels``); empty if unknown."""
        digest = manifest.config
        if digest is None:
            return {}
        try:
            content = self._blob(repository, digest)
            found = json.loads(content) if content else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def labels(self, repository: str, manifest: Manifest) -> dict[str, str]:
        """The labels of an image."""
        inner = self.config(repository, manifest).get("config")
        found = inner.get("Labels") if isinstance(inner, dict) else None
        if not isinstance(found, dict):
            return {}
        return {name: text for name, text in found.items() if isinstance(text, str)}

    def tags(self, repository: str) -> list[str]:
        """Every tag, page by page; empty if there is no such repository, or it is hidden."""
        found: list[str] = []
        query: dict[str, str] = {"n": str(TAGS_A_PAGE)}
        for _ in range(MOST_PAGES):
            path = f"{self._path(repository)}/tags/list"
            answer = self._ask("GET", path, f"repository:{repository}:pull", params=query)
            if _missing(answer):
                return []
            self._expect(answer, 200)
            data = _json(answer)
            names = data.get("tags") or []
            found += [name for name in names if isinstance(name, str) and TAG.match(name)]
            # Its host and path are not looked at: we know where we ask.
            link = answer.links.get("next", {}).get("url", "")
            following = dict(parse_qsl(urlsplit(link).query))
            if not following.get("last") or following.get("last") == query.get("last"):
                return found
            query = {"n": str(TAGS_A_PAGE), "last": following["last"]}
        raise RegistryUnavailable("The registry's list of tags has no end.", reason="pages")

    # Writing

    def put(self, repository: str, tag: str, manifest: Manifest) -> None:
        """Makes ``tag`` point at ``manifest``, whose parts the repository has already.

        Raises ``Forbidden`` for a login that may not push.
        """
        _check(TAG, tag)
        answer = self._ask(
            "PUT",
            f"{self._path(repository)}/manifests/{tag}",
            f"repository:{repository}:pull,push",
            headers={"Content-Type": manifest.media_type},
            content=manifest.content,
        )
        if answer.status_code in (401, 403, 404, 405):
            raise Forbidden(NO_PUSH)
        self._expect(answer, 201)
        if answer.headers.get("docker-content-digest", manifest.digest) != manifest.digest:
            raise RegistryUnavailable("The registry changed what it was given.", reason="digest")

    def check_may_push(self, repository: str) -> None:
        """Raises ``Forbidden`` if this login may not push: better known before a build than after it.

        Begins an upload and gives it up.
        """
        scope = f"repository:{repository}:pull,push"
        url = f"{self._path(repository)}/blobs/uploads/"
        answer = self._ask("POST", url, scope)
        if answer.status_code in (401, 403, 404, 405):
            raise Forbidden(NO_PUSH)
        self._expect(answer, 202)
        begun = urljoin(url, answer.headers.get("location", ""))
        if _origin(begun) == _origin(self.url):
            self._ask("DELETE", begun, scope)

    def delete_tag(self, repository: str, tag: str) -> bool | None:
        """Removes one tag and nothing else. False: there was none; None: it cannot do that.

        https://github.com/opencontainers/distribution-spec/blob/main/spec.md#deleting-tags
        """
        return self._delete(repository, _check(TAG, tag))

    def delete_digest(self, repository: str, digest: str) -> bool | None:
        """Removes a manifest **and every tag of it**: whoever calls this knows all its tags."""
        return self._delete(repository, _check(DIGEST, digest))

    def _delete(self, repository: str, reference: str) -> bool | None:
        answer = self._ask(
            "DELETE",
            f"{self._path(repository)}/manifests/{reference}",
            f"repository:{repository}:pull,delete",
        )
        if answer.status_code in (401, 403):
            raise Forbidden("The registry does not let this login delete the project's images.")
        if answer.status_code == 404:
            return False
        if answer.status_code in (400, 405):
            return None
        self._expect(answer, 202, 200, 204)
        return True

    # How

    def _path(self, repository: str) -> str:
        return f"{self.url}/v2/{_check(REPOSITORY, repository)}"

    def _manifest(self, method: str, repository: str, reference: str) -> httpx.Response | None:
        if not DIGEST.match(reference):
            _check(TAG, reference)
        answer = self._ask(
            method,
            f"{self._path(repository)}/manifests/{reference}",
            f"repository:{repository}:pull",
            headers={"Accept": ", ".join(MEDIA_TYPES)},
            limit=LARGEST_MANIFEST,
        )
        if _missing(answer):
            return None
        self._expect(answer, 200)
        return answer

    def _blob(self, repository: str, digest: str) -> bytes | None:
        url = f"{self._path(repository)}/blobs/{digest}"
        answer = self._ask("GET", url, f"repository:{repository}:pull", limit=LARGEST_CONFIG)
        for _ in range(MOST_REDIRECTS):
            if not answer.has_redirect_location:
                break
            url = urljoin(url, answer.headers["location"])
            parts = urlsplit(url)
            if _origin(url) != _origin(self.url) and not (
                parts.scheme == "https" and {parts.netloc, parts.hostname} & self._blob_hosts
            ):
                return None
            answer = self._send("GET", url, limit=LARGEST_CONFIG)
        if answer.status_code != 200:
            return None
        content = answer.content
        return content if digest == "sha256:" + hashlib.sha256(content).hexdigest() else None

    def _ask(self, method: str, url: str, scope: str, **options: Any) -> httpx.Response:
        """A request with the credentials that the registry asks for, if they may be given."""
        answer = self._send(method, url, auth=self._authorization(scope), **options)
        if self._sign is not None and answer.status_code in (401, 403):
            self._tokens.pop(scope, None)
            raise RegistryUnavailable(
                "The registry does not believe the tokens that are signed for it.", reason="token"
            )
        if answer.status_code != 401 or not self._learn(answer):
            return answer
        self._tokens.pop(scope, None)
        return self._send(method, url, auth=self._authorization(scope), **options)

    def _learn(self, answer: httpx.Response) -> bool:
        """Reads what a 401 asks for; whether that may be given."""
        for value in answer.headers.get_list("www-authenticate"):
            kind, _, rest = value.strip().partition(" ")
            if kind.lower() == "bearer":
                try:
                    said = parse_keqv_list(parse_http_list(rest))
                except ValueError:
                    continue
                realm = said.get("realm", "")
                if _plain(realm) not in self._realms and not self._may_ask_itself(realm):
                    host = urlsplit(realm).hostname or "nowhere"
                    raise RegistryUnavailable(
                        f"The registry wants its logins checked at {host[:100]}, which is not the "
                        "token service that it was set up with, so no password was sent there.",
                        reason="realm",
                    )
                self._challenge = (realm, said.get("service", ""))
                return True
            if kind.lower() == "basic" and self._login is not None:
                asked_before, self._basic = self._basic, True
                return not asked_before
        return False

    def _may_ask_itself(self, realm: str) -> bool:
        """Who sends no password may ask the registry itself for a token, wherever it says."""
        return self._login is None and _origin(realm) == _origin(self.url)

    def _authorization(self, scope: str) -> httpx.Auth | str | None:
        if self._challenge is not None or self._sign is not None:
            return self._token(scope)
        if self._basic and self._login is not None:
            return httpx.BasicAuth(self._login.user, self._login.password)
        return None

    def _token(self, scope: str) -> str:
        known, until = self._tokens.get(scope, ("", 0.0))
        if known and time.monotonic() < until:
            return known
        if self._sign is not None:
            known, until = self._sign(scope)
            self._tokens[scope] = (known, time.monotonic() + until * 0.8)
            return known
        assert self._challenge is not None
        realm, service = self._challenge
        auth = httpx.BasicAuth(self._login.user, self._login.password) if self._login else None
        answer = self._send("GET", realm, params={"service": service, "scope": scope}, auth=auth)
        if answer.status_code in (401, 403):
            if self._login is None:
                return ""
            raise Forbidden(
                "The registry's login was refused: user name, password or token are wrong, too old, "
                "or not for registries."
            )
        self._expect(answer, 200)
        data = _json(answer)
        token = data.get("token") or data.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryUnavailable(reason="token")
        lives = data.get("expires_in")
        seconds = lives if isinstance(lives, int) and 0 < lives < 86_400 else 60
        self._tokens[scope] = (token, time.monotonic() + seconds * 0.8)
        return token

    def _send(
        self,
        method: str,
        url: str,
        *,
        auth: httpx.Auth | str | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = LARGEST_ANSWER,
        **options: Any,
    ) -> httpx.Response:
        """One request, tried again while the registry is too busy; never redirected."""
        sent = dict(headers or {})
        if isinstance(auth, str):
            if auth:
                sent["Authorization"] = f"Bearer {auth}"
            auth = None
        for attempt in range(self._tries):
            last = attempt == self._tries - 1
            try:
                with (
                    _network(),
                    self._http.stream(
                        method, url, headers=sent, auth=auth, follow_redirects=False, **options
                    ) as answer,
                ):
                    if answer.status_code not in (429, 502, 503, 504) or last:
                        return _read(answer, limit, time.monotonic() + self._longest)
                    pause = _pause(answer, attempt)
            except RegistryUnavailable as error:
                if last or error.detail.get("reason") != "network":
                    raise
                pause = 0.2 * 2**attempt
            if pause > LONGEST_PAUSE:
                raise RegistryUnavailable(reason="busy")
            time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    @staticmethod
    def _expect(answer: httpx.Response, *statuses: int) -> None:
        if answer.status_code not in statuses:
            raise RegistryUnavailable(
                f"The registry answered with status {answer.status_code}. Nothing is lost; try again.",
                reason=f"HTTP {answer.status_code}",
            )


def _plain(url: str) -> str:
    """A realm as it is compared: scheme, host, port and path."""
    scheme, host, port = _origin(url)
    return f"{scheme}://{host}:{port}{urlsplit(url).path.rstrip('/')}"


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.username is not None:
        return parts.scheme, None, None
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}.get(parts.scheme)


def _check(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.match(text) or len(text) > 255:
        raise InvalidRequest(f"`{text[:100]}` is no name in a registry.")
    return quote(text, safe="/:")


def _missing(answer: httpx.Response) -> bool:
    """Hidden is as missing."""
    return answer.status_code in (401, 403, 404)


def _read(answer: httpx.Response, limit: int, until: float) -> httpx.Response:
    """The answer with its body, which may have ``limit`` bytes and come ``until`` then."""
    body = bytearray()
    for chunk in answer.iter_bytes():
        body += chunk
        if len(body) > limit:
            raise RegistryUnavailable("The registry's answer is too large.", reason="size")
        if time.monotonic() > until:
            raise RegistryUnavailable(reason="slow")
    headers = [
        (name, value)
        for name, value in answer.headers.multi_items()
        if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
    ]
    return httpx.Response(
        answer.status_code, headers=headers, content=bytes(body), request=answer.request
    )


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        data = json.loads(answer.content)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise RegistryUnavailable(reason="an answer that is no object")
    return data


def _pause(answer: httpx.Response, attempt: int) -> float:
    said = answer.headers.get("retry-after", "")
    return float(said) if re.fullmatch(r"\d{1,6}", said) else 0.2 * 2**attempt


@contextmanager
def _network() -> Any:
    try:
        yield
    except httpx.HTTPError as error:
        raise RegistryUnavailable(reason="network", error=type(error).__name__) from None
    except httpx.InvalidURL:
        raise RegistryUnavailable(reason="address") from None
