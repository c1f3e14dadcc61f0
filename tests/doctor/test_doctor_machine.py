"""The doctor and this machine: tables, and real files, ports, databases and configuration files."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.doctor.data import Data, Database, judge_data, look_at_data
from notebooks_service.doctor.examine import Asked, examine
from notebooks_service.doctor.findings import Finding
from notebooks_service.doctor.hub_config import judge_hub_config, read_config, run_config
from notebooks_service.doctor.machine import (
    Limits,
    Port,
    Programs,
    Space,
    judge_limits,
    judge_ports,
    judge_programs,
    judge_room,
    judge_space,
    judge_walls,
    look_at_ports,
    look_at_programs,
    look_at_space,
)
from notebooks_service.doctor.parts import judge_parts
from notebooks_service.forge.administration import Administration
from notebooks_service.platform.secrets import Secrets
from notebooks_service.walls.ways import Choice

GB = 1_000_000_000


def codes(findings: list[Finding]) -> list[str]:
    return [one.code for one in findings]


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        (Space("data", 60 * GB, 10**7), ["disk.free"]),
        (Space("data", 60 * GB, None), ["disk.free"]),
        (Space("data", 2 * GB, 10**7), ["disk.low"]),
        (Space("data", GB // 10, 10**7), ["disk.full"]),
        (Space("data", 60 * GB, 50_000), ["disk.free", "disk.inodes"]),
        (Space("data", 60 * GB, None, "nfs4"), ["disk.free", "disk.network"]),
        (Space("data", 60 * GB, None, "ext4"), ["disk.free"]),
    ],
)
def test_space(space: Space, wanted: list[str]) -> None:
    assert codes(judge_space([space])) == wanted


@pytest.mark.parametrize(
    ("waits", "wanted"), [("", "builds.room"), ("The disk is full.", "builds.wait")]
)
def test_room_for_builds(waits: str, wanted: str) -> None:
    assert codes(judge_room(waits)) == [wanted]


def test_space_of_places_that_are_not_there_yet(tmp_path: Path) -> None:
    (one,) = look_at_space({"one": tmp_path / "a" / "b", "two": tmp_path})
    assert (one.place, one.free > 0, bool(one.kind)) == ("one, two", True, True)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("port", "wanted"),
    [
        (Port(8000, "--port", False), "port.free"),
        (Port(8000, "--port", True, "nginx, process 7"), "port.taken"),
        (Port(8000, "--port", True), "port.taken"),
    ],
)
def test_ports(port: Port, wanted: str) -> None:
    assert codes(judge_ports([port])) == [wanted]


def test_the_holder_of_a_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        (port,) = look_at_ports({number: "--port"})
    assert port.taken
    assert port.holder.endswith(f", process {os.getpid()}")


HERE = Programs("git version 2.39.5", "git-lfs/3.3.0 (GitHub)", "uv 0.9.1 (x)", ("3.11.7",))


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (HERE, ["git.there", "lfs.there", "uv.there", "python.there"]),
        (
            Programs(None, None, None, ()),
            ["git.missing", "lfs.missing", "uv.missing", "python.unseen"],
        ),
        (
            Programs("git version 2.20.1", HERE.git_lfs, HERE.uv, HERE.pythons),
            ["git.old", "lfs.there", "uv.there", "python.there"],
        ),
        (
            Programs("no version", HERE.git_lfs, HERE.uv, HERE.pythons),
            ["git.old", "lfs.there", "uv.there", "python.there"],
        ),
    ],
)
def test_programs(facts: Programs, wanted: list[str]) -> None:
    assert codes(judge_programs(facts)) == wanted


def test_programs_of_this_machine() -> None:
    found = look_at_programs()
    assert found.git and found.git.startswith("git version ")
    assert found.uv and found.uv.startswith("uv ")
    ours = ".".join(map(str, sys.version_info[:2]))
    assert any(each.startswith(ours) for each in found.pythons)


HOLDS, OPEN = Choice("uids", "Walls: hold."), Choice("none", "Walls: none.")


@pytest.mark.parametrize(
    ("choice", "runtime", "unwalled", "wanted"),
    [
        (HOLDS, "local", True, ["walls.hold"]),
        (OPEN, "local", False, ["walls.none"]),
        (OPEN, "local", True, ["walls.open-to-others"]),
        (None, "local", False, ["walls.not-as-asked"]),
        ("TimeoutError", "local", False, ["walls.unknown"]),
        (OPEN, "docker", True, []),
    ],
)
def test_walls(
    choice: Choice | str | None, runtime: str, unwalled: bool, wanted: list[str]
) -> None:
    assert codes(judge_walls(choice, runtime=runtime, unwalled=unwalled)) == wanted


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Limits(20_000, 65_536, 128), ["files.many", "inotify.enough"]),
        (Limits(1024, 65_536, 8), ["files.some", "inotify.few"]),
        (Limits(256, None, None), ["files.few", "inotify.unseen"]),
    ],
)
def test_limits(facts: Limits, wanted: list[str]) -> None:
    assert codes(judge_limits(facts)) == wanted


def test_parts() -> None:
    alive = dict.fromkeys(("proxy", "hub", "service"), True)
    assert codes(judge_parts(alive, Path("/logs"))) == ["parts.alive"]
    (missing,) = judge_parts({**alive, "hub": False}, Path("/logs"))
    assert (missing.code, "/logs/hub.log" in missing.advice) == ("parts.missing", True)


# -- the data directory --------------------------------------------------------------------------

ME = os.geteuid()
NEWEST = frozenset({"1", "2"})


def database(version: str, trouble: str = "") -> Database:
    return Database("forge/forge.sqlite", version, NEWEST, "2", trouble)


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Data("/d", True, owner=ME, me=ME), ["data.private"]),
        (Data("/d", False), ["data.new"]),
        (Data("/d", True, False), ["data.not-writable"]),
        (Data("/d", True, owner=ME + 1, me=ME), ["data.other-owner"]),
        (Data("/d", True, mode=0o755), ["data.others-read"]),
        (Data("/d", True, mode=0o711), ["data.private"]),
        (Data("/d", True, mode=0o777), ["data.others-write"]),
        (Data("/d", True, open_secrets=("secrets/x",)), ["data.open-secrets"]),
        (Data("/d", True, layout=99), ["data.private", "data.newer"]),
        (Data("/d", True, layout="x"), ["data.private", "data.newer"]),
        (Data("/d", True, databases=(database("2"),)), ["data.private", "database.current"]),
        (Data("/d", True, databases=(database("1"),)), ["data.private", "database.older"]),
        (Data("/d", True, databases=(database("9"),)), ["data.private", "database.newer"]),
        (Data("/d", True, databases=(database(""),)), ["data.private", "database.unversioned"]),
        (
            Data("/d", True, databases=(database("", "it is damaged"),)),
            ["data.private", "database.unreadable"],
        ),
    ],
)
def test_data(facts: Data, wanted: list[str]) -> None:
    assert codes(judge_data(facts)) == wanted


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with a forge's database and secrets, as `notebooks up` leaves it."""
    path = tmp_path / "d"
    path.mkdir(mode=0o700)
    Administration(path).close()
    Secrets(path / "secrets").make()
    (path / "version.json").write_text(json.dumps({"layout": 1, "version": "0.1.0"}))
    return path


