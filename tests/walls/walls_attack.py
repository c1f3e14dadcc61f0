"""What hostile code tries, as one program of the standard library only; carried into servers, jobs, builds.

Told by a JSON object what to go for; prints one line, ``ATTACK {…}``: each attempt with what it got, or
null if it got nothing. The same program is run without a wall, where every attempt has to succeed.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request

libc = ctypes.CDLL(None, use_errno=True)


def read(path):
    if os.path.isdir(path):
        return os.listdir(path) or None
    with open(path, "rb") as file:
        return len(file.read(1 << 16)) or None


def write(path):
    """Leave something in a directory, or at the end of a file."""
    if os.path.isdir(path):
        name = os.path.join(path, f"planted-{os.getpid()}")
        with open(name, "w") as file:
            file.write("planted")
        os.unlink(name)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND))
    return "written"


def link(path):
    """A second name for somebody's file, in a directory of one's own."""
    name = os.path.join(os.environ.get("HOME", "/tmp"), f"link-{os.getpid()}")
    os.link(path, name)
    os.unlink(name)
    return "linked"


def foreign_processes(mark):
    """Whose command line or environment holds the mark."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            for file in ("cmdline", "environ"):
                with contextlib.suppress(OSError), open(f"/proc/{name}/{file}", "rb") as stream:
                    if mark.encode() in stream.read():
                        found.append(int(name))
    return sorted(set(found)) or None


def send_signal(pid):
    os.kill(pid, 0)
    return "may signal"


def trace(pid):
    """PTRACE_SEIZE, which does not stop it."""
    if libc.ptrace(0x4206, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    return "traced"


def memory(pid):
    with open(f"/proc/{pid}/maps") as maps:
        return len(maps.read()) or None


def through_root(pid):
    return os.listdir(f"/proc/{pid}/root/")


def shared_memory(key):
    """A System V segment that somebody made."""
    found = libc.shmget(key, 16, 0o600)
    if found < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return found


def connect(address):
    """A Unix socket; an abstract one begins with @."""
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(name)
    return "connected"


def fetch(asked):
    """An HTTP request that has to be refused; what answers 2xx is got."""
    headers = {**asked.get("headers", {})}
    if asked.get("own_token"):
        headers["Authorization"] = "token " + os.environ["JUPYTERHUB_API_TOKEN"]
    data = json.dumps(asked["body"]).encode() if "body" in asked else None
    request = urllib.request.Request(asked["url"], data, headers, method=asked.get("method", "GET"))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect())
    with opener.open(request, timeout=10) as answer:
        return f"{answer.status} {answer.read(80)!r}"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def gain(_):
    """More rights than one has: set-user programs, capabilities, mounts."""
    got = []
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    if status["NoNewPrivs"].strip() != "1":
        got.append("set-user programs")
    if int(status["CapEff"], 16) or int(status["CapBnd"], 16):
        got.append("capabilities")
    with contextlib.suppress(OSError):
        os.setuid(0)
        os.setgid(0)
        got.append("root")
    if libc.mount(b"none", b"/mnt", b"tmpfs", 0, None) == 0:
        libc.umount2(b"/mnt", 2)
        got.append("mount")
    return got or None


def escape(_):
    """A user namespace of one's own gives rights inside it: whatever it shows, is it more?"""
    pid = os.fork()
    if pid == 0:
        ok = 1
        with contextlib.suppress(OSError):
            before = set(os.listdir("/"))
            if libc.unshare(0x10020000) == 0:
                for name in before:
                    libc.umount2(b"/" + os.fsencode(name), 2)
                libc.umount2(b"/", 2)
                after = {name for name in os.listdir("/")}
                with contextlib.suppress(OSError):
                    if libc.mount(b"none", b"/usr", None, 32 | 4096, None) == 0:
                        write("/usr")
                        ok = 0
                if after - before:
                    ok = 0
        os._exit(ok)
    return "out" if os.waitpid(pid, 0)[1] == 0 else None


TRIES = {
    "read": read,
    "write": write,
    "link": link,
    "processes": foreign_processes,
    "signal": send_signal,
    "trace": trace,
    "memory": memory,
    "root": through_root,
    "shared_memory": shared_memory,
    "connect": connect,
    "fetch": fetch,
    "gain": gain,
    "escape": escape,
}


def attack(targets):
    """``targets``: name of the attempt to the list of what to try it on."""
    got = {}
    for name, wanted in targets.items():
        for one in wanted:
            label = one.get("label") if isinstance(one, dict) else one
            try:
                result = TRIES[name](one)
            except (OSError, ValueError, urllib.error.HTTPError):
                result = None
            got[f"{name} {label}"] = result
    return got


if __name__ == "__main__":
    signal.alarm(120)
    with open(sys.argv[1]) as file:
        asked = json.load(file)
    print("ATTACK " + json.dumps(attack(asked)), flush=True)
