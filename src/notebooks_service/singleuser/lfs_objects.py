"""Large files (Git LFS) inside a server: pointers, the local store, the way to and from the gateway.

Used by ``clone.py`` and by ``lfs.py``, which stands in where the image has no git-lfs. Objects lie
where git-lfs keeps them (``.git/lfs/objects/ab/cd/<sha256>``), so both find each other's.
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md ·
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from notebooks_service.singleuser.clone_git import Failed
else:
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from clone_git import Failed

LARGEST_POINTER = 1024
BATCH = 100
AT_ONCE = 4
TRIES = 3
PIECE = 1 << 20
SILENCE_SECONDS = 60
MOST_JSON = 16 << 20
LENGTHS = ("content-length", "transfer-encoding")
MEDIA = "application/vnd.git-lfs+json"
POINTER = re.compile(
    rb"\Aversion https://(?:git-lfs\.github\.com/spec/v1|hawser\.github\.com/spec/v1)\n"
    rb"(?:ext-[0-9]-[^\n]{1,200}\n)*oid sha256:([0-9a-f]{64})\nsize (\d{1,18})\n?\Z"
)


class Pointer(NamedTuple):
    """What git holds instead of a large file."""

    oid: str
    size: int

    def text(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\nsize {self.size}\n"
        ).encode()


def read_pointer(content: bytes) -> Pointer | None:
    """The pointer that ``content`` is, or None for any other file."""
    found = POINTER.match(content) if len(content) <= LARGEST_POINTER else None
    return Pointer(found.group(1).decode(), int(found.group(2))) if found else None


class Store:
    """The objects of one repository; ``directory`` is its ``.git``."""

    def __init__(self, directory: Path) -> None:
        self.objects = directory / "lfs" / "objects"
        self._beside = directory / "lfs" / "tmp"

    def path(self, pointer: Pointer) -> Path:
        return self.objects / pointer.oid[:2] / pointer.oid[2:4] / pointer.oid

    def has(self, pointer: Pointer) -> bool:
        try:
            return self.path(pointer).stat().st_size == pointer.size
        except OSError:
            return False

    def take(self, content: Iterable[bytes], expected: Pointer | None = None) -> Pointer:
        """Keep ``content``; what it is. Raises ``WrongContent`` if it is not what is expected."""
        self._beside.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=str(self._beside))
        beside = Path(name)
        try:
            digest, size = hashlib.sha256(), 0
            with os.fdopen(descriptor, "wb") as file:
                for piece in content:
                    size += len(piece)
                    if expected is not None and size > expected.size:
                        raise WrongContent(expected.oid)
                    digest.update(piece)
                    file.write(piece)
            pointer = Pointer(digest.hexdigest(), size)
            if expected is not None and pointer != expected:
                raise WrongContent(expected.oid)
            target = self.path(pointer)
            target.parent.mkdir(parents=True, exist_ok=True)
            beside.chmod(0o644)
            beside.rename(target)
            return pointer
        except BaseException:
            beside.unlink()
            raise


class WrongContent(Exception):
    """Bytes that are not those which the pointer names."""


class Missing(NamedTuple):
    """An object that could not be had, and why, in words for a person."""

    pointer: Pointer
    reason: str


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would take the server's token along."""

    def redirect_request(self, *_arguments: Any) -> None:
        return None


