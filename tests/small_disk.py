"""A file system of few megabytes, to be filled: the fixture ``small_disk``, and ``fill``. Only root can mount one."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SmallDisk = Callable[[Path, str], Path]


@pytest.fixture
def small_disk() -> Iterator[SmallDisk]:
    """``small_disk(directory, "48m")`` makes ``directory`` a file system of that size."""
    mounted: list[Path] = []

    def mount(directory: Path, size: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("Only root can mount the small disk that this test fills.")
        directory.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"Nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """A file that takes all the space there is."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler
