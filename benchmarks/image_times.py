"""How long a launch needs until its image is known, by what is there already; used by ``images.py``.

From the launch record of a real stack in ``local``, with the sample project: from the launch's first
event to the one that names the image. Four launches in turn on a fresh platform for each run:

* a build is needed: nobody has built anything, and no package was downloaded yet;
* the environment is there: another commit with the same requirements;
* the tag is there: the first commit once more, as a new server;
* one build per commit: what a service pays at *every* commit that builds each of them. Here it is
  a third commit with the same requirements after the environment was taken away; the packages are in
  the project's cache by then, so this is the most that such a service could hope for.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from launch import bearer, commits_by_requirements, notebooks_up, only_project, wait_until

from notebooks_service.images.build import remove_tree
from notebooks_service.platform.sample import build_sample

LONGEST = 900.0
NEEDED = "this: build needed, nothing downloaded yet"
ENVIRONMENT = "this: environment there"
TAG = "this: tag there"
EACH = "one build per commit, packages downloaded before"
IMAGE = "launch to image"


def image_times(runs: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of every run, by what was there."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        sample = build_sample(Path(folder, "nile"))
        first, second, third = max(commits_by_requirements(sample), key=len)[:3]
        for run in range(runs):
            data = Path(folder, f"data-{run}")
            with (
                notebooks_up(data, sample) as (url, token),
                httpx.Client(headers=bearer(token), timeout=60) as client,
            ):
                person = Person(client, f"{url}services/notebooks/", only_project(url, token))
                for name, commit, origin in (
                    (NEEDED, first, "built on demand"),
                    (ENVIRONMENT, second, "environment"),
                    (TAG, first, "commit"),
                ):
                    found[name].append(person.launch(commit, origin))
                forget(data / "environments")
                found[EACH].append(person.launch(third, "built on demand"))
            shutil.rmtree(data, ignore_errors=True)
            said = {name: round(values[-1], 2) for name, values in found.items()}
            print(f"run {run + 1} of {runs}: {said}", file=sys.stderr)
    return {name: {IMAGE: values} for name, values in found.items()}


class Person:
    """Launches commits of one project by the API, one after the other."""

    def __init__(self, client: httpx.Client, service: str, project: str) -> None:
        self._client, self._service = client, service
        self._namespace, _, self._name = project.rpartition("/")

    def launch(self, commit: str, origin: str) -> float:
        """Seconds until the image was known; the server is deleted. ``origin``: what it has to be."""
        body = {"namespace": self._namespace, "project": self._name, "commit_sha": commit}
        answer = self._client.post(f"{self._service}servers", json=body).raise_for_status()
        server = f"{self._service}servers/{answer.json()['name']}"
        steps, end = self._watch(f"{server}/events")
        assert end["outcome"] == "ready", end
        known = next(each for each in steps if "origin" in each["detail"])
        assert known["detail"]["origin"] == origin, known
        self._client.delete(server, params={"forced": "true"}).raise_for_status()
        wait_until(lambda: self._client.get(server).status_code == 404)
        return (moment(known) - moment(steps[0])).total_seconds()

    def _watch(self, url: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The steps of a launch, and its end."""
        answer = self._client.get(url, timeout=LONGEST).raise_for_status()
        steps: list[dict[str, Any]] = []
        end: dict[str, Any] = {}
        for event in answer.text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in event.splitlines() if ": " in line)
            if fields.get("event") == "step":
                steps.append(json.loads(fields["data"]))
            elif fields.get("event") == "end":
                end = json.loads(fields["data"])
        return steps, end


def moment(step: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(step["at"])


def forget(environments: Path) -> None:
    """Take all projects' environments and tags away, as if nobody had built them."""
    for project in environments.iterdir():
        if project.name.isdigit():
            remove_tree(project)
