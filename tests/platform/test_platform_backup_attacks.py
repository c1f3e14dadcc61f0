"""Backups against people who work, play and cheat meanwhile, against broken archives and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_platform_backup import archived, data, hostile, member

from forge_fixtures import run_git
from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.backup import back_up, restore
from notebooks_service.platform.backup_files import order

__all__ = ["data"]
WORK = Path("servers/ada/p1/work")
MIB = 1024 * 1024


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Does something again and again in another thread, at least once."""
    stop, once = threading.Event(), threading.Event()

    def run() -> None:
        while not stop.is_set():
            act()
            once.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
        assert once.wait(30)
    finally:
        stop.set()
        thread.join()


def as_nobody(act: Callable[[Path], object]) -> None:
    """Calls ``act`` with a directory of its own, without root's rights. Its asserts count."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if os.getuid() != 0:
            act(place)
            return
        os.chown(place, 65534, 65534)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                act(place)
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        for path in [*place.rglob("*")]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


# What comes out -------------------------------------------------------------------------------


def directory(name: str, mode: int) -> tarfile.TarInfo:
    made = member(name, tarfile.DIRTYPE)
    made.mode = mode
    return made


@pytest.mark.parametrize("case", ["file", "new", "directory", "hard link", "data"])
def test_a_link_is_never_written_through(tmp_path: Path, case: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o755)
    (victim / "old").write_text("old")
    to = str(
        victim if case in ("directory", "data") else victim / ("new" if case == "new" else "old")
    )
    link = member("data/x", tarfile.SYMTYPE, to)
    second = {
        "file": [member("data/x")],
        "new": [member("data/x")],
        "directory": [directory("data/x", 0o777)],
        "hard link": [member("data/y", tarfile.LNKTYPE, "data/x"), member("data/y")],
        "data": [member("data", tarfile.SYMTYPE, to)],
    }[case]
    with pytest.raises(PlatformFailed, match="not whole"):
        restore(hostile(link, *second), tmp_path / "place" / "new")
    assert {path.name: path.read_text() for path in victim.iterdir()} == {"old": "old"}
    assert stat.S_IMODE(victim.stat().st_mode) == 0o755
    assert list((tmp_path / "place").iterdir()) == []


def unpacks_to_the_same(broken: bytes, whole: bytes) -> bool:
    """A repetition of zeros may be copied from elsewhere among them: such a change is no damage."""
    try:
        return gzip.decompress(broken) == gzip.decompress(whole)
    except (OSError, EOFError, zlib.error):
        return False


def test_any_damage_is_seen(data: Path, tmp_path: Path) -> None:
    """Also in what cannot be compressed, where every bit pattern unpacks to something."""
    content = random.Random(1).randbytes(200_000)
    (data / WORK / "notes.txt").write_bytes(content)
    whole = archived(data).getvalue()
    for place in range(20, len(whole), len(whole) // 40):
        broken = bytearray(whole)
        broken[place] ^= 1
        if unpacks_to_the_same(bytes(broken), whole):
            continue
        with pytest.raises(PlatformFailed, match="not whole"):
            restore(io.BytesIO(bytes(broken)), tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_an_empty_directory_is_filled_where_it_is(data: Path, tmp_path: Path) -> None:
    """It may be a mount point, which can be neither removed nor renamed."""
    place = tmp_path / "mounted"
    place.mkdir()
    before = place.stat().st_ino
    parent = sorted(tmp_path.iterdir())
    restore(archived(data), place)
    assert place.stat().st_ino == before
    assert sorted(tmp_path.iterdir()) == parent
    # What `archived` leaves out, and nothing of ours beside it.
    left_out = {"run", "logs", "runner", "environments"}
    assert {path.name for path in place.iterdir()} == {p.name for p in data.iterdir()} - left_out
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="Not tested here: mounting needs root.")
def test_a_mount_point_is_filled(data: Path, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    mount = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
    script = 'mount -t tmpfs none "$1"; "$2" -m notebooks_service restore "$3" --data "$1"; ls "$1"'
    archive = tmp_path / "archive"
    archive.write_bytes(archived(data).getvalue())
    done = subprocess.run(
        [*mount, script, "sh", str(place), sys.executable, str(archive)],
        capture_output=True,
        text=True,
    )
    if done.returncode and "mount" in done.stderr:
        pytest.skip(f"Not tested here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert "version.json" in done.stdout.split()


def test_without_root_closed_directories_and_others_files_come_back(data: Path) -> None:
    closed = data / WORK / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("there")
    (closed / "inner").chmod(0o500)
    closed.chmod(0o500)
    os.utime(closed, (1, 1))
    stream = archived(data)
    of_root = os.getuid() == 0

    def act(place: Path) -> None:
        about = restore(stream, place / "new")
        found = place / "new" / WORK / "closed"
        assert (found / "inner" / "file").read_text() == "there"
        assert stat.S_IMODE(found.stat().st_mode) == 0o500
        assert stat.S_IMODE((found / "inner").stat().st_mode) == 0o500
        assert found.stat().st_mtime == 1
        assert (about["other_owners"] > 10) is of_root

    as_nobody(act)


@pytest.mark.skipif(os.getuid() != 0, reason="Not tested here: giving files away needs root.")
def test_as_root_owners_are_kept(data: Path, tmp_path: Path) -> None:
    os.chown(data / WORK, 12345, 23456)
    os.chown(data / WORK / "notes.txt", 12345, 23456)
    os.chown(data / WORK / "link", 12345, 23456, follow_symlinks=False)
    about = restore(archived(data), tmp_path / "new")
    assert about["other_owners"] == 0
    for name in (".", "notes.txt", "link"):
        facts = (tmp_path / "new" / WORK / name).lstat()
        assert (facts.st_uid, facts.st_gid) == (12345, 23456)


# What goes in ---------------------------------------------------------------------------------


SHAPES: dict[str, tuple[int, dict[int, bytes]]] = {
    "nothing but a hole": (1 << 40, {}),
    "a piece in the middle": (1 << 30, {512 * MIB + 7: b"middle"}),
    "the ends": (1 << 30, {0: b"first", (1 << 30) - 4: b"last"}),
    "many": (1 << 28, {place * 4 * MIB: b"%d" % place for place in range(60)}),
    "close to each other": (1 << 26, {8192: b"a", 3 * 8192: b"b", 32 * MIB: b"c"}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_holes_take_no_space(data: Path, tmp_path: Path, shape: str) -> None:
    """Or anybody could make a file of a terabyte, and everybody's backup would be one that fits nowhere."""
    size, pieces = SHAPES[shape]
    path = data / WORK / "holes"
    with path.open("wb") as file:
        file.truncate(size)
        for place, content in pieces.items():
            file.seek(place)
            file.write(content)
    stream = archived(data)
    assert len(stream.getvalue()) < MIB
    restore(stream, tmp_path / "new")
    found = tmp_path / "new" / WORK / "holes"
    assert found.stat().st_size == size
    assert found.stat().st_blocks * 512 < 4 * MIB
    with found.open("rb") as file:
        for place, content in pieces.items():
            file.seek(place)
            assert file.read(len(content)) == content
    # What comes after it in the archive is where it should be; and other programs can read it.
    assert (tmp_path / "new" / WORK / "notes.txt").read_text() == "mine"
    listed = subprocess.run(
        ["tar", "--list", "--gzip", "--verbose"], input=stream.getvalue(), capture_output=True
    )
    assert listed.returncode == 0, listed.stderr
    assert f" {size} ".encode() in listed.stdout


