"""What a person may choose for one server beside what it is: processors, memory and GPUs. Pure.

The service offers and checks it for whoever asks, the launch checks it again for whoever asks the hub itself.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from notebooks_service import allowances
from notebooks_service.allowances import LEAST_CPU, LEAST_MEMORY
from notebooks_service.errors import InvalidRequest
from notebooks_service.settings import Settings

GIB = 2**30
CPU, MEMORY, GPU = "cpu_request", "mem_request", "gpu_request"
"""Their names in ``serverOptions``, which are those of renku-notebooks."""

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip
_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)(|k|M|G|T|Ki|Mi|Gi|Ti)\Z")
_COUNT = re.compile(r"(0|[1-9][0-9]?)\Z")


@dataclass(frozen=True)
class Resources:
    """``cpu`` in processors, ``memory`` in bytes; 0 for what the settings say. ``gpu`` is a number of GPUs."""

    cpu: float = 0.0
    memory: int = 0
    gpu: int = 0

    @property
    def options(self) -> dict[str, object]:
        """The keys in the hub's options; only what was chosen."""
        chosen: dict[str, object] = {}
        if self.cpu:
            chosen["cpu"] = self.cpu
        if self.memory:
            chosen["memory"] = self.memory
        if self.gpu:
            chosen["gpu"] = self.gpu
        return chosen


NOTHING_CHOSEN = Resources()


def read(cpu: object, memory: object, gpu: object = None) -> Resources:
    """What was asked for, from JSON or a form; None and "" for nothing.

    ``memory`` is a number of bytes or a text such as ``2Gi``. Raises ``InvalidRequest``.
    """
    return Resources(_processors(cpu), _bytes(memory), _gpus(gpu))


def for_whom(settings: Settings, person: str, project: str) -> Settings:
    """The settings as they hold for servers of this person (the hub's name) in this project (its full path).

    Who is named by an allowance may choose up to there, and has no more than that by default.
    """
    cpu, memory, gpu = allowances.most(settings.allowances, person, project)
    changed: dict[str, float] = {}
    if cpu:
        changed |= {"server_cpu_most": cpu, "server_cpu": min(settings.server_cpu or cpu, cpu)}
    if memory:
        default = min(settings.server_memory or memory, memory)
        changed |= {"server_memory_most": memory, "server_memory": default}
    if gpu:
        changed |= {"server_gpu_most": gpu}
    return settings.model_copy(update=changed) if changed else settings


def check(settings: Settings, chosen: Resources) -> None:
    """Raises ``InvalidRequest`` if this is not offered here, is too little or too much."""
    most = most_of(settings)
    if chosen.cpu and not most.cpu:
        raise InvalidRequest("The number of processors cannot be chosen here.")
    if chosen.memory and not most.memory:
        raise InvalidRequest("The amount of memory cannot be chosen here.")
    if chosen.cpu and not LEAST_CPU <= chosen.cpu <= most.cpu:
        raise InvalidRequest(
            f"A server can have {LEAST_CPU:g} to {most.cpu:g} processors, not {chosen.cpu:g}."
        )
    if chosen.memory and not LEAST_MEMORY <= chosen.memory <= most.memory:
        raise InvalidRequest(
            f"A server can have {in_words(LEAST_MEMORY)} to {in_words(most.memory)} of memory, "
            f"not {in_words(chosen.memory)}."
        )
    if chosen.gpu > most.gpu:
        raise InvalidRequest(
            f"A server can have at most {most.gpu} GPUs, not {chosen.gpu}."
            if most.gpu
            else "GPUs cannot be chosen here."
        )


def most_of(settings: Settings) -> Resources:
    """Up to where a person may choose; 0 for what nobody chooses. Processes of `local` have no limits."""
    if settings.runtime != "docker":
        return NOTHING_CHOSEN
    gpus = min(settings.server_gpu_most, len(settings.gpus))
    return Resources(settings.server_cpu_most, settings.server_memory_most, gpus)


