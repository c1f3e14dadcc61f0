"""The runner itself: asks for jobs while it has room, runs each in a thread, ends them when told to.

Started by ``__main__``; one worker for one data directory.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

from notebooks_service.errors import NotebooksError
from notebooks_service.images import publish
from notebooks_service.runner.building import Building
from notebooks_service.runner.client import RunnerClient
from notebooks_service.runner.executor import Executor
from notebooks_service.runner.job import JobRun, Places
from notebooks_service.runner.leftovers import RunningJobs, clear
from notebooks_service.runner.limits import JobLimits

log = logging.getLogger(__name__)

LONGEST_PAUSE = 5.0
SHORT_ANSWER = 0.5
"""A forge that says "no job" faster than this is not waiting for one: then we do."""

STOP_SECONDS = 8.0


class Worker:
    """``run`` blocks until ``stop``."""

    def __init__(
        self, client: RunnerClient, places: Places, executor: Executor, *, concurrent: int = 2
    ) -> None:
        self._client = client
        self._places = places
        self._executor = executor
        self._building = Building()
        self._free = threading.Semaphore(concurrent)
        self._concurrent = concurrent
        self._lock = threading.Lock()
        self._jobs: dict[int, tuple[JobRun, threading.Thread]] = {}
        self._stopping = threading.Event()
        self._stop_by: float | None = None
        self._mark = str(places.builds)
        self._running = RunningJobs(places.running)

    def stop(self) -> None:
        """End all jobs, report them as failed, return from ``run``. From any thread or signal."""
        self._stop_by = time.monotonic() + STOP_SECONDS
        self._stopping.set()

    def run(self) -> None:
        # First what still runs, then the directories that it writes to.
        self._executor.clear()
        clear(self._places.builds, self._mark)
        publish.clear(self._places.environments)
        # A request for jobs may wait at the forge; being told to stop must not.
        asking = threading.Thread(target=self._ask, name="ask", daemon=True)
        asking.start()
        self._stopping.wait()
        self._end_all()
        asking.join(timeout=max((self._stop_by or 0.0) - time.monotonic(), 0.1))
        self._end_all()

    def _ask(self) -> None:
        pause = 0.0
        while not self._stopping.wait(pause):
            try:
                self._running.report(self._client)
                break
            except NotebooksError as error:
                pause = min(max(pause, 0.5) * 2, LONGEST_PAUSE)
                log.warning("%s Asking again in %.0f s.", error.message, pause)
        pause = 0.0
        while not self._stopping.wait(pause):
            if not self._free.acquire(timeout=0.2):
                pause = 0.0
                continue
            began = time.monotonic()
            job: dict[str, Any] | None = None
            try:
                job = self._client.request_job()
                quick = time.monotonic() - began < SHORT_ANSWER
                pause = SHORT_ANSWER if job is None and quick else 0.0
            except NotebooksError as error:
                pause = min(max(pause, 0.5) * 2, LONGEST_PAUSE)
                log.warning("%s Asking again in %.0f s.", error.message, pause)
            except Exception:
                # Whatever it is, the next request may go well.
                log.exception("asking for a job failed")
                pause = LONGEST_PAUSE
            if job is None:
                self._free.release()
            else:
                self._begin(job)

    def _begin(self, body: dict[str, Any]) -> None:
        with self._lock:
            used = {run.slot for run, _ in self._jobs.values()}
        slot = next(n for n in range(self._concurrent + 1) if n not in used)
        try:
            run = JobRun(
                body,
                self._client,
                self._places,
                self._executor,
                self._building,
                slot=slot,
                mark=self._mark,
                give_up=lambda: self._stop_by,
            )
        except (KeyError, TypeError, ValueError):
            log.error("the forge gave a job without id or token")
            self._free.release()
            return
        try:
            self._running.note(run.id, str(body["token"]))
        except OSError as error:
            log.warning("job %d is not noted for a successor: %s", run.id, error.strerror)
        thread = threading.Thread(target=self._run, args=(run,), name=f"job-{run.id}")
        with self._lock:
            self._jobs[run.id] = (run, thread)
        thread.start()
        if self._stopping.is_set():
            run.end()

    def _run(self, run: JobRun) -> None:
        try:
            if run.run() or not self._stopping.is_set():
                self._running.forget(run.id)
        finally:
            with self._lock:
                self._jobs.pop(run.id, None)
            self._free.release()

    def _end_all(self) -> None:
        with self._lock:
            jobs = list(self._jobs.values())
        for run, _ in jobs:
            run.end()
        for _, thread in jobs:
            thread.join()


def prepare_places(
    data: Path, environments: Path | None, limits: JobLimits | None = None
) -> Places:
    """The directories below ``data``; builds are 0700."""
    builds = data / "runner" / "builds"
    builds.mkdir(parents=True, exist_ok=True, mode=0o700)
    builds.chmod(0o700)
    return Places(
        builds=builds,
        environments=environments or data / "environments",
        running=data / "secrets" / "runner-jobs",
        caches=data / "runner" / "caches",
        limits=limits or JobLimits(),
    )
