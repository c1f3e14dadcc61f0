"""Runs git on the forge's repositories: argument lists, no configuration but ours, no foreign hooks.

Used by everything in the forge that reads or changes a repository.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from notebooks_service.errors import InvalidRequest, NoSpace, NotebooksError, PlatformFailed

TIMEOUT = 120.0
"""Seconds that one plumbing command may take."""


class GitFailed(NotebooksError):
    """git ended with an error; the message is its own first line, without addresses' passwords."""

    code = "git_failed"
    status = 500

    def __init__(self, returncode: int, stderr: bytes) -> None:
        text = stderr.decode("utf-8", "replace").strip()
        first = text.splitlines()[0] if text else f"git ended with {returncode}"
        super().__init__(first.removeprefix("fatal: ").removeprefix("error: ").rstrip("."))
        self.returncode = returncode
        self.stderr = text


def git_executable() -> str:
    """Where git is. Raises ``PlatformFailed`` with what to do if it is missing."""
    found = shutil.which("git")
    if found is None:
        raise PlatformFailed(
            "git is not installed. Install it (`apt install git`), then try again."
        )
    return found


def git_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The whole environment of a git process: nothing of ours but where programs are."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "HOME": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }
    for name in ("TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        if name in os.environ:
            environment[name] = os.environ[name]
    environment.update(extra or {})
    return environment


def git(
    repository: Path | None,
    *arguments: str,
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    accept: Sequence[int] = (0,),
    timeout: float = TIMEOUT,
) -> bytes:
    """What ``git <arguments>`` prints in ``repository`` (a bare one, or None for none).

    Raises ``GitFailed`` for a return code that is not in ``accept``, ``NoSpace`` on a full disk.
    """
    if any("\0" in text for text in (*arguments, *(environment or {}).values())):
        raise InvalidRequest("A name or a text holds a NUL character.")
    command = [git_executable()]
    if repository is not None:
        # Named as git directory: git does not search, and does not ask who owns it.
        command.append(f"--git-dir={repository}")
    command += ["-c", "core.hooksPath=" + os.devnull, *arguments]
    try:
        done = subprocess.run(
            command,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            env=git_environment(environment),
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitFailed(-1, f"git took longer than {timeout:.0f} seconds".encode()) from None
    if done.returncode not in accept:
        if b"No space left on device" in done.stderr:
            raise NoSpace()
        raise GitFailed(done.returncode, done.stderr)
    return done.stdout


def git_beginning(repository: Path, *arguments: str, limit: int) -> bytes | None:
    """What a git command prints, or None if that is more than ``limit`` bytes.

    For output whose size a repository decides: a small pack can hold a tree of any number of paths.
    Raises ``GitFailed``.
    """
    command = [git_executable(), f"--git-dir={repository}", *arguments]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=git_environment(),
    ) as process:
        assert process.stdout is not None
        read = process.stdout.read(limit + 1)
        if len(read) > limit:
            process.kill()
            return None
    if process.returncode:
        raise GitFailed(process.returncode, b"")
    return read


def make_repository(path: Path, default_branch: str) -> None:
    """A new empty bare repository with the configuration that the forge wants.

    Left alone if it exists. Made beside its place and renamed, so a kill leaves no half of one.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    half = path.with_name(f".{path.name}.{os.getpid()}.new")
    shutil.rmtree(half, ignore_errors=True)
    git(None, "init", "--quiet", "--bare", "--template=", str(half))
    for key, value in REPOSITORY_CONFIG.items():
        git(half, "config", key, value)
    git(half, "symbolic-ref", "HEAD", f"refs/heads/{default_branch}")
    half.rename(path)


REPOSITORY_CONFIG = {
    "core.logAllRefUpdates": "false",
    "gc.auto": "0",
    "receive.autogc": "false",
    "receive.advertisePushOptions": "true",
    "receive.fsckObjects": "true",
    "receive.denyDeleteCurrent": "ignore",
    "receive.denyNonFastForwards": "false",
    # Old but harmless histories may be pushed, as on GitLab.
    "receive.fsck.badTimezone": "ignore",
    "receive.fsck.missingSpaceBeforeDate": "ignore",
    "receive.fsck.zeroPaddedFilemode": "ignore",
    # Every push stays the pack that it came as: a large file is never compressed anew.
    "receive.unpackLimit": "1",
    "core.bigFileThreshold": "50m",
    "transfer.hideRefs": "refs/imported",
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "uploadpack.hideRefs": "refs/imported",
}
"""Partial clones and fetches of an exact commit are allowed, as on GitLab. Clean-up is the forge's
own work (``maintenance``), so that no git process outlives it."""