def state(path: Path) -> Mapping[str, Any]:
    return {
        str(one): (one.stat().st_mtime_ns, one.stat().st_mode)
        for one in path.rglob("*")
        # SQLite makes these for a moment when anybody reads.
        if one.is_file() and not one.name.endswith(("-shm", "-wal"))
    }


def test_real_data_is_read_and_not_changed(data: Path) -> None:
    before = state(data)
    assert codes(judge_data(look_at_data(data))) == ["data.private", "database.current"]
    assert state(data) == before


def test_real_data_that_is_open_to_others(data: Path) -> None:
    data.chmod(0o750)
    assert "data.others-read" in codes(judge_data(look_at_data(data)))
    (data / "secrets" / "proxy_token").chmod(0o644)
    findings = judge_data(look_at_data(data))
    (finding,) = [one for one in findings if one.code == "data.open-secrets"]
    assert "secrets/proxy_token" in finding.sentence


def test_real_data_of_another_version(data: Path) -> None:
    with closing(sqlite3.connect(data / "forge" / "forge.sqlite")) as opened, opened:
        opened.execute("UPDATE alembic_version SET version_num = '0001'")
    assert "database.older" in codes(judge_data(look_at_data(data)))
    with closing(sqlite3.connect(data / "forge" / "forge.sqlite")) as opened, opened:
        opened.execute("UPDATE alembic_version SET version_num = '9999'")
    assert "database.newer" in codes(judge_data(look_at_data(data)))


