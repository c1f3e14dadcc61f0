"""Jobs that mean harm: endless words, full disks, forged logs, cancels in every phase; a forge that is full."""

from __future__ import annotations

import json
import os
import re
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from faulty_forge import FaultyForge, Rule
from forge_fixtures import ForgeProcess, StartForge
from images_index import package_index, source_package
from notebooks_service.images.environment import Environment
from notebooks_service.runner.client import RunnerClient
from notebooks_service.runner.executor import MARK, Execution
from notebooks_service.runner.reporter import Reporter
from notebooks_service.runner.trace import Trace
from notebooks_service.settings import Settings
from notebooks_service.walls.wall import Inside, Walls
from runner_fixtures import RawRunner, RunnerProcess, StartRunner, Workspace, until
from small_disk import SmallDisk, fill

ENDED = ("success", "failed", "canceled")


@pytest.fixture(scope="module")
def runner(
    ci_forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunnerProcess]:
    started = RunnerProcess(ci_forge, tmp_path_factory.mktemp("runner"), "--concurrent", "3")
    started.start()
    yield started
    assert started.stop() == 0, started.log.read_text()


def plain(trace: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*[mK]", "", trace).splitlines()


@pytest.mark.parametrize("last", ["true", "kill -9 $PPID; sleep 600"], ids=["ends", "kills"])
def test_a_daemon_ends_with_its_job_also_without_a_wall(tmp_path: Path, last: str) -> None:
    """Where no wall's end ends it: by its supervisor, and by its mark where the job ends that one."""
    number = str(993_000_000 + os.getpid())
    script = f"setsid -f sleep {number} >/dev/null 2>&1 </dev/null; touch begun; {last}"
    execution = Execution(
        ["/bin/bash", "-c", script],
        directory=tmp_path,
        environment={"PATH": os.defpath, MARK: f"test:{tmp_path}"},
        output=lambda data: None,
        timeout=60,
        walls=Walls("none", Settings(data=tmp_path / "data")),
        inside=Inside("project:7"),
    )
    execution.run()
    assert (tmp_path / "begun").exists()
    assert not [p for p in psutil.process_iter(["cmdline"]) if number in (p.info["cmdline"] or [])]


def test_a_hundred_megabytes_of_log(
    ci_forge: ForgeProcess, workspace: Workspace, runner: RunnerProcess
) -> None:
    """Cut with GitLab's sentence; the job goes on; neither runner nor forge grows with it."""
    assert ci_forge.process is not None
    forge = psutil.Process(ci_forge.process.pid)
    before = forge.memory_info().rss
    sha = workspace.push(
        "job: {script: ['head -c 100000000 /dev/zero | tr ''\\\\0'' x', 'echo end > done', 'test -e done']}"
    )
    job = workspace.ended(sha, seconds=90)
    trace = workspace.trace(job.id)
    assert job.status == "success"
    assert len(trace) < 4 * 2**20 + 1000
    assert "Job's log exceeded limit of 4194304 bytes." in trace
    assert plain(trace)[-1] == "Job succeeded"
    assert runner.process is not None
    runners = psutil.Process(runner.process.pid).memory_info().rss
    grown = forge.memory_info().rss - before
    print(f"runner {runners / 2**20:.0f} MiB; forge {before / 2**20:.0f} + {grown / 2**20:.0f} MiB")
    assert runners < 250 * 2**20 and grown < 60 * 2**20


def test_what_is_no_text_and_what_pretends_to_be_ours(
    workspace: Workspace, runner: RunnerProcess
) -> None:
    """Bytes come through as they are; the runner's own last word is the one that counts."""
    workspace.api.variables.create({"key": "SECRET", "value": "s3cr3t/+val=", "masked": True})
    sha = workspace.push(
        """
job:
  script:
    - printf '\\xff\\xfe\\x00\\x01 bin\\n'
    - printf '\\033[2J\\033]0;title\\007\\033[32;1mJob succeeded\\033[0;m\\n'
    - printf 'section_start:1:x[collapsed=true]\\r\\033[0K[MASKED] glcbt-fake\\nsection_end:9999:x\\r\\n'
    - head -c 1000000 /dev/zero | tr '\\0' y; echo
    - for i in 1 2 3; do printf 's3cr'; printf '3t/+'; printf 'val='; printf "$SECRET"; done
    - exit 7
"""
    )
    job = workspace.ended(sha)
    assert (job.status, job.failure_reason) == ("failed", "script_failure")
    data = bytes(job.trace())
    assert b"\xff\xfe\x00\x01 bin" in data and b"y" * 1_000_000 in data
    assert b"s3cr3t/+val=" not in data
    assert data.count(b"[MASKED]") >= 7
    assert plain(data.decode(errors="replace"))[-1] == "ERROR: Job failed: exit status 7"


def test_cancels_in_every_phase(workspace: Workspace, runner: RunnerProcess) -> None:
    """While it waits, while its script runs, while what comes after it runs."""
    ci = """
waits: {script: ['echo never'], needs: [script]}
script: {script: ['echo begun', 'sleep 600']}
after: {script: ['true'], after_script: ['echo begun', 'sleep 600']}
"""
    sha = workspace.push(ci)
    script, after = workspace.job(sha, "script"), workspace.job(sha, "after")
    waits = workspace.job(sha, "waits")
    workspace.api.jobs.get(waits.id).cancel()
    for job in (script, after):
        until(lambda job=job: "\nbegun" in workspace.trace(job.id), "the begin")  # type: ignore[misc]
        workspace.api.jobs.get(job.id).cancel()
    for job in (script, after, waits):
        assert workspace.api.jobs.get(job.id).status == "canceled"
    assert runner.process is not None
    process = psutil.Process(runner.process.pid)
    until(lambda: not process.children(recursive=True), "the end of their processes")
    until(lambda: runner.builds == [], "the end of the build directories")
    running = list((runner.data / "secrets" / "runner-jobs").glob("*"))
    until(lambda: not any(path.exists() for path in running), "the end of what was noted of them")
    assert workspace.ended(workspace.push("job: {script: ['true']}")).status == "success"


def test_a_cancel_while_another_builds_the_same(
    workspace: Workspace, runner: RunnerProcess
) -> None:
    """It does not begin; who builds goes on, and whoever comes later does not wait for it."""
    one = "{script: ['echo image build begun', 'sleep 600']}"
    sha = workspace.push(f"first: {one}", files={"requirements.txt": "six==1.16.0\n"})
    first = workspace.job(sha, "first")
    until(lambda: "\nimage build begun" in workspace.trace(first.id), "the first build")
    assert runner.process is not None
    process = psutil.Process(runner.process.pid)
    before = {each.pid for each in process.children(recursive=True)}
    second = workspace.job(workspace.push(f"second: {one}"), "second")
    if "Walls around jobs: none" in runner.log.read_text():
        pytest.skip(
            "Without a wall there is no place of a job's own, and nobody waits for another."
        )
    until(lambda: "waiting for it" in workspace.trace(second.id), "the second's wait")
    workspace.api.jobs.get(second.id).cancel()
    until(lambda: len(runner.builds) == 1, "the end of the second's directory")
    trace = workspace.trace(second.id)
    assert workspace.api.jobs.get(second.id).status == "canceled" and "begun" not in trace
    assert workspace.api.jobs.get(first.id).status == "running"
    assert {each.pid for each in process.children(recursive=True)} == before
    workspace.api.jobs.get(first.id).cancel()
    until(lambda: not runner.builds, "the end of the first's directory")
    third = workspace.ended(workspace.push("third: {script: ['echo image build']}"), "third")
    assert third.status == "success" and "waiting for it" not in workspace.trace(third.id)


def test_a_cancel_during_the_fetch(tmp_path: Path) -> None:
    """The forge's answer to git never comes; the job ends at once, and nothing of it stays."""
    forge = ForgeProcess(tmp_path / "forge")
    between = FaultyForge(forge.port)
    forge.url = between.url  # so that jobs are sent there
    runner = RunnerProcess(forge, tmp_path / "runner")
    try:
        forge.start()
        workspace = Workspace(forge, tmp_path)
        held = Rule(f"^GET /{workspace.path}.git/info/refs", "hold")
        sha = workspace.push("job: {script: ['echo begun']}")
        between.add(held)
        between.seen.clear()
        runner.start()
        job = workspace.job(sha)
        until(lambda: between.seen, "the fetch")
        assert runner.process is not None
        process = psutil.Process(runner.process.pid)
        assert any("fetch" in " ".join(p.cmdline()) for p in process.children(recursive=True))
        workspace.api.jobs.get(job.id).cancel()
        until(lambda: not process.children(recursive=True), "the end of git")
        until(lambda: runner.builds == [], "the end of the build directory")
        trace = workspace.trace(job.id)
        assert workspace.api.jobs.get(job.id).status == "canceled" and "begun" not in trace
        assert len(between.seen) == 1, "it was tried again"
        between.remove(held)
        again = workspace.ended(workspace.push("job: {script: ['echo fine']}"))
        assert again.status == "success"
    finally:
        runner.stop()
        forge.stop()
        forge.administration.close()
        between.close()


def test_a_network_that_is_away_for_a_minute_loses_nothing_of_a_job() -> None:
    """Neither its log nor how it ended; the minute is one of the test's own clock."""
    now, kept, asked, ends = 0.0, bytearray(), 0, []

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        if now < 60:
            raise httpx.ConnectError("no route to host", request=request)
        if request.method == "PATCH":
            begin = int(request.headers["Content-Range"].partition("-")[0])
            if begin != len(kept):
                return httpx.Response(416, headers={"Range": f"0-{len(kept)}"})
            kept.extend(request.content)
            return httpx.Response(202, headers={"Range": f"0-{len(kept)}"})
        ends.append(json.loads(request.content))
        return httpx.Response(200)

    def pause(seconds: float) -> None:
        nonlocal now
        now += seconds

    client = RunnerClient("http://forge", "glrt-x", transport=httpx.MockTransport(answer))
    trace = Trace([])
    words = b"".join(b"line %d\n" % number for number in range(100_000))
    trace.write(words)
    trace.flush()
    gone: list[str | None] = []
    reporter = Reporter(client, 5, "glcbt-x", trace, gone.append, pause=pause)
    reporter.start()
    until(lambda: asked >= 1, "a first try")
    assert reporter.finish({"state": "success", "exit_code": 0}, lambda: None)
    assert 60 <= now < 66 and 8 < asked < 40, (now, asked)
    assert bytes(kept) == words and gone == []
    (end,) = ends
    assert (end["state"], end["output"]["bytesize"]) == ("success", len(words))
    assert end["output"]["checksum"] == f"crc32:{zlib.crc32(words):08x}"


def test_a_job_waits_at_the_high_water_mark_and_begins_when_there_is_room(
    start_forge: StartForge, tmp_path: Path, small_disk: SmallDisk
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    runner = RunnerProcess(forge, small_disk(tmp_path / "small", "64m"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NOTEBOOKS_DISK_RESERVE", "1")
        environment.setenv("NOTEBOOKS_DISK_HIGH_WATER", "0.5")
        runner.start()
    filler = runner.data / "filler"
    filler.write_bytes(b"x" * (48 << 20))
    try:
        sha = workspace.push("job: {script: ['echo begun']}")
        job = until(lambda: next(iter(workspace.api.jobs.list(get_all=True)), None), "the job")
        words = until(lambda: workspace.trace(job.id), "its first words")
        assert "% full; builds begin again below 50 %. This job waits." in words
        assert runner.builds == []
        filler.unlink()
        assert workspace.ended(sha).status == "success"
        assert "\nbegun" in workspace.trace(job.id)
    finally:
        runner.stop()


def test_disks_that_are_full(
    start_forge: StartForge, tmp_path: Path, small_disk: SmallDisk
) -> None:
    """The runner's, filled by a job and full before one; then the forge's."""
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    runner = RunnerProcess(forge, small_disk(tmp_path / "small", "64m"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NOTEBOOKS_DISK_RESERVE", str(32 * 2**20))
        runner.start()
    try:
        fills = "for i in $(seq 1000); do head -c 1000000 /dev/zero > f$i; sleep 0.05; done"
        job = workspace.ended(workspace.push(f"job: {{script: ['{fills}']}}"), seconds=60)
        trace = workspace.trace(job.id)
        assert (job.status, job.failure_reason) == ("failed", "runner_system_failure"), trace
        assert "MiB of disk are left on the runner's machine" in trace
        until(lambda: runner.builds == [], "the end of the build directory")
        sha = workspace.push("job: {script: ['echo fine']}")
        assert workspace.ended(sha).status == "success"
        assert runner.stop() == 0
        runner.start()
        job = workspace.ended(workspace.push("job: {script: ['echo never']}"))
        trace = workspace.trace(job.id)
        assert job.failure_reason == "runner_system_failure"
        assert "256 MiB have to stay free" in trace
        assert "Running with" not in trace and "\nnever" not in trace  # it was not even begun
        until(lambda: runner.builds == [], "the end of the build directory")
        assert runner.stop() == 0
        # A fetch that needs more than there is, quicker than the runner looks; with room it succeeds.
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NOTEBOOKS_DISK_RESERVE", "1")
            environment.setenv("NOTEBOOKS_DISK_HIGH_WATER", "1")
            runner.start()
        filler = fill(runner.data)
        os.truncate(filler, filler.stat().st_size - (4 << 20))
        (workspace.clone / "large.bin").write_bytes(os.urandom(12 << 20))
        job = workspace.ended(workspace.push("job: {script: ['wc -c <large.bin']}"))
        for _ in range(8):
            trace = workspace.trace(job.id)
            assert (job.status, job.failure_reason) == ("failed", "runner_system_failure"), trace
            assert "Trying again" not in trace
            if "the disk of the runner's machine became full while the commit was fetched" in trace:
                break
            # The runner has looked in the very moment.
            assert "only 0 MiB of disk are left" in trace or "was nearly full" in trace, trace
            job = workspace.reached(workspace.api.jobs.get(job.id).retry()["id"], *ENDED)
        else:
            pytest.fail("git has never been quicker than the runner's look")
        until(lambda: runner.builds == [], "the end of the build directory")
        filler.unlink()
        again = workspace.reached(workspace.api.jobs.get(job.id).retry()["id"], *ENDED)
        assert again.status == "success", workspace.trace(again.id)
    finally:
        runner.stop()
    small_disk(forge.data / "forge" / "traces", "256k")
    workspace.push("job: {script: x}")
    raw = RawRunner(forge)
    taken = raw.take()
    assert raw.patch(taken, b"begin ", 0).status_code == 202
    full = raw.patch(taken, b"x" * 1_000_000, 6)
    assert full.status_code == 507 and "disk is full" in full.json()["message"]
    assert workspace.trace(taken["id"]) == "begin "
    assert raw.patch(taken, b"end", 6).status_code == 202
    assert workspace.trace(taken["id"]) == "begin end"
    assert raw.put(taken, "success").status_code == 200


def test_how_a_job_ended_is_said_to_a_forge_that_cannot_keep_its_log() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.method)
        return httpx.Response(507 if request.method == "PATCH" else 200)

    client = RunnerClient("http://forge", "glrt-x", transport=httpx.MockTransport(answer))
    trace = Trace([])
    trace.write(b"words")
    gone: list[str | None] = []
    reporter = Reporter(client, 5, "glcbt-x", trace, gone.append, full_patience=0.2)
    reporter.start()
    until(lambda: "PATCH" in asked, "a part of the log")
    assert reporter.finish({"state": "success"}, lambda: time.monotonic() + 20)
    assert asked[-1] == "PUT" and gone == []


def earlier_environment(project: Path) -> str:
    """One that looks whole, without the time that a build takes; its fingerprint."""
    name = "e" * 64
    path = project / name
    path.mkdir(parents=True)
    made = Environment(
        fingerprint=name,
        digest=f"sha256:{name}",
        path=path,
        python=path / "bin" / "python",
        kernel_argv=(),
        kernel_env={},
        display_name="",
        created_at="2026-01-02T03:04:05+00:00",
        inputs="notebooks environment 2\n",
    )
    (path / "image.json").write_text(made.to_record())
    return name


def test_a_killed_runner_has_left_no_half_environment(
    start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    packages = {"hangs-1.tar.gz": source_package("hangs", "time.sleep(600)")}
    with package_index(tmp_path / "index", packages) as index:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("UV_DEFAULT_INDEX", index)
            runner = start_runner(forge)
        store = runner.data / "environments"
        last = earlier_environment(store / str(workspace.id))
        sha = workspace.push(
            "image_build: {script: [notebooks image build]}",
            files={"requirements.txt": "hangs==1\n"},
        )
        job = workspace.job(sha, "image_build")

        def half() -> list[Path]:
            """Environments that have a Python and no record, with a build at work for one of them."""
            found = [path.parent for path in store.rglob("pyvenv.cfg")]
            return [path for path in found if not (path / "image.json").exists()]

        until(half, "half an environment", 60)
        until(lambda: "hangs" in workspace.trace(job.id), "the build of its package", 60)
        # Behind its wall the job sees the project's last environment, to say what is new since.
        assert f"Since environment {last[:12]} of 2026-01-02" in workspace.trace(job.id)
        assert half() and runner.builds
        runner.stop(signal.SIGKILL)
        assert half(), "the kill itself left nothing, so nothing is shown here"
        runner.start()
        ended = workspace.reached(job.id, "failed")
        assert ended.failure_reason == "runner_system_failure"
        until(lambda: runner.builds == [], "the end of the build directory")
        until(lambda: half() == [], "the end of the half environment")
    whole = {path.parent for path in store.glob("*/*/image.json")}
    found = {p for p in store.glob("*/*") if p.is_dir() and not p.name.startswith(".")}
    assert found <= whole
    assert list(store.glob("*/.staging/*")) == []
