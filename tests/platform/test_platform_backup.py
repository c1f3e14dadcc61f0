"""Backups of a data directory: what goes in comes out, also while it changes, and nothing else comes out."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import sqlite3
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from forge_fixtures import make_repository, run_git
from notebooks_service.errors import PlatformFailed
from notebooks_service.platform import backup
from notebooks_service.platform.backup import back_up, restore
from notebooks_service.platform.directory import LAYOUT, DataDirectory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one of everything."""
    place = tmp_path / "data"
    DataDirectory(place).make()
    (place / "version.json").write_text(json.dumps({"layout": LAYOUT, "version": "1"}))
    (place / "secrets" / "token").write_text("secret")
    (place / "secrets" / "token").chmod(0o600)
    make_repository(place / "forge" / "repositories" / "1.git", {"a": "1"}, {"a": "2"})
    with closing(sqlite3.connect(place / "hub" / "jupyterhub.sqlite")) as database:
        database.execute("pragma journal_mode=wal")
        database.execute("create table t (x)")
        database.execute("insert into t values (42)")
        database.commit()
    work = place / "servers" / "ada" / "p1" / "work"
    work.mkdir(parents=True)
    (work / "notes.txt").write_text("mine")
    (work / "link").symlink_to("/etc/passwd")
    os.link(work / "notes.txt", work / "same.txt")
    (work / os.fsdecode(b"caf\xe9")).write_text("latin")
    (work / "empty").mkdir(mode=0o700)
    for left in ("run", "logs", "runner", "environments"):
        (place / left).mkdir(exist_ok=True)
        (place / left / "left").write_text("x")
    return place


def archived(data: Path, **more: Any) -> io.BytesIO:
    stream = io.BytesIO()
    back_up(data, stream, "1", environments=more.pop("environments", False), **more)
    stream.seek(0)
    return stream


def test_what_goes_in_comes_out(data: Path, tmp_path: Path) -> None:
    about = restore(archived(data), tmp_path / "new")
    assert (about["version"], about["layout"], about["volumes"]) == ("1", LAYOUT, [])
    new = tmp_path / "new"
    work = new / "servers" / "ada" / "p1" / "work"
    assert (work / "notes.txt").read_text() == "mine"
    assert (work / "notes.txt").stat().st_ino == (work / "same.txt").stat().st_ino
    assert (work / "link").readlink() == Path("/etc/passwd")
    assert (work / os.fsdecode(b"caf\xe9")).read_text() == "latin"
    assert stat.S_IMODE((work / "empty").stat().st_mode) == 0o700
    assert stat.S_IMODE((new / "secrets" / "token").stat().st_mode) == 0o600
    with closing(sqlite3.connect(new / "hub" / "jupyterhub.sqlite")) as database:
        assert database.execute("select x from t").fetchall() == [(42,)]
    assert run_git("fsck", "--full", cwd=new / "forge" / "repositories" / "1.git") is not None
    for left in ("run", "logs", "runner", "environments"):
        assert not (new / left / "left").exists()
    whole = tmp_path / "whole"
    restore(archived(data, environments=True), whole)
    assert (whole / "environments" / "left").read_text() == "x"


