"""``notebooks prune``, for ``cli.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from notebooks_service.cli_asking import asker
from notebooks_service.errors import PlatformFailed

if TYPE_CHECKING:
    from notebooks_service.platform.leftovers import Leftover

Add = Callable[..., argparse.ArgumentParser]
NAMES = {
    "container": "container",
    "network": "network",
    "copy": "volume of programs",
    "work": "volume with work",
}


def add_prune_command(commands: Any, add: Add) -> None:
    """Adds it to ``commands``."""
    prune = add(
        commands, "prune", _prune, "remove what is left on a Docker engine and nobody needs, after asking"
    )  # fmt: skip
    prune.add_argument(
        "--work",
        action="store_true",
        help="also volumes of servers that no data names; they may hold the only copy of somebody's work",
    )
    prune.add_argument("--yes", action="store_true", help="do not ask before removing")


def _prune(parsed: argparse.Namespace) -> int:
    from notebooks_service.platform import checks
    from notebooks_service.platform.directory import DataDirectory
    from notebooks_service.settings import load_settings

    settings = load_settings(**({"data": parsed.data} if parsed.data is not None else {}))
    directory = DataDirectory(settings.data)
    known = directory.path / "docker" / "instance"
    if not (directory.path / "version.json").exists() or not (
        settings.docker_instance or known.exists()
    ):
        raise PlatformFailed(
            f"Nothing in {directory.path} ever ran servers in containers; name other data with --data. "
            "Environments and images are removed by `notebooks image prune`."
        )
    # Needs the packages of the extra `docker`.
    from notebooks_service.platform.leftovers import EngineOfOurs
    from notebooks_service.spawner.containers import Ours

    ours = Ours(settings.docker_instance or known.read_text().strip())
    here = EngineOfOurs(ours, settings)
    with checks.lock(directory):
        found = here.leftovers()
        going = [each for each in found if parsed.work or each.what != "work"]
        kept = len(found) - len(going)
        facts: dict[str, Any] = {
            "leftovers": [_facts(each, each in going) for each in found],
            "removed": 0,
        }
        if not parsed.json:
            print("".join(f"{_line(each)}\n" for each in found), end="", flush=True)
        if kept:
            _say(f"{kept} volumes may hold somebody's work; they stay unless you say --work.")
        if not going:
            _print(parsed, facts, "Nothing can be removed.")
            return 0
        if not parsed.yes:
            ask = asker()
            if ask is None:
                _print(parsed, facts, "Nothing was removed: say --yes, or run this at a terminal.")
                return 1
            if not ask(f"Remove {_count(going)}?"):
                _print(parsed, facts, "Nothing was removed.")
                return 0
        facts["removed"] = here.remove(going, _say)
        _print(parsed, facts, f"{facts['removed']} of {len(going)} were removed.")
    return 0 if facts["removed"] == len(going) else 1


def _count(going: list[Leftover]) -> str:
    """How many of each kind, with those that may hold work last."""
    counts = [(name, sum(each.what == what for each in going)) for what, name in NAMES.items()]
    return ", ".join(f"{count} × {name}" for name, count in counts if count)


def _line(each: Leftover) -> str:
    whose = f", of {each.person}, server {each.server}" if each.person else ""
    made = f", made {datetime.fromtimestamp(each.made):%Y-%m-%d %H:%M}" if each.made else ""
    return f"{NAMES[each.what]} {each.name}{whose}{made}: {each.why}"


def _facts(each: Leftover, goes: bool) -> dict[str, Any]:
    return {
        "what": each.what, "name": each.name, "why": each.why, "user": each.person,
        "server": each.server, "made": each.made, "goes": goes,
    }  # fmt: skip


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _print(parsed: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts) if parsed.json else text, flush=True)
