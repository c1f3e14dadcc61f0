"""The runner's protocol with a whole runner that we did not write: PyPI's ``gitlab-python-runner``.

It registers, polls, clones by the job's token, runs the script in a shell, sends the log and the
artifacts, fetches those of other jobs, and reports: all over HTTP, in a process of its own.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from forge_fixtures import ForgeProcess
from runner_fixtures import RawRunner, Workspace

PROGRAM = [sys.executable, "-m", "GitlabPyRunner"]

CI = """
default: {tags: [foreign-program]}
stages: [make, use, fail]
make:
  stage: make
  script:
    - mkdir out && echo "made by $CI_JOB_NAME of $CI_COMMIT_SHA" > out/result.txt
    - cat README.md
  artifacts: {paths: [out/]}
use:
  stage: use
  script: [cat out/result.txt]
break:
  stage: fail
  script: [echo before, "false"]
"""


class ForeignProgram:
    def __init__(self, forge: ForgeProcess, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        RawRunner(forge).http.post("/runners", json={"token": "makes the file"})
        secret = forge.data / "secrets" / "forge-runner-registration-token"
        self.run("--register", forge.url, "--regtoken", secret.read_text().strip(),
                 "--tag", "foreign-program", "--desc", "a foreign program")  # fmt: skip

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.directory,
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.stdout

    def one_job(self) -> str:
        return self.run("--start", "gitlab-runner.yml", "--once")


@pytest.fixture
def program(ci_forge: ForgeProcess, tmp_path: Path) -> ForeignProgram:
    return ForeignProgram(ci_forge, tmp_path / "foreign")


def test_a_foreign_program_does_jobs_with_artifacts(
    workspace: Workspace, program: ForeignProgram
) -> None:
    sha = workspace.push(CI)
    said = program.one_job()
    made = workspace.job(sha, "make")
    log = workspace.trace(made.id)
    assert made.status == "success", said + log
    assert made.runner["description"] == "a foreign program"
    assert "# Thing" in log
    archive = zipfile.ZipFile(io.BytesIO(bytes(workspace.api.jobs.get(made.id).artifacts())))
    assert archive.read("out/result.txt").decode() == f"made by make of {sha}\n"
    said = program.one_job()
    used = workspace.job(sha, "use")
    assert used.status == "success", said + workspace.trace(used.id)
    assert f"made by make of {sha}" in workspace.trace(used.id)
    program.one_job()
    broken = workspace.job(sha, "break")
    assert (broken.status, workspace.pipeline(sha).status) == ("failed", "failed")
    assert "before" in workspace.trace(broken.id)
