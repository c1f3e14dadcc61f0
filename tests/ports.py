"""Ports for the servers that tests start: one function for all of them."""

from __future__ import annotations

import os
import random
import socket

FIRST = int(os.environ.get("NOTEBOOKS_TEST_FIRST_PORT", "20000"))
"""Set for a second run of pytest beside another: they cannot tell each other what they have given."""

LAST, OF_A_WORKER = 32_000, 1_000
"""Below what the kernel gives to outgoing connections, which would take a port before its server does."""

_given: set[int] = set()


def free_port(in_a_row: int = 1) -> int:
    """A port that nobody listens on and that no other test is given; the first of ``in_a_row`` such ports."""
    first, last = _range()
    while True:
        port = random.randrange(first, last - in_a_row + 1)
        ports = range(port, port + in_a_row)
        if _given.isdisjoint(ports) and all(map(_is_free, ports)):
            _given.update(ports)
            return port


def _range() -> tuple[int, int]:
    """Workers of pytest-xdist (``gw0``, ``gw1``…) cannot tell each other what they have given."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker:
        return FIRST, LAST
    first = FIRST + int(worker.removeprefix("gw")) * OF_A_WORKER % (LAST - FIRST)
    return first, first + OF_A_WORKER


def _is_free(port: int) -> bool:
    with socket.socket() as found:
        try:
            found.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
