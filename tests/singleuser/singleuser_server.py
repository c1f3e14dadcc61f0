"""One server's directory and environment, and its programs run as the hub runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import notebooks_service

TOKEN = "canary-server-token"
PROGRAMS = Path(notebooks_service.__file__).parent / "singleuser"
# Images have other Pythons: ``NOTEBOOKS_TEST_SERVER_PYTHON`` names one to run the programs with.
PYTHON = os.environ.get("NOTEBOOKS_TEST_SERVER_PYTHON", sys.executable)


@dataclass
class Ended:
    """How a program ended: its exit code, the JSON lines that it printed, its stderr."""

    code: int
    lines: list[dict[str, Any]]
    errors: str

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]


@dataclass
class Server:
    directory: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        return self.directory / "work"

    @property
    def folder(self) -> Path:
        return self.work / self.variables["NOTEBOOKS_PROJECT"].rsplit("/", 1)[-1]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory / "home"),
            "LANG": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.directory / "gitconfig"),
            "GIT_TERMINAL_PROMPT": "0",
            "NOTEBOOKS_WORK_DIR": str(self.work),
            **self.variables,
        }

    def command(self, program: str, *arguments: str) -> list[str]:
        return [PYTHON, "-I", str(PROGRAMS / program), *arguments]

    def run(self, program: str, *arguments: str, given: str = "") -> Ended:
        done = subprocess.run(
            self.command(program, *arguments),
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return Ended(done.returncode, lines, done.stderr)

    def clone(self) -> Ended:
        return self.run("clone.py")

    def unsaved(self) -> dict[str, Any]:
        ended = self.run("unsaved.py", str(self.folder))
        assert ended.code == 0, ended.errors
        return ended.last

    def try_git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """git as the person runs it in a terminal of this server."""
        return subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def git(self, *arguments: str) -> str:
        done = self.try_git(*arguments)
        assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()
