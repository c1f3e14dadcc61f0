"""A real runner at a real forge: what a push makes happen, and every way in which a job ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from forge_fixtures import ForgeProcess, StartForge
from runner_fixtures import RunnerProcess, StartRunner, Workspace, until


@pytest.fixture(scope="module")
def runner(
    ci_forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunnerProcess]:
    canaries = ("CANARY_OF_THE_RUNNER", "UV_PUBLISH_TOKEN", "UV_INDEX_MINE_PASSWORD")
    os.environ |= dict.fromkeys(canaries, "canary-in-the-runners-environment")
    started = RunnerProcess(ci_forge, tmp_path_factory.mktemp("runner"), "--concurrent", "3")
    started.start()
    for name in canaries:
        del os.environ[name]
    yield started
    assert started.stop() == 0, started.log.read_text()


def plain(trace: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*[mK]", "", trace).splitlines()


def alive(marker: str) -> list[psutil.Process]:
    """Processes with this word in their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if marker in " ".join(process.cmdline()) and process.status() != "zombie":
                found.append(process)
    return found


def test_push_makes_a_pipeline_whose_job_runs(workspace: Workspace, runner: RunnerProcess) -> None:
    sha = workspace.push(
        """
job:
  before_script: [echo before]
  script:
    - echo "sha $CI_COMMIT_SHA in $(basename $PWD)"
    - git rev-parse HEAD
    - |
      for i in 1 2 3; do
        echo line $i
      done
    - git status --porcelain
  after_script: ['echo after $CI_JOB_STATUS']
"""
    )
    job = workspace.ended(sha)
    trace = workspace.trace(job.id)
    assert job.status == "success", trace
    assert job.runner["description"] == "Built-in runner"
    shown = plain(trace)
    assert shown[shown.index("$ echo before") :] == [
        "$ echo before",
        "before",
        '$ echo "sha $CI_COMMIT_SHA in $(basename $PWD)"',
        f"sha {sha} in thing",
        "$ git rev-parse HEAD",
        sha,
        "$ for i in 1 2 3; do # collapsed multi-line command",
        "line 1",
        "line 2",
        "line 3",
        "$ git status --porcelain",
        "Running after_script",
        "$ echo after $CI_JOB_STATUS",
        "after success",
        "Job succeeded",
    ]
    assert workspace.pipeline(sha).status == "success"
    assert until(lambda: runner.builds == [], "the end of the build directory")


def test_the_log_grows_while_the_job_runs(workspace: Workspace, runner: RunnerProcess) -> None:
    sha = workspace.push(
        "job: {script: ['echo early', 'until test -e go; do sleep 0.1; done', 'echo late']}"
    )
    job = until(lambda: next(iter(workspace.pipeline(sha).jobs.list()), None), "the job")
    until(lambda: "\nearly" in workspace.trace(job.id), "the first part of the log")
    assert "\nlate" not in workspace.trace(job.id)
    assert workspace.api.jobs.get(job.id).status == "running"
    [project] = runner.data.glob(f"runner/builds/{job.id}-*/work/thing")
    (project / "go").touch()
    assert plain(workspace.trace(workspace.ended(sha).id))[-2:] == ["late", "Job succeeded"]


def test_failing_script_and_retry(workspace: Workspace, runner: RunnerProcess) -> None:
    sha = workspace.push(
        "job: {script: ['echo one', 'exit 3 | cat', 'echo never'], after_script: ['echo $CI_JOB_STATUS']}"
    )
    job = workspace.ended(sha)
    assert (job.status, job.failure_reason) == ("failed", "script_failure")
    shown = plain(workspace.trace(job.id))
    assert "never" not in shown and shown[-1] == "ERROR: Job failed: exit status 3"
    assert "failed" in shown
    again = workspace.api.jobs.get(job.id).retry()
    assert again["id"] != job.id
    assert workspace.reached(again["id"], "failed").id == again["id"]
    assert plain(workspace.trace(job.id)) == shown


def test_secrets_are_masked_wherever_the_log_is_cut(
    workspace: Workspace, runner: RunnerProcess
) -> None:
    workspace.api.variables.create({"key": "SECRET", "value": "s3cr3t-value", "masked": True})
    sha = workspace.push(
        """
job:
  script:
    - printf s3cr; sleep 1.3; printf '3t-va'; sleep 1.3; echo lue
    - echo "$SECRET" "$CI_JOB_TOKEN" "$CI_REPOSITORY_URL"
    - cat .git/config
    - env | grep -c "$(printf glcb)t-"
    - (grep -rl "$(printf glcb)t-" .git ../.. || true) | wc -l
"""
    )
    job = workspace.ended(sha)
    trace = workspace.trace(job.id)
    assert job.status == "success", trace
    assert "s3cr3t-value" not in trace and "glcbt-" not in trace
    shown = plain(trace)
    assert (
        shown[shown.index('$ echo "$SECRET" "$CI_JOB_TOKEN" "$CI_REPOSITORY_URL"') - 1]
        == "[MASKED]"
    )
    assert shown[-2] == "0", "the token lies in a file"
    assert "glcbt-" not in runner.log.read_text() and "glrt-" not in runner.log.read_text()


def test_the_environment_is_the_jobs_own(workspace: Workspace, runner: RunnerProcess) -> None:
    workspace.api.variables.create({"key": "FILE", "value": "in a file", "variable_type": "file"})
    sha = workspace.push(
        """
variables: {CACHE: $CI_PROJECT_DIR/.cache, NOTEBOOKS_ENVIRONMENTS: /mine, NOTEBOOKS_BUILD_WAIT: "987654"}
job:
  script:
    - env | sort
    - cat "$FILE"; echo
    - test "$HOME" != "$OLD" && test -d "$HOME" && test -d "$TMPDIR" && test -z "$(ls -A "$HOME")"
    - test "$CACHE" = "$PWD/.cache"
    - command -v notebooks
    - cat
"""
    )
    job = workspace.ended(sha)
    shown = plain(workspace.trace(job.id))
    assert job.status == "success", shown
    assert "in a file" in shown
    names = {line.partition("=")[0] for line in shown if re.match(r"[A-Z_0-9a-z]+=", line)}
    assert not any("canary" in line for line in shown)
    foreign = {
        name
        for name in names
        if not name.startswith(("CI", "GITLAB_", "NOTEBOOKS_"))
        and name
        not in {"PATH", "LANG", "TZ", "HOME", "TMPDIR", "SHELL", "TERM", "PWD", "SHLVL", "_"}
    }
    # How packages are reached is the machine's to say.
    ways = re.compile(r"(SSL_CERT_|REQUESTS_CA_BUNDLE|UV_|.*_proxy\Z)", re.IGNORECASE)
    assert {name for name in foreign if not ways.match(name)} == {"CACHE", "FILE"}
    assert {"NOTEBOOKS_ENVIRONMENTS", "CI_PROJECT_DIR", "CI_JOB_TOKEN"} <= names
    assert any(line.endswith("/bin/notebooks") for line in shown)
    # Where environments are, and how long a build may take, is not the job's to say.
    assert not {"NOTEBOOKS_ENVIRONMENTS=/mine", "NOTEBOOKS_BUILD_WAIT=987654"} & set(shown)
    assert "NOTEBOOKS_BUILD_WAIT" in names


DAEMON = """
job:
  script:
    - python3 -c "import os, sys, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); time.sleep(600)" {mark}
    - (trap '' TERM; exec -a {mark} sleep 600) &
    - echo begun
    - {last}
"""