def granted(settings: Settings, chosen: Resources) -> Resources:
    """What a server gets; 0 for no limit."""
    return Resources(
        chosen.cpu or settings.server_cpu, chosen.memory or settings.server_memory, chosen.gpu
    )


def offered(settings: Settings) -> dict[str, Any]:
    """The answer of ``GET server_options``, in renku-notebooks' form.

    https://github.com/SwissDataScienceCenter/renku-notebooks
    """
    found: dict[str, Any] = {}
    most = most_of(settings)
    if most.cpu:
        found[CPU] = {
            "displayName": "Processors",
            "order": 1,
            "type": "enum",
            "default": settings.server_cpu,
            "options": cpu_choices(settings),
            "allow_any_value": True,
            "value_range": {"type": "float", "min": LEAST_CPU, "max": most.cpu},
        }
    if most.memory:
        found[MEMORY] = {
            "displayName": "Memory",
            "order": 2,
            "type": "enum",
            "default": in_words(settings.server_memory),
            "options": [in_words(each) for each in memory_choices(settings)],
            "allow_any_value": True,
            "value_range": {
                "type": "bytes",
                "min": in_words(LEAST_MEMORY),
                "max": in_words(most.memory),
            },
        }
    if most.gpu:
        found[GPU] = {
            "displayName": "GPUs",
            "order": 6,
            "type": "enum",
            "default": 0,
            "options": gpu_choices(settings),
        }
    found["lfs_auto_fetch"] = {
        "displayName": "Fetch large files",
        "order": 3,
        "type": "boolean",
        "default": settings.lfs_auto_fetch,
    }
    return found


def cpu_choices(settings: Settings) -> list[float]:
    """What a page offers: the default, the most, and each doubling between; nothing if nobody chooses."""
    most = most_of(settings).cpu
    return _doublings(0.5, most, settings.server_cpu) if most else []


def memory_choices(settings: Settings) -> list[int]:
    """As ``cpu_choices``, in bytes."""
    most = most_of(settings).memory
    return [int(each) for each in _doublings(GIB, most, settings.server_memory)] if most else []


def gpu_choices(settings: Settings) -> list[int]:
    """As ``cpu_choices``; none is the default."""
    most = most_of(settings).gpu
    return list(range(most + 1)) if most else []


def in_words(amount: int) -> str:
    """Bytes as ``4Gi``, in the largest unit that leaves no remainder."""
    for unit, size in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if amount and amount % size == 0:
            return f"{amount // size}{unit}"
    return str(amount)


def _doublings(first: float, most: float, default: float) -> list[float]:
    found = {default, most}
    while first < most:
        found.add(first)
        first *= 2
    return sorted(found)


def _processors(asked: object) -> float:
    if asked is None or asked == "":
        return 0.0
    try:
        if isinstance(asked, bool) or not isinstance(asked, int | float | str):
            raise ValueError
        found = float(asked)
        if not math.isfinite(found) or found <= 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise InvalidRequest(f"`{CPU}` must be a number of processors, such as 1 or 0.5.") from None
    return found


def _gpus(asked: object) -> int:
    if asked is None or asked == "":
        return 0
    is_number = isinstance(asked, int | str) and not isinstance(asked, bool)
    if not is_number or not _COUNT.match(str(asked)):
        raise InvalidRequest(f"`{GPU}` must be a number of GPUs, such as 0 or 1.")
    return int(str(asked))


def _bytes(asked: object) -> int:
    if asked is None or asked == "":
        return 0
    found = 0
    if isinstance(asked, int) and not isinstance(asked, bool):
        found = asked
    elif isinstance(asked, str) and (match := _AMOUNT.match(asked)):
        found = int(float(match[1]) * _UNITS[match[2]])
    if not 0 < found < 2**63:
        raise InvalidRequest(
            f"`{MEMORY}` must be an amount of memory: a number of bytes, or a text such as `2Gi`."
        )
    return found
