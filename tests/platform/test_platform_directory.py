"""The data directory: names made of names, older data backed up, ports kept, secrets for us alone."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
from pathlib import Path

import pytest

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform import secrets
from notebooks_service.platform.checks import lock
from notebooks_service.platform.directory import (
    LAYOUT,
    DataDirectory,
    RunningPlatform,
    forge_username,
    is_free,
)
from notebooks_service.platform.processes import ProcessId
from notebooks_service.platform.secrets import MADE_HERE, Secrets


@pytest.mark.parametrize(
    ("system", "forge"),
    [
        ("ada", "ada"),
        ("Ada.Lovelace", "ada.lovelace"),
        ("DOMAIN\\ada", "domain-ada"),
        ("ada@example.org", "ada-example.org"),
        ("-ada-", "ada"),
        ("..", "owner"),
        ("", "owner"),
        ("Jörg", "jorg"),
        ("李", "owner"),
        ("a__b--c", "a_b-c"),
        ("thing.git", "thing-git"),
    ],
)
def test_forge_username(system: str, forge: str) -> None:
    assert forge_username(system) == forge


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    made = DataDirectory(tmp_path / "data")
    made.make()
    return made


def test_directory_is_for_us_alone(directory: DataDirectory) -> None:
    assert directory.path.stat().st_mode & 0o777 == 0o700


def test_same_version_backs_nothing_up(directory: DataDirectory) -> None:
    directory.update("1.0")
    directory.update("1.0")
    assert not (directory.path / "backups").exists()


def test_older_data_is_backed_up_whole(directory: DataDirectory) -> None:
    directory.update("1.0")
    database = directory.path / "hub" / "jupyterhub.sqlite"
    # A write-ahead log that nobody folded in, as after a kill.
    writer = sqlite3.connect(database)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE people (name)")
    writer.execute("INSERT INTO people VALUES ('ada')")
    writer.commit()
    directory.update("1.1")
    (backup,) = (directory.path / "backups").iterdir()
    assert backup.name.startswith("1.0-")
    copy = sqlite3.connect(backup / "hub" / "jupyterhub.sqlite")
    assert copy.execute("SELECT name FROM people").fetchall() == [("ada",)]
    copy.close()
    writer.close()
    written = json.loads((directory.path / "version.json").read_text())
    assert written == {"layout": LAYOUT, "version": "1.1"}


def test_newer_data_is_refused(directory: DataDirectory) -> None:
    newer = json.dumps({"layout": LAYOUT + 1, "version": "2.0"})
    (directory.path / "version.json").write_text(newer)
    with pytest.raises(PlatformFailed, match=r"newer version \(2\.0\); this is 1\.0"):
        directory.update("1.0")


def test_broken_file_is_named(directory: DataDirectory) -> None:
    (directory.path / "version.json").write_text("{")
    with pytest.raises(PlatformFailed, match=r"version\.json cannot be read"):
        directory.update("1.0")


def test_owner_is_recorded_once(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n\tname = Ada Lovelace\n\temail = ada@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("LOGNAME", "Ada.L")
    owner = directory.owner("")
    assert (owner.username, owner.name, owner.email) == ("ada.l", "Ada Lovelace", "ada@example.org")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert directory.owner("") == owner
    assert directory.owner("ada.l") == owner
    with pytest.raises(PlatformFailed, match=r"belongs to ada\.l"):
        directory.owner("grace")


def test_ports_are_kept_while_they_are_free(directory: DataDirectory) -> None:
    first = directory.ports(["hub", "service"], [])
    assert directory.ports(["hub", "service"], []) == first
    with socket.create_server(("127.0.0.1", first["hub"])):
        assert not is_free(first["hub"])
        second = directory.ports(["hub", "service"], [])
    assert second["hub"] != first["hub"]
    assert second["service"] == first["service"]
    third = directory.ports(["hub", "service"], [second["hub"]])
    assert third["hub"] != second["hub"]


@pytest.mark.skipif(os.getuid() != 0, reason="Not tested here: root's ports need root.")
def test_as_root_the_parts_listen_where_nobody_else_may(directory: DataDirectory) -> None:
    (directory.path / "ports.json").write_text(json.dumps({"hub": 45678}))
    ports = directory.ports(["hub", "service"], [])
    assert all(port < 1024 for port in ports.values())
    taking = "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1])))"
    for port in ports.values():
        command = ["setpriv", "--reuid=65534", "--bounding-set=-all", "--inh-caps=-all"]
        done = subprocess.run(
            [*command, "/usr/bin/python3", "-c", taking, str(port)], capture_output=True, text=True
        )
        assert "PermissionError" in done.stderr


def test_who_runs_is_known_only_while_they_run(directory: DataDirectory) -> None:
    assert directory.running() is None
    own = ProcessId.of(os.getpid())
    platform = RunningPlatform(
        own.pid, own.created, "http://h/", "http://h/hub/api", "http://f", True
    )
    directory.set_running(platform)
    assert directory.running() == platform
    earlier = RunningPlatform(
        own.pid, own.created - 100, "http://h/", "http://h/hub/api", "http://f", True
    )
    directory.set_running(earlier)
    assert directory.running() is None


def test_lock_is_one_process_at_a_time(directory: DataDirectory) -> None:
    with lock(directory), pytest.raises(PlatformFailed, match="Another `notebooks up` is running"):
        lock(DataDirectory(directory.path))
    with lock(directory):
        pass


def test_a_port_that_was_given_is_its_parts_alone(tmp_path: Path) -> None:
    """Before the part listens: nobody else finds it free, the part can listen on it."""
    ports = DataDirectory(tmp_path).ports(["hub"], ())
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", ports["hub"]))
    with socket.create_server(("127.0.0.1", ports["hub"])) as part:
        assert part.getsockname()[1] == ports["hub"]


def test_secrets_are_made_once_and_for_us_alone(tmp_path: Path) -> None:
    own = Secrets(tmp_path / "secrets")
    own.make()
    first = {name: own.read(name) for name in MADE_HERE}
    assert len(set(first.values())) == len(MADE_HERE)
    assert all(len(bytes.fromhex(value)) == 32 for value in first.values())
    assert own.directory.stat().st_mode & 0o777 == 0o700
    for path in own.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    own.make()
    assert {name: own.read(name) for name in MADE_HERE} == first
    own.path(secrets.PROXY_TOKEN).unlink()
    with pytest.raises(PlatformFailed, match="proxy_token cannot be read"):
        own.read(secrets.PROXY_TOKEN)
