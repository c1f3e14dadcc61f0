"""Why a server's container ended, in words that say what to do; ``docker.py`` asks. Pure.

Reads what the engine says of a container: https://docs.docker.com/reference/api/engine/ (``State``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from notebooks_service.mounts import Mount
from notebooks_service.personal_secrets import NO_SECRETS

NO_PROGRAM = (127, 126)
KILLED, SEGMENT = 137, 139
TERMINATED = 143
GPU = ("could not select device driver", "nvidia-container")
ARCHITECTURE = ("exec format error",)
NO_FILE = ("no such file or directory", "executable file not found", "not found in $path")
NO_RIGHT = ("permission denied",)
SECRETS_FAILED = "secrets could not be"
"""What ``singleuser/secret_files.py`` says in any case."""
WITHOUT_SECRETS = "The secrets that you granted to this project could not be brought to it, so it was not started without them."
NO_GPU = (
    "The Docker engine could not give it a GPU: whoever runs this service has to look at NVIDIA's container toolkit "
    "there, and at the setting `gpus`."
)
FULL = ("no space left", "disk quota exceeded")


def why(state: Mapping[str, Any], *, memory: int | None, log_tail: str = "") -> str:
    """One sentence about a container that is not running any more.

    ``memory``: bytes that it might have; ``log_tail``: its last lines, which are only looked through.
    """
    code = _number(state.get("ExitCode"))
    said = str(state.get("Error") or "").lower()
    if state.get("OOMKilled") is True:
        limit = (
            f"the {memory / 2**30:.3g} GiB that it may have" if memory else "what the machine has"
        )
        return (
            f"It used more memory than {limit} and was ended. Start it again with more memory, or load "
            "less at once."
        )
    if any(word in said for word in GPU):
        return NO_GPU
    if any(word in said for word in ARCHITECTURE) or "exec format error" in log_tail.lower():
        return "Its image is made for another kind of processor than this machine has."
    if any(word in said for word in FULL) or any(word in log_tail.lower() for word in FULL):
        return "The disk was full. Remove files that are not needed, or ask for more disk."
    if code == NO_SECRETS and SECRETS_FAILED in log_tail:
        return WITHOUT_SECRETS
    if code in NO_PROGRAM or any(word in said for word in NO_FILE):
        return "Its image has no program that could start Jupyter: Python, or Jupyter itself, is missing."
    if any(word in said for word in NO_RIGHT):
        return "A program of its image may not be run by the person who runs servers (user 1000)."
    if code == KILLED:
        return "It was killed: the machine may have run out of memory, or somebody ended it."
    if code == SEGMENT:
        return "A program in it crashed (segmentation fault)."
    if code in (0, TERMINATED):
        return "It was shut down."
    return f"It ended by itself with exit code {code}; its log says more."


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def absent(said: str, mounted: Iterable[Mount]) -> str | None:
    """The name of the mount whose source the engine did not find, if that is what it says."""
    for each in mounted:
        if each.path and f"bind source path does not exist: {each.path}" in said:
            return each.name
        if (
            each.nfs
            and "failed to mount local volume" in said
            and f"{each.at.rpartition('/')[2]}-" in said
        ):
            return each.name
    return None
