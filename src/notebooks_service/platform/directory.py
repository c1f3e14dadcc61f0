"""The data directory: its layout's version, whose it is, the ports of its parts, who runs on it now.

Made and read by ``notebooks up``; read by the other commands to find the running platform.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import shutil
import socket
import sqlite3
import subprocess
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.processes import ProcessId

LAYOUT = 1
"""The version of what lies in the data directory; goes up when an older `up` would misread it."""

PARTS = ("proxy", "inside", "egress", "registry", "forge", "service", "hub", "runner")
FIRST_OF_ROOT, LAST_OF_ROOT = 600, 1023
"""Ports that only root may listen on, above those of most well-known services."""
DATABASES = (
    "hub/jupyterhub.sqlite",
    "hub/usage.sqlite",
    "service/service.sqlite",
    "forge/forge.sqlite",
)


@dataclass(frozen=True)
class Person:
    """The owner of a data directory, as the forge is told."""

    username: str
    name: str
    email: str


@dataclass(frozen=True)
class RunningPlatform:
    """What a running `up` tells the other commands. ``embedded``: whether the forge is its own."""

    pid: int
    created: float
    hub_url: str
    hub_api_url: str
    forge_url: str
    embedded: bool
    subdomains: bool = False


class DataDirectory:
    """One data directory, by its absolute path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def secrets(self) -> Path:
        return self.path / "secrets"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """What is true only while `up` runs: locks, pids, addresses."""
        return self.path / "run"

    @property
    def lock(self) -> Path:
        return self.run / "up.lock"

    def make(self) -> None:
        """Make what is missing of the directory; ``PlatformFailed`` if we cannot write there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Other people of this machine have no business in here.
            self.path.chmod(0o700)
            for directory in (self.secrets, self.logs, self.run, self.path / "hub"):
                directory.mkdir(exist_ok=True)
        except OSError as error:
            raise PlatformFailed(
                f"The data directory {self.path} cannot be written ({error.strerror}); choose another with --data."
            ) from None

    def update(self, version: str) -> None:
        """Make older data ready for ``version``; the lock is ours.

        A newer layout is refused: only the version that wrote it can read it. Before an older
        one's databases are migrated (each part migrates its own) they are copied to ``backups/``.
        """
        written = self._read_json("version.json") or {}
        layout = written.get("layout", LAYOUT)
        if not isinstance(layout, int) or layout > LAYOUT:
            raise PlatformFailed(
                f"The data in {self.path} was written by a newer version ({written.get('version', 'unknown')}); this is {version}. Use the newer one, or another --data."
            )
        if written and (layout < LAYOUT or written.get("version") != version):
            self.back_up(str(written.get("version", "unknown")))
        self._write_json("version.json", {"layout": LAYOUT, "version": version})

    def back_up(self, version: str) -> Path:
        """Copy the databases to ``backups/<version>-<time>/`` and return that directory."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        backup = self.path / "backups" / f"{re.sub(r'[^0-9A-Za-z.]+', '-', version)}-{now}"
        for name in DATABASES:
            source = self.path / name
            if source.exists():
                target = backup / name
                target.parent.mkdir(parents=True, exist_ok=True)
                # SQLite's own copy: also whole when the write-ahead log was never folded in.
                with (
                    closing(sqlite3.connect(source)) as old,
                    closing(sqlite3.connect(target)) as new,
                ):
                    old.backup(new)
        return backup

    def owner(self, wanted: str) -> Person:
        """Whose machine this is: recorded at the first start, ``wanted`` or the user of the system."""
        known = self._read_json("owner.json")
        if known:
            person = Person(**known)
            if wanted and wanted != person.username:
                raise PlatformFailed(
                    f"The data in {self.path} belongs to {person.username}, and the setting `owner` says {wanted}. Use another --data, or correct the setting."
                )
            return person
        username = wanted or forge_username(_system_user())
        name = _git_config("user.name") or username
        email = _git_config("user.email") or f"{username}@localhost.localdomain"
        person = Person(username, name, email)
        self._write_json("owner.json", asdict(person))
        return person

    @property
    def fresh(self) -> bool:
        """Whether nothing was ever imported here."""
        return self._read_json("imported.json") is None

    def mark_imported(self) -> None:
        self._write_json("imported.json", {"at": datetime.now(UTC).isoformat(timespec="seconds")})

    def ports(self, names: Sequence[str], taken: Collection[int]) -> Mapping[str, int]:
        """A free port, none of ``taken``, for each of ``names``: the one it had last, if that is free.

        A notebook server that outlived a killed `up` still talks to the hub where it was.
        """
        known = self._read_json("ports.json") or {}
        ports: dict[str, int] = {}
        for name in names:
            port = known.get(name)
            # One that anybody may listen on is not kept by root, who has better ones.
            if not isinstance(port, int) or (os.getuid() == 0 and port > LAST_OF_ROOT):
                port = internal_port()
            while port in {*taken, *ports.values()} or not is_free(port):
                port = internal_port()
            ports[name] = port
        self._write_json("ports.json", {**known, **ports})
        return ports

    def running(self) -> RunningPlatform | None:
        """What the `up` that runs on this data said of itself, if one does."""
        known = self._read_json("run/up.json")
        try:
            platform = RunningPlatform(**known) if known else None
        except TypeError:
            return None
        if platform and ProcessId(platform.pid, platform.created).find():
            return platform
        return None

    def set_running(self, platform: RunningPlatform) -> None:
        self._write_json("run/up.json", asdict(platform))

    def _read_json(self, name: str) -> dict[str, Any] | None:
        try:
            data = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            raise PlatformFailed(
                f"{self.path / name} cannot be read; move it away or use another --data."
            ) from None
        return data if isinstance(data, dict) else None

    def _write_json(self, name: str, data: Mapping[str, Any]) -> None:
        path = self.path / name
        new = path.with_name(f".{path.name}.new")
        new.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        new.replace(path)


