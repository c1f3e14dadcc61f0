"""Writes the git configuration of a server: who the person is, and the way to the forge.

``clone.py`` runs it at every start of a server; it can also be run by itself. What is ours goes
into ``<file>.notebooks``, written anew each time; the file itself, ``GIT_CONFIG_GLOBAL`` or
``~/.gitconfig``, only includes that first, so what a person sets with ``git config --global`` stays
and wins. https://git-scm.com/docs/git-config

Reads NOTEBOOKS_FORGE_URL, NOTEBOOKS_GATEWAY_URL, NOTEBOOKS_AUTHOR_NAME, NOTEBOOKS_AUTHOR_EMAIL,
JUPYTERHUB_USER, NOTEBOOKS_LFS_AUTO_FETCH, NOTEBOOKS_PYTHON. Ends with 0, or with 2 and a sentence. No secret is written: the credential helper
reads the token when git asks. Standard library only, Python 3.8 and newer.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

HELPER = Path(__file__).resolve().with_name("credential_helper.py")
LFS = Path(__file__).resolve().with_name("lfs.py")
# What git itself strips from both ends of a name (ident.c); a name of nothing else is refused.
CRUD = " .,:;<>\"\\'"


class Section(NamedTuple):
    """A header, such as ``user`` or ``url "…"``, and the keys and values below it."""

    header: str
    values: list[tuple[str, str]]


class WrongEnvironment(Exception):
    """A variable is missing or no address; the sentence names it."""


FULL = 15
"""The exit code for a full disk, as that of `clone.py`."""


def quote(value: str) -> str:
    """``value`` as git's configuration syntax takes any text: quoted and escaped, on one line."""
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"{}"'.format(value.replace("\n", "\\n").replace("\t", "\\t"))


def plain(text: str) -> str:
    """One line of ``text`` without control characters, as a name or an address has to be."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.encode("utf-8", "replace").decode("utf-8").split())


def url(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or plain(value) != value:
        raise WrongEnvironment(f"{name} has to be an http or https address.")
    return value.rstrip("/") + "/"


def author(environ: Mapping[str, str], forge: str) -> tuple[str, str]:
    """Name and e-mail address for commits; never empty, or git would refuse to commit."""
    user = plain(environ.get("JUPYTERHUB_USER", "")) or "person"
    name = plain(environ.get("NOTEBOOKS_AUTHOR_NAME", ""))
    email = plain(environ.get("NOTEBOOKS_AUTHOR_EMAIL", ""))
    if not name.strip(CRUD):
        name = user
    if not email.strip(CRUD):
        email = f"{user}@users.noreply.{urlsplit(forge).hostname}"
    return name, email


def python(environ: Mapping[str, str]) -> str:
    """What runs our programs for git: NOTEBOOKS_PYTHON, where this Python cannot be started by its path."""
    return environ.get("NOTEBOOKS_PYTHON") or sys.executable or "python3"


def sections(environ: Mapping[str, str], helper: Path = HELPER) -> list[Section]:
    """The configuration as sections of keys and values."""
    forge, gateway = url(environ, "NOTEBOOKS_FORGE_URL"), url(environ, "NOTEBOOKS_GATEWAY_URL")
    name, email = author(environ, forge)
    command = [python(environ), "-I", "-S", str(helper)]
    run = "!" + " ".join(shlex.quote(part) for part in command)
    values = [
        ("user", [("name", name), ("email", email)]),
        ("url " + quote(gateway), [("insteadOf", forge)]),
        # The empty helper takes out those of the image's own configuration, for the gateway only.
        (
            "credential " + quote(gateway),
            [("helper", ""), ("helper", run), ("useHttpPath", "true")],
        ),
        # A redirect would take the server's token along. A proxy may keep a broken connection open:
        # git's server sends a sign of life every few seconds, a minute without one is the end.
        (
            "http " + quote(gateway),
            [("followRedirects", "false"), ("lowSpeedLimit", "1"), ("lowSpeedTime", "60")],
        ),
        ("push", [("default", "simple"), ("autoSetupRemote", "true")]),
        ("protocol", [("version", "2")]),
        # A bare repository among a project's files would bring programs of its own to run.
        ("safe", [("bareRepository", "explicit")]),
        *large_files(environ),
    ]
    return [Section(*each) for each in values]


def large_files(environ: Mapping[str, str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """git-lfs as ``git lfs install`` sets it up, or our own ``lfs.py`` where it is missing.

    NOTEBOOKS_LFS_AUTO_FETCH ``0`` keeps pointers also at every later checkout.
    """
    if shutil.which("git-lfs", path=environ.get("PATH")):
        skip = " --skip" if environ.get("NOTEBOOKS_LFS_AUTO_FETCH") == "0" else ""
        values = [
            ("clean", "git-lfs clean -- %f"),
            ("smudge", f"git-lfs smudge{skip} -- %f"),
            ("process", f"git-lfs filter-process{skip}"),
            ("required", "true"),
        ]
        return [('filter "lfs"', values)]
    command = [python(environ), "-I", "-S", str(LFS)]
    run = " ".join(shlex.quote(part) for part in command)
    values = [("process", f"{run} filter"), ("required", "true")]
    return [('filter "lfs"', values), ("alias", [("lfs", f"!{run}")])]


def render(parts: list[Section]) -> str:
    lines = ["# Written by the notebooks service at every start; your own settings go elsewhere."]
    for header, values in parts:
        lines.append(f"[{header}]")
        lines.extend(f"\t{key} = {quote(value)}" for key, value in values)
    return "\n".join(lines) + "\n"


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by a file with that text, 0600; who reads meanwhile sees old or new."""
    descriptor, name = tempfile.mkstemp(prefix=path.name + ".", dir=str(path.parent))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def write(environ: Mapping[str, str]) -> Path:
    """Write both files; the path of the person's own. Raises ``WrongEnvironment``, ``OSError``."""
    text = render(sections(environ))
    target = Path(
        environ.get("GIT_CONFIG_GLOBAL")
        or Path(environ.get("HOME", "~")).expanduser() / ".gitconfig"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    ours = target.with_name(target.name + ".notebooks")
    write_atomically(ours, text)
    include = f"[include]\n\tpath = {quote(ours.name)}\n"
    present = ""
    if target.exists():
        present = target.read_bytes().decode("utf-8", "surrogateescape")
    if include not in present:
        write_atomically(target, include + present)
    return target


def main() -> int:
    try:
        write(os.environ)
    except WrongEnvironment as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"The git configuration could not be written: {error.strerror}\n")
        return FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
