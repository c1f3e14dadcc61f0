"""Gets a job's commit from the forge: exactly that commit, in a fresh directory, no credentials left.

The job's token reaches git in its environment, for this one fetch; it is in no argument, no
configuration file and no remote's address.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from notebooks_service.errors import CloneFailed

_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
# The system's own words for ENOSPC and EDQUOT, which git puts behind what it was doing.
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_KEPT = 8192


@dataclass(frozen=True)
class Source:
    """Where a job's commit is. ``url`` has no credentials; ``authorization`` is a header's value."""

    url: str
    authorization: str | None
    sha: str
    pipeline_ref: str
    depth: int

    @classmethod
    def from_job(cls, job: Mapping[str, Any], variables: Mapping[str, str]) -> Source:
        """Reads ``git_info``. Raises ``CloneFailed`` if it asks for something that we never do."""
        info = job.get("git_info") or {}
        parts = urlsplit(str(info.get("repo_url", "")))
        sha = str(info.get("sha", ""))
        if parts.scheme not in ("http", "https") or not parts.hostname or not _SHA.match(sha):
            raise CloneFailed(
                "The forge named no commit or no address that a runner can fetch from."
            )
        host = parts.hostname if ":" not in parts.hostname else f"[{parts.hostname}]"
        host = f"{host}:{parts.port}" if parts.port else host
        authorization = None
        if parts.password:
            pair = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        pipeline = str((job.get("job_info") or {}).get("pipeline_id") or job.get("id"))
        given = variables.get("GIT_DEPTH", str(info.get("depth") or 0))
        depth = int(given) if given.isascii() and given.isdigit() and len(given) < 9 else 0
        number = pipeline if pipeline.isdigit() else "0"
        return cls(
            parts._replace(netloc=host).geturl(),
            authorization,
            sha,
            f"refs/pipelines/{number}",
            depth,
        )


class Words:
    """What these commands print, on its way to the job's log: tells a full disk from a forge that is away."""

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output
        self._last = b""

    def write(self, data: bytes) -> None:
        self._last = (self._last + data)[-_KEPT:]
        self._output(data)

    @property
    def disk_is_full(self) -> bool:
        """Whether the last words say so; not those that the forge sent (``remote:``): its disk is another."""
        lines = self._last.decode(errors="replace").splitlines()
        return any(_FULL.search(line) for line in lines if not line.startswith("remote:"))


def git_command(*arguments: str) -> list[str]:
    found = shutil.which("git")
    if found is None:
        raise CloneFailed("git is not installed on the runner's machine.")
    # What a repository brings along must not decide what git runs here.
    return [found, "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", *arguments]


def steps(source: Source) -> list[list[str]]:
    """The git commands, in their order, to be run in the (empty) project directory."""
    depth = [f"--depth={source.depth}"] if source.depth else []
    return [
        git_command("init", "--quiet", "--template=", "."),
        git_command("remote", "add", "origin", source.url),
        git_command(
            "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--force", *depth,
            "origin", f"+{source.sha}:{source.pipeline_ref}",
        ),
        git_command("checkout", "--quiet", "--force", "--detach", source.sha),
    ]  # fmt: skip


def names_large_files() -> list[str]:
    """A command that ends with 0 if the checked out commit has files in Git LFS."""
    return git_command("grep", "--quiet", "--cached", "-e", "filter=lfs", "--", "*.gitattributes")


def fetch_large_files() -> list[str] | None:
    """The command that replaces pointers by the files; None where git-lfs is not installed."""
    return git_command("lfs", "pull") if shutil.which("git-lfs") else None


def environment(source: Source, home: Path, mark: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of these commands."""
    found = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_ALLOW_PROTOCOL": "http:https",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_ADVICE": "0",
        **mark,
    }
    settings = {
        "http.followRedirects": "false",
        "gc.auto": "0",
        "advice.detachedHead": "false",
        # A repository's .lfsconfig must not say where the job's token goes.
        "lfs.url": f"{source.url}/info/lfs",
        "lfs.locksverify": "false",
        "filter.lfs.clean": "git-lfs clean -- %f",
        "filter.lfs.smudge": "git-lfs smudge --skip -- %f",
        "filter.lfs.process": "git-lfs filter-process --skip",
    }
    if source.authorization:
        settings[f"http.{source.url}.extraHeader"] = f"Authorization: {source.authorization}"
    found["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        found[f"GIT_CONFIG_KEY_{number}"] = key
        found[f"GIT_CONFIG_VALUE_{number}"] = value
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO"):
        if name in os.environ:
            found[name] = os.environ[name]
    return found
