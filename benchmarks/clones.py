"""A clone in full against one in part, for repositories of several sizes; then log, blame and an old commit.

``singleuser/clone.py`` as the hub runs it, against git's own ``git http-backend`` on this machine, so
the network costs nothing: what is counted is work, requests and bytes. The default of
``partial_clone_from`` comes from here (docs/decisions/0101).

    .venv/bin/python benchmarks/clones.py --sizes 1 10 50 200 --runs 3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import notebooks_service

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from small_forge import SmallForgeProcess, git, running_small_forge  # noqa: E402

CLONE = Path(notebooks_service.__file__).parent / "singleuser" / "clone.py"
COMMITS, FILES = 300, 20


def make(forge: SmallForgeProcess, megabytes: int) -> tuple[str, str]:
    """A project with that much history, of which the last commit has a fifteenth; path and commit."""
    project = f"group/size-{megabytes}"
    bare = forge.repository(project)
    for key in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        git("config", key, "true", cwd=bare)
    size = megabytes * 1_000_000 // COMMITS
    with subprocess.Popen(
        ["git", "fast-import", "--quiet"], cwd=bare, stdin=subprocess.PIPE
    ) as importing:
        assert importing.stdin is not None
        for number in range(COMMITS):
            content = os.urandom(size)
            head = (
                f"commit refs/heads/main\ncommitter Ada <ada@example.org> {1_600_000_000 + number}"
                f" +0000\ndata 1\nx\nM 100644 inline f{number % FILES}\ndata {len(content)}\n"
            )
            note = f"line {number}\n" * (number + 1)
            importing.stdin.write(head.encode() + content + b"\n")
            importing.stdin.write(f"M 100644 inline notes.txt\ndata {len(note)}\n{note}\n".encode())
    return project, git("rev-parse", "main", cwd=bare)


def measure(forge: SmallForgeProcess, project: str, sha: str, *, partial: bool) -> dict[str, float]:
    directory = Path(tempfile.mkdtemp())
    forge.allow("token", project)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "GIT_CONFIG_GLOBAL": str(directory / "gitconfig"),
        "NOTEBOOKS_WORK_DIR": str(directory / "work"),
        "NOTEBOOKS_FORGE_URL": "http://forge.invalid",
        "NOTEBOOKS_GATEWAY_URL": f"{forge.url}/",
        "NOTEBOOKS_PROJECT": project,
        "NOTEBOOKS_PROJECT_ID": "1",
        "NOTEBOOKS_COMMIT": sha,
        "NOTEBOOKS_BRANCH": "main",
        "NOTEBOOKS_REPOSITORY_BYTES": "1",
        "NOTEBOOKS_PARTIAL_CLONE_FROM": "0" if partial else "2",
        "JUPYTERHUB_API_TOKEN": "token",
    }
    folder = directory / "work" / project.rsplit("/", 1)[-1]

    def timed(*command: str, cwd: Path | None = None) -> float:
        began = time.monotonic()
        subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True)
        return time.monotonic() - began

    try:
        found = {"clone, s": timed(sys.executable, "-I", str(CLONE))}
        used = subprocess.run(["du", "-sk", folder / ".git"], capture_output=True, check=True)
        found[".git, MB"] = int(used.stdout.split()[0]) / 1000
        found["log, s"] = timed("git", "log", "--format=%h", cwd=folder)
        found["blame, s"] = timed("git", "blame", "notes.txt", cwd=folder)
        found["old commit, s"] = timed("git", "checkout", "-q", f"HEAD~{COMMITS // 2}", cwd=folder)
        return found
    finally:
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 50, 200], help="in MB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = []
    with (
        tempfile.TemporaryDirectory() as directory,
        running_small_forge(Path(directory)) as forge,
    ):
        forge.save(logins=["server"])
        for size in given.sizes:
            project, sha = make(forge, size)
            for partial in (False, True):
                runs = [measure(forge, project, sha, partial=partial) for _ in range(given.runs)]
                middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
                results.append({"MB": size, "clone": "part" if partial else "full", **middle})
                shown = ", ".join(f"{key} {value:.2f}" for key, value in middle.items())
                print(f"{size} MB, {'part' if partial else 'full'}: {shown}", flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
