"""The pieces of a wall: which one, whose number, what is shown, who builds it, what is taken over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from notebooks_service.errors import BuildFailed, PlatformFailed
from notebooks_service.settings import Settings, WallsAsked
from notebooks_service.walls.identities import Identities, known_here
from notebooks_service.walls.ownership import own, seal
from notebooks_service.walls.view import Mount, interpreter_paths, service_paths, uncovered, writing
from notebooks_service.walls.wall import LAUNCHER, Inside, Walls, find
from notebooks_service.walls.ways import Facts, choose

as_root = pytest.mark.skipif(os.getuid() != 0, reason="Not tested here: this needs root.")
NO = "the kernel said no"


@pytest.mark.parametrize(
    ("asked", "facts", "way"),
    [
        ("auto", Facts(True, uids=None), "uids"),
        ("auto", Facts(True, uids=NO), "none"),
        # A namespace of root's own would leave what is in it root's.
        ("auto", Facts(True, uids=NO, namespaces=None, bubblewrap=None), "none"),
        ("auto", Facts(False, namespaces=None), "namespaces"),
        ("auto", Facts(False, namespaces=NO, bubblewrap=None), "bubblewrap"),
        ("auto", Facts(False, namespaces=NO, bubblewrap=NO), "none"),
        ("auto", Facts(False, uids=None, namespaces=NO, bubblewrap=NO), "none"),
        ("none", Facts(True, uids=None), "none"),
        ("uids", Facts(True, uids=None), "uids"),
        ("uids", Facts(True, uids=NO), None),
        ("uids", Facts(False, namespaces=None), None),
        ("namespaces", Facts(True, uids=None, namespaces=None), None),
        ("namespaces", Facts(False, namespaces=NO, bubblewrap=None), None),
        ("bubblewrap", Facts(False, namespaces=None, bubblewrap=None), "bubblewrap"),
    ],
)
def test_which_wall(asked: WallsAsked, facts: Facts, way: str | None) -> None:
    choice = choose(asked, facts)
    assert (choice and choice.way) == way
    if choice is not None:
        assert choice.holds is (way != "none")
        assert choice.sentence.startswith("Walls: ") and choice.sentence.endswith(".")
        assert (NO in choice.sentence) == (asked == "auto" and way == "none")


@as_root
def test_a_wall_that_was_asked_for_and_does_not_work_ends_the_start(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, walls="namespaces")
    with pytest.raises(PlatformFailed, match="says namespaces, which does not work here"):
        find(settings)


def test_a_number_is_given_once_and_never_one_that_is_known(tmp_path: Path) -> None:
    file = tmp_path / "numbers.json"
    taken = {200_000, 200_001, 200_003}
    identities = Identities(file, 200_000, 6, known=taken.__contains__)
    assert identities.number("person:ada") == 200_002
    assert identities.number("person:bob") == 200_004
    again = Identities(file, 200_000, 6, known=lambda number: False)
    assert again.number("person:ada") == 200_002
    assert again.number("project:7") == 200_005
    with pytest.raises(PlatformFailed, match="used up"):
        again.number("project:8")
    assert Identities(file, 300_000, 5, known=lambda number: False).number("x") == 300_000
    # Somebody who is gone does not make room: their files may still be there.
    noted = json.loads(file.read_text())
    del noted["given"]["person:bob"]
    file.write_text(json.dumps(noted))
    assert Identities(file, 200_000, 200_000, known=lambda n: False).number("new") == 300_001
    for damage in ("", "{", "[]", '{"next": 1}'):
        file.write_text(damage)
        with pytest.raises(PlatformFailed, match="cannot be read"):
            Identities(file, 200_000, 6).number("person:ada")


def test_two_who_ask_at_once_get_two_numbers(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from notebooks_service.walls.identities import Identities\n"
        "one = Identities(Path(sys.argv[1]), 200000, 1000)\n"
        "print(*[one.number(f'{sys.argv[2]}:{n}') for n in range(30)])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "numbers.json")]
    both = [
        subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("a", "b")
    ]
    numbers = [number for one in both for number in one.communicate()[0].split()]
    assert len(numbers) == len(set(numbers)) == 60


def test_the_machines_own_users_are_known() -> None:
    assert known_here(0) and known_here(os.getuid())
    assert not known_here(3_999_999_999)


def test_what_an_environments_interpreter_needs_is_its_installation_only(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    assert interpreter_paths(tmp_path / "bin" / "python") == []  # a home, for instance
    (tmp_path / "lib" / "python3.11").mkdir(parents=True)
    (tmp_path / "lib" / "python3.11" / "os.py").touch()
    assert interpreter_paths(tmp_path / "bin" / "python") == [tmp_path]
    assert uncovered([Path("/usr/lib/x"), Path("/"), tmp_path, tmp_path / "lib"]) == [tmp_path]


@as_root
def test_the_commands_environment_never_reaches_the_one_who_builds_the_wall(tmp_path: Path) -> None:
    walls = Walls("uids", Settings(data=tmp_path))
    environment = {"LD_PRELOAD": "/evil.so", "PYTHONPATH": "/evil", "MARK": "x", "TOKEN": "secret"}
    home = tmp_path / "home"
    home.mkdir()
    walls.own(home, "person:ada")
    command = ["/usr/bin/env"]
    with walls.around(
        Inside("person:ada", writing(home)),
        command,
        directory=home,
        environment=environment,
        marks=("MARK",),
    ) as call:
        assert set(call.environment) == {"PATH", "LANG", "MARK"}
        assert not any("secret" in part or "evil" in part for part in call.command)
        done = subprocess.run(
            call.command, env=call.environment, pass_fds=call.descriptors,
            capture_output=True, text=True,
        )  # fmt: skip
    assert set(done.stdout.splitlines()) >= {"PYTHONPATH=/evil", "TOKEN=secret", "MARK=x"}


@as_root
def test_a_link_in_the_way_of_a_mount_is_not_followed(tmp_path: Path) -> None:
    walls = Walls("uids", Settings(data=tmp_path / "data"))
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.mkdir()
    (mine / "inner").symlink_to("/etc")
    mounts = (*writing(mine), Mount("write", str(mine / "inner"), str(other)))
    with walls.around(
        Inside("person:ada", mounts), ["/bin/true"], directory=Path("/"), environment={}
    ) as call:
        done = subprocess.run(
            call.command, env=call.environment, pass_fds=call.descriptors,
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 125
    assert "could not be walled off" in done.stderr


@as_root
def test_a_tmp_on_the_disk_a_name_and_an_exit_code(tmp_path: Path) -> None:
    """Data that does not lie below /tmp, as on a real machine: its /tmp is a directory of one's own."""
    if any(path.is_relative_to("/tmp") for path in service_paths()):
        pytest.skip("Not tested: an own directory as /tmp, because this checkout lies below /tmp.")
    place = Path("/var/lib") / f"walls-test-{os.getpid()}"
    place.mkdir(mode=0o700)
    try:
        walls = Walls("uids", Settings(data=place))
        temporary = place / "tmp"
        temporary.mkdir(mode=0o700)
        walls.own(temporary, "person:ada")
        command = ["/bin/sh", "-c", "id -un; echo x > /tmp/one; ls /var/tmp; kill -TERM $$"]
        with walls.around(
            Inside("person:ada", (), temporary), command, directory=Path("/"),
            environment={"PATH": os.defpath},
        ) as call:  # fmt: skip
            done = subprocess.run(
                call.command, env=call.environment, pass_fds=call.descriptors,
                capture_output=True, text=True,
            )  # fmt: skip
        assert (done.returncode, done.stdout) == (128 + 15, "ada\none\n"), done
        assert (temporary / "one").read_text() == "x\n"
        assert LAUNCHER.is_file()
    finally:
        subprocess.run(["rm", "-rf", str(place)], check=True)


