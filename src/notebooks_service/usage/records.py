"""What is recorded of servers, as plain data: their runs, and the sizes of what is kept of them.

Times are seconds since the epoch, sizes bytes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    """A server from when it answered until it ended, or was last seen to run (``seen``).

    ``cpu`` and ``memory`` are what it might use, not what it did use. ``ended``: nothing more will be seen.
    """

    launch: str
    user: str
    server: str
    project_id: int
    project: str
    runtime: str
    cpu: float
    memory: int
    gpus: int
    began: float
    seen: float
    ended: bool = False


@dataclass(frozen=True)
class Size:
    """What was kept of a server at a time; 0 bytes once nothing was. It counts until the next one."""

    user: str
    server: str
    project_id: int
    project: str
    at: float
    bytes: int