def forge_username(name: str) -> str:
    """A user name that GitLab allows, made of ``name``; lower case, as the hub has it.

    https://docs.gitlab.com/user/reserved_names/#limitations-on-usernames-project-and-group-names-and-slugs
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    kept = re.sub(r"[^a-z0-9_.-]+", "-", plain)
    kept = re.sub(r"([-_.])[-_.]+", r"\1", kept).strip("-_.")
    kept = re.sub(r"\.(git|atom)\Z", r"-\1", kept)
    return kept[:200] or "owner"


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are just closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def internal_port() -> int:
    """A port for a part of ours; as root one that nobody else may listen on.

    While a part restarts, its port is free for a moment, and who takes it then is sent what was meant
    for the part: people's cookies. https://man7.org/linux/man-pages/man7/ip.7.html
    """
    if os.getuid() == 0:
        for _ in range(50):
            port = secrets.randbelow(LAST_OF_ROOT - FIRST_OF_ROOT + 1) + FIRST_OF_ROOT
            if _is_unused(port) and (reserved := _reserve(port)) is not None:
                return reserved
    if (reserved := _reserve(0)) is None:
        raise OSError("No port of the loopback address is free.")
    return reserved


def _is_unused(port: int) -> bool:
    """Whether nobody listens there, nor has reserved it a moment ago."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _reserve(port: int) -> int | None:
    """Keeps a port from other platforms that start now, until its part listens on it; 0: any port.

    A connection that was accepted and closed stays in TIME_WAIT for a minute. Then nobody may bind the
    port but by SO_REUSEADDR, as servers do (decision 0052).
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
            chosen: int = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", chosen)), listener.accept()[0]:
                return chosen
        except OSError:
            return None


def free_space(directory: Path) -> int:
    """Bytes that are free where ``directory`` is or would be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "owner"


def _git_config(key: str) -> str:
    done = subprocess.run(
        ["git", "config", "--global", "--get", key],
        capture_output=True,
        text=True,
        errors="replace",
    )
    return done.stdout.strip() if done.returncode == 0 else ""
