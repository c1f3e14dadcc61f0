"""``notebooks backup`` and ``notebooks restore``, for ``cli.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from notebooks_service.errors import PlatformFailed

if TYPE_CHECKING:
    from notebooks_service.platform.backup import Volumes

Add = Callable[..., argparse.ArgumentParser]


def add_backup_commands(commands: Any, add: Add) -> None:
    """Adds both to ``commands``."""
    made = add(commands, "backup", _backup, "write all data into one file, also while it is used")
    made.add_argument("file", metavar="FILE", help="a new file, or - for standard output")
    made.add_argument(
        "--environments",
        action="store_true",
        help="with the environments of the runtime local, which are built again otherwise",
    )
    made = add(commands, "restore", _restore, "make a data directory from such a file")
    made.add_argument("file", metavar="FILE", help="a backup, or - for standard input")


def _backup(parsed: argparse.Namespace) -> int:
    from notebooks_service import __version__
    from notebooks_service.platform.backup import back_up

    data, volumes, in_containers = _place(parsed)
    if not (data / "version.json").exists():
        raise PlatformFailed(
            f"There is no data of a `notebooks up` in {data}; name it with --data."
        )
    target: Path | IO[bytes] = Path(parsed.file)
    if parsed.file == "-":
        if sys.stdout.isatty():
            raise PlatformFailed("A backup is no text; give the name of a file, or a pipe for `-`.")
        target = sys.stdout.buffer
    done = back_up(
        data,
        target,
        __version__,
        environments=parsed.environments,
        volumes=volumes if in_containers else None,
    )
    facts = {
        "file": parsed.file, "files": done.files, "bytes": done.bytes,
        "volumes": done.volumes, "skipped": done.skipped,
    }  # fmt: skip
    for each in done.skipped:
        print(f"Not in the backup: {each}", file=sys.stderr)
    text = f"{done.files} files and {done.volumes} volumes, {done.bytes / 2**20:,.1f} MiB, are in {parsed.file}."
    if parsed.file == "-":
        print(text, file=sys.stderr)
    else:
        print(json.dumps(facts) if parsed.json else text)
    return 0


def _restore(parsed: argparse.Namespace) -> int:
    from notebooks_service.platform.backup import restore

    data, volumes, _ = _place(parsed)
    if parsed.file == "-":
        about = restore(sys.stdin.buffer, data, volumes)
    else:
        with Path(parsed.file).open("rb") as source:
            about = restore(source, data, volumes)
    facts = {
        "data": str(data),
        "version": about.get("version"),
        "made_at": about.get("made_at"),
        "other_owners": about["other_owners"],
    }
    if facts["other_owners"]:
        print(
            f"{facts['other_owners']} files belonged to other users of the machine and are yours now; "
            "restore as root to give them back, which servers behind walls by user number need.",
            file=sys.stderr,
        )
    text = (
        f"The data of {facts['made_at']} (version {facts['version']}) is in {data}; start it with "
        f"`notebooks up --data {data}`."
    )
    print(json.dumps(facts) if parsed.json else text)
    return 0


def _place(parsed: argparse.Namespace) -> tuple[Path, Callable[[Path], Volumes], bool]:
    """The data directory, what finds the volumes of the service whose data lies at a path, and whether
    servers of this data ever were containers."""
    from notebooks_service.settings import load_settings

    settings = load_settings(**({"data": parsed.data} if parsed.data else {}))

    def volumes(data: Path) -> Volumes:
        # Needs the packages of the extra `docker`.
        from notebooks_service.platform.server_volumes import ServerVolumes
        from notebooks_service.spawner.containers import Ours
        from notebooks_service.spawner.docker import instance

        there = settings.model_copy(update={"data": data})
        return ServerVolumes(there, Ours(instance(there)))

    known = settings.data / "docker" / "instance"
    return settings.data, volumes, bool(settings.docker_instance) or known.exists()