def test_real_data_that_is_damaged(data: Path) -> None:
    for name in ("forge.sqlite-wal", "forge.sqlite-shm"):
        (data / "forge" / name).unlink(missing_ok=True)
    (data / "forge" / "forge.sqlite").write_bytes(b"no database at all" * 1000)
    (data / "version.json").write_text("{")
    found = codes(judge_data(look_at_data(data)))
    assert {"database.unreadable", "data.newer"} <= set(found)


# -- settings and the hub's configuration --------------------------------------------------------


async def test_a_wrong_setting_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTEBOOKS_START_WAIT", "soon")
    done = await examine(Asked())
    assert (done.exit_code, codes(done.findings)) == (1, ["settings.wrong"])
    assert "NOTEBOOKS_START_WAIT" in done.findings[0].sentence


OURS = """
c = get_config()
c.CryptKeeper.keys = [b"0" * 32]
c.ConfigurableHTTPProxy.should_start = False
{before}
from notebooks_service.spawner.configure import configure
configure(c)
{after}
"""


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("NOTEBOOKS_SERVICE_BACKEND", "http://127.0.0.1:9")
    monkeypatch.setenv("NOTEBOOKS_SERVICE_TOKEN", "canary-service-token")

    def write(before: str = "", after: str = "") -> Path:
        file = tmp_path / "jupyterhub_config.py"
        file.write_text(OURS.format(before=before, after=after))
        return file

    return write


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("", "", ["config.complete", "origin.local"]),
        (
            'import os; os.environ |= {"NOTEBOOKS_SUBDOMAINS": "1", "NOTEBOOKS_HUB_URL": "https://x"}',
            "",
            ["config.complete", "origin.own"],
        ),
        ("", "c.JupyterHub.cleanup_servers = True", ["config.required", "origin.local"]),
        ("", 'c.JupyterHub.spawner_class = "simple"', ["config.required", "origin.local"]),
        ("", "c.JupyterHub.load_roles = []", ["config.required", "origin.local"]),
        (
            "",
            "c.ConfigurableHTTPProxy.should_start = True",
            ["config.complete", "config.own-proxy", "origin.local"],
        ),
    ],
)
def test_a_configuration(
    config_file: Callable[..., Path],
    before: str,
    after: str,
    wanted: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NOTEBOOKS_SUBDOMAINS", "NOTEBOOKS_HUB_URL"):
        monkeypatch.setenv(name, "")  # so that what the file sets is gone afterwards
        monkeypatch.delenv(name)
    facts = read_config(config_file(before, after))
    assert "canary" not in json.dumps(facts)
    assert codes(judge_hub_config(facts, runtime="local")) == wanted


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ("print('chatter')", ["config.complete", "origin.local"]),
        ("raise ValueError('canary-in-an-error')", ["config.fails"]),
        ("raise SystemExit('canary-in-an-exit')", ["config.fails"]),
        ("import os; os._exit(3)", ["config.fails"]),
    ],
)
async def test_a_configuration_file_in_its_process(
    config_file: Callable[..., Path], before: str, wanted: list[str]
) -> None:
    findings = judge_hub_config(await run_config(config_file(before)), runtime="local")
    assert codes(findings) == wanted, findings
    assert "canary" not in str(findings)


def test_a_configuration_that_does_not_configure(tmp_path: Path) -> None:
    file = tmp_path / "jupyterhub_config.py"
    file.write_text("c = get_config()\n")
    found = codes(judge_hub_config(read_config(file), runtime="docker"))
    assert found.count("config.required") == 11
    assert {"config.own-proxy", "origin.shared"} <= set(found)
