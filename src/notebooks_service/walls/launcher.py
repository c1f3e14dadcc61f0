"""Runs one command behind a wall: own root of mounts, own processes, own IPC, an unprivileged identity.

Run as a file by ``walls.wall`` (``python -I -S launcher.py <fd>``), standard library only. The
description comes as JSON from the descriptor, so neither arguments nor this process's own environment
hold anything that the command may not choose: an ``LD_PRELOAD`` in the command's environment is never
ours. Three processes: this one outside, which waits and hands SIGTERM on; the first one inside, which
reaps and whose end ends everything inside; and the command.

As root the command gets ``uid``. Otherwise a user namespace gives us the right to mount, and the
command keeps our own uid. In both ways it has no capability and can gain none (``no_new_privs``).
Nothing is there but what ``mounts`` names. https://man7.org/linux/man-pages/man7/namespaces.7.html
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import stat
import sys
from typing import Any

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 1, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAP_KILL = 5
# These numbers are the same on every architecture but alpha (the last four) and differ for the first.
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}
SYS_CAPSET = {"x86_64": 126, "aarch64": 91, "riscv64": 91, "ppc64le": 184, "s390x": 185}
SYS_MOUNT_SETATTR, SYS_LANDLOCK_CREATE, SYS_LANDLOCK_RESTRICT = 442, 444, 446
KEYCTL_JOIN_SESSION_KEYRING = 1
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2
CANNOT = 125
"""Exit code when the wall could not be built; a sentence is on standard error."""

# Covered by the new root while it is being made: no source of a mount lies below it.
BASE = "/proc"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
libc.syscall.restype = ctypes.c_long


class Failed(Exception):
    """The wall cannot be built; the sentence says what the kernel refused."""


def check(result: int, what: str) -> int:
    if result < 0:
        raise Failed(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def system(number: int, *arguments: Any) -> int:
    longs = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return int(libc.syscall(ctypes.c_long(number), *longs))


def number_of(table: dict[str, int]) -> int:
    machine = os.uname().machine
    if machine not in table:
        raise Failed(f"walls are not known on {machine}")
    return table[machine]


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    kind_bytes = kind.encode() if kind else None
    result = libc.mount(
        os.fsencode(source), os.fsencode(target), kind_bytes, flags, data.encode() or None
    )
    check(result, f"mounting {kind or source} at {target.removeprefix(BASE) or '/'}")


class MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def restrict(target: str, attributes: int) -> None:
    """Give a mount and all below it these attributes (``mount_setattr``, Linux 5.12)."""
    value = MountAttr(attributes, 0, 0, 0)
    result = system(
        SYS_MOUNT_SETATTR, AT_FDCWD, ctypes.c_char_p(os.fsencode(target)), AT_RECURSIVE,
        ctypes.byref(value), ctypes.sizeof(value),
    )  # fmt: skip
    check(result, f"restricting the mount at {target.removeprefix(BASE)}")


# -- the new root ------------------------------------------------------------------------------


def place(target: str, *, directory: bool) -> str:
    """The path below ``BASE`` where ``target`` will be; parents and itself are made.

    Every part must be a real directory: what somebody has put in the way as a symbolic link would
    otherwise be followed, out of the new root.
    """
    parts = [part for part in target.split("/") if part]
    if not target.startswith("/") or ".." in parts:
        raise Failed(f"{target} is no absolute path")
    here = BASE
    for index, part in enumerate(parts):
        here = f"{here}/{part}"
        last = index == len(parts) - 1
        try:
            mode = os.lstat(here).st_mode
        except FileNotFoundError:
            if last and not directory:
                os.close(os.open(here, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            else:
                os.mkdir(here, 0o755)
            continue
        if last and not directory:
            if not stat.S_ISREG(mode):
                raise Failed(f"{target} is in the way")
        elif not stat.S_ISDIR(mode):
            raise Failed(f"{target} is below something that is no directory")
    return here


def build_root(mounts: list[dict[str, Any]]) -> None:
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", BASE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    devices()
    for one in mounts:
        target = one["at"]
        if one["kind"] == "link":
            above = place(os.path.dirname(target), directory=True)
            os.symlink(one["source"], f"{above}/{os.path.basename(target)}")
        elif one["kind"] == "tmpfs":
            made = place(target, directory=True)
            mount("tmpfs", made, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={one['mode']}")
        else:
            # The source is opened by its own path: nobody behind a wall may write above it.
            source = one["source"]
            made = place(target, directory=os.path.isdir(source))
            mount(source, made, None, MS_BIND | MS_REC)
            closed = ATTR_RDONLY if one["kind"] == "read" else 0
            restrict(made, closed | ATTR_NOSUID | ATTR_NODEV)
    # Of our own process namespace, so it shows nobody else's processes.
    made = place("/proc", directory=True)
    mount("proc", made, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("none", BASE, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(BASE)
    check(
        system(number_of(SYS_PIVOT_ROOT), ctypes.c_char_p(b"."), ctypes.c_char_p(b".")),
        "pivot_root",
    )
    check(libc.umount2(b".", MNT_DETACH), "leaving the old root")
    os.chdir("/")


def devices() -> None:
    made = place("/dev", directory=True)
    mount("tmpfs", made, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            mount(f"/dev/{name}", place(f"/dev/{name}", directory=False), None, MS_BIND)
    shm = place("/dev/shm", directory=True)
    mount("tmpfs", shm, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    pts = place("/dev/pts", directory=True)
    mount("devpts", pts, "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    for name, link in (
        ("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2"),
    ):  # fmt: skip
        os.symlink(link, f"{made}/{name}")


# -- privileges --------------------------------------------------------------------------------


class CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class CapData(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def keep_capabilities(*kept: int) -> None:
    """Have these capabilities and no others, now and after an ``exec``."""
    header = CapHeader(0x20080522, 0)
    data = (CapData * 2)()
    for one in kept:
        data[one // 32].effective |= 1 << one % 32
        data[one // 32].permitted |= 1 << one % 32
    check(
        system(number_of(SYS_CAPSET), ctypes.byref(header), ctypes.byref(data)),
        "dropping capabilities",
    )


def lose_bounding_set() -> None:
    libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(64):
        if libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL and number > 30:
                return  # the kernel knows no more
            raise Failed(f"dropping capability {number}: {os.strerror(ctypes.get_errno())}")


class LandlockRuleset(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("files", "network", "scoped")]


def scope() -> None:
    """Where the kernel can (Landlock, Linux 6.12): no abstract socket of anybody outside.

    Abstract Unix sockets belong to the network's namespace, which we share.
    """
    if system(SYS_LANDLOCK_CREATE, ctypes.c_void_p(), 0, 1) < 6:
        return
    wanted = LandlockRuleset(0, 0, SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS)
    ruleset = system(SYS_LANDLOCK_CREATE, ctypes.byref(wanted), ctypes.sizeof(wanted), 0)
    check(ruleset, "asking Landlock for a ruleset")
    check(system(SYS_LANDLOCK_RESTRICT, ruleset, 0), "restricting sockets")
    os.close(ruleset)


def become(uid: int | None, gid: int | None) -> None:
    """Lose every privilege: the last thing before the command."""
    system(number_of(SYS_KEYCTL), KEYCTL_JOIN_SESSION_KEYRING, ctypes.c_char_p())
    lose_bounding_set()
    if uid is not None and gid is not None:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or os.getgroups():
            raise Failed("changing to the person's user failed")
    keep_capabilities()
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    scope()


# -- the three processes -----------------------------------------------------------------------


def command(asked: dict[str, Any]) -> None:
    """Become the command; returns never."""
    try:
        os.setsid()
        become(asked["uid"], asked["gid"])
        os.umask(asked["umask"])
        os.chdir(asked["directory"])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.closerange(3, 4096)
        os.execve(asked["command"][0], asked["command"], asked["environment"])
    except (Failed, OSError) as error:
        tell(error)
    finally:
        os._exit(CANNOT)


def first_inside(asked: dict[str, Any], alive: int) -> None:
    """Process 1 behind the wall: builds it, starts the command, reaps; ends all with its own end."""
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        build_root(asked["mounts"])
        wake = wake_on(signal.SIGCHLD, signal.SIGTERM)
        child = os.fork()
        if child == 0:
            command(asked)
        # Only the right to hand on a SIGTERM is left, and only where the command has another uid.
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        keep_capabilities(*([CAP_KILL] if asked["uid"] is not None else []))
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        quiet()
        while True:
            ready, _, _ = select.select([wake, alive], [], [])
            if alive in ready:
                os._exit(128 + signal.SIGKILL)  # the one outside is gone
            if signal.SIGTERM in os.read(wake, 4096):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            while (ended := reap()) is not None:
                if ended[0] == child:
                    os._exit(ended[1])
    except (Failed, OSError) as error:
        tell(error)
    finally:
        os._exit(CANNOT)


def reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    if pid == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    return pid, code if code >= 0 else 128 - code


def wake_on(*numbers: int) -> int:
    """A descriptor that can be read when one of these signals came; their numbers are in it."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return read


