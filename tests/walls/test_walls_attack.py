"""One program of attacks, without a wall and behind each kind of wall: all of it, and none of it.

Ways that are for users who are not root run inside a wall of root's: there a process has an ordinary
user number, and the interpreter can be read, wherever it lies.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.settings import Settings
from notebooks_service.walls.view import Mount, reading, writing
from notebooks_service.walls.wall import Inside, Walls, works

ATTACK = Path(__file__).with_name("walls_attack.py")
HERE = Path(__file__).parent
NESTED = HERE / "walls_nested.py"
MARK = "SECRET-OF-SOMEBODY"

as_root = pytest.mark.skipif(
    os.getuid() != 0, reason="Not tested here: user numbers for people need root."
)


@dataclass
class Stage:
    """A machine with something to steal; ``targets`` is for ``walls_attack.py``."""

    settings: Settings
    home: Path
    targets: dict[str, list[Any]]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    data = tmp_path / "data"
    for path in (data / "secrets", data / "theirs", data / "mine", data / "environment"):
        path.mkdir(mode=0o700, parents=True)
    (data / "environment").chmod(0o755)
    (data / "secrets" / "proxy_token").write_text("x" * 64)
    (data / "theirs" / "notes.txt").write_text("private")
    (data / "environment" / "module.py").write_text("honest = True\n")
    name = f"@walls-{uuid.uuid4().hex}"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + name[1:])
    listener.listen(8)
    plain = socket.socket(socket.AF_UNIX)
    plain.bind(f"/tmp/walls-{os.getpid()}.sock")
    plain.listen(8)
    shared = Path("/dev/shm") / f"walls-{uuid.uuid4().hex}"
    shared.write_text("private")
    temporary = Path("/tmp") / f"walls-{uuid.uuid4().hex}"
    temporary.write_text("private")
    key = int.from_bytes(os.urandom(3), "big") + 1
    segment = ctypes.CDLL(None, use_errno=True).shmget(key, 16, 0o1666)
    assert segment >= 0
    victim = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={"WHOSE": MARK}
    )
    targets: dict[str, list[Any]] = {
        "read": [
            str(data / "secrets"), str(data / "secrets" / "proxy_token"), str(data / "theirs" / "notes.txt"),
            str(shared), str(temporary), "/etc/shadow",
        ],
        "write": [str(data / "theirs"), str(data / "environment"), "/usr/lib", str(HERE)],
        "link": [str(data / "theirs" / "notes.txt")],
        "processes": [MARK],
        "signal": [victim.pid],
        "trace": [victim.pid],
        "memory": [victim.pid],
        "root": [victim.pid],
        "shared_memory": [key],
        "connect": [name, f"/tmp/walls-{os.getpid()}.sock"],
        "gain": ["rights"],
    }  # fmt: skip
    try:
        yield Stage(Settings(data=data, walls="none"), data / "mine", targets)
    finally:
        victim.kill()
        victim.wait()
        ctypes.CDLL(None).shmctl(segment, 0, None)
        for one in (listener, plain):
            one.close()
        for path in (shared, temporary, Path(f"/tmp/walls-{os.getpid()}.sock")):
            path.unlink()


def run(walls: Walls, stage: Stage, targets: dict[str, list[Any]], *more: Mount) -> dict[str, Any]:
    """What the attack got as ``person:mallory``, who has a home and may read the environment."""
    asked = stage.home / "targets.json"
    asked.write_text(json.dumps(targets))
    walls.own(stage.home, "person:mallory")
    inside = Inside(
        "person:mallory",
        (*writing(stage.home), *reading(stage.settings.data / "environment", HERE), *more),
    )
    command = [sys.executable, "-I", str(ATTACK), str(asked)]
    environment = {"HOME": str(stage.home), "PATH": os.defpath}
    with walls.around(inside, command, directory=stage.home, environment=environment) as call:
        done = subprocess.run(
            call.command,
            env=call.environment,
            cwd=call.directory,
            pass_fds=call.descriptors,
            capture_output=True,
            text=True,
            timeout=100,
        )
    (line,) = [row for row in done.stdout.splitlines() if row.startswith("ATTACK ")] or [done]
    assert isinstance(line, str), line
    result: dict[str, Any] = json.loads(line.removeprefix("ATTACK "))
    return result


@as_root
def test_without_a_wall_every_attack_succeeds(stage: Stage) -> None:
    got = run(Walls("none", stage.settings), stage, stage.targets)
    assert [name for name, what in got.items() if what is None] == []


@as_root
def test_behind_a_wall_of_user_numbers_no_attack_succeeds(stage: Stage) -> None:
    walls = Walls("uids", stage.settings)
    targets = {**stage.targets, "escape": ["user namespace"]}
    got = run(walls, stage, targets)
    assert {name: what for name, what in got.items() if what and name not in unscoped(name)} == {}


@as_root
@pytest.mark.parametrize("way", ["none", "namespaces", "bubblewrap"])
def test_behind_the_walls_of_an_ordinary_user(stage: Stage, way: str) -> None:
    """The victims are the same user's own here, so without a wall most of it succeeds."""
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("Not tested: bubblewrap, which is not installed here.")
    got = nested(stage, way)
    if way == "none":
        assert {name for name, what in got.items() if what is None} <= {"gain rights"}
    else:
        # bubblewrap knows no Landlock; the page on security says so.
        open_ones = {"connect @abstract"} if way == "bubblewrap" else unscoped("connect @abstract")
        assert {name for name, what in got.items() if what} <= open_ones


def unscoped(name: str) -> set[str]:
    """Abstract sockets, where the kernel is too old to close them (Landlock, Linux 6.12)."""
    version = ctypes.CDLL(None).syscall(444, None, 0, 1)
    return {name} if version < 6 and name.startswith("connect @") else set()


def nested(stage: Stage, way: str) -> dict[str, Any]:
    """``walls_nested.py`` as an ordinary user of the machine: victim and attacker by the same number."""
    outer = Walls("uids", stage.settings)
    root = stage.settings.data / "ordinary"
    root.mkdir()
    (root / "way").write_text(way)
    outer.own(root, "person:ordinary")
    inside = Inside("person:ordinary", (*writing(root), *reading(HERE)))
    command = [sys.executable, "-I", str(NESTED), str(root), way]
    with outer.around(inside, command, directory=root, environment={"HOME": str(root)}) as call:
        done = subprocess.run(
            call.command,
            env=call.environment,
            cwd=call.directory,
            pass_fds=call.descriptors,
            capture_output=True,
            text=True,
            timeout=100,
        )
    lines = [row for row in done.stdout.splitlines() if row.startswith("ATTACK ")]
    assert lines, done
    result: dict[str, Any] = json.loads(lines[-1].removeprefix("ATTACK "))
    return result


@as_root
def test_a_wall_that_works_says_so_and_one_that_does_not_says_why(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    settings.data.mkdir(mode=0o700)
    assert works(Walls("uids", settings), settings.data) is None
    seen = works(
        Walls("uids", settings.model_copy(update={"wall_read": (settings.data,)})), settings.data
    )
    assert seen is not None and "sees" in seen
