"""The runner's side of GitLab's runner API over httpx; used by ``worker`` and ``reporter``.

Says what the forge answered and retries nothing. https://docs.gitlab.com/api/runners/
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import httpx

from notebooks_service.errors import ForgeUnavailable, NotebooksError

ENDED = frozenset({"canceled", "canceling", "failed", "success", "skipped"})
Verdict = Literal["accepted", "again", "range", "gone", "full"]


class RunnerRefused(NotebooksError):
    """The forge does not know this runner's token."""

    code = "runner_refused"
    status = 403
    message = "The forge does not know this runner. Register it again, or check its token file."


@dataclass(frozen=True)
class Answer:
    """What the forge said of a part of a log, or of a job's state.

    ``offset`` is how much of the log the forge has, if it said so; ``status`` the job's status there;
    ``interval`` the seconds that it wants between two parts.
    """

    verdict: Verdict
    offset: int | None = None
    status: str | None = None
    interval: float | None = None


def _interval(response: httpx.Response) -> float | None:
    try:
        value = float(response.headers.get("X-GitLab-Trace-Update-Interval", ""))
    except ValueError:
        return None
    return min(max(value, 0.2), 60.0)


class RunnerClient:
    """One runner at one forge. Threads may share it. ``token`` is the runner's own."""

    def __init__(
        self, url: str, token: str, *, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._token = token
        self._last_update: str | None = None
        self._http = httpx.Client(
            base_url=url.rstrip("/") + "/api/v4",
            timeout=httpx.Timeout(30, connect=5),
            transport=transport,
            follow_redirects=False,
            trust_env=False,
            headers={"User-Agent": f"notebooks-runner {version('notebooks-service')}"},
            limits=httpx.Limits(max_connections=100),
        )

    def close(self) -> None:
        self._http.close()

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise ForgeUnavailable(f"The forge does not answer ({type(error).__name__}).") from None

    def _info(self) -> dict[str, Any]:
        return {
            "name": "notebooks-runner",
            "version": version("notebooks-service"),
            "platform": platform.system().lower(),
            "architecture": platform.machine(),
            "executor": "shell",
            "shell": "bash",
            "features": {
                "variables": True,
                "masking": True,
                "raw_variables": True,
                "cancelable": True,
                "return_exit_code": True,
                "refspecs": True,
            },
        }

    def request_job(self) -> dict[str, Any] | None:
        """A job for us, or None. The forge may take a few seconds to say that there is none.

        Raises ``RunnerRefused`` and ``ForgeUnavailable``.
        """
        body = {"token": self._token, "info": self._info(), "last_update": self._last_update}
        response = self._send("POST", "/jobs/request", json=body)
        if response.status_code == 201:
            self._last_update = None
            try:
                job = response.json()
            except ValueError:
                raise ForgeUnavailable("The forge gave a job that is no JSON.") from None
            if not isinstance(job, dict):
                raise ForgeUnavailable("The forge gave a job that is no object.")
            return job
        if response.status_code == 204:
            self._last_update = response.headers.get("X-GitLab-Last-Update")
            return None
        if response.status_code in (401, 403):
            raise RunnerRefused()
        if response.status_code == 409:
            return None
        raise ForgeUnavailable(f"The forge answered {response.status_code} to a request for jobs.")

    def append_trace(self, job_id: int, token: str, data: bytes, offset: int) -> Answer:
        """Sends a part of the log that begins at ``offset``; an empty one only asks for news.

        Raises ``ForgeUnavailable`` if it is to be sent again later.
        """
        headers = {
            "JOB-TOKEN": token,
            "Content-Range": f"{offset}-{max(offset + len(data) - 1, offset)}",
            "Content-Type": "text/plain",
        }
        response = self._send("PATCH", f"/jobs/{job_id}/trace", content=data, headers=headers)
        known = re.fullmatch(r"0-(\d+)", response.headers.get("Range", ""))
        size = int(known[1]) if known else None
        status = response.headers.get("Job-Status")
        if response.status_code == 202:
            verdict: Verdict = "gone" if status in ENDED else "accepted"
            return Answer(verdict, size, status, _interval(response))
        if response.status_code == 416 and size is not None:
            return Answer("range", size, status, _interval(response))
        if response.status_code in (401, 403, 404):
            return Answer("gone", None, status)
        if response.status_code == 507:
            return Answer("full", None, status)
        raise ForgeUnavailable(f"The forge answered {response.status_code} to a part of a log.")

    def download_artifacts(self, job_id: int, token: str, target: Path, largest: int) -> bool:
        """Another job's archive into ``target``, with the running job's ``token``; False for none.

        Raises ``ForgeUnavailable`` if it is to be tried again.
        """
        try:
            with (
                self._http.stream(
                    "GET", f"/jobs/{job_id}/artifacts", headers={"JOB-TOKEN": token}
                ) as response,
                target.open("wb") as file,
            ):
                if response.status_code in (401, 403, 404):
                    return False
                if response.status_code != 200:
                    raise ForgeUnavailable(
                        f"The forge answered {response.status_code} to a request for artifacts."
                    )
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if file.tell() > largest:
                        return False
        except httpx.HTTPError as error:
            raise ForgeUnavailable(f"The forge does not answer ({type(error).__name__}).") from None
        return True

    def upload_artifacts(
        self,
        job_id: int,
        token: str,
        file: Path,
        name: str,
        expire_in: str | None,
        kind: str = "archive",
        form: str = "zip",
    ) -> int:
        """What a running job left; the forge's status code. Raises ``ForgeUnavailable``.

        ``kind`` is ``archive`` or a report's; ``form`` how it is packed: zip, gzip or raw.
        """
        query = {"artifact_type": kind, "artifact_format": form}
        if expire_in is not None:
            query["expire_in"] = expire_in
        with file.open("rb") as stream:
            response = self._send(
                "POST",
                f"/jobs/{job_id}/artifacts",
                params=query,
                headers={"JOB-TOKEN": token},
                files={"file": (name, stream, "application/octet-stream")},
                timeout=httpx.Timeout(300, connect=5),
            )
        if response.status_code >= 500:
            raise ForgeUnavailable(f"The forge answered {response.status_code} to artifacts.")
        return response.status_code

    def update_job(self, job_id: int, token: str, values: Mapping[str, Any]) -> Answer:
        """Says that the job runs or how it ended. Raises ``ForgeUnavailable``: again later."""
        body = json.dumps({"token": token, "info": self._info(), **values})
        response = self._send(
            "PUT", f"/jobs/{job_id}", content=body, headers={"Content-Type": "application/json"}
        )
        status = response.headers.get("Job-Status")
        if response.status_code == 200:
            gone = values.get("state") == "running" and status in ENDED
            return Answer("gone" if gone else "accepted", None, status, _interval(response))
        if response.status_code == 202:
            return Answer("again", None, status, _interval(response))
        if response.status_code in (401, 403, 404):
            return Answer("gone", None, status)
        if response.status_code == 412:
            # The forge lost a part of the log and wants all of it again.
            return Answer("range", 0, status, _interval(response))
        raise ForgeUnavailable(f"The forge answered {response.status_code} to a job's state.")
