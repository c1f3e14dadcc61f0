"""This machine: space, ports, programs, walls between people, limits of the system."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from uv import find_uv_bin

from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning
from notebooks_service.errors import NotebooksError
from notebooks_service.images.interpreters import installed
from notebooks_service.images.uv import Uv
from notebooks_service.platform.checks import LEAST_SPACE, OLDEST_GIT
from notebooks_service.platform.directory import is_free
from notebooks_service.settings import Settings
from notebooks_service.walls.wall import probe
from notebooks_service.walls.ways import Choice, choose

GOOD_SPACE = 5_000_000_000
FEW_INODES = 100_000
FEW_FILES = 1024
GOOD_FILES = 4096
FEW_WATCHES = 8192
ASK_SECONDS = 20


# -- space ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """``free`` in bytes; ``inodes`` free ones, None where the file system does not count them."""

    place: str
    free: int
    inodes: int | None
    kind: str = ""


def look_at_space(places: Mapping[str, Path]) -> list[Space]:
    """One for each file system: places that share one are named together."""
    found: dict[int, tuple[list[str], Path]] = {}
    for name, place in places.items():
        while not place.exists():
            place = place.parent
        found.setdefault(place.stat().st_dev, ([], place))[0].append(name)
    spaces = []
    for names, place in found.values():
        seen = os.statvfs(place)
        inodes = seen.f_favail if seen.f_files else None
        free = seen.f_bavail * seen.f_frsize
        spaces.append(Space(", ".join(names), free, inodes, _file_system(place)))
    return spaces


def _file_system(place: Path) -> str:
    """The kind of file system that holds ``place``, as Linux names it."""
    best, kind = "", ""
    real = str(place.resolve())
    for one in psutil.disk_partitions(all=True):
        within = real == one.mountpoint or real.startswith(one.mountpoint.rstrip("/") + "/")
        if within and len(one.mountpoint) >= len(best):
            best, kind = one.mountpoint, one.fstype
    return kind


def judge_space(spaces: Sequence[Space]) -> list[Finding]:
    findings = []
    for one in spaces:
        megabytes = one.free // 1_000_000
        if one.free < LEAST_SPACE:
            findings.append(
                problem(
                    "disk.full",
                    f"{megabytes} MB are free for {one.place}; `notebooks up` needs {LEAST_SPACE // 1_000_000} MB to start.",
                    "Free some space: trash/ and cache/ of the data directory may be removed while nothing runs.",
                )
            )
        elif one.free < GOOD_SPACE:
            findings.append(
                warning(
                    "disk.low",
                    f"{megabytes} MB are free for {one.place}: enough for a few environments.",
                    "Free some space, or move the data directory with --data.",
                )
            )
        else:
            findings.append(ok("disk.free", f"{megabytes // 1000} GB are free for {one.place}."))
        if one.inodes is not None and one.inodes < FEW_INODES:
            findings.append(
                warning(
                    "disk.inodes",
                    f"Only {one.inodes} more files can be made for {one.place}: an environment has some ten thousand.",
                    "Remove files, or make the file system anew with more inodes.",
                )
            )
        if re.match(r"nfs|cifs|smb|fuse\.sshfs|9p|afs|lustre", one.kind):
            findings.append(
                warning(
                    "disk.network",
                    f"The file system of {one.place} is on a network ({plain(one.kind, 20)}): SQLite's databases may be damaged there.",
                    "Keep the data directory on a disk of this machine.",
                )
            )
    return findings


def judge_room(waits: str) -> list[Finding]:
    """``waits``: why no build begins at present, as ``high_water.Gauge`` says it."""
    if not waits:
        return [ok("builds.room", "Disk and memory have room for builds.")]
    return [
        warning(
            "builds.wait",
            f"Builds of images wait. {waits}",
            "Free some space or memory; the settings disk_high_water, memory_high_water and memory_reserve say where builds stop.",
        )
    ]


# -- ports ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Port:
    """``taken`` by ``holder``, a process's name and number if we may know it."""

    number: int
    option: str
    taken: bool
    holder: str = ""


def look_at_ports(wanted: Mapping[int, str]) -> list[Port]:
    """``wanted``: the ports that ``notebooks up`` would take, and the option that changes each."""
    return [
        Port(number, option, taken := not is_free(number), _holder(number) if taken else "")
        for number, option in wanted.items()
    ]


