"""New keys and secrets for a data directory on which nothing runs, without signing anybody out.

Called by ``notebooks keys rotate``. What was encrypted is encrypted anew; what only signs, or is compared,
is believed once more under the key before the newest, until the next rotation.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from notebooks_service import __version__
from notebooks_service.forge.administration import Administration
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.platform import checks, secrets
from notebooks_service.platform.directory import DataDirectory
from notebooks_service.platform.secrets import Secrets, fernet_key
from notebooks_service.web.secret_store import SecretStore

REPLACED = (
    secrets.PROXY_TOKEN,
    secrets.PLATFORM_TOKEN,
    secrets.REGISTRY_SECRET,
)
"""Both sides read these at the next start; nobody else holds anything made with them."""
BELIEVED_ONCE_MORE = (secrets.COOKIE_SECRET, secrets.SERVICE_TOKEN)
SERVICES = ("notebooks", "platform")
"""Services of the hub that have a token of ours."""


@dataclass(frozen=True)
class Rotated:
    """``sign_ins``: how many people's forge tokens were encrypted anew; ``lost``: how many could not
    be read before either, so that these people have to sign in again. ``lost_secrets``: how many personal
    secrets could not be, so that their values have to be written again."""

    sign_ins: int
    lost: int
    forge: bool
    lost_secrets: int = 0


def rotate(directory: DataDirectory, database_url: str = "") -> Rotated:
    """Replace them all. Raises ``PlatformFailed`` while `up` runs there, and for newer data.

    ``database_url``: of the service's database, if it is not in the directory.
    """
    directory.make()
    with checks.lock(directory):
        directory.update(__version__)
        own = Secrets(directory.secrets)
        own.make()
        hub = directory.path / "hub" / "jupyterhub.sqlite"
        forge = ForgeConfig(directory.path, "http://127.0.0.1").database.exists()
        _seal_secrets(
            directory, own, database_url
        )  # by the token that is the former one from now on
        # A GitLab's own secret of its application is changed there.
        for name in (*REPLACED, *((secrets.CLIENT_SECRET,) if forge else ())):
            own.replace(name)
            own.forget_former(name)
        for name in BELIEVED_ONCE_MORE:
            own.replace(name)
        lost_secrets = _seal_secrets(directory, own, database_url)
        encrypted_anew(hub, own)  # what an earlier rotation may have left to do
        own.replace(secrets.CRYPT_KEY)
        sign_ins, lost = encrypted_anew(hub, own)
        _forget_service_tokens(hub)
        if forge:
            administration = Administration(directory.path)
            try:
                administration.rotate_stored_keys()
            finally:
                administration.close()
        return Rotated(sign_ins, lost, forge, lost_secrets)


def encrypted_anew(hub: Path, own: Secrets) -> tuple[int, int]:
    """Encrypt what the hub keeps of people's sign-ins by the newest key; the former is not needed then.

    How many there are, and how many neither key opens. The form is that of ``jupyterhub.crypto``.
    """
    keys = [own.read(secrets.CRYPT_KEY), own.former(secrets.CRYPT_KEY)]
    box = MultiFernet([Fernet(fernet_key(key)) for key in keys if key])
    done, lost = 0, 0
    if hub.exists():
        with closing(_opened(hub)) as database, database:
            database.execute("BEGIN IMMEDIATE")
            rows = database.execute(
                "SELECT id, encrypted_auth_state FROM users WHERE encrypted_auth_state IS NOT NULL"
            ).fetchall()
            for number, state in rows:
                try:
                    anew = box.rotate(state)
                except InvalidToken:
                    lost += 1
                    continue
                done += 1
                database.execute(
                    "UPDATE users SET encrypted_auth_state = ? WHERE id = ?", (anew, number)
                )
    own.forget_former(secrets.CRYPT_KEY)
    return done, lost


def _seal_secrets(directory: DataDirectory, own: Secrets, database_url: str) -> int:
    """Seal people's secrets by the service's newest token; how many no token opens."""
    if not database_url:
        file = directory.path / "service" / "service.sqlite"
        if not file.exists():
            return 0
        database_url = f"sqlite:///{file}"
    tokens = (own.read(secrets.SERVICE_TOKEN), own.former(secrets.SERVICE_TOKEN))
    return SecretStore(database_url, [token for token in tokens if token]).seal_anew()


def _forget_service_tokens(hub: Path) -> None:
    """The hub adds the new ones when it starts, and would go on believing these beside them."""
    if not hub.exists():
        return
    with closing(_opened(hub)) as database, database:
        database.execute(
            "DELETE FROM api_tokens WHERE service_id IN "
            "(SELECT id FROM services WHERE name IN (?, ?))",
            SERVICES,
        )


def _opened(hub: Path) -> sqlite3.Connection:
    database = sqlite3.connect(f"file:{hub}?mode=rw", uri=True, timeout=30)
    # What is replaced is not to be found in the file any more.
    database.execute("PRAGMA secure_delete = ON")
    return database
