"""The data directory: whose it is, who may read it, which version wrote it. Nothing in it is changed."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import stat
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupyterhub
from alembic.script import ScriptDirectory

from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning
from notebooks_service.forge.database import MIGRATIONS
from notebooks_service.platform.directory import LAYOUT
from notebooks_service.web.database import SCHEMA_VERSION

FORGE, HUB, SERVICE = "forge/forge.sqlite", "hub/jupyterhub.sqlite", "service/service.sqlite"


@dataclass(frozen=True)
class Database:
    """``version``: what the file says of its form; empty if it says none. ``trouble``: why not."""

    name: str
    version: str
    known: frozenset[str]
    newest: str
    trouble: str = ""


@dataclass(frozen=True)
class Data:
    """``mode`` and ``owner`` of the directory; ``open_secrets``: files that others may read."""

    path: str
    exists: bool
    writable: bool = True
    mode: int = 0o700
    owner: int = 0
    me: int = 0
    layout: Any = LAYOUT
    open_secrets: tuple[str, ...] = ()
    databases: tuple[Database, ...] = field(default=())


def look_at_data(path: Path) -> Data:
    me = os.geteuid()
    try:
        seen = path.stat()
    except OSError:
        near = path
        while not near.exists():
            near = near.parent
        return Data(str(path), False, os.access(near, os.W_OK | os.X_OK), me=me)
    return Data(
        str(path),
        True,
        stat.S_ISDIR(seen.st_mode) and os.access(path, os.W_OK | os.X_OK),
        stat.S_IMODE(seen.st_mode),
        seen.st_uid,
        me,
        _layout(path),
        _open_secrets(path / "secrets"),
        tuple(each for each in map(_database, (path,) * 3, (FORGE, HUB, SERVICE)) if each),
    )


def _layout(path: Path) -> Any:
    try:
        said = json.loads((path / "version.json").read_text(encoding="utf-8"))
        return said.get("layout", LAYOUT)
    except FileNotFoundError:
        return LAYOUT
    except (OSError, ValueError, AttributeError):
        return None


def _open_secrets(directory: Path) -> tuple[str, ...]:
    found = []
    try:
        for one in (directory, *sorted(directory.iterdir())):
            if one.lstat().st_mode & 0o077:
                found.append(str(one.relative_to(directory.parent)))
    except OSError:
        return tuple(found)
    return tuple(found)


def _database(data: Path, name: str) -> Database | None:
    path = data / name
    if not path.exists():
        return None
    if name == SERVICE:
        known, newest = frozenset({str(SCHEMA_VERSION)}), str(SCHEMA_VERSION)
        question = "SELECT version FROM schema_version"
    else:
        scripts = MIGRATIONS if name == FORGE else Path(jupyterhub.__file__).parent / "alembic"
        directory = ScriptDirectory(str(scripts))
        known = frozenset(one.revision for one in directory.walk_revisions())
        newest = directory.get_current_head() or ""
        question = "SELECT version_num FROM alembic_version"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as opened:
            row = opened.execute(question).fetchone()
            sound = opened.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return Database(name, "", known, newest, plain(error, 100))
    if sound != ("ok",):
        return Database(name, "", known, newest, "it is damaged")
    return Database(name, str(row[0]) if row else "", known, newest)


def judge_data(facts: Data) -> list[Finding]:
    where = plain(facts.path, 150)
    if not facts.writable:
        return [
            problem(
                "data.not-writable",
                f"The data directory {where} cannot be written by this account.",
                "Choose another with --data, or give it to the account that runs `notebooks up`.",
            )
        ]
    if not facts.exists:
        return [
            note(
                "data.new",
                f"There is nothing in {where} yet.",
                "`notebooks up` makes it; name another with --data.",
            )
        ]
    return [*_permissions(facts, where), *_versions(facts, where)]


def _permissions(facts: Data, where: str) -> list[Finding]:
    findings = []
    if facts.owner != facts.me:
        findings.append(
            problem(
                "data.other-owner",
                f"The data directory {where} belongs to {_name(facts.owner)}, and this account is {_name(facts.me)}.",
                "Run the doctor, and `notebooks up`, as the owner of the data.",
            )
        )
    if facts.mode & 0o022:
        findings.append(
            problem(
                "data.others-write",
                f"Other people of this machine may write into {where} (mode {facts.mode:o}).",
                f"chmod 700 {where}",
            )
        )
    elif facts.mode & 0o044:
        findings.append(
            warning(
                "data.others-read",
                f"Other people of this machine may look into {where} (mode {facts.mode:o}).",
                f"chmod 700 {where}",
            )
        )
    if facts.open_secrets:
        findings.append(
            problem(
                "data.open-secrets",
                f"Other people of this machine may read {plain(', '.join(facts.open_secrets))} in {where}.",
                "chmod 700 the directory and 600 the files; if others could look in, remove secrets/ while nothing runs (forge tokens have to be fetched anew).",
            )
        )
    return findings or [ok("data.private", f"The data directory {where} is this account's alone.")]


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _versions(facts: Data, where: str) -> list[Finding]:
    findings = []
    if not isinstance(facts.layout, int) or facts.layout > LAYOUT:
        findings.append(
            problem(
                "data.newer",
                f"The data in {where} was written by a newer version of this service, or its version.json is damaged.",
                "Use that version, or another --data.",
            )
        )
    for one in facts.databases:
        if one.trouble:
            findings.append(
                problem(
                    "database.unreadable",
                    f"The database {one.name} cannot be read: {plain(one.trouble, 100)}.",
                    "Look into backups/ of the data directory; stop everything before you copy one back.",
                )
            )
        elif one.version == one.newest:
            findings.append(
                ok(
                    "database.current",
                    f"The database {one.name} is sound and of this version's form.",
                )
            )
        elif one.version in one.known:
            findings.append(
                note(
                    "database.older",
                    f"The database {one.name} has an older form ({one.version}).",
                    "The next start migrates it, after a copy.",
                )
            )
        elif not one.version:
            findings.append(
                unchecked(
                    "database.unversioned", f"The database {one.name} says nothing of its form yet."
                )
            )
        else:
            findings.append(
                problem(
                    "database.newer",
                    f"The database {one.name} was written by a newer version (form {plain(one.version, 40)}).",
                    "Use that version, or another --data.",
                )
            )
    return findings
