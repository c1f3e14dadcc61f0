"""A package index of a test's own on this machine, and source packages whose build does what one wants."""

from __future__ import annotations

import io
import os
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BACKEND = """
import os, subprocess, sys, time, zipfile

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(directory, config_settings=None, metadata_directory=None):
    act()
    name = "{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("{name}.py", "")
        wheel.writestr("{name}-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: 1\\n")
        wheel.writestr("{name}-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("{name}-1.dist-info/RECORD", "")
    return name

def act():
"""
PROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "{name}"
version = "1"
"""


def source_package(name: str, act: str) -> bytes:
    """A source distribution ``<name>-1.tar.gz`` whose build runs the lines of ``act`` first."""
    body = "".join(f"    {line}\n" for line in act.strip().splitlines())
    files = {
        "pyproject.toml": PROJECT.format(name=name),
        "backend.py": BACKEND.replace("{name}", name) + body,
    }
    return _packed(name, files)


def extension_package(name: str) -> bytes:
    """A source distribution with a module in C, as most are: setuptools has it compiled."""
    files = {
        "setup.py": "from setuptools import Extension, setup\n"
        f"setup(name={name!r}, version='1', ext_modules=[Extension({name!r}, ['{name}.c'])])\n",
        "pyproject.toml": "[build-system]\nrequires = ['setuptools']\n"
        "build-backend = 'setuptools.build_meta'\n",
        f"{name}.c": "int answer(void) { return 42; }\n",
    }
    return _packed(name, files)


def _packed(name: str, files: dict[str, str]) -> bytes:
    files = {**files, "PKG-INFO": f"Metadata-Version: 2.2\nName: {name}\nVersion: 1\n"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, text in files.items():
            info = tarfile.TarInfo(f"{name}-1/{path}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return out.getvalue()


def without_compilers(directory: Path) -> Path:
    """A directory with links to all programs on the path but compilers of C."""
    directory.mkdir()
    for place in map(Path, os.environ["PATH"].split(os.pathsep)):
        for file in place.glob("*") if place.is_dir() else []:
            compiles = re.search(r"(^|-)(cc|gcc|g\+\+|c\+\+|clang|c89|c99)([-.+\d]|$)", file.name)
            link = directory / file.name
            if not compiles and not link.is_symlink():
                link.symlink_to(file)
    return directory


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def package_index(directory: Path, packages: dict[str, bytes]) -> Iterator[str]:
    """The address of a simple index (PEP 503) with these files; ``packages``: file name to content."""
    for file, content in packages.items():
        place = directory / "simple" / file.split("-")[0]
        place.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(content)
        links = "".join(f'<a href="{one.name}">{one.name}</a>' for one in place.glob("*-*"))
        (place / "index.html").write_text(links)
    handler = partial(_Quiet, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/simple/"
        finally:
            server.shutdown()
            thread.join()
