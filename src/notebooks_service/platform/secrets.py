"""The secrets between our own parts: made once, kept in files that only their owner may read.

Written by ``notebooks up``, read by the parts that need them. None goes into a command line.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from pathlib import Path
from typing import Any

from notebooks_service.errors import PlatformFailed

CLIENT_SECRET = "forge_client_secret"  # noqa: S105 - names of files, not secrets
CRYPT_KEY = "hub_crypt_key"
COOKIE_SECRET = "hub_cookie_secret"  # noqa: S105
PROXY_TOKEN = "proxy_token"  # noqa: S105
SERVICE_TOKEN = "service_token"  # noqa: S105
PLATFORM_TOKEN = "platform_token"  # noqa: S105
REGISTRY_SECRET = "registry_secret"  # noqa: S105
MADE_HERE = (
    CLIENT_SECRET, CRYPT_KEY, COOKIE_SECRET, PROXY_TOKEN, SERVICE_TOKEN, PLATFORM_TOKEN, REGISTRY_SECRET,
)  # fmt: skip


class Secrets:
    """The secrets under one directory, one file each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def make(self) -> None:
        """Make what is missing of ``MADE_HERE``: 32 random bytes each, as 64 hex digits."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        for name in MADE_HERE:
            if not self.path(name).exists():
                self.write(name, secrets.token_hex(32))

    def path(self, name: str) -> Path:
        return self.directory / name

    def read(self, name: str) -> str:
        """The secret ``name``; ``PlatformFailed`` if there is none or not for us."""
        try:
            return self.path(name).read_text(encoding="ascii").strip()
        except OSError as error:
            raise PlatformFailed(
                f"The secret {self.path(name)} cannot be read ({error.strerror}); start `notebooks up` on this data first."
            ) from None

    def write(self, name: str, value: str) -> None:
        """Keep ``value`` as ``name``; a file is whole or not there, and never readable by others."""
        new = self.path(f".{name}.new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(value)
        new.replace(self.path(name))

    def replace(self, name: str) -> None:
        """A new secret in the place of ``name``; the one that it had is ``former`` from now on."""
        # In this order: whenever it is cut off, what is in use is the one or the other.
        self.write(_before(name), self.read(name))
        self.write(name, secrets.token_hex(32))

    def former(self, name: str) -> str | None:
        """What ``name`` was before it was replaced; None if it never was, or that is forgotten."""
        return self.read(_before(name)) if self.path(_before(name)).exists() else None

    def forget_former(self, name: str) -> None:
        self.path(_before(name)).unlink(missing_ok=True)

    def cookie_settings(self) -> dict[str, Any]:
        """For tornado: cookies are signed with the newest key, and the one before it is believed too.

        A cookie says by which key it was signed, by a number; tornado takes 0 where there was one key
        only. https://www.tornadoweb.org/en/stable/guide/security.html#cookies-and-signed-cookies
        """
        newest = bytes.fromhex(self.read(COOKIE_SECRET))
        former = self.former(COOKIE_SECRET)
        older = bytes.fromhex(former) if former else newest
        keys = {0: older, _number(older): older, _number(newest): newest}
        return {"cookie_secret": keys, "key_version": _number(newest)}


def fernet_key(text: str) -> bytes:
    """A secret of ours as Fernet wants keys."""
    return base64.urlsafe_b64encode(bytes.fromhex(text))


def _before(name: str) -> str:
    return f"{name}.before"


def _number(key: bytes) -> int:
    """A key's own number, which everybody may know."""
    return int.from_bytes(hashlib.sha256(b"number of " + key).digest()[:4], "big")
