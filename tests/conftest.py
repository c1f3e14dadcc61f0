"""Fixtures that more than one room's tests use."""

import os
import signal
import ssl
from typing import Any

import httpx
import pytest

# Tests that another file brings into its own: their assertions say what they compared, too.
pytest.register_assert_rewrite(
    "stack_compose",
    "stack_docker_mounts",
    "stack_docker_origins",
    "stack_docker_restarts",
    "stack_images_serve",
)

pytest_plugins = [
    "forge_fixtures",
    "runner_fixtures",
    "registry_fixtures",
    "stack_fixtures",
    "docker_fixtures",
    "small_disk",
    "browser_fixtures",
]

# A shell starts what runs in its background with SIGINT ignored, and every child inherits that; then
# nothing that a test interrupts would end.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_authorities: dict[tuple[str | None, ...], ssl.SSLContext] = {}
_made_by_httpx = httpx._transports.default.create_ssl_context


def _shared_authorities(
    verify: Any = True, cert: Any = None, trust_env: bool = True
) -> ssl.SSLContext:
    """As httpx makes it, once for each place that the authorities' certificates are read from."""
    if verify is not True or cert is not None:
        return _made_by_httpx(verify=verify, cert=cert, trust_env=trust_env)
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR") if trust_env else ()
    place = tuple(map(os.environ.get, names))
    if place not in _authorities:
        _authorities[place] = _made_by_httpx(trust_env=trust_env)
    return _authorities[place]


# Every client and every `httpx.get` of a test, thousands of them, reads those certificates anew: 20 ms
# of CPU each, and nearly all speak plain HTTP. Only this process: what we test does what it does.
httpx._transports.default.create_ssl_context = _shared_authorities


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start a whole stack come first: workers that share out files would else end with
    the longest of them, one working and the others idle."""
    long = {item.path for item in items if item.get_closest_marker("stack")}
    items.sort(key=lambda item: item.path not in long)
