"""A small client of container registries: reads, copies and removes tags; moves no layer.

Used by ``notebooks image …`` (``images/container_command.py``), the hub and the embedded forge. Blocking.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md

Hidden and missing are the same answer. Who is told a password: ``images/registry_connection.py``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

import httpx

from notebooks_service.errors import Forbidden, InvalidRequest, RegistryUnavailable
from notebooks_service.images.registry_connection import (
    LONGEST_ANSWER,
    TRIES,
    Login,
    RegistryConnection,
    origin,
    read_json,
)

__all__ = ["DIGEST", "MEDIA_TYPES", "TAG", "Login", "Manifest", "RegistryClient", "registry_of"]

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
MOST_PAGES = 1000
TAGS_A_PAGE = 1000
MOST_REDIRECTS = 3


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

    @property
    def images(self) -> list[str]:
        """The digests that a list of images names, lists among them; none for a single image."""
        try:
            rows = json.loads(self.content).get("manifests") or []
            found = [row.get("digest") for row in rows]
        except (ValueError, AttributeError, TypeError):
            return []
        return [each for each in found if isinstance(each, str) and DIGEST.match(each)]


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
        self.connection = RegistryConnection(url, realms, login, http, sign, longest, tries)
        self.url = self.connection.url
        self._blob_hosts = frozenset(blob_hosts)

    def close(self) -> None:
        self.connection.close()

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
            answer = self.connection.ask("GET", path, f"repository:{repository}:pull", params=query)
            if _missing(answer):
                return []
            self.connection.expect(answer, 200)
            data = read_json(answer)
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
        answer = self.connection.ask(
            "PUT",
            f"{self._path(repository)}/manifests/{tag}",
            f"repository:{repository}:pull,push",
            headers={"Content-Type": manifest.media_type},
            content=manifest.content,
        )
        if answer.status_code in (401, 403, 404, 405):
            raise Forbidden(NO_PUSH)
        self.connection.expect(answer, 201)
        if answer.headers.get("docker-content-digest", manifest.digest) != manifest.digest:
            raise RegistryUnavailable("The registry changed what it was given.", reason="digest")

    def check_may_push(self, repository: str) -> None:
        """Raises ``Forbidden`` if this login may not push: better known before a build than after it.

        Begins an upload and gives it up.
        """
        scope = f"repository:{repository}:pull,push"
        url = f"{self._path(repository)}/blobs/uploads/"
        answer = self.connection.ask("POST", url, scope)
        if answer.status_code in (401, 403, 404, 405):
            raise Forbidden(NO_PUSH)
        self.connection.expect(answer, 202)
        begun = urljoin(url, answer.headers.get("location", ""))
        if origin(begun) == origin(self.url):
            self.connection.ask("DELETE", begun, scope)

    def delete_tag(self, repository: str, tag: str) -> bool | None:
        """Removes one tag and nothing else. False: there was none; None: it cannot do that.

        https://github.com/opencontainers/distribution-spec/blob/main/spec.md#deleting-tags
        """
        return self._delete(repository, _check(TAG, tag))

    def delete_digest(self, repository: str, digest: str) -> bool | None:
        """Removes a manifest **and every tag of it**: whoever calls this knows all its tags."""
        return self._delete(repository, _check(DIGEST, digest))

    def _delete(self, repository: str, reference: str) -> bool | None:
        answer = self.connection.ask(
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
        self.connection.expect(answer, 202, 200, 204)
        return True

    # How

    def _path(self, repository: str) -> str:
        return f"{self.url}/v2/{_check(REPOSITORY, repository)}"

    def _manifest(self, method: str, repository: str, reference: str) -> httpx.Response | None:
        if not DIGEST.match(reference):
            _check(TAG, reference)
        answer = self.connection.ask(
            method,
            f"{self._path(repository)}/manifests/{reference}",
            f"repository:{repository}:pull",
            headers={"Accept": ", ".join(MEDIA_TYPES)},
            limit=LARGEST_MANIFEST,
        )
        if _missing(answer):
            return None
        self.connection.expect(answer, 200)
        return answer

    def _blob(self, repository: str, digest: str) -> bytes | None:
        url = f"{self._path(repository)}/blobs/{digest}"
        answer = self.connection.ask(
            "GET", url, f"repository:{repository}:pull", limit=LARGEST_CONFIG
        )
        for _ in range(MOST_REDIRECTS):
            if not answer.has_redirect_location:
                break
            url = urljoin(url, answer.headers["location"])
            parts = urlsplit(url)
            if origin(url) != origin(self.url) and not (
                parts.scheme == "https" and {parts.netloc, parts.hostname} & self._blob_hosts
            ):
                return None
            answer = self.connection.send("GET", url, limit=LARGEST_CONFIG)
        if answer.status_code != 200:
            return None
        content = answer.content
        return content if digest == "sha256:" + hashlib.sha256(content).hexdigest() else None


def _check(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.match(text) or len(text) > 255:
        raise InvalidRequest(f"`{text[:100]}` is no name in a registry.")
    return quote(text, safe="/:")


def _missing(answer: httpx.Response) -> bool:
    """Hidden is as missing."""
    return answer.status_code in (401, 403, 404)
