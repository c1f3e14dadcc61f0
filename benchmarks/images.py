"""How many builds the commits of real repositories need, and how long a launch waits for its image.

Three parts, all of them or one (``--only``):

* ``names``: reads repositories on this disk (bare ones too), changes nothing in them, and counts the
  environments of all commits that a ref reaches, beside one build per push and one per commit. A
  repository does not tell its pushes: the commits of its first line (``--first-parent``) are counted,
  at most one push each;
* ``builds``: has a running service open every one of these commits, and counts what it builds
  (``image_builds.py``);
* ``times``: from launch to image, with the sample project (``image_times.py``).

    .venv/bin/python benchmarks/images.py REPOSITORY… --runs 5 --json images.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from image_builds import open_all
from image_times import image_times
from report import machine, seconds_of, table_of

from notebooks_service.errors import NotebooksError
from notebooks_service.images.explain import local_options
from notebooks_service.images.fingerprint import BuildOptions, environment_of
from notebooks_service.images.tree import CheckoutTree

BASE = f"base@sha256:{'0' * 64}"
PARTS = ("names", "builds", "times")
NAMES = {
    "commits": "commits = builds per commit",
    "first_line": "builds per push, at most",
    "containers": "environments for containers",
    "local": "environments in `local`",
}
BUILDS = {
    "opened": "commits opened",
    "environments": "environments built",
    "pipelines": "pipelines",
    "jobs": "jobs",
    "refused": "without an environment",
    "requests": "requests where it was there: median, most",
    "again": "pipelines when opened again",
}


def commits(repository: Path, ref: str, *options: str) -> list[str]:
    command = ["git", "-C", str(repository), "rev-list", "--reverse", *options, ref, "--"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def count(repository: Path, shas: list[str], options: BuildOptions) -> dict[str, Any]:
    """How many environments these commits have, and how long a name took."""
    names: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused = 0
    began = time.perf_counter()
    for sha in shas:
        try:
            found = environment_of(CheckoutTree(repository, sha), options)
        except NotebooksError:
            refused += 1
            continue
        names[found.fingerprint] += 1
        kinds[found.kind] += 1
    spent = time.perf_counter() - began
    return {
        "environments": len(names),
        "refused": refused,
        "milliseconds": round(spent / len(shas) * 1000, 1) if shas else 0.0,
        "kinds": dict(kinds),
    }


def names_of(repository: Path, ref: str) -> dict[str, Any]:
    shas = commits(repository, ref)
    with tempfile.TemporaryDirectory() as cache:
        local = local_options(Path(cache), os.environ)
        return {
            "commits": len(shas),
            "first_line": len(commits(repository, ref, "--first-parent")),
            "containers": count(repository, shas, BuildOptions(base=BASE)),
            "local": count(repository, shas, local),
        }


def builds_of(repository: Path, ref: str, at_once: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return open_all(repository, commits(repository, ref), Path(folder), at_once)


def names_row(figures: dict[str, Any]) -> list[str]:
    said = [str(figures["commits"]), str(figures["first_line"])]
    for kind in ("containers", "local"):
        refused = figures[kind]["refused"]
        said.append(
            f"{figures[kind]['environments']}" + (f" ({refused} refused)" if refused else "")
        )
    return said


def builds_row(figures: dict[str, Any]) -> list[str]:
    there, again = figures["environment_there"], figures["opened_again"]
    return [
        str(figures["opened"]),
        str(figures["environments"]),
        str(figures["pipelines"]),
        ", ".join(f"{number} {state}" for state, number in figures["jobs"].items()),
        ", ".join(f"{number} {cause}" for cause, number in figures["refused"].items()) or "0",
        f"{there['requests_median']:g}, {there['requests_most']}" if there["commits"] else "–",
        str(again["pipelines"]),
    ]


def table(columns: dict[str, str], rows: dict[str, list[str]]) -> str:
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
    lines += [f"| {name} | " + " | ".join(row) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def called(repository: Path) -> str:
    """What a repository is called in the tables; a link to it may give it a better name."""
    place = repository.absolute()
    return place.parent.name if place.name == ".git" else place.name.removesuffix(".git")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repositories", nargs="*", type=Path, metavar="REPOSITORY")
    parser.add_argument("--ref", default="HEAD", help="what reaches the commits (default: HEAD)")
    parser.add_argument("--only", choices=PARTS, action="append", help="this part")
    parser.add_argument(
        "--at-once", type=int, default=4, help="commits opened at once (default: 4)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of the times (default: 5)")
    parser.add_argument("--json", type=Path, default=Path("images.json"))
    chosen = parser.parse_args()
    parts = chosen.only or PARTS
    repositories = {called(each): each for each in chosen.repositories}
    results: dict[str, Any] = {"machine": machine()}

    def keep(part: str, figures: dict[str, Any], shown: str) -> None:
        """After each part: what was measured is not lost by what comes later."""
        results[part] = figures
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")
        print(f"{shown}\n", flush=True)

    if "names" in parts and repositories:
        names = {name: names_of(path, chosen.ref) for name, path in repositories.items()}
        keep("names", names, table(NAMES, {name: names_row(row) for name, row in names.items()}))
    if "builds" in parts and repositories:
        builds: dict[str, Any] = {}
        for name, path in repositories.items():
            builds[name] = builds_of(path, chosen.ref, chosen.at_once)
            rows = {name: builds_row(row) for name, row in builds.items()}
            keep("builds", builds, table(BUILDS, rows))
    if "times" in parts:
        times = image_times(chosen.runs)
        keep("times", seconds_of(times), table_of(times))


if __name__ == "__main__":
    main()
