"""Builds the bundled sample project; called by ``notebooks up`` when no repository is named.

The project's history lies in ``sample/``: ``history.toml`` and one directory per commit with the
files that the commit changes. The same bytes make the same commit ids on every machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from notebooks_service.errors import PlatformFailed


def build_sample(directory: Path) -> Path:
    """Makes the sample's repository in ``directory`` and returns its path.

    The repository is bare and carries the project's name: ``<directory>/nile``. Building it again
    over an earlier one changes nothing. Its data are large files (Git LFS), which are put where git-lfs
    would put them; that program is not needed. Raises ``PlatformFailed`` when git is missing or refuses.
    """
    source = resources.files("notebooks_service.platform") / "sample"
    history = tomllib.loads((source / "history.toml").read_text(encoding="utf-8"))
    repository = directory / str(history["project"])
    repository.mkdir(parents=True, exist_ok=True)
    branch = history["default_branch"]
    _git(repository, "init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}")
    _git(repository, "fast-import", "--quiet", "--force", stdin=_stream(source, history))
    _put_large_files(repository, source, history)
    (repository / "description").write_text(history["description"] + "\n", encoding="utf-8")
    return repository


def _stream(source: Traversable, history: Mapping[str, Any]) -> bytes:
    """The whole history in git's own format: https://git-scm.com/docs/git-fast-import."""
    people = {person["key"]: person for person in history["authors"]}
    marks = {step["directory"]: mark for mark, step in enumerate(history["commits"], start=1)}
    tips: dict[str, str] = {}
    stream = bytearray()
    for step in history["commits"]:
        branch = step.get("branch", history["default_branch"])
        person = _person(people[step["author"]], step["date"])
        after = step.get("after", tips.get(branch))
        tips[branch] = step["directory"]
        stream += f"commit refs/heads/{branch}\nmark :{marks[step['directory']]}\n".encode()
        stream += b"author " + person + b"committer " + person + _data(step["message"] + "\n")
        if after:
            stream += f"from :{marks[after]}\n".encode()
        for name in step.get("remove", ()):
            stream += f"D {name}\n".encode()
        for name in step["put"]:
            content = _file(source, step, name)
            if name in history["large_files"]:
                content = _pointer(content)
            stream += f"M 100644 inline {name}\n".encode() + _data(content)
    for tag in history["tags"]:
        person = _person(people[tag["author"]], tag["date"])
        stream += f"tag {tag['name']}\nfrom :{marks[tag['at']]}\ntagger ".encode() + person
        stream += _data(tag["message"] + "\n")
    return bytes(stream)


def _pointer(content: bytes) -> bytes:
    """What git keeps instead: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md#the-pointer."""
    oid = hashlib.sha256(content).hexdigest()
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"
    ).encode()


def _put_large_files(repository: Path, source: Traversable, history: Mapping[str, Any]) -> None:
    for step in history["commits"]:
        for name in set(step["put"]) & set(history["large_files"]):
            content = _file(source, step, name)
            oid = hashlib.sha256(content).hexdigest()
            file = repository / "lfs" / "objects" / oid[:2] / oid[2:4] / oid
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)


def _person(person: Mapping[str, str], date: datetime) -> bytes:
    """Name, address, seconds since 1970 and the offset from UTC, as git writes them."""
    return f"{person['name']} <{person['email']}> {date.timestamp():.0f} {date:%z}\n".encode()


def _data(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return f"data {len(raw)}\n".encode() + raw + b"\n"


def _file(source: Traversable, step: Mapping[str, Any], name: str) -> bytes:
    # A real .gitignore in sample/ would act on the repository that this module lies in.
    stored = f"dot-{name[1:]}" if name.startswith(".") else name
    return source.joinpath(step["directory"], *stored.split("/")).read_bytes()


def _git(repository: Path, *arguments: str, stdin: bytes = b"") -> None:
    git = shutil.which("git")
    if git is None:
        raise PlatformFailed(
            "git is missing. Install it (Debian: apt install git), then try again."
        )
    # Nobody's git configuration may change the commits that are made here.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_DEFAULT_HASH": "sha1",
    }
    command = [git, f"--git-dir={repository}", *arguments]
    done = subprocess.run(
        command, input=stdin, env=environment, cwd=repository, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise PlatformFailed(f"The sample project could not be made in {repository}: {said}")
