"""Where a server's files lie in the ``local`` runtime, and their trash. Called by ``local.py``.

``servers/<user>/<server>/`` holds ``work/<folder>/`` (the repository), ``home/``, ``jupyter/``,
``packages/`` and ``tmp/``, which are the person's, and ``settings/``, the logs and marks, which are
ours: behind a wall nobody can put a link in their place. It outlives a stop. Everything is closed to
other users.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from notebooks_service.spawner.runtime import ServerKey

log = logging.getLogger(__name__)

LOGS = ("server.log", "clone.log")
_STAMP = "%Y%m%dT%H%M%SZ"


def path_segment(name: str) -> str:
    """A hub name as one harmless path segment; the usual names stay as they are."""
    quoted = quote(name, safe="") or "%"
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


class ServerDirectory:
    """The directory of one server."""

    def __init__(self, data: Path, key: ServerKey) -> None:
        self.data = data
        self.path = data / "servers" / path_segment(key.user) / path_segment(key.server)

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def home(self) -> Path:
        return self.path / "home"

    @property
    def jupyter(self) -> Path:
        return self.path / "jupyter"

    @property
    def packages(self) -> Path:
        """The server's own layer over the commit's environment: what ``pip install`` adds."""
        return self.path / "packages"

    @property
    def temporary(self) -> Path:
        """What becomes ``/tmp`` behind a wall."""
        return self.path / "tmp"

    @property
    def persons(self) -> tuple[Path, ...]:
        """What the person's own code may write; all else here is ours."""
        return (self.work, self.home, self.jupyter, self.packages, self.temporary)

    @property
    def settings(self) -> Path:
        """Jupyter's configuration and the kernelspec, written by us and read by the server."""
        return self.path / "settings"

    @property
    def gitconfig(self) -> Path:
        return self.home / ".gitconfig"

    @property
    def server_log(self) -> Path:
        return self.path / "server.log"

    @property
    def clone_log(self) -> Path:
        return self.path / "clone.log"

    @property
    def cloned(self) -> Path:
        """The mark of a finished clone; what lies in ``work`` without it is half a clone."""
        return self.path / "cloned.json"

    def relative(self, path: Path) -> str:
        """A path as records carry it: relative to the data directory."""
        return str(path.relative_to(self.data))

    def make(self) -> None:
        """Make the directory and those inside it, 0700."""
        for directory in (self.path.parent.parent, self.path.parent, self.path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in self.persons:
            directory.mkdir(mode=0o700, exist_ok=True)
        for name in ("gitconfig", "gitconfig.notebooks"):  # where it was in earlier versions
            if (old := self.path / name).exists():
                old.replace(self.home / f".{name}")

    def open_log(self, path: Path) -> int:
        """A fresh log, 0600, for appending; the one before it is kept once, as ``<name>.1``."""
        if path.exists():
            path.replace(path.with_name(f"{path.name}.1"))
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def read_cloned(self) -> dict[str, Any] | None:
        """What the finished clone noted, or None if there is none."""
        try:
            data = json.loads(self.cloned.read_text())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) and self.work.is_dir() else None

    def write_cloned(self, facts: Mapping[str, Any]) -> None:
        whole = self.cloned.with_suffix(".tmp")
        whole.write_text(json.dumps(dict(facts)))
        whole.replace(self.cloned)

    def remove(self) -> None:
        """Remove everything, and the person's directory if this was the last in it."""
        remove_tree(self.path)
        try:
            self.path.parent.rmdir()
        except OSError:
            return

    def remove_half_clone(self) -> None:
        """Remove what a clone that never finished left in ``work``."""
        if self.read_cloned() is None:
            remove_tree(self.work)


def limit_log(path: Path, longest: int) -> None:
    """Keep a log that its process holds open under ``longest`` bytes: copy the tail, truncate."""
    try:
        if path.stat().st_size <= longest:
            return
        with path.open("rb+") as file:
            file.seek(-longest // 4, os.SEEK_END)
            tail = file.read()
            older = path.with_name(f"{path.name}.1")
            older.touch(mode=0o600)
            older.write_bytes(tail)
            file.truncate(0)
    except OSError as error:
        log.warning("The log %s could not be shortened: %s", path.name, error)


def remove_tree(path: Path) -> None:
    """Remove a directory whatever modes its owner gave it; one that is not there is no error."""

    def open_and_retry(function: Callable[..., Any], name: str, _error: object) -> None:
        try:
            Path(name).parent.chmod(0o700)
            if Path(name).is_dir() and not Path(name).is_symlink():
                Path(name).chmod(0o700)
            function(name)
        except OSError as error:
            log.warning("%s could not be removed: %s", name, error)

    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path, onerror=open_and_retry)


def discard(data: Path, key: ServerKey, facts: Mapping[str, Any]) -> Path | None:
    """Move a server's directory to ``trash/<time>-<user>-<server>/``; None if there was none.

    ``about.json`` inside says what it was.
    """
    directory = ServerDirectory(data, key)
    if not directory.path.is_dir():
        return None
    trash = data / "trash"
    trash.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime(_STAMP)
    target = trash / f"{stamp}-{path_segment(key.user)}-{path_segment(key.server)}"
    while target.exists():
        target = target.with_name(f"{target.name}-{secrets.token_hex(2)}")
    directory.path.rename(target)
    about = {"user": key.user, "server": key.server, "deleted_at": stamp, **facts}
    (target / "about.json").write_text(json.dumps(about, indent=2))
    return target


def expired(data: Path, days: float, now: float | None = None) -> list[Path]:
    """What was put into the trash more than ``days`` ago."""
    oldest = (time.time() if now is None else now) - days * 86400
    found = []
    for entry in sorted((data / "trash").glob("*")):
        try:
            stamp = datetime.strptime(entry.name.split("-", 1)[0], _STAMP).replace(tzinfo=UTC)
        except ValueError:
            continue  # not put there by us
        if stamp.timestamp() < oldest:
            found.append(entry)
    return found


def purge(data: Path, days: float, now: float | None = None) -> list[str]:
    """Remove what was put into the trash more than ``days`` ago; the names of what went."""
    gone = expired(data, days, now)
    for entry in gone:
        remove_tree(entry)
    return [entry.name for entry in gone]
