"""The secrets between our own parts: made once, kept in files that only their owner may read.

Written by ``notebooks up``, read by the parts that need them. None goes into a command line.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

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