@as_root
def test_files_change_hands_without_following_links_or_second_names(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("root's")
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "link").symlink_to(outside)
    (tree / "below" / "second").hardlink_to(outside)
    assert own(tree, 200_009) is True
    assert own(tree, 200_009) is False
    assert outside.stat().st_uid == 0
    assert outside.read_text() == (tree / "below" / "second").read_text() == "root's"
    for path in (tree, tree / "below", tree / "below" / "second", tree / "link"):
        assert path.lstat().st_uid == 200_009


def honest(tree: Path, final: Path) -> None:
    (tree / "bin").mkdir(parents=True)
    (tree / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    (tree / "lib64").symlink_to("lib")
    (tree / "bin" / "python").symlink_to(sys.executable)
    (tree / "bin" / "python3").symlink_to("python")
    (tree / "bin" / "python3.11").symlink_to(final / "bin" / "python")
    script = tree / "bin" / "run"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o4777)
    (tree / "lib" / "module.py").write_text("x = 1\n")
    (tree / "lib" / "module.py").chmod(0o600)


def test_an_honest_tree_is_sealed(tmp_path: Path) -> None:
    tree, final = tmp_path / "tree", tmp_path / "final"
    honest(tree, final)
    if os.getuid() == 0:
        own(tree, 200_009)  # as a job leaves it
    seal(tree, final, Path(sys.executable), 100)
    modes = {name: (tree / name).stat().st_mode & 0o7777 for name in ("bin/run", "lib/module.py")}
    assert modes == {"bin/run": 0o555, "lib/module.py": 0o444}
    assert (tree / "lib").stat().st_mode & 0o7777 == 0o555
    assert (tree / "lib" / "module.py").stat().st_uid == os.getuid()


@pytest.mark.parametrize(
    "harm",
    ["absolute", "upward", "chain", "through", "loop", "fifo", "second name", "large", "socket"],
)
def test_a_tree_that_is_not_harmless_is_not_sealed(
    tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, final = tmp_path / "tree", tmp_path / "final"
    honest(tree, final)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    evil = tree / "lib" / "evil"
    if harm == "absolute":
        evil.symlink_to(secret)
    elif harm == "upward":
        evil.symlink_to("../../secret")
    elif harm == "chain":
        (tree / "lib" / "first").symlink_to("evil")
        evil.symlink_to(tmp_path)
    elif harm == "through":
        # By its text it ends in ``lib/a``; by the link on the way, outside.
        (tree / "lib" / "a" / "b").mkdir(parents=True)
        (tree / "lib" / "a" / "b" / "short").symlink_to("../..")
        evil.symlink_to("a/b/short/../../secret")
        assert evil.read_text() == "secret"
    elif harm == "loop":
        evil.symlink_to("evil")
    elif harm == "fifo":
        os.mkfifo(evil)
    elif harm == "second name":
        evil.hardlink_to(secret)
    elif harm == "large":
        (tree / "lib" / "RECORD").write_text("x" * 101)
    elif harm == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            monkeypatch.chdir(tree / "lib")  # its whole path may be too long
            listener.bind("evil")
    with pytest.raises(BuildFailed, match="was not taken"):
        seal(tree, final, Path(sys.executable), 100)