@pytest.mark.parametrize("last", ["sleep 600", "echo done"])
def test_everything_ends_with_the_job(
    workspace: Workspace, runner: RunnerProcess, last: str
) -> None:
    mark = f"marker{workspace.forge.port}-{workspace.id}"
    sha = workspace.push(DAEMON.format(mark=mark, last=last))
    job = workspace.job(sha)
    if last != "echo done":
        until(lambda: "\nbegun" in workspace.trace(job.id), "the daemons")
        until(lambda: len(alive(mark)) >= 2, "both daemons")
        workspace.api.jobs.get(job.id).cancel()
        assert workspace.api.jobs.get(job.id).status == "canceled"
    else:
        assert workspace.ended(sha).status == "success"
    until(lambda: not alive(mark), "the end of the daemons")
    until(lambda: runner.builds == [], "the end of the build directory")


def test_timeout(workspace: Workspace, runner: RunnerProcess) -> None:
    sha = workspace.push("job: {script: ['echo begun', 'sleep 600'], timeout: 2s}")
    job = workspace.ended(sha)
    assert (job.status, job.failure_reason) == ("failed", "job_execution_timeout")
    assert "execution took longer than 2s seconds" in workspace.trace(job.id)
    assert job.duration < 120


def test_a_long_log_is_cut_and_says_so(workspace: Workspace, runner: RunnerProcess) -> None:
    sha = workspace.push(
        "job: {script: ['head -c 6000000 /dev/zero | tr ''\\\\0'' x', 'echo end']}"
    )
    job = workspace.ended(sha)
    trace = workspace.trace(job.id)
    assert job.status == "success"
    assert 4 * 1024 * 1024 <= len(trace) < 4 * 1024 * 1024 + 1000
    assert "Job's log exceeded limit of 4194304 bytes." in trace
    assert plain(trace)[-1] == "Job succeeded" and "\nend" not in trace


def test_odd_jobs(workspace: Workspace, runner: RunnerProcess) -> None:
    """Names, values and output that are no nice text."""
    sha = workspace.push(
        """
"it's a \\"job\\"; $(touch /tmp/never) `id`":
  script:
    - printf '\\xff\\xfe\\x00binary\\n'
    - 'echo "quotes: '' \\" $" # ünïcode'
    - test ! -e /tmp/never
    - mkdir -p locked/in && chmod 500 locked
  variables: {GIT_DEPTH: '1', ODD: "line\\nbreak 'quoted'"}
no checkout:
  variables: {GIT_STRATEGY: none}
  script: [test ! -e .git]
fails in after: {script: ['true'], after_script: ['exit 1']}
killed: {script: ['kill -KILL $$']}
""",
        message='It\'s "quoted" $(id) `id`\n\nand long',
    )
    results = {}
    for name in [job.name for job in workspace.pipeline(sha).jobs.list(get_all=True)]:
        job = workspace.ended(sha, name)
        results[name.split(";")[0]] = job.status
        if job.status == "failed" and name != "killed":
            pytest.fail(bytes(job.trace()).decode("utf-8", "replace"))
    assert results == {
        'it\'s a "job"': "success",
        "no checkout": "success",
        "fails in after": "success",
        "killed": "failed",
    }
    until(lambda: runner.builds == [], "the end of the build directories")