def quiet() -> None:
    """Hold none of the command's own descriptors: who reads its output waits for its end, not ours."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    os.close(null)


def tell(error: Exception) -> None:
    sentence = f"This command could not be walled off: {error}.\n"
    os.write(2, sentence.encode(errors="replace"))


def enter(asked: dict[str, Any]) -> None:
    """New namespaces for what is forked from here on."""
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC
    if asked["uid"] is None:
        uid, gid = os.getuid(), os.getgid()
        check(libc.unshare(flags | CLONE_NEWUSER), "a user namespace")
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"),
        ):  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    else:
        check(libc.unshare(flags), "new namespaces")


def main() -> int:
    os.umask(0o022)
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        asked = json.load(file)
    try:
        enter(asked)
        alive, ours = os.pipe2(os.O_CLOEXEC)
        wake = wake_on(signal.SIGCHLD, signal.SIGTERM)
        child = os.fork()
        if child == 0:
            os.close(ours)
            first_inside(asked, alive)
        os.close(alive)
    except (Failed, OSError) as error:
        tell(error)
        return CANNOT
    quiet()
    while True:
        select.select([wake], [], [])
        if signal.SIGTERM in os.read(wake, 4096):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        while (ended := reap()) is not None:
            if ended[0] == child:
                return ended[1]


if __name__ == "__main__":
    sys.exit(main())
