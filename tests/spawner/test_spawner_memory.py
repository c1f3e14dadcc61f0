"""The directory for secrets of a server without a wall: ours alone, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from notebooks_service.errors import StartFailed
from notebooks_service.spawner import memory


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "servers" / "ada" / "thing"
    path.mkdir(parents=True)
    yield path
    memory.remove(path)
    memory.place(path).unlink(missing_ok=True)


def test_it_is_empty_at_each_start_and_gone_at_the_end(server: Path, tmp_path: Path) -> None:
    made = memory.make(server)
    assert made.stat().st_mode & 0o777 == 0o700
    (made / "key").write_text("of before")
    assert memory.make(server) == made
    assert list(made.iterdir()) == []
    memory.remove(server)
    assert not made.exists()
    memory.remove(server)
    memory.make(server)
    memory.clear(tmp_path)
    assert not made.exists()


def test_what_somebody_put_in_its_place_is_not_used(server: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    memory.place(server).symlink_to(tmp_path / "theirs")
    with pytest.raises(StartFailed, match="Somebody else"):
        memory.make(server)
    memory.remove(server)
    assert (tmp_path / "theirs").is_dir()