def test_the_commit_is_checked_out_after_its_branch_moved(
    workspace: Workspace, start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    later = Workspace(forge, tmp_path / "later")
    ci = "job: {script: ['git rev-parse HEAD', 'git status --porcelain']}"
    first = later.push(ci)
    second = later.push(ci)
    start_runner(forge)
    for sha in (first, second):
        job = later.ended(sha)
        assert job.status == "success", later.trace(job.id)
        assert sha in plain(later.trace(job.id))


def test_forge_away_while_a_job_runs(
    start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    runner = start_runner(forge)
    sha = workspace.push(
        "job: {script: ['echo begun', 'for i in $(seq 30); do echo $i; sleep 0.1; done', 'echo end']}"
    )
    job = workspace.job(sha)
    until(lambda: "\nbegun" in workspace.trace(job.id), "the begin of the job")
    forge.stop(signal.SIGKILL)
    until(lambda: runner.builds == [], "the end of the job, while nobody can be told")
    forge.start()
    ended = workspace.ended(sha)
    assert ended.status == "success"
    shown = plain(workspace.trace(job.id))
    assert [line for line in shown if line.isdigit()] == [str(n) for n in range(1, 31)]
    assert shown[-1] == "Job succeeded"


def test_stopping_the_runner_fails_its_jobs(
    start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    runner = start_runner(forge)
    mark = f"stopmarker{workspace.forge.port}"
    sha = workspace.push(f"job: {{script: ['echo begun', 'exec -a {mark} sleep 600']}}")
    job = workspace.job(sha)
    until(lambda: alive(mark), "the job")
    began = time.monotonic()
    assert runner.stop() == 0
    assert time.monotonic() - began < 30
    assert not alive(mark)
    ended = workspace.api.jobs.get(job.id)
    assert (ended.status, ended.failure_reason) == ("failed", "runner_system_failure")
    assert "the runner was stopped" in workspace.trace(job.id)
    assert runner.builds == []


def test_a_killed_runner_leaves_nothing(
    start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    runner = start_runner(forge)
    mark = f"killmarker{workspace.forge.port}"
    sha = workspace.push(f"job: {{script: ['exec -a {mark} sleep 600'], retry: 0}}")
    job = workspace.job(sha)
    until(lambda: alive(mark), "the job")
    runner.stop(signal.SIGKILL)
    until(lambda: not alive(mark), "the end of the job's processes")
    runner.start()
    ended = workspace.reached(job.id, "failed")
    assert ended.failure_reason == "runner_system_failure"
    until(lambda: runner.builds == [], "the end of the old build")


def test_two_runners_share_the_work(
    start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    script = "{script: ['echo by $CI_RUNNER_ID', 'sleep 0.5']}"
    for _ in range(2):
        start_runner(forge, "--concurrent", "2")
    sha = workspace.push("\n".join(f"job{number}: {script}" for number in range(6)))
    jobs = [workspace.ended(sha, f"job{number}", 60) for number in range(6)]
    assert {job.status for job in jobs} == {"success"}
    for job in jobs:
        assert plain(workspace.trace(job.id)).count("Job succeeded") == 1


def test_a_wrong_token_is_said_and_survived(
    start_forge: StartForge, start_runner: StartRunner
) -> None:
    runner = start_runner(start_forge(), token="glrt-unknown")
    until(lambda: "The forge does not know this runner" in runner.log.read_text(), "the sentence")
    assert runner.stop() == 0


def test_large_files_are_there_unless_a_job_wants_pointers(
    workspace: Workspace, runner: RunnerProcess
) -> None:
    content = "large " * 1000
    oid = hashlib.sha256(content.encode()).hexdigest()
    address = f"{workspace.forge.url}/{workspace.path}.git/gitlab-lfs/objects/{oid}/{len(content)}"
    auth = ("oauth2", workspace.token)
    sent = httpx.put(address, content=content.encode(), auth=auth, trust_env=False)
    assert sent.status_code == 200
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"
    sha = workspace.push(
        """
job: {script: ['wc -c <data/a.bin', 'git status --porcelain']}
pointers: {script: ['cat data/a.bin'], variables: {GIT_LFS_SKIP_SMUDGE: '1'}}
""",
        files={
            "data/.gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
            "data/a.bin": pointer,
            # What a repository says of where its large files are must not lead the job's token away.
            ".lfsconfig": "[lfs]\n\turl = http://127.0.0.1:9/elsewhere\n",
        },
    )
    job = workspace.ended(sha)
    shown = plain(workspace.trace(job.id))
    assert job.status == "success", shown
    after = shown[shown.index("$ wc -c <data/a.bin") :]
    assert after[1:4] == [str(len(content)), "$ git status --porcelain", "Job succeeded"], after
    pointers = workspace.ended(sha, "pointers")
    assert f"oid sha256:{oid}" in plain(workspace.trace(pointers.id))
