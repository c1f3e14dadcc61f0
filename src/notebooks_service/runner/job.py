"""One job from its arrival to its reported end: directory, checkout, steps, log, result.

Started by ``worker`` in a thread of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from notebooks_service.errors import NoSpace, NotebooksError
from notebooks_service.images import publish
from notebooks_service.images.environments import EnvironmentStore, Place
from notebooks_service.runner import checkout, job_environment
from notebooks_service.runner.building import Building
from notebooks_service.runner.client import RunnerClient
from notebooks_service.runner.exchange import Exchange, ExchangeFailed
from notebooks_service.runner.executor import MARK, Executor, Outcome, Running
from notebooks_service.runner.files import remove_tree, safe_folder
from notebooks_service.runner.limits import DiskWatch, JobLimits
from notebooks_service.runner.reporter import Reporter
from notebooks_service.runner.script import CYAN, GREEN, RESET, YELLOW, bash_script
from notebooks_service.runner.trace import Trace
from notebooks_service.walls.view import Mount, reading, writing
from notebooks_service.walls.wall import Inside

log = logging.getLogger(__name__)

AFTER_SCRIPT_TIMEOUT = 300.0
FETCH_TRIES = 3
WAIT_FOR_ROOM = 1.0
"""Seconds between two looks whether a job may begin."""


@dataclass(frozen=True)
class Places:
    """Where the runner works: ``builds`` for directories of jobs, ``environments`` for images,
    ``running`` for what a killed runner's successor has to know, ``caches`` for what the builds of one
    project download; ``limits`` is what one job may take of it."""

    builds: Path
    environments: Path
    running: Path
    caches: Path
    limits: JobLimits = field(default_factory=JobLimits)


class JobFailed(Exception):
    """The job has ended without success; ``reason`` is GitLab's word for why."""

    def __init__(self, reason: str, sentence: str, exit_code: int | None = None) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.exit_code = exit_code