def test_a_path_that_is_too_long_takes_nobody_along(data: Path, tmp_path: Path) -> None:
    descriptor = os.open(data / WORK, os.O_DIRECTORY)
    for _ in range(30):
        os.mkdir("n" * 240, dir_fd=descriptor)
        inner = os.open("n" * 240, os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
    stream = io.BytesIO()
    done = back_up(data, stream, "1", environments=False)
    assert len(done.skipped) == 1
    assert done.skipped[0].endswith("nnn: its path is too long")
    stream.seek(0)
    restore(stream, tmp_path / ("p" * 200))
    assert (tmp_path / ("p" * 200) / WORK / "notes.txt").read_text() == "mine"
    shutil.rmtree(data)


class Acting(io.BytesIO):
    """Does something, once, while the large file is written to it that ``make_large`` made."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self._act: Callable[[], object] | None = act

    def write(self, given: Any) -> int:
        if self._act is not None and self.tell() > 4 * MIB:
            act, self._act = self._act, None
            act()
        return super().write(given)

    @property
    def acted(self) -> bool:
        return self._act is None


def make_large(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(8 * MIB))


def test_a_directory_that_is_read_is_replaced_by_a_link(data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    (secret / "inner" / "file").write_text("nobody may read this")
    mine = data / WORK / "mine"
    (mine / "inner").mkdir(parents=True)
    (mine / "inner" / "file").write_text("anybody may read this")
    make_large(mine / "a")

    def replace() -> None:
        mine.rename(data / WORK / "elsewhere")
        mine.symlink_to(secret)

    stream = Acting(replace)
    back_up(data, stream, "1", environments=False)
    assert stream.acted
    stream.seek(0)
    restore(stream, tmp_path / "new")
    found = tmp_path / "new" / WORK / "mine" / "inner" / "file"
    assert found.read_text() == "anybody may read this"


FLIPPER = """
import ctypes, os, sys
call = ctypes.CDLL(None, use_errno=True).renameat2
os.chdir(sys.argv[1])
names = [name.encode() for name in sorted(os.listdir()) if name.startswith("d")]
if call(-100, names[0], -100, b"l" + names[0], 2):
    sys.exit(3)
print("flipping", flush=True)
while True:
    for name in names:
        call(-100, name, -100, b"l" + name, 2)
"""


def test_a_link_that_takes_a_directorys_place_is_not_followed(data: Path, tmp_path: Path) -> None:
    """Between the look and the opening: without O_NOFOLLOW, each of five runs of this read the secret."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("nobody may read this")
    names = [f"d{number}" for number in range(60)]
    for name in names:
        (data / WORK / name).mkdir()
        (data / WORK / name / "file").write_text("anybody may read this")
        (data / WORK / f"l{name}").symlink_to(secret)
    flipper = subprocess.Popen(
        [sys.executable, "-c", FLIPPER, str(data / WORK)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert flipper.stdout is not None
        if flipper.stdout.readline() == "":
            pytest.skip("Not tested here: this file system cannot exchange names.")
        found = set()
        for _ in range(25):
            with tarfile.open(fileobj=archived(data), mode="r:gz") as archive:
                for info in archive:
                    if info.isreg() and info.name.endswith("/file"):
                        file = archive.extractfile(info)
                        assert file is not None
                        found.add(file.read())
    finally:
        flipper.kill()
        flipper.communicate()
    assert found == {b"anybody may read this"}


def test_names_of_git_come_before_what_they_name() -> None:
    found = sorted(["refs", "objects", "packed-refs", "HEAD", "config"], key=order)
    assert found == ["HEAD", "config", "refs", "packed-refs", "objects"]
    assert sorted(["pack", "info", "ab"], key=order) == ["ab", "info", "pack"]
    assert sorted(["p.idx", "p.pack", "multi-pack-index"], key=order)[0] == "p.pack"


def test_branches_that_are_packed_meanwhile_are_there(data: Path, tmp_path: Path) -> None:
    """At the moment between the two places where git looks for them."""
    place = data / "forge" / "repositories" / "1.git"
    branches = [f"b{number}" for number in range(5)]
    for name in branches:
        run_git("branch", name, cwd=place)
    make_large(place / ".git" / "r")
    stream = Acting(lambda: run_git("pack-refs", "--all", "--prune", cwd=place))
    back_up(data, stream, "1", environments=False)
    assert stream.acted
    stream.seek(0)
    restore(stream, tmp_path / "new")
    found = run_git("branch", "--list", cwd=tmp_path / "new" / place.relative_to(data)).split()
    assert set(branches) <= set(found)


def test_a_repository_that_is_packed_meanwhile(data: Path, tmp_path: Path) -> None:
    place = data / "forge" / "repositories" / "1.git"
    git = place / ".git"
    branches = [f"b{number}" for number in range(20)]
    for name in branches:
        run_git("branch", name, cwd=place)
    number = 0

    def act() -> None:
        nonlocal number
        number += 1
        (place / "a").write_text(str(number))
        run_git("commit", "--quiet", "-am", str(number), cwd=place)
        # Loose names again, for the next packing to take away.
        for name in branches:
            run_git("update-ref", f"refs/heads/{name}", "HEAD", cwd=place)
        run_git("pack-refs", "--all", "--prune", cwd=place)
        run_git("repack", "-a", "-d", "--quiet", cwd=place)

    with meanwhile(act):
        for attempt in range(8):
            new = tmp_path / f"new{attempt}"
            restore(archived(data), new)
            found = new / git.relative_to(data)
            run_git("--git-dir", str(found), "fsck", "--full", "--strict", cwd=tmp_path)
            listed = run_git(
                "--git-dir", str(found), "for-each-ref", "--format=%(refname:short)", cwd=tmp_path
            )
            assert set(branches) <= set(listed.split())


def test_a_database_whose_writer_was_killed(data: Path, tmp_path: Path) -> None:
    path = data / "service" / "service.sqlite"
    path.parent.mkdir()
    program = (
        "import os, signal, sqlite3, sys; d = sqlite3.connect(sys.argv[1]);"
        "d.execute('pragma journal_mode=wal'); d.execute('create table t (x)');"
        "d.execute('insert into t values (7)'); d.commit(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.with_name("service.sqlite-wal").stat().st_size > 0
    restore(archived(data), tmp_path / "new")
    names = sorted(one.name for one in (tmp_path / "new" / "service").iterdir())
    assert names == ["service.sqlite"]
    with closing(sqlite3.connect(tmp_path / "new" / "service" / "service.sqlite")) as database:
        assert database.execute("select x from t").fetchall() == [(7,)]


# Where it is written --------------------------------------------------------------------------


def test_a_backup_within_the_data_does_not_hold_itself(data: Path) -> None:
    target = data / "kept" / "a.backup"
    target.parent.mkdir()
    back_up(data, target, "1", environments=False)
    with tarfile.open(target) as archive:
        assert [name for name in archive.getnames() if name.startswith("data/kept/")] == []


def test_two_to_one_place_at_once(data: Path, tmp_path: Path) -> None:
    (data / WORK / "notes.txt").write_bytes(random.Random(1).randbytes(3 * MIB))
    target = tmp_path / "a.backup"
    ends: list[Any] = []

    def one() -> None:
        try:
            ends.append(back_up(data, target, "1", environments=False).files)
        except PlatformFailed as error:
            ends.append(error.message)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = f"{target} is there already; give the name of a new file."
    assert (len(ends), ends.count(refused)) == (4, 3)
    with target.open("rb") as source:
        restore(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.backup", "data", "new"]
