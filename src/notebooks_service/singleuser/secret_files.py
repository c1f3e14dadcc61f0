"""Fetches the secrets that a person granted to this server's project, and writes them as files into memory.

Run before a server, as whom the server runs: ``python secret_files.py [-- COMMAND…]`` becomes the command
when they are there. It reads ``NOTEBOOKS_SECRETS_DIR``, ``NOTEBOOKS_GATEWAY_URL`` and the server's own
``JUPYTERHUB_API_TOKEN``; without secrets it does nothing. Exit code 81: they could not be had, and stderr says why.
Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

FAILED = 81
PATIENCE = 30.0
"""Seconds for a service that is being restarted; beyond them the server does not start."""
PAUSE = 0.5
IN_MEMORY = ("tmpfs", "ramfs")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class Refused(Exception):
    """They cannot be had; the words say why."""


class Away(Exception):
    """The service does not answer just now."""


def ask(gateway: str, token: str) -> dict[str, bytes]:
    """The secrets by name. Raises ``Away`` and ``Refused``."""
    url = urlsplit(gateway)
    if url.scheme not in ("http", "https") or not url.hostname or not token.isprintable():
        raise Refused("this server was not told where to ask")
    secure = url.scheme == "https"
    make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = make(url.hostname, url.port, timeout=20)
    try:
        path = url.path.rstrip("/") + "/-/secrets"
        connection.request("GET", path, headers={"Authorization": f"token {token}"})
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Away(type(error).__name__) from None
    finally:
        connection.close()
    if status >= 500:
        raise Away(f"status {status}")
    try:
        said = json.loads(body)
        if status == 200:
            return {each["name"]: base64.b64decode(each["value"]) for each in said["secrets"]}
        reason = str(said["error"]["message"]).rstrip(".")
    except (ValueError, TypeError, KeyError):
        reason = f"the notebooks service gave an answer that makes no sense (status {status})"
    raise Refused(reason)


def fetch(gateway: str, token: str) -> dict[str, bytes]:
    """As ``ask``, with patience. Raises ``Refused``."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(gateway, token)
        except Away as away:
            if time.monotonic() > end:
                raise Refused(f"the notebooks service does not answer ({away})") from None
        time.sleep(PAUSE)


def is_in_memory(path: Path, mounts: str) -> bool:
    """Whether what is written there lands on no disk; ``mounts`` is the text of ``/proc/self/mountinfo``.

    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    """
    wanted = str(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        at = _ESCAPED.sub(lambda found: chr(int(found.group(1), 8)), fields[4])
        inside = wanted == at or wanted.startswith(at.rstrip("/") + "/")
        # Of two at one place the later one is on top.
        if inside and len(at) >= len(best):
            best, kind = at, after.split(" ")[0]
    return kind in IN_MEMORY


def write(directory: Path, secrets: dict[str, bytes]) -> None:
    """One file for each, for this user alone. Raises ``Refused``, ``OSError``."""
    real = directory.resolve()
    if not real.is_dir() or not is_in_memory(real, Path("/proc/self/mountinfo").read_text()):
        raise Refused(f"{directory} is not in memory here, and they are written to no disk")
    for name, value in secrets.items():
        if not NAME.match(name):
            raise Refused("one of them has a name that is no file's")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(str(real / name), flags, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(value)


def become(command: list[str]) -> None:
    os.execv(command[0], command)  # noqa: S606 - the command is the hub's own


def main() -> int:
    directory = os.environ.get("NOTEBOOKS_SECRETS_DIR", "")
    gateway = os.environ.get("NOTEBOOKS_GATEWAY_URL", "")
    try:
        secrets = fetch(gateway, os.environ.get("JUPYTERHUB_API_TOKEN", ""))
        if secrets:
            write(Path(directory), secrets)
            print(f"Secrets in {directory}: {', '.join(secrets)}", flush=True)
    except (Refused, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"Your secrets could not be brought here: {why}.\n")
        return FAILED
    if "--" in sys.argv:
        become(sys.argv[sys.argv.index("--") + 1 :])
    return 0


if __name__ == "__main__":
    sys.exit(main())
