"""The proxy is installed from its lock, once, and the command that comes back runs it."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.proxy import install_proxy, is_installed

CHP = files("notebooks_service.platform") / "chp"


def test_install_runs_and_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "a path with spaces"
    assert not is_installed(directory)
    command = install_proxy(directory)
    assert is_installed(directory)
    asked = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    wanted = json.loads((CHP / "package.json").read_text())
    assert asked.stdout.strip() == wanted["dependencies"]["configurable-http-proxy"]
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}
    assert install_proxy(directory) == command
    assert before == {
        path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()
    }


def test_killed_install_looks_not_whole(tmp_path: Path) -> None:
    (tmp_path / ".new-killed" / "node_modules").mkdir(parents=True)
    assert not is_installed(tmp_path)


def test_failed_install_says_so_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A registry that nobody listens on, and an empty cache: npm's own environment variables.
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(PlatformFailed, match="could not be installed from the npm registry"):
        install_proxy(tmp_path / "proxy")
    assert not is_installed(tmp_path / "proxy")
    assert [path.name for path in (tmp_path / "proxy").iterdir() if path.is_dir()] == []


def test_lock_names_hashes_and_no_mirror() -> None:
    lock = json.loads((CHP / "package-lock.json").read_text())
    for name, package in lock["packages"].items():
        if name:
            assert package["integrity"].startswith("sha512-"), name
            assert urlsplit(package.get("resolved", "")).netloc in {"", "registry.npmjs.org"}, name
    assert os.fspath(Path.home()) not in json.dumps(lock)
