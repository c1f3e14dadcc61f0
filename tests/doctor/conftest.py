"""Fixtures of the doctor's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from doctor_servers import authority, ca_file, serve_tls

from scripted_gitlab import elsewhere, gitlab

__all__ = ["authority", "ca_file", "elsewhere", "gitlab", "serve_tls"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting and no proxy of the machine that the tests run on."""
    for name in list(os.environ):
        if name.startswith(("NOTEBOOKS_", "JUPYTERHUB_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NOTEBOOKS_DATA", str(tmp_path / "data"))
    # What walls a machine can have takes seconds to find out, and is the walls' own tests' matter.
    monkeypatch.setenv("NOTEBOOKS_WALLS", "none")
