"""Logs of builds: which line failed first, how long steps took, what changed. Tables over real logs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from images_repository import commit, git

from notebooks_service.images.last_built import LINES, LastBuilt, changed, say_inputs, say_packages
from notebooks_service.images.log import BuildLog, StepClock, changes, first_failure

PIP = """\
Collecting nosuchthing==9
ERROR: Could not find a version that satisfies the requirement nosuchthing==9 (from versions: none)
ERROR: No matching distribution found for nosuchthing==9
"""
SETUP_PY = """\
  error: subprocess-exited-with-error
  × python setup.py egg_info did not run successfully.
  │ exit code: 1
  ╰─> [6 lines of output]
      Traceback (most recent call last):
        File "setup.py", line 2, in <module>
          import numpy
      ModuleNotFoundError: No module named 'numpy'
      [end of output]
  note: This error originates from a subprocess, and is likely not a problem with pip.
error: metadata-generation-failed
"""
BUILDKIT = """\
#1 [internal] load build definition from Dockerfile
#1 DONE 0.1s
#4 [1/3] FROM docker.io/library/debian
#4 CACHED
#5 [2/3] RUN apt-get update || true
#5 0.301 E: The repository 'http://old.example.org bookworm Release' is not signed.
#5 DONE 0.5s
#6 [3/3] RUN pip install -r requirements.txt
#6 1.101 Collecting nosuchthing==9
#6 1.263 ERROR: Could not find a version that satisfies the requirement nosuchthing==9
#6 1.264 ERROR: No matching distribution found for nosuchthing==9
#6 ERROR: process "/bin/sh -c pip install -r requirements.txt" did not complete successfully: exit code: 1
------
 > [3/3] RUN pip install -r requirements.txt:
1.263 ERROR: Could not find a version that satisfies the requirement nosuchthing==9
------
ERROR: failed to solve: process "/bin/sh -c pip install -r requirements.txt" did not complete successfully: exit code: 1
"""
LEGACY = """\
Step 2/3 : RUN grep -q x /etc/none || true
 ---> Running in 346e608ba417
grep: /etc/none: No such file or directory
Step 3/3 : RUN frobnicate --now
 ---> Running in 346e608ba418
