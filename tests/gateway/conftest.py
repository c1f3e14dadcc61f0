"""Fixtures of the gateway's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from gateway_real_hub import RealHub, run_hub

from ports import free_port


@pytest.fixture(scope="session")
def real_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealHub]:
    """The hub of this environment, or of the one that ``NOTEBOOKS_TEST_HUB_PYTHON`` names."""
    python = os.environ.get("NOTEBOOKS_TEST_HUB_PYTHON", sys.executable)
    yield from run_hub(tmp_path_factory.mktemp("hub"), python)


@pytest.fixture
def unused_port() -> int:
    return free_port()
