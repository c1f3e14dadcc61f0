"""Why a container ended: a table over what the engine says."""

from __future__ import annotations

from typing import Any

import pytest

from notebooks_service.spawner.container_ends import why

GIB = 2**30


@pytest.mark.parametrize(
    ("state", "memory", "tail", "expected"),
    [
        ({"OOMKilled": True, "ExitCode": 137}, 2 * GIB, "", "more memory than the 2 GiB"),
        ({"OOMKilled": True, "ExitCode": 137}, GIB // 2, "", "more memory than the 0.5 GiB"),
        ({"OOMKilled": True, "ExitCode": 137}, None, "", "more memory than what the machine has"),
        # A child was ended for its memory, then the server itself was stopped: still the memory.
        ({"OOMKilled": True, "ExitCode": 0}, GIB, "", "more memory"),
        ({"ExitCode": 137}, GIB, "", "It was killed"),
        ({"ExitCode": 127}, GIB, "", "no program that could start Jupyter"),
        ({"ExitCode": 126}, GIB, "", "no program"),
        ({"ExitCode": 128, "Error": "OCI runtime create failed: exec: \"/x\": stat /x: no such file or directory"},
         GIB, "", "no program"),
        ({"ExitCode": 127, "Error": "exec /bin/x: exec format error"}, GIB, "", "another kind of processor"),
        ({"ExitCode": 1}, GIB, "standard_init_linux.go:228: exec user process caused: exec format error",
         "another kind of processor"),
        ({"ExitCode": 1}, GIB, "OSError: [Errno 28] No space left on device", "disk was full"),
        ({"ExitCode": 126, "Error": "write /x: disk quota exceeded"}, GIB, "", "disk was full"),
        ({"ExitCode": 1, "Error": "open /x: permission denied"}, GIB, "", "user 1000"),
        ({"ExitCode": -1, "Error": 'could not select device driver "" with capabilities: [[gpu]]'}, GIB, "", "toolkit"),
        ({"ExitCode": 128, "Error": "nvidia-container-cli: device error: 7: unknown device"}, GIB, "", "`gpus`"),
        ({"ExitCode": 139}, GIB, "", "segmentation fault"),
        ({"ExitCode": 0}, GIB, "", "It was shut down."),
        ({"ExitCode": 143}, GIB, "", "It was shut down."),
        ({"ExitCode": 3}, GIB, "", "exit code 3"),
        ({}, None, "", "exit code -1"),
        ({"ExitCode": True, "Error": None, "OOMKilled": "no"}, None, "", "exit code -1"),
    ],
)  # fmt: skip
def test_why(state: dict[str, Any], memory: int | None, tail: str, expected: str) -> None:
    assert expected in why(state, memory=memory, log_tail=tail)
