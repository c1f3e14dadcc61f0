"""Answers git inside a server: the server's own hub token, for the gateway and nobody else.

git runs it as the global gitconfig of the server says (``gitconfig.py`` writes that). It reads
``JUPYTERHUB_API_TOKEN`` and ``NOTEBOOKS_GATEWAY_URL`` at the call, keeps nothing, and stays silent
for every other address. https://git-scm.com/docs/git-credential#IOFMT
Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

USER = "server"


def read_fields(lines: Iterable[str]) -> dict[str, str]:
    """What git tells: ``key=value`` lines up to an empty one."""
    fields: dict[str, str] = {}
    for line in lines:
        line = line.rstrip("\n")
        if not line:
            break
        key, _, value = line.partition("=")
        fields[key] = value
    return fields


def is_for_gateway(fields: dict[str, str], gateway: str) -> bool:
    """Whether git asks about an address below the gateway's own URL: scheme, host, port and path."""
    own = urlsplit(gateway)
    if own.scheme not in ("http", "https") or not own.netloc:
        return False
    if (fields.get("protocol"), fields.get("host")) != (own.scheme, own.netloc):
        return False
    prefix = own.path.strip("/")
    path = fields.get("path", "").lstrip("/")
    if any(segment in (".", "..") for segment in unquote(path).split("/")):
        return False
    return not prefix or path == prefix or path.startswith(prefix + "/")


def answer(action: str, fields: dict[str, str], environ: dict[str, str]) -> str | None:
    """What to print for git, or None for silence (another action, another address, no token)."""
    token = environ.get("JUPYTERHUB_API_TOKEN", "")
    if action != "get" or not is_for_gateway(fields, environ.get("NOTEBOOKS_GATEWAY_URL", "")):
        return None
    if not token or not token.isprintable():
        sys.stderr.write("This shell has no token of its server; open a new terminal for git.\n")
        return None
    return f"username={USER}\npassword={token}\n"


def main() -> int:
    action = sys.argv[1] if len(sys.argv) > 1 else ""
    said = answer(action, read_fields(sys.stdin), dict(os.environ))
    if said is not None:
        sys.stdout.write(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