class Remote:
    """The large files of one project, at the gateway and nowhere else."""

    def __init__(self, project: str, environ: Mapping[str, str]) -> None:
        self._gateway = environ.get("NOTEBOOKS_GATEWAY_URL", "").rstrip("/") + "/"
        if urlsplit(self._gateway).scheme not in ("http", "https"):
            raise Failed("environment", "NOTEBOOKS_GATEWAY_URL")
        self._batch = f"{self._gateway}{quote(project)}.git/info/lfs/objects/batch"
        token = environ.get("JUPYTERHUB_API_TOKEN", "")
        login = base64.b64encode(f"server:{token}".encode()).decode()
        self._authorization = f"Basic {login}"
        context = ssl.create_default_context(
            cafile=environ.get("GIT_SSL_CAINFO") or None,
            capath=environ.get("GIT_SSL_CAPATH") or None,
        )
        self._opener = urllib.request.build_opener(
            _NoRedirect, urllib.request.HTTPSHandler(context=context)
        )

    def fetch(
        self,
        pointers: Iterable[Pointer],
        store: Store,
        tell: Callable[[int], None],
    ) -> list[Missing]:
        """Bring these objects into ``store``; those that the forge does not have.

        ``tell`` is given the bytes as they come. Raises ``Failed`` when the gateway cannot be
        reached, refuses, or the disk is full.
        """
        missing: list[Missing] = []
        wanted = sorted({each for each in pointers if not store.has(each)})
        for start in range(0, len(wanted), BATCH):
            group = {each.oid: each for each in wanted[start : start + BATCH]}
            actions = self._ask("download", list(group.values()))
            work = []
            for oid, said in actions.items():
                pointer = group.pop(oid, None)
                if pointer is None:
                    continue
                action = (said.get("actions") or {}).get("download")
                if isinstance(action, dict) and said.get("size") == pointer.size:
                    work.append((pointer, action))
                else:
                    missing.append(Missing(pointer, _reason(said)))
            missing += [Missing(each, "the forge says nothing of it") for each in group.values()]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                found = [pool.submit(self._download, *each, store, tell) for each in work]
                try:
                    missing += [each for each in (one.result() for one in found) if each]
                except BaseException:
                    for one in found:
                        one.cancel()
                    raise
        return missing

    def send(self, pointers: Iterable[Pointer], store: Store) -> int:
        """Give the forge those of these objects that it lacks; how many. Raises ``Failed``."""
        sent = 0
        wanted = sorted(set(pointers))
        for start in range(0, len(wanted), BATCH):
            group = {each.oid: each for each in wanted[start : start + BATCH]}
            for oid, said in self._ask("upload", list(group.values())).items():
                if oid not in group:
                    continue
                if said.get("error"):
                    raise Failed("git_failed", f"a large file is refused: {_reason(said)}")
                actions = said.get("actions") or {}
                if "upload" in actions:
                    self._upload(group[oid], actions["upload"], store)
                    sent += 1
                if "verify" in actions:
                    body = json.dumps({"oid": oid, "size": group[oid].size}).encode()
                    self._open(actions["verify"], "POST", body, MEDIA).close()
        return sent

    def _ask(self, operation: str, pointers: list[Pointer]) -> dict[str, dict[str, Any]]:
        body = {
            "operation": operation,
            "transfers": ["basic"],
            "objects": [{"oid": each.oid, "size": each.size} for each in pointers],
            "hash_algo": "sha256",
        }
        with self._open({"href": self._batch}, "POST", json.dumps(body).encode(), MEDIA) as answer:
            try:
                objects = json.loads(answer.read(MOST_JSON))["objects"]
                return {each["oid"]: each for each in objects}
            except (ValueError, KeyError, TypeError):
                raise Failed("network", words="What came was no answer of Git LFS.") from None

    def _download(
        self, pointer: Pointer, action: Mapping[str, Any], store: Store, tell: Callable[[int], None]
    ) -> Missing | None:
        wrong = ""
        for last in range(1, TRIES + 1):
            try:
                with self._open(action, "GET") as answer:
                    store.take(_pieces(answer, tell), pointer)
                return None
            except WrongContent:
                wrong = "what came is not what its pointer says"
            except Failed as failed:
                if failed.kind == "not_found":
                    return Missing(pointer, "the forge does not have it")
                if failed.kind != "network" or last == TRIES:
                    raise
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if last == TRIES:
                    raise Failed("network") from None
            time.sleep(0.2 * last)
        return Missing(pointer, wrong)

    def _upload(self, pointer: Pointer, action: Mapping[str, Any], store: Store) -> None:
        if not store.has(pointer):
            raise Failed("git_failed", f"the large file {pointer.oid[:12]} is not here.")
        with store.path(pointer).open("rb") as file:
            self._open(action, "PUT", file, "application/octet-stream", pointer.size).close()

    def _open(
        self,
        action: Mapping[str, Any],
        method: str,
        body: bytes | BinaryIO | None = None,
        kind: str = "",
        size: int | None = None,
    ) -> Any:
        """The answer to a request of an action of the gateway. Raises ``Failed``."""
        href = str(action.get("href", ""))
        if not href.startswith(self._gateway):
            raise Failed("refused", words="A large file was offered at an address elsewhere.")
        headers = {"Accept": MEDIA if kind == MEDIA else "*/*", "User-Agent": "notebooks-clone"}
        if kind:
            headers["Content-Type"] = kind
        if size is not None:
            headers["Content-Length"] = str(size)
        headers["Authorization"] = self._authorization
        # GitLab asks for chunks as well; the length is known, and both at once are no request.
        given = {str(k): str(v) for k, v in (action.get("header") or {}).items()}
        headers.update({k: v for k, v in given.items() if k.lower() not in LENGTHS})
        request = urllib.request.Request(href, data=body, headers=headers, method=method)  # noqa: S310
        try:
            return self._opener.open(request, timeout=SILENCE_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                words = _words(error)
            if error.code in (401, 403):
                raise Failed("refused", words=words) from None
            if error.code in (404, 410):
                raise Failed("not_found", words=words) from None
            if error.code in (413, 422, 501, 507):
                raise Failed("git_failed", words or f"status {error.code}.") from None
            raise Failed("network", words=words) from None
        except (urllib.error.URLError, ssl.SSLError, ConnectionError, TimeoutError):
            raise Failed("network") from None


def _pieces(answer: Any, tell: Callable[[int], None]) -> Iterable[bytes]:
    while True:
        piece = answer.read(PIECE)
        if not piece:
            return
        tell(len(piece))
        yield piece


def _reason(said: Mapping[str, Any]) -> str:
    error = said.get("error")
    words = error.get("message") if isinstance(error, dict) else None
    return str(words)[:200] if words else "the forge does not offer it"


def _words(error: urllib.error.HTTPError) -> str:
    try:
        message = json.loads(error.read(4096)).get("message", "")
    except (ValueError, AttributeError, OSError):
        return ""
    return str(message)[:300]


def has_git_lfs(environ: Mapping[str, str]) -> bool:
    """Whether git-lfs is on the path."""
    return shutil.which("git-lfs", path=environ.get("PATH")) is not None
