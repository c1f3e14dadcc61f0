"""Runs ``uv``, the package manager, with a clean environment and readable failures; used by builds.

It never downloads a Python, never writes outside its cache and the directory it is given, and gets
nothing of a CI job's variables but proxies, certificates and its own ``UV_*`` settings.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from notebooks_service.errors import BuildFailed, NoSpace
from notebooks_service.images import steps
from notebooks_service.images.limits import Watchdog
from notebooks_service.images.log import BuildLog

PASSED_ON = re.compile(
    r"(PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|NETRC|PYENV_ROOT|SSL_CERT_(FILE|DIR)|"
    r"REQUESTS_CA_BUNDLE|UV_\w+|(http|https|no|all)_proxy|(HTTP|HTTPS|NO|ALL)_PROXY)\Z"
)
COMPILER = re.compile(
    r"(?:command '|No such file or directory: '|Unknown compiler\(s\): \[\[?')"
    r"(?P<name>[\w./+-]*(?:cc|\+\+|clang|fortran|cargo|rustc|cmake|ninja|make)[\w.+-]*)'"
)
NETWORK = re.compile(
    r"failed to fetch|could not connect|dns error|error sending request|connection refused|"
    r"network (?:connectivity|is unreachable)|timed? ?out|request failed after",
    re.IGNORECASE,
)


def clean_environment(environ: Mapping[str, str], cache: Path) -> dict[str, str]:
    """The variables that ``uv`` and what it starts may see."""
    kept = {name: value for name, value in environ.items() if PASSED_ON.match(name)}
    for name in ("UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_FROZEN"):
        kept.pop(name, None)
    return kept | {
        "UV_CACHE_DIR": str(cache),
        # By copy: an environment shares no file with the cache, so none can change it.
        "UV_LINK_MODE": "copy",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
        # Servers cannot write into an environment: what is not compiled now never is.
        "UV_COMPILE_BYTECODE": kept.get("UV_COMPILE_BYTECODE", "1"),
    }


@dataclass
class Uv:
    """One way to call ``uv``. ``inherited``: descriptors it keeps open (the build's lock).

    ``watchdog`` ends a step that takes too much.
    """

    cache: Path
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    inherited: tuple[int, ...] = ()
    watchdog: Watchdog | None = None

    def __post_init__(self) -> None:
        from uv import find_uv_bin

        self._binary = find_uv_bin()
        self._environ = clean_environment(self.environ, self.cache)

    @property
    def kernel_environment(self) -> dict[str, str]:
        """What a kernel that is only tried may see: no index, no cache, no proxy."""
        plain = re.compile(r"(PATH|HOME|LANG|LC_\w+|TZ|TMPDIR)\Z")
        return {name: value for name, value in self._environ.items() if plain.match(name)}

    def ask(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a question; its answer is in ``stdout``. ``path`` replaces the PATH to search."""
        environ = {**self._environ, "PATH": path} if path is not None else self._environ
        return subprocess.run(
            [self._binary, *arguments],
            env=environ,
            cwd="/",
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def run(
        self, log: BuildLog, cwd: Path, *arguments: str, extra: Mapping[str, str] | None = None
    ) -> None:
        """Runs a step and streams what it says. Raises ``BuildFailed`` or ``NoSpace``."""
        code, lines = self.attempt(log, cwd, *arguments, extra=extra)
        if code:
            raise failure(lines, code)

    def attempt(
        self, log: BuildLog, cwd: Path, *arguments: str, extra: Mapping[str, str] | None = None
    ) -> tuple[int, list[str]]:
        """Runs a step that may fail; gives its exit code and its last 200 lines."""
        return steps.attempt(
            log,
            cwd,
            [self._binary, *arguments],
            {**self._environ, **(extra or {})},
            inherited=self.inherited,
            watchdog=self.watchdog,
        )


def failure(lines: Sequence[str], code: int) -> BuildFailed | NoSpace:
    """The error that ``uv``'s last lines stand for, with its own words in the sentence."""
    text = " ".join(" ".join(lines).split())
    if "No space left on device" in text or "os error 28" in text:
        return NoSpace(
            "The disk became full while the environment was built; free some space, then retry."
        )
    said = explanation(lines) or f"uv ended with exit code {code}."
    compiler = COMPILER.search(text)
    if compiler and "No such file or directory" in text:
        return BuildFailed(
            f"The environment could not be built: a package has to be compiled, and `{compiler['name']}` "
            "is not on this host. Install it, or ask for a version of the package that has a wheel "
            f"for this Python. {said}"
        )
    if NETWORK.search(text) and "No solution found" not in text:
        return BuildFailed(
            f"The package index could not be reached, so the environment was not built: {said}"
        )
    if re.search(r"No solution found|Couldn't parse|Failed to parse|requires-python", text):
        return BuildFailed(f"The project's requirements cannot be met: {said}")
    return BuildFailed(f"The environment could not be built: {said}")


def explanation(lines: Sequence[str]) -> str:
    """What ``uv`` gives as the cause, as one line of at most 600 characters.

    It writes ``error: <what>``, then ``cause: <why>`` from the outside in, then perhaps what a
    package's own build printed, of which the last error is kept.
    """
    what = [line.strip()[6:].strip() for line in lines if re.match(r"\s*error:", line)][-1:]
    causes = [line.strip()[6:].strip() for line in lines if re.match(r"\s*cause:", line)]
    printed = [line.strip() for line in lines if re.match(r"\s*[\w.]*(Error|Exception)\b.*:", line)]
    if len(causes) > 2:
        causes = [causes[0], causes[-1]]
    words = "; ".join([*what, *causes, *(row for row in printed[-1:] if row not in causes)])
    words = words or " ".join([row.strip() for row in lines if row.strip()][-3:])
    words = " ".join(words.split()).rstrip(".")
    if not words:
        return ""
    return f"{words}." if len(words) < 600 else f"{words[:597]}..."
