"""How many builds the commits of real repositories need when each of them is opened once.

Reads repositories that are on this disk (bare ones too) and changes nothing in them. Side by side, for
every commit that a branch's tip reaches:

* one build per environment: what this service does, by fingerprint;
* one build per push: what a CI job does that builds after every push. A repository does not tell its
  pushes; the commits of its first line (``--first-parent``) are counted, at most one push each;
* one build per commit: what a service does that builds whatever commit is opened.

    .venv/bin/python benchmarks/images.py REPOSITORY… --json images.json

Not measured yet: the time from launch to image, and the builds that a running service really makes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from notebooks_service.errors import NotebooksError
from notebooks_service.images.fingerprint import BuildOptions, environment_of
from notebooks_service.images.tree import CheckoutTree

BASE = f"base@sha256:{'0' * 64}"
COLUMNS = {
    "commits": "commits = builds per commit",
    "first_line": "builds per push, at most",
    "environments": "environments = our builds",
    "refused": "commits without a name",
    "milliseconds": "ms for a name",
}


def commits(repository: Path, ref: str, *options: str) -> list[str]:
    command = ["git", "-C", str(repository), "rev-list", "--reverse", *options, ref, "--"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def count(repository: Path, ref: str) -> dict[str, Any]:
    """The figures of one repository."""
    options = BuildOptions(base=BASE)
    names: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    refused = 0
    shas = commits(repository, ref)
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
        "commits": len(shas),
        "first_line": len(commits(repository, ref, "--first-parent")),
        "environments": len(names),
        "refused": refused,
        "milliseconds": round(spent / len(shas) * 1000, 1) if shas else 0.0,
        "kinds": dict(kinds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repositories", nargs="+", type=Path, metavar="REPOSITORY")
    parser.add_argument("--ref", default="HEAD")
    parser.add_argument("--json", type=Path, default=Path("images.json"))
    chosen = parser.parse_args()
    results = {each.resolve().name: count(each, chosen.ref) for each in chosen.repositories}
    chosen.json.write_text(json.dumps(results, indent=2) + "\n")
    print("| | " + " | ".join(COLUMNS.values()) + " |")
    print("|---|" + "---|" * len(COLUMNS))
    for name, figures in results.items():
        print(f"| {name} | " + " | ".join(str(figures[key]) for key in COLUMNS) + " |")


if __name__ == "__main__":
    main()