class JobRun:
    """``run`` does it all and never raises; ``end`` may be called from any thread."""

    def __init__(
        self,
        job: Mapping[str, Any],
        client: RunnerClient,
        places: Places,
        executor: Executor,
        building: Building,
        *,
        slot: int,
        mark: str,
        give_up: Callable[[], float | None] = lambda: None,
    ) -> None:
        self.id = int(job["id"])
        self._job = job
        self._places = places
        self._executor = executor
        self._building = building
        self._builds: tuple[Place, str] | None = None
        self._staging: publish.Staging | None = None
        self.slot = slot
        self._mark = f"{mark}:{self.id}:{secrets.token_hex(8)}"
        self._give_up = give_up
        token = str(job["token"])
        self._client = client
        self._secrets = job_environment.secrets(job)
        self._trace = Trace(self._secrets, places.limits.log)
        self._reporter = Reporter(client, self.id, token, self._trace, self._gone)
        self._lock = threading.Lock()
        self._execution: Running | None = None
        self._ended_by: str | None = None
        timeout = (job.get("runner_info") or {}).get("timeout")
        self._timeout = (
            float(timeout) if isinstance(timeout, (int, float)) and timeout > 0 else 3600
        )
        self._deadline = time.monotonic() + self._timeout
        self._root = places.builds / f"{self.id}-{secrets.token_hex(4)}"
        self._disk = DiskWatch(places.limits, places.builds, self._root)

    # Ends from outside

    def _gone(self, status: str | None) -> None:
        log.info("job %d: the forge says %s; ending it", self.id, status or "that it is gone")
        self._end("canceled")

    def end(self) -> None:
        """The runner stops: end the job and report it as failed."""
        self._end("stopped")

    def _end(self, by: str) -> None:
        with self._lock:
            if self._ended_by is None:
                self._ended_by = by
            execution = self._execution
        if execution is not None:
            execution.stop()

    # The job

    def run(self) -> bool:
        """Does the job. Whether the forge knows its end, or does not want to."""
        log.info("job %d: begun", self.id)
        self._reporter.start()
        result: dict[str, Any]
        try:
            self._do()
            self._trace.say(f"{GREEN}Job succeeded{RESET}")
            result = {"state": "success", "exit_code": 0}
        except JobFailed as failure:
            self._trace.error(str(failure))
            result = {"state": "failed", "failure_reason": failure.reason}
            if failure.exit_code is not None:
                result["exit_code"] = failure.exit_code
        except OSError as error:
            log.exception("job %d: the runner failed", self.id)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            self._trace.error(
                f"Job failed (system failure): {NoSpace.message if full else error.strerror}"
            )
            result = {"state": "failed", "failure_reason": "runner_system_failure"}
        except Exception as error:
            log.exception("job %d: the runner failed", self.id)
            self._trace.error(f"Job failed (system failure): {type(error).__name__}")
            result = {"state": "failed", "failure_reason": "runner_system_failure"}
        self._trace.flush()
        self._clear()
        reported = self._reporter.finish(result, self._give_up)
        log.info(
            "job %d: %s%s",
            self.id,
            result.get("failure_reason", "success"),
            "" if reported else " (not reported: the forge was away)",
        )
        return reported

    def _do(self) -> None:
        self._wait_for_room()
        project_path = str((self._job.get("job_info") or {}).get("project_full_path") or "")
        folder = safe_folder(project_path.rsplit("/", 1)[-1])
        project = self._root / "work" / folder
        home, temporary, files = (self._root / name for name in ("home", "tmp", "files"))
        self._root.mkdir(parents=True, mode=0o700)
        for directory in (project, home, temporary, files):
            directory.mkdir(parents=True, mode=0o700)
        self._places.environments.mkdir(parents=True, exist_ok=True)
        number = (self._job.get("job_info") or {}).get("project_id")
        self._project = number if isinstance(number, int) and number > 0 else 0
        self._inside = Inside(
            f"project:{self._project}", writing(project, home, temporary), temporary
        )
        self._trace.say(
            f"Running with notebooks-runner {version('notebooks-service')} on {platform.node()}"
        )
        given = job_environment.values(self._job)
        environment, notes = job_environment.build(
            self._job,
            project=project,
            home=home,
            temporary=temporary,
            builds=self._places.builds,
            environments=self._places.environments,
            slot=self.slot,
            files=files,
            limits=self._places.limits.variables,
        )
        for note in notes:
            self._trace.say(f"{YELLOW}{note}{RESET}")
        if given.get("GIT_STRATEGY") != "none":
            for path in (project, home, temporary):
                self._executor.own(path, self._inside.who)
            self._checkout(project, home, given)
        stage = self._stage(project, home) if self._executor.staged else ()
        for path in (project, home, temporary, files):
            self._executor.own(path, self._inside.who)
        self._inside = replace(self._inside, mounts=(*self._inside.mounts, *writing(files), *stage))
        exchange = Exchange(
            self._client, self._job, given, self._root, project, self._trace.say, self._pause
        )
        try:
            exchange.bring()
        except ExchangeFailed as error:
            raise JobFailed("runner_system_failure", error.message) from None
        try:
            self._script(project, environment)
        except JobFailed:
            if self._ended_by is None:
                self._leave(exchange, failed=True)
            raise
        self._leave(exchange, failed=False)
        if self._staging is not None:
            try:
                self._staging.take()
            except NotebooksError as error:
                raise JobFailed("script_failure", error.message) from None

    def _leave(self, exchange: Exchange, *, failed: bool) -> None:
        try:
            exchange.leave(failed=failed)
        except ExchangeFailed as error:
            if not failed:
                raise JobFailed("runner_system_failure", error.message) from None
            self._trace.say(f"{YELLOW}WARNING: {error.message}{RESET}")

    def _stage(self, project: Path, home: Path) -> tuple[Mount, ...]:
        """A place for the one environment that this commit's job may build, if it has one.

        Worked out before any code of the project runs: git has just written what is read here, and
        the index of packages and the Python that is looked for are the machine's, not the job's.
        """
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home)}
        store = EnvironmentStore(self._places.environments, environ=environ)
        sha = str((self._job.get("git_info") or {}).get("sha", ""))
        try:
            expected = publish.expect(store, self._project, project, sha)
        except NotebooksError as error:
            # The job says so itself if it is about images.
            log.info("job %d: no environment: %s", self.id, error.message)
            return ()
        if any("image build" in line for line in self._lines()):
            self._take_turn(expected)
        staging = publish.Staging(store, expected)
        staging.make()
        self._executor.own(staging.directory, self._inside.who)
        self._staging = staging
        cache = job_environment.cache_of(self._places.caches, self._project, self._job)
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._executor.own(cache, self._inside.who)
        return staging.mounts(cache)

    def _take_turn(self, expected: publish.Expected) -> None:
        """Wait until no other job builds the same, so that it is built once."""
        key = (expected.project_id, expected.fingerprint)
        told = False
        while not self._building.begin(*key):
            if not told:
                self._trace.say(
                    "Another build of the same environment is under way: waiting for it"
                )
                told = True
            self._pause(0.2)
            if self._left() <= 0:
                raise JobFailed("job_execution_timeout", "Job failed: execution took too long")
        self._builds = key

    def _lines(self) -> list[str]:
        return [
            line
            for _, commands, _, _ in job_environment.script_steps(self._job)
            for line in commands
        ]

    def _clear(self) -> None:
        """Leave nothing behind, on the disk or elsewhere."""
        self._executor.end(self._mark)
        remove_tree(self._root)
        if self._staging is not None:
            try:
                self._staging.remove()
            except OSError as error:
                log.warning("job %d: its build could not be removed: %s", self.id, error.strerror)
        if self._builds is not None:
            self._building.end(*self._builds)

    def _checkout(self, project: Path, home: Path, given: Mapping[str, str]) -> None:
        self._trace.say(f"{CYAN}Getting source from Git repository{RESET}")
        try:
            source = checkout.Source.from_job(self._job, given)
            commands = checkout.steps(source)
        except NotebooksError as error:
            raise JobFailed("runner_system_failure", error.message) from None
        environment = checkout.environment(source, home, {MARK: self._mark})
        words = checkout.Words(self._trace.write)
        for number, command in enumerate(commands):
            is_fetch = number == 2
            for attempt in range(1, FETCH_TRIES + 1):
                outcome = self._execute(command, project, environment, self._left(), words.write)
                if outcome.exit_code == 0:
                    break
                _raise_if_disk_full(words)
                if not is_fetch or attempt == FETCH_TRIES:
                    raise JobFailed(
                        "runner_system_failure",
                        "Job failed (system failure): the commit could not be fetched.",
                    )
                self._trace.say(f"{YELLOW}Trying again in {attempt} s{RESET}")
                self._pause(attempt)
        ref = str((self._job.get("git_info") or {}).get("ref", ""))
        self._trace.say(
            f"{GREEN}Checked out {source.sha[:8]} as detached HEAD (ref is {ref})...{RESET}"
        )
        # https://docs.gitlab.com/topics/git/lfs/#lfs-objects-in-cicd
        if given.get("GIT_LFS_SKIP_SMUDGE", "0") in ("", "0", "false"):
            self._large_files(project, environment)

    def _large_files(self, project: Path, environment: Mapping[str, str]) -> None:
        if self._execute(
            checkout.names_large_files(), project, environment, self._left()
        ).exit_code:
            return
        command = checkout.fetch_large_files()
        if command is None:
            self._trace.say(
                f"{YELLOW}git-lfs is not installed on the runner's machine: this commit's files in"
                f" Git LFS are pointers in this job.{RESET}"
            )
            return
        words = checkout.Words(self._trace.write)
        if self._execute(command, project, environment, self._left(), words.write).exit_code:
            _raise_if_disk_full(words)
            raise JobFailed(
                "runner_system_failure",
                "Job failed (system failure): the commit's large files could not be fetched.",
            )

    def _script(self, project: Path, environment: dict[str, str]) -> None:
        failure: JobFailed | None = None
        for name, commands, timeout, always in job_environment.script_steps(self._job):
            if not commands or (failure is not None and not always):
                continue
            after = name == "after_script"
            self._trace.say(
                f"{CYAN}{'Running after_script' if after else 'Executing step_script'}{RESET}"
            )
            status = "failed" if failure else "success"
            variables = {**environment, MARK: self._mark}
            if after:
                variables["CI_JOB_STATUS"] = status
            limit = AFTER_SCRIPT_TIMEOUT if after else min(timeout, self._left())
            try:
                self._step(name, commands, project, variables, limit)
            except JobFailed as error:
                if not after:
                    failure = error
                elif error.reason == "runner_system_failure":
                    raise
                else:
                    self._trace.say(
                        f"{YELLOW}WARNING: after_script failed, but job will continue{RESET}"
                    )
        if failure is not None:
            raise failure

    def _step(
        self,
        name: str,
        commands: Sequence[str],
        project: Path,
        environment: Mapping[str, str],
        limit: float,
    ) -> None:
        bash = shutil.which("bash")
        if bash is None:
            raise JobFailed(
                "runner_system_failure", "bash is not installed on the runner's machine."
            )
        file = self._root / f"{safe_folder(name)}.sh"
        try:
            file.write_text(bash_script(commands), errors="surrogateescape")
        except UnicodeEncodeError:
            raise JobFailed(
                "script_failure", "The script holds characters that are none."
            ) from None
        file.chmod(0o644)  # the directory above lets in nobody but us and, for this file, the job
        command = [bash, "--noprofile", "--norc", str(file)]
        before = self._inside
        self._inside = replace(before, mounts=(*before.mounts, *reading(file)))
        try:
            outcome = self._execute(command, project, environment, limit)
        finally:
            self._inside = before
        if outcome.exit_code != 0:
            raise JobFailed(
                "script_failure", f"Job failed: exit status {outcome.exit_code}", outcome.exit_code
            )

    def _execute(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        limit: float,
        output: Callable[[bytes], None] | None = None,
    ) -> Outcome:
        """Runs it. Raises ``JobFailed`` if somebody or the time ended it, not for its exit code."""
        execution = self._executor.execution(
            command,
            directory=directory,
            environment=environment,
            output=output or self._trace.write,
            timeout=limit,
            inside=self._inside,
            lack=self._disk.lack,
        )
        with self._lock:
            self._execution = execution
            ended_by = self._ended_by
        self._raise_if_ended(ended_by)
        try:
            outcome = execution.run()
        except OSError as error:
            raise JobFailed(
                "runner_system_failure", f"Job failed (system failure): {error.strerror}"
            ) from None
        self._raise_if_ended(self._ended_by)
        if outcome.cause == "disk":
            if self._disk.greedy is not None:
                raise JobFailed("script_failure", f"Job failed: {self._disk.greedy}")
            lack = self._disk.said or "the disk of the runner's machine was nearly full."
            raise JobFailed("runner_system_failure", f"Job failed (system failure): {lack}")
        if outcome.cause == "timeout":
            raise JobFailed(
                "job_execution_timeout",
                f"Job failed: execution took longer than {_clock(self._timeout)} seconds",
            )
        return outcome

    def _raise_if_ended(self, by: str | None) -> None:
        if by == "stopped":
            raise JobFailed(
                "runner_system_failure", "Job failed (system failure): the runner was stopped"
            )
        if by is not None:
            raise JobFailed("script_failure", "Job failed: canceled")

    def _wait_for_room(self) -> None:
        """A job does not begin beyond a high-water mark; on a disk that is nearly full it has failed."""
        said = False
        while True:
            if (lack := self._disk.full()) is not None:
                raise JobFailed("runner_system_failure", f"Job failed (system failure): {lack}")
            if not (why := self._disk.waits()):
                return
            if not said:
                self._trace.say(f"{YELLOW}{why} This job waits.{RESET}")
            said = True
            self._pause(WAIT_FOR_ROOM)
            if self._left() <= 0:
                raise JobFailed("job_execution_timeout", f"Job failed: it could not begin. {why}")

    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._ended_by is None:
            time.sleep(0.05)
        self._raise_if_ended(self._ended_by)


def _raise_if_disk_full(words: checkout.Words) -> None:
    """The next try would fill it again; and what was fetched by then is gone, so only git can say it."""
    if words.disk_is_full:
        raise JobFailed(
            "runner_system_failure",
            "Job failed (system failure): the disk of the runner's machine became full while the commit "
            "was fetched. Free some space, then retry the job.",
        )


def _clock(seconds: float) -> str:
    """As GitLab's runner writes a time-out: ``1h0m0s``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if minutes or hours else ""
    return f"{text}{rest}s"
