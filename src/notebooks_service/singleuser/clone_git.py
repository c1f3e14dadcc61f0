"""Runs git for ``clone.py``: tells its progress, watches the disk, finds out why it failed.

Standard library only, Python 3.8 and newer: it runs in images that we did not build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TELL_SECONDS = 0.2
LEAST_FREE_BYTES = 1024 * 1024
WATCH_SECONDS = 0.25

SENTENCES = {
    "environment": (2, "The clone was started without what it needs to know: {detail}."),
    "git_missing": (10, "Git is missing in this image or older than 2.32; install a newer one."),
    "network": (11, "The forge could not be reached or broke off; try again in a minute."),
    "refused": (12, "The forge did not let you read this repository."),
    "not_found": (13, "There is no such repository, or none that you may see."),
    "commit_missing": (14, "The commit {detail} is not in the repository any more."),
    "no_space": (15, "The disk is full. Free some space, then try again; nothing was changed."),
    "git_failed": (16, "Git could not make the clone: {detail}"),
    "no_room": (17, "{detail}"),
    "too_many_files": (18, "{detail}"),
    "unsafe_path": (
        19,
        "The commit holds a path that is not written to disk, as it could harm: `{detail}`.",
    ),
    "cancelled": (143, "The clone was stopped; nothing was kept of it."),
}

# Where the gateway said why, ours say nothing more.
SAID_BETTER = ("network",)

# What git (and curl in it) say in the language C, in the order in which it decides.
SYMPTOMS = [
    ("no_space", r"No space left on device|Disk quota exceeded|not enough disk space"),
    ("commit_missing", r"not our ref|unadvertised object|couldn't find remote ref"),
    ("unsafe_path", r"invalid path '|malformed object name .*\.git|File name too long"),
    (
        "refused",
        r"returned error: 40[13]|Authentication failed|could not read (Username|Password)|HTTP 40[13]",
    ),
    ("not_found", r"returned error: 404|repository '.*' not found|HTTP 404"),
    (
        "network",
        r"[Cc]ould not resolve|[Ff]ailed to connect|[Cc]ouldn't connect|Connection (refused|reset|timed)"
        r"|timed out|too slow|early EOF|unexpected disconnect|hung up|RPC failed|returned error: (429|5\d\d)"
        r"|Empty reply|transfer closed|SSL|TLS|certificate|Send failure|Recv failure|expected flush",
    ),
]

PHASES = [
    ("Counting objects", "counting", "The forge counts what to send"),
    ("Compressing objects", "compressing", "The forge packs what to send"),
    ("Receiving objects", "receiving", "Receiving the repository"),
    ("Resolving deltas", "resolving", "Unpacking the repository"),
    ("Updating files", "files", "Writing files"),
]
PROGRESS = re.compile(
    r"(?:remote: )?(?P<title>[A-Z][a-z]+ [a-z]+): +(?P<percent>\d+)% \((?P<done>\d+)/(?P<total>\d+)\)"
    r"(?:, (?P<size>[\d.]+) (?P<unit>bytes|[KMGT]iB))?"
)
UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


class Failed(Exception):
    """The clone ends here; ``kind`` is a key of ``SENTENCES``, ``words`` are the forge's own."""

    def __init__(self, kind: str, detail: str = "", words: str = "") -> None:
        code, sentence = SENTENCES[kind]
        self.kind = kind
        self.code = code
        if words and kind in SAID_BETTER:
            self.sentence = words
        else:
            self.sentence = " ".join(filter(None, [sentence.format(detail=detail), words]))
        super().__init__(self.sentence)