/bin/sh: 1: frobnicate: not found
The command '/bin/sh -c frobnicate --now' returned a non-zero code: 127
"""
BUILDAH = """\
STEP 1/3: FROM scratch
STEP 2/3: COPY busybox /bin/busybox
STEP 3/3: RUN ["/bin/busybox", "false"]
error building at STEP "RUN /bin/busybox false": error while running runtime: exit status 1
"""

TABLE = [
    ("pip", PIP, "ERROR: Could not find a version that satisfies the requirement nosuchthing==9"),
    ("setup.py", SETUP_PY, "ModuleNotFoundError: No module named 'numpy'"),
    ("buildkit", BUILDKIT, "ERROR: Could not find a version that satisfies"),
    ("docker", LEGACY, "/bin/sh: 1: frobnicate: not found"),
    ("buildah", BUILDAH, 'error building at STEP "RUN /bin/busybox false"'),
    (
        "docker COPY",
        "Step 2/2 : COPY nothing /\nCOPY failed: file not found in build context: stat nothing\n",
        "COPY failed: file not found in build context",
    ),
    (
        "base image",
        "STEP 1/1: FROM registry.example.org/none\nError: creating build container: reading manifest "
        "latest in registry.example.org/none: manifest unknown\n",
        "Error: creating build container",
    ),
    (
        "apt",
        "Reading package lists...\nE: Unable to locate package libfoo-dev\n"
        "The command '/bin/sh -c apt-get install libfoo-dev' returned a non-zero code: 100\n",
        "E: Unable to locate package libfoo-dev",
    ),
    (
        "uv",
        "error: Request failed\n  cause: dns error\n  cause: failed to lookup\n",
        "error: Request failed",
    ),
    (
        "uv solver",
        "Using Python 3.11\n  × No solution found when resolving dependencies:\n"
        "  ╰─▶ Because nosuch was not found in the package registry, it cannot be used.\n",
        "Because nosuch was not found in the package registry",
    ),
    (
        "our own sentence",
        "[   0.10 s] Building\n[   1.20 s]   error: Failed to fetch\n"
        "[   1.30 s] ERROR: The package index could not be reached.\n"
        "\x1b[31;1mERROR: Job failed: exit code 1\x1b[0m\n",
        "ERROR: The package index could not be reached.",
    ),
    (
        "conda",
        "Collecting package metadata: done\nPackagesNotFoundError: The following packages are not "
        "available from current channels:\n  - nosuch\n",
        "PackagesNotFoundError: The following packages",
    ),
    (
        "compiler",
        "creating build\nsrc/fast.c:1:10: fatal error: Python.h: No such file or directory\n"
        "compilation terminated.\nerror: command '/usr/bin/gcc' failed with exit code 1\n"
        "ERROR: Failed building wheel for fast\n",
        "src/fast.c:1:10: fatal error: Python.h",
    ),
    ("npm", "npm WARN old\nnpm ERR! code E404\nnpm ERR! 404 Not Found\n", "npm ERR! code E404"),
    (
        "a runner's sections",
        "section_start:1:x\r\x1b[0Ksection_end:1:x\r\nlast\n",
        "last",
    ),
    ("nothing known", "one\ntwo\nERROR: Job failed: exit code 1\n", "two"),
    ("empty", "\n\x1b[0m\n", ""),
    (
        "a resolver's grumble",
        "ERROR: pip's dependency resolver does not\nfatal: no disk\n",
        "fatal:",
    ),
    (
        "a password",
        "fatal: cannot reach https://me:secret@host/x\n",
        "fatal: cannot reach https://****",
    ),
]


@pytest.mark.parametrize(("name", "text", "expected"), TABLE, ids=[row[0] for row in TABLE])
def test_the_line_that_failed_first(name: str, text: str, expected: str) -> None:
    found = first_failure(text)
    assert found.startswith(expected) if expected else found == "", found
    # The same log as our own command writes it down.
    log = io.StringIO()
    lines = BuildLog(log)
    for line in text.splitlines():
        if not line.startswith("["):
            lines.line(f"  {line}")
    if name != "our own sentence":
        assert first_failure(log.getvalue()) == found


def test_a_hostile_log_is_short_and_quickly_read() -> None:
    assert len(first_failure("error: " + "x" * 10_000_000)) <= 300
    assert first_failure("ERROR: a\n" * 100_000) == "ERROR: a"
    assert first_failure(("a: " * 3000 + "\n") * 4000).startswith("a: ")


def test_how_long_steps_took() -> None:
    clock = StepClock()
    for now, line in [
        (0.0, "STEP 1/3: FROM scratch"),
        (0.05, "STEP 2/3: COPY a b"),
        (2.0, "STEP 3/3: RUN pip install"),
        (9.5, "COMMIT name"),
        (12.0, "Storing signatures"),
    ]:
        clock.see(line, now)
    assert clock.slowest() == [("RUN pip install", 7.5), ("COPY a b", 1.95)]
    clock = StepClock()
    for line in BUILDKIT.splitlines():
        clock.see(line, 1.0)
    assert clock.slowest() == [("[2/3] RUN apt-get update || true", 0.5)]


def test_what_changed() -> None:
    assert changes(["b==1", "a==1", "z"], ["a==2", "b==1", "c==1"]) == [
        "- a==1",
        "+ a==2",
        "+ c==1",
        "- z",
    ]
    assert changes([], [f"p{n}" for n in range(9)], 3)[-1] == "… and 6 more"
    assert changes(["a"], ["a"]) == []


# What changed since the last one that was built -----------------------------------------------

HEAD = "notebooks environment 2\npython 3.11\n"
A, B, C = (letter * 40 for letter in "abc")


def row(blob: str, path: str, mode: str = "100644") -> str:
    return f'input {mode} {blob} "{path}"\n'


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (row(A, "a"), row(A, "a"), {}),
        (row(A, "a"), row(B, "a"), {"a": (A, B)}),
        (row(A, "a"), row(A, "b"), {}),  # a name is no change of lines
        (row(A, "a"), row(A, "a", "100755"), {}),
        (row(A, "a") + row(B, "b"), row(B, "a") + row(C, "b"), {"a": (A, B), "b": (B, C)}),
        (row(A, "a", "160000"), row(B, "a", "160000"), {}),  # commits of another repository
        (row(A, "a"), row("--output=x", "a"), {}),
        (row(A, "a"), "input 100644\ninput 100644 x not-json\ninput 100644 x 7\ninput\n", {}),
        ("", row(A, "a"), {}),
    ],
)
def test_which_inputs_changed(
    before: str, after: str, expected: dict[str, tuple[str, str]]
) -> None:
    assert changed(HEAD + before, HEAD + after) == expected


def said(
    last: LastBuilt | None, text: str, packages: list[str], checkout: Path | None = None
) -> list[str]:
    out = io.StringIO()
    log = BuildLog(out)
    say_inputs(log, last, text, checkout)
    say_packages(log, last, packages)
    return [line.partition("] ")[2] for line in out.getvalue().splitlines()]


def test_a_log_says_what_changed_since_the_last_environment(tmp_path: Path) -> None:
    commit(tmp_path, {"r.txt": "one==1\ntwo==2\n"})
    commit(tmp_path, {"r.txt": "one==1\ntwo==3\n"})
    old, new = (git(tmp_path, "rev-parse", f"HEAD{back}:r.txt").strip() for back in ("~1", ""))
    last = LastBuilt("environment 0123", HEAD + row(old, "r.txt"), ("one==1", "two==2"))
    text = HEAD + row(new, "r.txt")
    inputs = [f'  - input 100644 {old} "r.txt"', f'  + input 100644 {new} "r.txt"']
    if new < old:
        inputs.reverse()
    since = "Since environment 0123, the last one that was built:"
    lines = ["  r.txt:", "  -two==2", "  +two==3"]
    counted = "2 Python packages are installed"
    packages = ["  - two==2", "  + two==3"]
    new_packages = ["one==1", "two==3"]
    assert said(last, text, new_packages, tmp_path) == [since, *inputs, *lines, counted, *packages]
    # A shallow clone has not got the lines; a last one without packages shows all.
    nowhere = LastBuilt("environment 0123", HEAD + row(A, "r.txt"))
    shown = said(nowhere, HEAD + row(B, "r.txt"), new_packages, tmp_path)
    assert shown[1:] == [
        f'  - input 100644 {A} "r.txt"', f'  + input 100644 {B} "r.txt"',
        counted, "  one==1", "  two==3",
    ]  # fmt: skip
    same = LastBuilt("environment 0123", text, tuple(new_packages))
    assert said(same, text, new_packages) == [since, counted, "  as in the last environment"]
    # Nothing was built before.
    first = said(None, text, [f"p{number:03}==1" for number in range(100)])
    assert first[0].endswith("all of this is new:") and f"  {text.splitlines()[0]}" in first
    assert first[-1] == "  … and 40 more" and len(first) == 1 + 3 + 1 + LINES + 1
