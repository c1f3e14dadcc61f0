"""Fixtures that more than one room's tests use."""

import signal

import pytest

pytest_plugins = [
    "forge_fixtures",
    "runner_fixtures",
    "registry_fixtures",
    "stack_fixtures",
    "small_disk",
]

# A shell starts what runs in its background with SIGINT ignored, and every child inherits that; then
# nothing that a test interrupts would end.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start a whole stack come first: workers that share out files would else end with
    the longest of them, one working and the others idle."""
    long = {item.path for item in items if item.get_closest_marker("stack")}
    items.sort(key=lambda item: item.path not in long)
