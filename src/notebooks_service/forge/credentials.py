"""Makes tokens and passwords and the hashes that are stored instead of them."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

_PASSWORDS = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""OWASP's smallest recommended argon2id setting (19 MiB, two passes)."""

_NOBODYS_HASH = _PASSWORDS.hash(secrets.token_hex(16))


def new_token(prefix: str = "") -> str:
    """A new random token of 256 bits, with GitLab's prefix for its kind (``glpat-`` …)."""
    return prefix + secrets.token_urlsafe(32)


def token_hash(token: str) -> str:
    """What is stored of a token. Tokens are random, so one plain SHA-256 is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


# Files in ``secrets/`` that can be made anew at any time.
RUNNER_TOKEN = "forge-runner-token"  # noqa: S105 - names of files, not secrets
REGISTRATION_TOKEN = "forge-runner-registration-token"  # noqa: S105
KNOWN_BROWSERS = "forge-browsers"


def kept_secret(path: Path) -> str:
    """The secret in this file, 0600; made at first need. Processes that make it at once agree."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        half = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
        half.touch(mode=0o600)
        half.write_text(new_token() + "\n")
        try:
            path.hardlink_to(half)
        except FileExistsError:
            pass  # Another process was first; its secret holds.
        finally:
            half.unlink()
    return path.read_text().strip()


def new_password() -> str:
    """A password that a person can copy by hand: 20 letters and digits in five groups."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    return "-".join("".join(secrets.choice(alphabet) for _ in range(4)) for _ in range(5))


def password_hash(password: str) -> str:
    return _PASSWORDS.hash(password)


def password_matches(stored: str | None, password: str) -> bool:
    """Whether ``password`` is the one. Takes as long for a user who has none or does not exist."""
    try:
        return _PASSWORDS.verify(stored or _NOBODYS_HASH, password) and stored is not None
    except (Argon2Error, InvalidHashError):
        return False
