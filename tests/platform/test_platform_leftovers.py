"""What is left on an engine: the decision as a table, and ``notebooks prune`` over a real engine."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docker_fixtures import Engine
from notebooks_service import __version__
from notebooks_service.platform.checks import lock
from notebooks_service.platform.directory import LAYOUT, DataDirectory
from notebooks_service.platform.leftovers import BACKUP_MAY_READ, OnEngine, Thing, leftovers
from notebooks_service.spawner.containers import Ours

NOW = 1_000_000.0
OURS = Ours("abc")


def thing(name: str, kind: str, **more: Any) -> Thing:
    return Thing(id=name, name=name, labels={"notebooks.kind": kind}, **more)


def server(name: str, *, running: bool, volume: str) -> Thing:
    return thing(name, "server", running=running, volumes=[volume, "programs"], holds_work=volume)


RUNS = server("runs", running=True, volume="nobodys")
PROXY = thing("proxy", "proxy", running=True)
NETWORK = thing("net", "network", members=["proxy", "runs"])


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (OnEngine(), []),
        # A server that runs keeps all that it has, and the way to it.
        (OnEngine([RUNS, PROXY], [NETWORK], [thing("nobodys", "volume"), thing("programs", "programs")]), []),
        (OnEngine([PROXY], [NETWORK], front="net"), ["proxy"]),
        (OnEngine([PROXY], [NETWORK]), ["proxy", "net"]),
        # One that has ended tells the hub why, if the hub knows it.
        (OnEngine([server("ended", running=False, volume="v")], kept=["v"]), []),
        (OnEngine([server("ended", running=False, volume="v")]), ["ended"]),
        (OnEngine([thing("clone", "init", running=True), thing("job", "job")]), ["clone", "job"]),
        (OnEngine([thing("look", "look", made=NOW - BACKUP_MAY_READ + 1)]), []),
        (OnEngine([thing("look", "look", made=NOW - BACKUP_MAY_READ - 1)]), ["look"]),
        (OnEngine(volumes=[thing("v", "volume")]), ["v"]),
        (OnEngine(volumes=[thing("v", "volume")], kept=["v"]), []),
        (OnEngine(volumes=[thing("p", "programs"), thing("old", "programs")], current=["p"]), ["old"]),
        # A kind that this version does not know is left alone.
        (OnEngine(volumes=[thing("v", "other")]), []),
    ],
)  # fmt: skip
def test_what_is_left(found: OnEngine, names: list[str]) -> None:
    assert [each.name for each in leftovers(found, NOW)] == names


def test_in_an_order_that_works() -> None:
    found = OnEngine(
        [server("c", running=False, volume="v")],
        [thing("n", "network", members=["c"])],
        [thing("v", "volume"), thing("old", "programs")],
    )
    assert [each.what for each in leftovers(found, NOW)] == ["container", "network", "copy", "work"]


# -- a real engine -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    missing = [name for name in ("dockerd", "docker", "busybox") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"what prune removes was not tested on an engine: {missing or 'not root'}")
    found = Engine(Path(tempfile.mkdtemp(prefix="nbe")))
    try:
        found.start()
        tar = found.root / "image.tar"
        with tarfile.open(tar, "w") as file:
            file.add(str(shutil.which("busybox")), "bin/busybox")
        found.run("import", str(tar), "small")
        yield found
    finally:
        if found.process is not None:
            for each in found.run("ps", "-aq", check=False).stdout.split():
                found.run("rm", "-f", each, check=False)
            found.run("network", "prune", "-f", check=False)
            found.stop()
        shutil.rmtree(found.root, ignore_errors=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "docker").mkdir(parents=True)
    (tmp_path / "data" / "docker" / "instance").write_text(OURS.instance)
    facts = {"layout": LAYOUT, "version": __version__}
    (tmp_path / "data" / "version.json").write_text(json.dumps(facts))
    directory = tmp_path / "data" / "servers" / "ada" / "s1"
    directory.mkdir(parents=True)
    (directory / "volume").write_text(f"{OURS.name}-kept")
    return tmp_path / "data"


def prune(engine: Engine, data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "notebooks_service", "prune", "--data", str(data), *options]
    environment = {**os.environ, **engine.environment}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL
    )


def labelled(kind: str, person: str = "") -> list[str]:
    labels = {"notebooks.instance": OURS.instance, "notebooks.kind": kind}
    if person:
        labels |= {"notebooks.user": person, "notebooks.server": "s2"}
    return [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]


@pytest.fixture
def left(engine: Engine) -> Iterator[None]:
    """Of ada's server, which the data knows; of a clone of bob's, who has none; and of somebody else."""
    name, run = OURS.name, engine.run
    run("volume", "create", *labelled("volume", "ada"), f"{name}-kept")
    run("volume", "create", *labelled("volume", "bob"), f"{name}-bobs")
    run("volume", "create", *labelled("programs"), f"{name}-programs-old")
    run("volume", "create", "--label", "notebooks.instance=abcd", "another")
    run("network", "create", "--internal", *labelled("network", "bob"), f"{name}-net")
    busy = ["small", "/bin/busybox", "sleep", "1000"]
    bobs = ["--network", f"{name}-net", "-v", f"{name}-bobs:/work"]
    run("run", "-d", "--name", f"{name}-clone", *labelled("init", "bob"), *bobs, *busy)
    run("create", "--name", f"{name}-ended", *labelled("server", "ada"), "-v", f"{name}-kept:/work", *busy)  # fmt: skip
    run("run", "-d", "--name", "other", "--network", "none", *busy)
    yield
    for each in run("ps", "-aq").stdout.split():
        run("rm", "-f", each)
    run("network", "prune", "-f")
    for each in run("volume", "ls", "-q").stdout.split():
        run("volume", "rm", each)


def there(engine: Engine) -> set[str]:
    names = engine.run("ps", "-a", "--format", "{{.Names}}").stdout.split()
    names += engine.run("network", "ls", "--format", "{{.Name}}").stdout.split()
    names += engine.run("volume", "ls", "-q").stdout.split()
    return {name.removeprefix(f"{OURS.name}-") for name in names} - {"host", "none", "bridge"}


ALL = {"clone", "ended", "other", "net", "kept", "bobs", "programs-old", "another"}


def test_nobody_to_ask_removes_nothing(engine: Engine, data: Path, left: None) -> None:
    done = prune(engine, data)
    assert done.returncode == 1
    assert "say --yes" in done.stdout
    assert f"volume with work {OURS.name}-bobs, of bob, server s2, made " in done.stdout
    assert "1 volumes may hold somebody's work" in done.stderr
    assert there(engine) == ALL


def test_all_but_work_then_work(engine: Engine, data: Path, left: None) -> None:
    done = prune(engine, data, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["removed"] == 3
    assert [each["what"] for each in said["leftovers"] if not each["goes"]] == ["work"]
    assert there(engine) == ALL - {"clone", "net", "programs-old"}
    done = prune(engine, data, "--yes", "--work")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 of 1 were removed.")
    assert there(engine) == {"ended", "other", "kept", "another"}
    assert prune(engine, data, "--work").stdout == "Nothing can be removed.\n"


def test_what_somebody_else_uses_stays(engine: Engine, data: Path, left: None) -> None:
    foreign = ["run", "-d", "--name", "foreign", "--network", "none", "-v", f"{OURS.name}-bobs:/x"]
    engine.run(*foreign, "small", "/bin/busybox", "sleep", "1000")
    done = prune(engine, data, "--yes", "--work")
    assert done.returncode == 1
    assert f"{OURS.name}-bobs stays: " in done.stderr
    assert "3 of 4 were removed." in done.stdout
    assert "bobs" in there(engine)


@pytest.mark.parametrize(("answer", "gone"), [("n\n", False), ("\n", False), ("y\n", True)])
def test_asks_at_a_terminal(
    engine: Engine, data: Path, left: None, answer: str, gone: bool
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "notebooks_service", "prune", "--data", str(data)]
    running = subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **engine.environment},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    _, said = running.communicate(timeout=60)
    os.close(ours)
    assert "Remove 1 × container, 1 × network, 1 × volume of programs? [y/N]" in said
    assert ("clone" not in there(engine)) == gone


def test_not_while_up_runs(engine: Engine, data: Path, left: None) -> None:
    held = lock(DataDirectory(data))
    try:
        done = prune(engine, data, "--yes", "--work")
    finally:
        held.release()
    assert (done.returncode, there(engine)) == (1, ALL)
    assert "Another `notebooks up` is running" in done.stderr


def test_an_engine_that_is_away(data: Path, tmp_path: Path) -> None:
    nobody = Engine(tmp_path)
    done = prune(nobody, data)
    assert done.returncode == 1
    assert "No Docker engine answers" in done.stderr


def test_data_that_never_had_containers(tmp_path: Path) -> None:
    done = prune(Engine(tmp_path), tmp_path / "nothing")
    assert done.returncode == 1
    assert "ever ran servers in containers" in done.stderr


def test_times_of_the_engine_are_read(engine: Engine, data: Path, left: None) -> None:
    found = json.loads(prune(engine, data, "--json").stdout)["leftovers"]
    assert found
    assert all(0 <= time.time() - each["made"] < 600 for each in found)
