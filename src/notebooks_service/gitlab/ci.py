"""Pipelines and jobs of a project's CI, as one person sees them; ``forge.ci`` of ``gitlab/forge.py``."""

from __future__ import annotations

from notebooks_service.domain import Job, Project
from notebooks_service.errors import NotFound
from notebooks_service.gitlab import answers
from notebooks_service.gitlab.transport import Transport

CHILD_DEPTH = 3  # GitLab allows child pipelines two levels deep
MOST_PIPELINES = 200


class Ci:
    """What the forge says of pipelines and jobs. Raises what ``Forge`` does."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def newest_pipeline(self, project: Project, sha: str) -> int:
        """The id of the newest pipeline that was made for the commit; 0 if there is none."""
        path = f"/projects/{project.id}/pipelines"
        listed = self._transport.page(path, 1, 1, {"sha": sha}).items
        return max((answers.read(lambda data: int(data["id"]), row) for row in listed), default=0)

    def config_error(self, project: Project, sha: str) -> str:
        """What the forge has against the commit's CI configuration; empty if nothing. Untrusted text.

        https://docs.gitlab.com/api/pipelines/#get-a-single-pipeline (``yaml_errors``)
        """
        path = f"/projects/{project.id}/pipelines"
        try:
            listed = self._transport.page(path, 1, 20, {"sha": sha, "status": "failed"}).items
            for row in listed[:3]:
                number = answers.read(lambda data: int(data["id"]), row)
                answer = self._transport.get(f"{path}/{number}")
                found = answers.read(lambda data: data.get("yaml_errors"), answer)
                if found:
                    return str(found)
        except NotFound:
            pass
        return ""

    def jobs(self, project: Project, sha: str, name: str) -> list[Job]:
        """Every try of the job ``name`` in all pipelines and child pipelines of the commit.

        Retried tries included, newest (highest id) first.
        https://docs.gitlab.com/api/jobs/#list-all-jobs-for-a-pipeline
        """
        listed = self._transport.every(f"/projects/{project.id}/pipelines", {"sha": sha})
        waiting = [(answers.read(lambda data: int(data["id"]), row), 0) for row in listed]
        seen: set[int] = set()
        found: dict[int, Job] = {}
        while waiting and len(seen) < MOST_PIPELINES:
            pipeline, depth = waiting.pop()
            if pipeline in seen:
                continue
            seen.add(pipeline)
            base = f"/projects/{project.id}/pipelines/{pipeline}"
            for row in self._transport.every(f"{base}/jobs", {"include_retried": "true"}):
                job = answers.read(answers.job_from, row)
                if job.name == name:
                    found[job.id] = job
            if depth < CHILD_DEPTH:
                children = self._children(project, base)
                waiting += [(child, depth + 1) for child in children]
        return sorted(found.values(), key=lambda job: job.id, reverse=True)

    def _children(self, project: Project, pipeline_path: str) -> list[int]:
        """Pipelines of the same project that a pipeline's trigger jobs ("bridges") have started."""
        try:
            bridges = self._transport.every(f"{pipeline_path}/bridges")
        except NotFound:
            return []
        children = [
            answers.read(lambda row: answers.child_from(row, project.id), row) for row in bridges
        ]
        return [child for child in children if child is not None]

    def job(self, project: Project, job_id: int) -> Job:
        data = self._transport.get(f"/projects/{project.id}/jobs/{job_id}")
        return answers.read(answers.job_from, data)

    def trace(self, project: Project, job_id: int, offset: int = 0) -> bytes:
        """A job's log from byte ``offset`` on, at most 16 MiB of it; untrusted text."""
        return self._transport.tail(f"/projects/{project.id}/jobs/{job_id}/trace", offset)
