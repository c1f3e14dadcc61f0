"""Runs commands behind a wall; the spawner, the runner and builds call it and nothing else here.

How is decided once, at the start (``ways``): an own user number for each person and own namespaces as
root, user namespaces or bubblewrap otherwise, or no wall at all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.errors import PlatformFailed
from notebooks_service.settings import Settings
from notebooks_service.walls.bubblewrap import bubblewrap
from notebooks_service.walls.identities import PROBE, Identities
from notebooks_service.walls.ownership import own
from notebooks_service.walls.view import Mount, machine, reading, uncovered
from notebooks_service.walls.ways import Choice, Facts, Way, candidates, choose

LAUNCHER = Path(__file__).with_name("launcher.py")
SUPERVISOR = Path(__file__).with_name("supervisor.py")
PROBE_SECONDS = 20

# Imports the service, so its files must be readable; says what an attacker would like to know.
_LOOK = """
import json, os, sys
import notebooks_service
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16) | int(status["CapPrm"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "sees": os.path.exists(sys.argv[1]),
    "writes": any(os.access(p, os.W_OK) for p in ("/", "/usr", "/etc", sys.prefix)),
}))
"""


@dataclass(frozen=True)
class Inside:
    """Who a command is behind the wall, and what is there beside the machine's programs.

    ``who`` is ``person:<hub name>`` or ``project:<id>``; ``temporary`` is a directory that becomes
    ``/tmp``, if that does not hide one of ``mounts``.
    """

    who: str
    mounts: tuple[Mount, ...] = ()
    temporary: Path | None = None


@dataclass(frozen=True)
class Call:
    """How to start it: for ``Popen`` and its sisters. ``descriptors`` have to be passed on."""

    command: list[str]
    environment: dict[str, str]
    directory: Path
    descriptors: tuple[int, ...] = ()


class Walls:
    """The wall in force. ``settings`` gives the range of user numbers and where they are noted."""

    def __init__(self, way: Way, settings: Settings) -> None:
        self.way: Way = way
        self._read = tuple(settings.wall_read)
        self._directory = settings.data / "walls"
        self._identities = Identities(
            self._directory / "numbers.json", settings.wall_first_uid, settings.wall_uid_count
        )

    @property
    def hold(self) -> bool:
        """Whether people are walled off from each other."""
        return self.way != "none"

    def number(self, who: str) -> int | None:
        """The user number of ``who``; None if everybody behind the wall keeps ours."""
        return self._identities.number(who) if self.way == "uids" else None

    def own(self, path: Path, who: str) -> bool:
        """Make ``path`` and all below it belong to ``who``; whether it did not before.

        Without numbers it becomes ours again, as after a start with walls that had them.
        """
        number = self.number(who)
        if number is None and os.getuid() != 0:
            return False
        return own(path, os.getuid() if number is None else number)

    @contextmanager
    def around(
        self,
        inside: Inside,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        marks: Sequence[str] = (),
        umask: int = 0o077,
    ) -> Iterator[Call]:
        """How to start ``command``; start it before the context ends.

        Of ``environment`` only what ``marks`` names is also in the environment of the processes
        outside, by which a later start finds them.
        """
        if not self.hold:
            yield Call(list(command), dict(environment), directory)
            return
        number = self.number(inside.who)
        mounts = self._mounts(inside, number)
        outside = {"PATH": os.defpath, "LANG": "C.UTF-8"}
        outside |= {name: environment[name] for name in marks if name in environment}
        if self.way == "bubblewrap":
            arguments = bubblewrap(mounts, environment, directory)
            text = b"".join(os.fsencode(one) + b"\0" for one in arguments)
            start = [shutil.which("bwrap") or "/usr/bin/bwrap", "--args"]
            rest = ["--", *command]
        else:
            text = json.dumps(
                {
                    "uid": number,
                    "gid": number,
                    "umask": umask,
                    "directory": str(directory),
                    "command": list(command),
                    "environment": dict(environment),
                    "mounts": [vars(mount) for mount in mounts],
                }
            ).encode()
            start = [sys.executable, "-I", "-S", str(LAUNCHER)]
            rest = []
        descriptor = os.memfd_create("wall")
        try:
            os.write(descriptor, text)
            os.lseek(descriptor, 0, os.SEEK_SET)
            yield Call([*start, str(descriptor), *rest], outside, Path("/"), (descriptor,))
        finally:
            os.close(descriptor)

    def _mounts(self, inside: Inside, number: int | None) -> list[Mount]:
        mounts = list(machine())
        mounts += reading(*uncovered(path for path in self._read if path.exists()))
        hidden = any(one.at.startswith("/tmp/") for one in (*mounts, *inside.mounts))  # noqa: S108
        if inside.temporary is not None and not hidden:
            mounts = [one for one in mounts if one.at != "/tmp"]  # noqa: S108
            mounts.append(Mount("write", "/tmp", str(inside.temporary)))  # noqa: S108
        if number is not None:
            mounts += self._names(inside.who, number)
        seen = {one.at for one in mounts}
        return [*mounts, *(one for one in inside.mounts if one.at not in seen)]

    def _names(self, who: str, number: int) -> list[Mount]:
        """A user database in which this person is, and of others only those that programs expect."""
        name = "".join(char for char in who.partition(":")[2] if char.isalnum() or char in "._-")
        rows = {
            "passwd": f"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n{name or 'person'}:x:{number}:{number}::/:/bin/bash\n",
            "group": f"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n{name or 'person'}:x:{number}:\n",
        }
        mounts = []
        for kind, text in rows.items():
            path = self._directory / "names" / f"{number}.{kind}"
            if not path.exists():
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                new = path.with_name(f".{path.name}.{os.getpid()}")
                new.write_text(text)
                new.chmod(0o644)
                new.replace(path)
            mounts.append(Mount("read", f"/etc/{kind}", str(path)))
        return mounts


def works(walls: Walls, hidden: Path) -> str | None:
    """None if this wall can be built here and holds, else why not. ``hidden`` must not be seen."""
    probe = Inside(PROBE)
    command = [sys.executable, "-I", "-c", _LOOK, str(hidden)]
    try:
        with walls.around(probe, command, directory=Path("/"), environment={}) as call:
            done = subprocess.run(
                call.command,
                env=call.environment,
                cwd=call.directory,
                pass_fds=call.descriptors,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PROBE_SECONDS,
                check=False,
            )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return said[-1][:300].rstrip(".")
        seen = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:300]
    number = walls.number(PROBE)
    wanted = {
        "uid": os.getuid() if number is None else number,
        "capabilities": 0,
        "no_new_privileges": "1",
        "sees": False,
        "writes": False,
    }
    wrong = [name for name, value in wanted.items() if seen.get(name) != value]
    if seen.get("processes", 99) > 5:
        wrong.append("processes")
    return f"it was built and does not hold ({', '.join(wrong)})" if wrong else None


def probe(settings: Settings) -> Facts:
    """What walls this machine can have, by building each that comes into question."""
    root = os.getuid() == 0
    reasons: dict[str, str | None] = {}
    for way in candidates(root):
        if way == "bubblewrap" and shutil.which("bwrap") is None:
            reasons[way] = "bubblewrap is not installed (on Debian: apt install bubblewrap)"
            continue
        reasons[way] = works(Walls(way, settings), settings.data)
        if reasons[way] is None and settings.walls == "auto":
            break
    return Facts(root, **reasons)


def find(settings: Settings) -> Choice:
    """The wall in force, by ``settings`` and a look at the machine.

    Raises ``PlatformFailed`` if the setting names one that does not work here.
    """
    asked = settings.walls
    facts = Facts(os.getuid() == 0) if asked == "none" else probe(settings)
    choice = choose(asked, facts)
    if choice is None:
        named = asked if asked in candidates(facts.root) else None
        why = (
            facts.reason(named)
            if named
            else "it is no way for " + ("root" if facts.root else "a user who is not root")
        )
        raise PlatformFailed(f"The setting `walls` says {asked}, which does not work here: {why}.")
    return choice


def in_force(settings: Settings) -> Walls:
    """The walls as ``notebooks up`` has decided them; looked for if nobody has."""
    return Walls(find(settings).way if settings.walls == "auto" else settings.walls, settings)
