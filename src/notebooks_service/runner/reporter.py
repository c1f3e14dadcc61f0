"""Sends one job's log while it runs and its end afterwards, however often the forge is away.

Each job has its own; it also learns here that its job was cancelled.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from notebooks_service.errors import ForgeUnavailable
from notebooks_service.runner.client import Answer, RunnerClient
from notebooks_service.runner.trace import Trace

log = logging.getLogger(__name__)

PART = 256 * 1024
TOUCH_EVERY = 2.0
"""Seconds of silence after which an empty part asks whether the job was cancelled."""
LONGEST_PAUSE = 5.0
FULL_PATIENCE = 60.0
"""Seconds after a job's end that a forge with a full disk has to take the rest of its log."""


class _ForgeFull(ForgeUnavailable):
    """The forge cannot keep a part of a log."""


class Reporter:
    """``gone`` is called once when the forge wants the job to end; its status there is given.

    ``pause`` waits so many seconds before the end of a job is told again."""

    def __init__(
        self,
        client: RunnerClient,
        job_id: int,
        token: str,
        trace: Trace,
        gone: Callable[[str | None], None],
        full_patience: float = FULL_PATIENCE,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._job_id = job_id
        self._token = token
        self._trace = trace
        self._gone = gone
        self._full_patience = full_patience
        self._pause = pause
        self._sent = 0
        self._interval = 0.3
        self._is_gone = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"trace-{job_id}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        pause = self._interval
        last = time.monotonic()
        while not self._stop.wait(pause):
            try:
                if len(self._trace) > self._sent or time.monotonic() - last > TOUCH_EVERY:
                    self._send_part()
                    last = time.monotonic()
                pause = self._interval
            except ForgeUnavailable as error:
                pause = min(max(pause, 0.5) * 2, LONGEST_PAUSE)
                log.info("job %d: %s Sending again in %.1f s.", self._job_id, error.message, pause)
            except Exception:
                # Whatever it is, the job's end is still reported.
                log.exception("job %d: a part of the log could not be sent", self._job_id)
                pause = LONGEST_PAUSE
            if self._is_gone:
                return

    def _send_part(self) -> None:
        part = self._trace.part(self._sent, PART)
        answer = self._client.append_trace(self._job_id, self._token, part, self._sent)
        self._take(answer, self._sent + len(part))

    def _take(self, answer: Answer, expected: int) -> None:
        if answer.interval is not None:
            self._interval = answer.interval
        if answer.verdict == "full":
            raise _ForgeFull("The forge's disk is full.")
        if answer.verdict == "gone":
            self._mark_gone(answer.status)
        elif answer.offset is not None and answer.offset <= len(self._trace):
            self._sent = answer.offset
        else:
            # More than we ever wrote: someone else has this job's token. Only our part counts.
            self._sent = expected

    def _mark_gone(self, status: str | None) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._gone(status)

    def finish(self, values: dict[str, Any], deadline: Callable[[], float | None]) -> bool:
        """Sends the rest of the log and ``values`` (state, failure_reason, exit_code).

        Tries until the forge has them, says that it does not want them, or ``deadline`` (a time of
        ``time.monotonic``; it may come nearer meanwhile) is over, and only then gives False.
        """
        self._stop.set()
        self._thread.join()
        pause = 0.5
        full_until = time.monotonic() + self._full_patience
        while not self._is_gone:
            try:
                while self._sent < len(self._trace) and not self._is_gone:
                    before = self._sent
                    try:
                        self._send_part()
                    except _ForgeFull:
                        if time.monotonic() < full_until:
                            raise
                        # How the job ended is worth more than the rest of its log.
                        log.warning("job %d: the rest of its log is lost", self._job_id)
                        break
                    if self._sent < before and before - self._sent > PART * 64:
                        raise ForgeUnavailable()
                if self._is_gone:
                    break
                whole = self._trace.part(0, len(self._trace))
                output = {"checksum": f"crc32:{zlib.crc32(whole):08x}", "bytesize": len(whole)}
                answer = self._client.update_job(
                    self._job_id, self._token, {**values, "output": output}
                )
                if answer.verdict == "accepted":
                    return True
                if answer.verdict == "gone":
                    return True
                if answer.verdict == "range":
                    self._sent = 0
            except ForgeUnavailable as error:
                log.warning("job %d: %s Its end is not reported yet.", self._job_id, error.message)
            end = deadline()
            if end is not None and time.monotonic() + pause > end:
                return False
            self._pause(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        return True
