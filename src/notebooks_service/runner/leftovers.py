"""What a runner that was killed leaves behind, and how its successor clears it away.

Processes are found by a mark in their environment, directories by their place. So that the forge
learns at once that a job is lost, ids and tokens of running jobs are kept in files of mode 0600 below
``<data>/secrets``; a token is good only while its job runs.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from notebooks_service.runner.client import RunnerClient
from notebooks_service.runner.executor import sweep_all
from notebooks_service.runner.files import remove_tree
from notebooks_service.runner.script import RED, RESET

log = logging.getLogger(__name__)

SENTENCE = f"\n{RED}ERROR: Job failed (system failure): the runner was killed{RESET}\n"


class RunningJobs:
    """The files of running jobs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, job_id: int, token: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._directory / str(job_id)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump({"id": job_id, "token": token}, stream)

    def forget(self, job_id: int) -> None:
        (self._directory / str(job_id)).unlink(missing_ok=True)

    def report(self, client: RunnerClient) -> None:
        """Tells the forge of every job that ended with an earlier runner.

        Raises ``ForgeUnavailable`` if it is to be tried again.
        """
        for path in sorted(self._directory.glob("*")):
            try:
                noted = json.loads(path.read_text())
                job_id, token = int(noted["id"]), str(noted["token"])
            except (OSError, ValueError, KeyError, TypeError):
                path.unlink(missing_ok=True)
                continue
            data = SENTENCE.encode()
            answer = client.append_trace(job_id, token, data, 0)
            if answer.verdict == "range" and answer.offset:
                client.append_trace(job_id, token, data, answer.offset)
            values = {"state": "failed", "failure_reason": "runner_system_failure"}
            client.update_job(job_id, token, values)
            log.warning("job %d was lost with an earlier run; the forge knows", job_id)
            path.unlink(missing_ok=True)


def clear(builds: Path, mark: str) -> None:
    """Ends old processes and removes old build directories."""
    ended = sweep_all(mark + ":")
    if ended:
        log.warning("%d processes of an earlier run were still there", ended)
    builds.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in builds.iterdir():
        remove_tree(path)
