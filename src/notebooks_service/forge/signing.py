"""RSA keys that the forge signs with: ID tokens of OpenID Connect, tokens for a container registry.

A directory below ``secrets/`` holds one file for each key; the newest signs, all are published, so a
key can be replaced while what the old one signed is still believed.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from jwt.algorithms import RSAAlgorithm

BITS = 2048
KEPT = 2
"""Keys that stay when a new one is made: the new one and the one before it."""


@dataclass(frozen=True)
class Key:
    """One key. ``kid`` is its thumbprint (RFC 7638), ``libtrust`` what docker's registry calls it."""

    private: rsa.RSAPrivateKey
    kid: str
    libtrust: str

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half."""
        found = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {
            "kty": "RSA",
            "kid": self.kid,
            "e": found["e"],
            "n": found["n"],
            "use": "sig",
            "alg": "RS256",
        }

    def sign(self, claims: dict[str, Any], *, kid: str | None = None) -> str:
        """``claims`` as a JSON web token, RS256."""
        return jwt.encode(claims, self.private, algorithm="RS256", headers={"kid": kid or self.kid})

    def certificate(self, name: str) -> bytes:
        """A self-signed certificate of the key, PEM: what docker's registry wants to see of it."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        moment = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - datetime.timedelta(days=1))
            .not_valid_after(moment + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.private, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


class SigningKeys:
    """The keys of one purpose, in ``directory``; the first is made at first need."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = Lock()
        self._read: dict[str, Key] = {}

    def all(self) -> list[Key]:
        """Oldest first; never empty. Sees what another process has made."""
        with self._lock:
            names = self._names()
            if not names:
                self._make(1)
                names = self._names()
            self._read = {
                name: self._read.get(name) or _load(self._directory / name) for name in names
            }
            return [self._read[name] for name in names]

    def newest(self) -> Key:
        return self.all()[-1]

    def rotate(self) -> Key:
        """From now on a new key signs; the one before it is still published, older ones are gone."""
        self.all()
        with self._lock:
            self._make(int(self._names()[-1].partition(".")[0]) + 1)
            for name in self._names()[:-KEPT]:
                (self._directory / name).unlink(missing_ok=True)
        return self.newest()

    def _names(self) -> list[str]:
        return sorted(path.name for path in self._directory.glob("[0-9]*.pem"))

    def _make(self, number: int) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        private = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
        content = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        half = self._directory / f".{secrets.token_hex(4)}.new"
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        try:
            os.link(half, self._directory / f"{number:06d}.pem")
        except FileExistsError:
            pass  # Another process was first; its key is as good.
        finally:
            half.unlink()


def _load(path: Path) -> Key:
    private = serialization.load_pem_private_key(path.read_bytes(), None)
    if not isinstance(private, rsa.RSAPrivateKey):
        raise ValueError(f"{path.name} holds no RSA key")
    der = private.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    found = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
    text = f'{{"e":"{found["e"]}","kty":"RSA","n":"{found["n"]}"}}'
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    # https://github.com/docker/libtrust: 240 bits of SHA-256 in base 32, in groups of four
    letters = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    groups = [letters[start : start + 4] for start in range(0, len(letters), 4)]
    return Key(private, thumbprint.decode(), ":".join(groups))