def test_a_file_is_whole_or_not_there(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.backup"
    back_up(data, target, "1", environments=False)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    before = target.read_bytes()
    with pytest.raises(PlatformFailed, match="is there already"):
        back_up(data, target, "1", environments=False)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.part")] == []

    def fails(name: str) -> Any:
        raise OSError(28, "No space left on device")

    class Broken(Memory):
        read = staticmethod(fails)  # type: ignore[assignment]

    with pytest.raises(OSError, match="No space"):
        back_up(
            data, tmp_path / "b", "1", environments=False, volumes=lambda _: Broken({"v": b"x"})
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.backup", "data"]


def test_what_is_no_file_is_left_out_and_said(data: Path, tmp_path: Path) -> None:
    work = data / "servers" / "ada" / "p1" / "work"
    os.mkfifo(work / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(work)
        listener.bind("socket")
    stream = io.BytesIO()
    done = back_up(data, stream, "1", environments=False)
    assert done.skipped == ["servers/ada/p1/work/pipe"]
    stream.seek(0)
    restore(stream, tmp_path / "new")
    assert not (tmp_path / "new" / "servers" / "ada" / "p1" / "work" / "pipe").exists()


@pytest.mark.parametrize("change", ["shrinks", "grows"])
def test_a_file_that_changes_while_it_is_read(data: Path, tmp_path: Path, change: str) -> None:
    path = data / "servers" / "ada" / "p1" / "work" / "notes.txt"
    path.write_bytes(b"a" * 100_000)

    class Changing(io.BytesIO):
        """Changes the file as soon as its head was written: it comes last but one."""

        done = False

        def write(self, given: Any) -> int:
            if not self.done:
                self.done = True
                if change == "shrinks":
                    os.truncate(path, 10)
                else:
                    with path.open("ab") as file:
                        file.write(b"b" * 100_000)
            return super().write(given)

    stream = Changing()
    back_up(data, stream, "1", environments=False)
    stream.seek(0)
    restore(stream, tmp_path / "new")
    found = (tmp_path / "new" / "servers" / "ada" / "p1" / "work" / "notes.txt").read_bytes()
    assert found[:10] == b"a" * 10


def test_nothing_is_restored_over_something(data: Path, tmp_path: Path) -> None:
    stream = archived(data)
    with pytest.raises(PlatformFailed, match="is not empty"):
        restore(stream, data)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PlatformFailed, match="is not empty"):
        restore(stream, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    restore(stream, tmp_path / "empty")


@pytest.mark.parametrize("cut", [0, 10, 200, -200, -40])
def test_half_an_archive_is_none(data: Path, tmp_path: Path, cut: int) -> None:
    whole = archived(data).getvalue()
    with pytest.raises(PlatformFailed, match="not whole"):
        restore(io.BytesIO(whole[:cut]), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_newer_one_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {"format": backup.FORMAT, "layout": LAYOUT + 1, "version": "9.9"}
    with pytest.raises(PlatformFailed, match=r"newer version \(9\.9\)"):
        restore(hostile(about=about), tmp_path / "new")


def hostile(*members: tarfile.TarInfo, about: Mapping[str, Any] | None = None) -> io.BytesIO:
    """An archive of ours but for these members."""
    data = io.BytesIO()
    with gzip.GzipFile("", "wb", 1, data) as packed, tarfile.open(fileobj=packed, mode="w|") as tar:
        text = json.dumps(about or {"format": 1, "layout": LAYOUT, "version": "1"}).encode()
        for name, content in (("backup.json", text),):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        root = tarfile.TarInfo("data")
        root.type, root.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(root)
        for member in members:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        tar.addfile(tarfile.TarInfo("backup.end"))
    data.seek(0)
    return data


def member(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("data/../../out")],
        [member("/etc/out")],
        [member("elsewhere/out")],
        [member("data/link", tarfile.SYMTYPE, "/tmp"), member("data/link/out")],
        [member("data/up", tarfile.SYMTYPE, ".."), member("data/up/out")],
        [member("data/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [member("data/device", tarfile.CHRTYPE)],
        [member("data/pipe", tarfile.FIFOTYPE)],
        [member("volumes/../out")],
        [member("volumes/a/b")],
        [member("volumes/link", tarfile.SYMTYPE, "/etc")],
    ],
)  # fmt: skip
def test_an_archive_writes_nowhere_else(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    with pytest.raises(PlatformFailed, match="not whole"):
        restore(hostile(*members), tmp_path / "place" / "new")
    assert list((tmp_path / "place").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


class Memory:
    """Volumes that are nowhere but here."""

    def __init__(self, contents: dict[str, bytes] | None = None) -> None:
        self.contents = contents or {}
        self.labels: dict[str, Mapping[str, str]] = {}

    def listed(self) -> list[dict[str, Any]]:
        return [{"name": name, "labels": {"a": "b"}} for name in self.contents]

    @contextmanager
    def read(self, name: str) -> Iterator[IO[bytes]]:
        yield io.BytesIO(self.contents[name])

    def put_back(self, name: str, labels: Mapping[str, str], content: IO[bytes]) -> None:
        if name in self.contents:
            raise PlatformFailed(f"{name} is there")
        self.contents[name] = content.read()
        self.labels[name] = labels

    def remove(self, name: str) -> None:
        del self.contents[name]


def test_volumes_come_back_all_or_none(data: Path, tmp_path: Path) -> None:
    there = Memory({"notebooks-a-1": b"one", "notebooks-a-2": b"two"})
    stream = archived(data, volumes=lambda _: there)
    with pytest.raises(PlatformFailed, match="no Docker engine"):
        restore(stream, tmp_path / "new")
    stream.seek(0)
    full = Memory({"notebooks-a-2": b"other"})
    with pytest.raises(PlatformFailed, match="is there"):
        restore(stream, tmp_path / "new", lambda _: full)
    assert full.contents == {"notebooks-a-2": b"other"}
    assert not (tmp_path / "new").exists()
    stream.seek(0)
    empty = Memory()
    restore(stream, tmp_path / "new", lambda _: empty)
    assert empty.contents == there.contents
    assert empty.labels["notebooks-a-1"] == {"a": "b"}


@pytest.mark.parametrize("name", ["../data/secrets", "/etc/passwd", "missing", "", "A", 3])
def test_a_volume_is_one_of_the_archives(tmp_path: Path, name: object) -> None:
    about = {
        "format": 1,
        "layout": LAYOUT,
        "version": "1",
        "volumes": [{"name": name, "labels": {}}],
    }
    with pytest.raises(PlatformFailed, match="not whole"):
        restore(hostile(about=about), tmp_path / "new", lambda _: Memory())
