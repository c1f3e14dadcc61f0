"""Artifacts between one job and the forge: what it is given before its script, what it leaves after.

Called by ``job``; the archives themselves are ``artifacts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from notebooks_service.errors import ForgeUnavailable, NotebooksError
from notebooks_service.runner import artifacts
from notebooks_service.runner.client import RunnerClient
from notebooks_service.runner.script import CYAN, RESET, YELLOW

T = TypeVar("T")
TRIES = 3


class ExchangeFailed(NotebooksError):
    """The job cannot go on, or has not left what it should, with the reason."""

    code = "artifacts"
    status = 500


class Exchange:
    """For one job. ``say`` writes to its log; ``pause`` waits, or raises if the job is ended."""

    def __init__(
        self,
        client: RunnerClient,
        job: Mapping[str, Any],
        variables: Mapping[str, str],
        places: Path,
        project: Path,
        say: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self._client = client
        self._job = job
        self._places = places
        self._project = project
        self._say = say
        self._pause = pause
        self._wanted = artifacts.wanted(job, variables)
        asked = any(one.untracked for one in self._wanted)
        self._tracked = artifacts.tracked(project) if asked else frozenset()

    def bring(self) -> None:
        """Puts in place what the jobs left that this one depends on. Raises ``ExchangeFailed``."""
        for entry in self._job.get("dependencies") or []:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
                continue
            number, token = entry["id"], str(entry.get("token") or self._job["token"])
            self._say(f"{CYAN}Downloading artifacts for {entry.get('name')} ({number})...{RESET}")
            file = self._places / "brought.zip"
            try:
                found = self._insist(
                    lambda number=number, token=token, file=file: self._client.download_artifacts(  # type: ignore[misc]
                        number, token, file, artifacts.MOST_BYTES
                    )
                )
                if found:
                    artifacts.unpack(file, self._project)
                else:
                    self._say(f"{YELLOW}WARNING: the forge has no artifacts of it{RESET}")
            except (NotebooksError, OSError) as error:
                raise ExchangeFailed(_sentence(error)) from None
            finally:
                file.unlink(missing_ok=True)

    def leave(self, *, failed: bool) -> None:
        """Takes what the job left to the forge. Raises ``ExchangeFailed`` if the forge has it not."""
        for entry in self._wanted:
            if entry.applies(failed=failed):
                self._leave(entry)

    def _leave(self, entry: artifacts.Wanted) -> None:
        what = "artifacts" if entry.kind == "archive" else f"the {entry.kind} report"
        self._say(f"{CYAN}Uploading {what}...{RESET}")
        file = self._places / "left"
        try:
            for note in artifacts.pack(self._project, entry, self._tracked, file):
                self._say(note)
            if not file.exists():
                return
            code = self._insist(
                lambda: self._client.upload_artifacts(
                    int(self._job["id"]),
                    str(self._job["token"]),
                    file,
                    entry.name + artifacts.SUFFIXES[entry.form],
                    entry.expire_in,
                    entry.kind,
                    entry.form,
                )
            )
        except (NotebooksError, OSError) as error:
            raise ExchangeFailed(_sentence(error)) from None
        finally:
            file.unlink(missing_ok=True)
        if code != 201:
            why = "they are too large" if code == 413 else f"the forge answered {code}"
            raise ExchangeFailed(f"Artifacts were not taken: {why}.")

    def _insist(self, call: Callable[[], T]) -> T:
        """``call``, three times if the forge is away."""
        for attempt in range(1, TRIES):
            try:
                return call()
            except ForgeUnavailable as error:
                self._say(f"{YELLOW}{error.message} Trying again in {attempt} s{RESET}")
                self._pause(attempt)
        return call()


def _sentence(error: NotebooksError | OSError) -> str:
    if isinstance(error, NotebooksError):
        return error.message
    return f"Artifacts: {error.strerror}."