def say(message: str, phase: str, **facts: Any) -> None:
    """One JSON line; a reader that has gone away is no reason to stop."""
    try:
        sys.stdout.write(json.dumps({"message": message, "phase": phase, **facts}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


class Stop:
    """What a signal means: the clone ends, but never between a git's start and our knowing of it."""

    held = False
    asked = False

    @classmethod
    def on_signal(cls, _number: int, _frame: object) -> None:
        cls.asked = True
        if not cls.held:
            raise Failed("cancelled")

    @classmethod
    def release(cls) -> None:
        cls.held = False
        if cls.asked:
            raise Failed("cancelled")


KEPT = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH")


def git_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of every git here: nothing asks, nothing but HTTP is spoken, LFS waits."""
    kept = {
        key: value for key, value in environ.items() if not key.startswith("GIT_") or key in KEPT
    }
    return {
        **kept,
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "GIT_ALLOW_PROTOCOL": "http:https",
        "GIT_LFS_SKIP_SMUDGE": "1",
    }


OPTIONS = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    # Names that are ``.git`` to Windows or macOS: a tree that holds them is made to harm somebody.
    "core.protectNTFS=true",
    "core.protectHFS=true",
    "safe.bareRepository=explicit",
    "core.quotePath=false",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "http.followRedirects=false",
    # Git's server sends a sign of life every few seconds; a minute of less than a byte is the end.
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    "advice.detachedHead=false",
    "gc.auto=0",
    "maintenance.auto=false",
]


class Git:
    """Runs git in ``directory``; ``options`` are more settings, ``margin`` the bytes to leave free."""

    def __init__(
        self,
        directory: Path,
        options: Sequence[str] = (),
        margin: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.margin = margin
        self._options = [*OPTIONS, *options]
        self.environment = {**git_environment(os.environ), **(environment or {})}

    def within(
        self,
        directory: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Git:
        """The same in another directory, or with more settings or variables."""
        given = [*self._options[len(OPTIONS) :], *options]
        return Git(directory, given, self.margin, {**self.environment, **(environment or {})})

    def command(self, *arguments: str) -> list[str]:
        options = [part for option in self._options for part in ("-c", option)]
        return ["git", "--no-pager", *options, *arguments]

    def read(self, *arguments: str, given: bytes = b"") -> bytes:
        """What git prints. Raises ``Failed`` with the reason that its stderr shows."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=str(self.directory),
            env=self.environment,
            input=given,
            capture_output=True,
        )
        if done.returncode != 0:
            sys.stderr.write(done.stderr.decode("utf-8", "replace")[:10_000])
            raise diagnose(done.stderr.decode("utf-8", "replace").splitlines(), self.directory)
        return done.stdout

    def ask(self, *arguments: str) -> str | None:
        """What git prints, stripped; None if it says no."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=str(self.directory),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        output = done.stdout.decode("utf-8", "surrogateescape").strip()
        return output if done.returncode == 0 else None

    def do(self, *arguments: str, given: bytes | None = None) -> list[str]:
        """Run git, tell its progress; what else it said. Raises ``Failed`` with its reason.

        A git that leaves less than ``margin`` free on its disk is ended: nobody else on this
        machine is to find it full.
        """
        with tempfile.TemporaryFile() as handed:
            handed.write(given or b"")
            handed.seek(0)
            Stop.held = True
            process = subprocess.Popen(
                self.command(*arguments),
                cwd=str(self.directory),
                env=self.environment,
                stdin=handed,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        watch = _Watch(process, self.directory, self.margin)
        try:
            Stop.release()
            words = _listen(process)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            watch.end()
        if watch.full:
            raise Failed("no_space")
        if code != 0:
            raise diagnose(words, self.directory)
        return words


class _Watch:
    """Ends a git that fills the disk; ``full`` says that it did."""

    def __init__(self, process: subprocess.Popen[bytes], directory: Path, margin: int) -> None:
        self.full = False
        self._over = threading.Event()
        self._least = margin // 2
        if self._least:
            threading.Thread(target=self._run, args=(process, directory), daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def _run(self, process: subprocess.Popen[bytes], directory: Path) -> None:
        while not self._over.wait(WATCH_SECONDS):
            if free_bytes(directory) < self._least:
                self.full = True
                process.kill()
                return


def free_bytes(directory: Path) -> int:
    """Bytes that we may still write there; very many where that cannot be said."""
    try:
        return shutil.disk_usage(str(directory)).free
    except OSError:
        return 1 << 62


def _listen(process: subprocess.Popen[bytes]) -> list[str]:
    """Tell progress until git closes its stderr; what else it wrote there, at most 200 lines."""
    assert process.stderr is not None
    words: list[str] = []
    told: tuple[str, int] = ("", -1)
    at = 0.0
    rest = b""
    with process.stderr as stderr:
        while True:
            piece = os.read(stderr.fileno(), 65536)
            *lines, rest = re.split(rb"[\r\n]", rest + piece if piece else rest + b"\n")
            for line in (raw.decode("utf-8", "replace") for raw in lines):
                progress = read_progress(line)
                if progress is not None:
                    now = (progress["phase"], progress["percent"])
                    new = now[0] != told[0] or now[1] == 100
                    if now != told and (new or time.monotonic() - at >= TELL_SECONDS):
                        told, at = now, time.monotonic()
                        say(**progress)
                elif line.strip():
                    sys.stderr.write(line + "\n")
                    words = [*words[-199:], line]
            if not piece:
                return words


def read_progress(line: str) -> dict[str, Any] | None:
    """A line of git's progress as facts and a sentence; None if it is none."""
    found = PROGRESS.match(line)
    phase = next((each for each in PHASES if found and found.group("title") == each[0]), None)
    if found is None or phase is None:
        return None
    percent = int(found.group("percent"))
    facts: dict[str, Any] = {
        "message": f"{phase[2]}: {percent} %",
        "phase": phase[1],
        "percent": percent,
        "objects": int(found.group("done")),
        "total": int(found.group("total")),
    }
    if found.group("size"):
        facts["bytes"] = int(float(found.group("size")) * UNITS[found.group("unit")])
        size = "{} {}".format(found.group("size"), found.group("unit"))
        facts["message"] = f"{phase[2]}: {percent} % ({size})"
    return facts


def diagnose(lines: list[str], directory: Path) -> Failed:
    """Why git failed, from what it wrote; the forge's own words (``remote:``) are passed on."""
    text = "\n".join(lines)
    remote = [line[len("remote:") :].strip() for line in lines if line.startswith("remote:")]
    words = " ".join(word for word in remote if word)[:500]
    kind = next((name for name, pattern in SYMPTOMS if re.search(pattern, text)), "git_failed")
    if kind in ("git_failed", "network") and _is_full(directory):
        kind = "no_space"
    detail = ""
    if kind == "unsafe_path":
        found = re.search(r"invalid path '(.*)'|([^\s:']+): File name too long", text)
        detail = next(filter(None, found.groups()), "")[:200] if found else ""
        words = ""
    if kind == "git_failed":
        errors = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines
        detail = (errors[-1] if errors else "it did not say why.")[:500]
    return Failed(kind, detail, "" if kind == "no_space" else words)


def _is_full(directory: Path) -> bool:
    return free_bytes(directory) < LEAST_FREE_BYTES


def check_git(environ: Mapping[str, str]) -> None:
    """Raises ``Failed("git_missing")``: the git here must read GIT_CONFIG_GLOBAL where that is set."""
    try:
        output = subprocess.run(["git", "--version"], stdout=subprocess.PIPE).stdout.decode()
    except OSError:
        raise Failed("git_missing") from None
    found = re.search(r"(\d+)\.(\d+)", output)
    version = (int(found.group(1)), int(found.group(2))) if found else (0, 0)
    if version < (2, 32) and environ.get("GIT_CONFIG_GLOBAL"):
        raise Failed("git_missing")
