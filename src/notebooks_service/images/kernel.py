"""How ipykernel joins an environment without changing a version of it; used by ``images/build.py``.

The rule, in ``docs/environments.md`` for people: the project's own ipykernel alone; else one that
is added while every package that is there stays pinned; else one in a directory beside, that only
the kernel sees, after the environment; and each must prove itself by answering.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.errors import BuildFailed
from notebooks_service.images.log import BuildLog, cleaned
from notebooks_service.images.uv import Uv, explanation

KERNEL_SECONDS = 60.0
# ipykernel 4 and older know no `kernelapp.launch_new_instance` with current traitlets, and have no
# wheels that say so; trying them only makes a hopeless resolution slow.
WANTED = "ipykernel>=5.1"
# jupyter_client before 7 imports it and does not say so.
UNDECLARED = "ipython-genutils"

LAUNCHER = '''\
"""Starts ipykernel from the directory beside, looked into only after the environment itself."""
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
sys.path.append(os.path.join(here, "kernel"))

from ipykernel import kernelapp

kernelapp.launch_new_instance()
'''


@dataclass(frozen=True)
class Kernel:
    """Where the kernel comes from (``project``, ``added``, ``beside``) and what starts it."""

    origin: str
    argv: tuple[str, ...]


def kernel_command(directory: Path, origin: str) -> tuple[str, ...]:
    """What starts the kernel of the environment in ``directory``."""
    python = str(directory / "bin" / "python")
    if origin == "beside":
        return (python, str(directory / "launch_kernel.py"), "-f", "{connection_file}")
    return (python, "-m", "ipykernel_launcher", "-f", "{connection_file}")


def normal(name: str) -> str:
    """A distribution's name as everybody spells it the same."""
    return name.lower().replace("_", "-").replace(".", "-")


def installed(uv: Uv, python: Path) -> dict[str, str]:
    """Name (normalised) to version of every distribution in an environment."""
    answer = uv.ask("pip", "list", "--python", str(python), "--format", "json", "--no-config")
    if answer.returncode:
        raise BuildFailed(f"The environment cannot be read: {cleaned(answer.stderr)[:300]}")
    rows = json.loads(answer.stdout or "[]")
    return {normal(row["name"]): row["version"] for row in rows}


def add_kernel(uv: Uv, log: BuildLog, directory: Path, work: Path) -> Kernel:
    """Makes the environment in ``directory`` able to run notebooks; ``work`` holds uv's settings.

    Raises ``BuildFailed`` with a sentence that names the pins in the way.
    """
    python = directory / "bin" / "python"
    argv = kernel_command(directory, "added")
    before = installed(uv, python)
    pins = work / "notebooks-constraints.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in sorted(before.items())))
    install = ("pip", "install", "--python", str(python))
    if "pip" not in before:
        log.line("Adding pip, for `%pip install`")
        uv.run(log, work, *install, "--no-deps", "pip", extra={"UV_COMPILE_BYTECODE": "0"})
    if "ipykernel" in before:
        log.line(f"The project brings its own ipykernel {before['ipykernel']}")
        problem = answers(argv, uv)
        if problem:
            raise BuildFailed(
                f"The project pins ipykernel {before['ipykernel']}, which does not start in its "
                f"environment: {problem}"
            )
        return Kernel("project", argv)
    log.line(f"Adding ipykernel; what is there keeps its version (packages: {len(before)})")
    code, said = uv.attempt(
        log,
        work,
        *install,
        "--constraints",
        str(pins),
        "--no-build",
        WANTED,
    )
    if code == 0:
        problem = answers(argv, uv)
        if UNDECLARED.replace("-", "_") in problem:
            uv.run(log, work, *install, "--no-deps", UNDECLARED)
            problem = answers(argv, uv)
        if not problem:
            return Kernel("added", argv)
        log.line(f"That kernel does not answer: {problem}")
        _take_back(uv, log, python, work, before)
    else:
        problem = explanation(said)
    return _beside(uv, log, directory, work, before, problem)


def _take_back(uv: Uv, log: BuildLog, python: Path, work: Path, before: dict[str, str]) -> None:
    """Removes what was added for a kernel that does not work; pip stays."""
    added = sorted(set(installed(uv, python)) - set(before) - {"pip"})
    if added:
        uv.run(log, work, "pip", "uninstall", "--python", str(python), *added)


def _beside(
    uv: Uv, log: BuildLog, directory: Path, work: Path, before: dict[str, str], problem: str
) -> Kernel:
    log.line("Installing ipykernel beside the environment, where only the kernel sees it")
    python = directory / "bin" / "python"
    target = directory / "kernel"
    uv.run(
        log,
        work,
        "pip",
        "install",
        "--python",
        str(python),
        "--target",
        str(target),
        "--no-build",
        WANTED,
        UNDECLARED,
    )
    launcher = directory / "launch_kernel.py"
    launcher.write_text(LAUNCHER)
    argv = kernel_command(directory, "beside")
    second = answers(argv, uv)
    if not second:
        return Kernel("beside", argv)
    log.line(f"That kernel does not answer either: {second}")
    pins = conflicting(before, _beside_versions(target))
    shutil.rmtree(target, ignore_errors=True)
    named = f"The pin {pins[0]} is" if len(pins) == 1 else f"The pins {', '.join(pins)} are"
    if pins:
        raise BuildFailed(
            f"{named} in the way of every notebook kernel (ipykernel), even of one beside the "
            f"environment: {second}. Relax it, or pin an ipykernel that fits."
        )
    raise BuildFailed(f"No notebook kernel starts in this environment: {second or problem}")


def _beside_versions(target: Path) -> dict[str, str]:
    found = (path.name.removesuffix(".dist-info") for path in target.glob("*.dist-info"))
    return {normal(name): version for name, _, version in (row.rpartition("-") for row in found)}


def conflicting(environment: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """The environment's packages that a kernel needs too, in another version."""
    return [
        f"{name}=={version}"
        for name, version in sorted(environment.items())
        if name in wanted and wanted[name] != version
    ]


def answers(argv: tuple[str, ...], uv: Uv) -> str:
    """Empty if the kernel starts and computes, else the last thing it said (at most 300 characters)."""
    asked = {"argv": argv, "env": dict(uv.kernel_environment), "seconds": KERNEL_SECONDS}
    program = Path(__file__).with_name("kernel_check.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        input=json.dumps(asked),
        env=dict(uv.kernel_environment),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return ""
    said = (done.stdout or done.stderr).strip().splitlines()
    return cleaned(said[-1])[:300] if said else "it ended without a word"
