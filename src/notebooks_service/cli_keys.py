"""``notebooks keys rotate``, for ``cli.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from notebooks_service.errors import PlatformFailed

Add = Callable[..., argparse.ArgumentParser]


def add_keys_commands(commands: Any, add: Add) -> None:
    """Adds ``keys`` to ``commands``."""
    keys = commands.add_parser(
        "keys", help="keys and secrets", description="Keys and secrets of the data."
    )
    parent = keys.add_subparsers(metavar="COMMAND", required=True)
    add(
        parent,
        "rotate",
        _rotate,
        "make new keys and secrets, while nothing runs; people stay signed in",
    )


def _rotate(parsed: argparse.Namespace) -> int:
    from notebooks_service.platform.directory import DataDirectory
    from notebooks_service.platform.keys import rotate
    from notebooks_service.settings import load_settings

    settings = load_settings(**({"data": parsed.data} if parsed.data is not None else {}))
    directory = DataDirectory(settings.data)
    if not (directory.path / "version.json").exists():
        raise PlatformFailed(
            f"There is no data of a `notebooks up` in {directory.path}; name it with --data."
        )
    done = rotate(directory, settings.database_url)
    facts = {
        "sign_ins": done.sign_ins,
        "lost": done.lost,
        "forge": done.forge,
        "lost_secrets": done.lost_secrets,
    }
    text = f"All keys and secrets are new; {done.sign_ins} people's sign-ins were kept."
    if done.lost:
        text += f" {done.lost} could not be read before either: these people sign in again."
    if done.lost_secrets:
        text += f" {done.lost_secrets} personal secrets could not be read: their values have to be written again."
    print(json.dumps(facts) if parsed.json else text)
    return 0