def _holder(port: int) -> str:
    try:
        for one in psutil.net_connections(kind="tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
                if one.pid is None:
                    return ""
                return f"{psutil.Process(one.pid).name()}, process {one.pid}"
    except (psutil.Error, OSError):
        return ""
    return ""


def judge_ports(ports: Sequence[Port]) -> list[Finding]:
    findings = []
    for port in ports:
        if not port.taken:
            findings.append(ok("port.free", f"Port {port.number} is free."))
            continue
        who = plain(port.holder, 80) or "a program of somebody else's"
        findings.append(
            problem(
                "port.taken",
                f"Port {port.number}, which `notebooks up` takes, is held by {who}.",
                f"End that program, or choose another port with {port.option}.",
            )
        )
    return findings


# -- programs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Programs:
    """What each program says of its version; None if it is not there."""

    git: str | None
    git_lfs: str | None
    uv: str | None
    pythons: tuple[str, ...]


def look_at_programs() -> Programs:
    with tempfile.TemporaryDirectory() as cache:
        try:
            pythons = tuple(installed(Uv(Path(cache))))
            uv = _said(find_uv_bin(), "--version")
        except (OSError, subprocess.SubprocessError):
            pythons, uv = (), None
    return Programs(_said("git", "--version"), _said("git-lfs", "version"), uv, pythons)


def _said(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ASK_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return plain(done.stdout or done.stderr, 100)


def read_program_version(said: str) -> tuple[int, int] | None:
    found = re.search(r"(\d{1,4})\.(\d{1,4})", said)
    return (int(found[1]), int(found[2])) if found else None


def judge_programs(facts: Programs) -> list[Finding]:
    findings = []
    oldest = ".".join(map(str, OLDEST_GIT))
    version = read_program_version(facts.git) if facts.git else None
    if facts.git is None:
        findings.append(
            problem(
                "git.missing",
                "git was not found.",
                "Install it (on Debian and Ubuntu: apt install git).",
            )
        )
    elif version is None or version < OLDEST_GIT:
        findings.append(
            problem(
                "git.old",
                f"git {oldest} or newer is needed, and this is {facts.git}.",
                "Update git.",
            )
        )
    else:
        findings.append(ok("git.there", f"{facts.git} is there."))
    if facts.git_lfs is None:
        findings.append(
            warning(
                "lfs.missing",
                "git-lfs was not found: in a server `git lfs` does not work, and large files cannot be pushed.",
                "Install it (on Debian and Ubuntu: apt install git-lfs).",
            )
        )
    else:
        findings.append(ok("lfs.there", f"{facts.git_lfs.split(' (')[0]} is there."))
    if facts.uv is None:
        findings.append(
            problem(
                "uv.missing",
                "uv, which builds environments, does not run.",
                "Install this service anew; uv comes with it.",
            )
        )
    else:
        findings.append(ok("uv.there", f"{facts.uv.split(' (')[0]} is there."))
    listed = ", ".join(plain(each, 20) for each in facts.pythons)
    if facts.pythons:
        findings.append(ok("python.there", f"Environments can have Python {listed}."))
    else:
        findings.append(
            warning(
                "python.unseen",
                "uv finds no Python on this machine but the service's own.",
                "Install the versions that projects ask for; nothing is downloaded for them.",
            )
        )
    return findings


# -- walls ---------------------------------------------------------------------------------------


async def look_at_walls(settings: Settings) -> Choice | str | None:
    """The wall that would be in force; None if the one asked for does not work; why nobody knows."""

    def look() -> Choice | None:
        # A wall that is tried leaves small files of its own; not in somebody's data.
        with tempfile.TemporaryDirectory() as elsewhere:
            data = Path(elsewhere)
            return choose(settings.walls, probe(settings.model_copy(update={"data": data})))

    try:
        async with asyncio.timeout(60):
            return await asyncio.to_thread(look)
    except (NotebooksError, OSError, subprocess.SubprocessError, TimeoutError) as error:
        return type(error).__name__


def judge_walls(choice: Choice | str | None, *, runtime: str, unwalled: bool) -> list[Finding]:
    """``unwalled``: other people may launch although nothing walls them off."""
    if runtime != "local":
        return []
    if isinstance(choice, str):
        return [
            unchecked("walls.unknown", f"Whether walls can be built was not found out ({choice}).")
        ]
    if choice is None:
        return [
            problem(
                "walls.not-as-asked",
                "The walls that the setting `walls` names cannot be built here.",
                "Set `walls` to auto, or give the machine what that way needs.",
            )
        ]
    if choice.holds:
        return [ok("walls.hold", plain(choice.sentence))]
    if unwalled:
        return [
            problem(
                "walls.open-to-others",
                "Other people may launch here, and nothing walls them off: each can read and change all that the others and this account have.",
                "Take `unwalled_people` away, or run where walls work: as root, or with user namespaces or bubblewrap.",
            )
        ]
    return [
        warning(
            "walls.none",
            plain(choice.sentence, 400),
            "Open only projects whose people you would let run a script here; or run as root, or allow user namespaces, or install bubblewrap.",
        )
    ]


# -- limits --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """``files``: descriptors that a process may hold. The others are inotify's; None if not told."""

    files: int
    watches: int | None
    instances: int | None


def look_at_limits() -> Limits:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = 1 << 30 if soft == resource.RLIM_INFINITY else soft
    return Limits(soft, _number("max_user_watches"), _number("max_user_instances"))


def _number(name: str) -> int | None:
    try:
        return int(Path("/proc/sys/fs/inotify", name).read_text())
    except (OSError, ValueError):
        return None


def judge_limits(facts: Limits) -> list[Finding]:
    findings = []
    if facts.files < FEW_FILES:
        findings.append(
            warning(
                "files.few",
                f"A process may hold {facts.files} files and connections: some dozens of servers at once would use them up.",
                f"Raise it before starting: `ulimit -n {GOOD_FILES}`, or LimitNOFILE= in the unit.",
            )
        )
    elif facts.files < GOOD_FILES:
        findings.append(
            note(
                "files.some",
                f"A process may hold {facts.files} files and connections: enough for one person, few for a hundred.",
                f"For many people raise it: `ulimit -n {GOOD_FILES}`, or LimitNOFILE= in the unit.",
            )
        )
    else:
        findings.append(
            ok("files.many", f"A process may hold {facts.files} files and connections.")
        )
    if facts.watches is None or facts.instances is None:
        findings.append(unchecked("inotify.unseen", "The limits of inotify could not be read."))
    elif facts.watches < FEW_WATCHES or facts.instances < 128:
        findings.append(
            warning(
                "inotify.few",
                f"inotify allows {facts.watches} watches and {facts.instances} instances for each user: programs in notebooks that watch files will fail.",
                "Raise fs.inotify.max_user_watches and fs.inotify.max_user_instances with sysctl.",
            )
        )
    else:
        findings.append(ok("inotify.enough", f"inotify allows {facts.watches} watches."))
    return findings
