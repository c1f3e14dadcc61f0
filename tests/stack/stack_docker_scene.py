"""One platform with ``--runtime docker`` on an engine of its own, a project whose commit has an image, two people.

For the tests of ``test_stack_docker``, and those that it brings from files of their own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import stack_docker_mounts as mounts
import stack_docker_outside as outside
from test_stack_launch import settled

from docker_fixtures import Engine
from forge_fixtures import make_repository, run_git
from stack_fixtures import Stack, wait_for

ATTACK = Path(__file__).with_name("stack_docker_attack.py").read_text()
DOCKERFILE = """\
FROM {base}
USER 0
RUN mkdir -p /opt/parts && echo 'VALUE = 42' > /opt/parts/special.py && id -u > /made-by
ENV PYTHONPATH=/opt/parts
USER 1000
"""
CI = """\
image_build:
  script:
    - notebooks image build
attack:
  script:
    - python3 attack.py "$(cat targets.json)" > result.json
    - env | grep -i docker || true
    - 'echo "RESULT $(cat result.json)"'
"""
MEMORY = 700 * 2**20
CHOSEN = 600 * 2**20
GPU = "GPU-0a1b2c3d"


@dataclass
class Scene:
    """One platform on an engine of its own, a project whose commit has an image, two people."""

    stack: Stack
    engine: Engine
    work: Path
    shas: list[str] = field(default_factory=list)
    token: str = ""
    site: str = ""

    @property
    def registry(self) -> str:
        ports = json.loads((self.stack.data / "ports.json").read_text())
        return f"127.0.0.1:{ports['registry']}"

    @property
    def ours(self) -> str:
        """What lists of the engine are asked for: another platform may be on it."""
        instance = (self.stack.data / "docker/instance").read_text().strip()
        return f"--filter=label=notebooks.instance={instance}"

    @property
    def project(self) -> str:
        return f"{self.stack.owner}/parts"

    def push(self, **files: str) -> str:
        """A commit with these files, pushed to the forge; its sha."""
        [sha] = make_repository(
            self.work, {name.replace("__", "."): text for name, text in files.items()}
        )
        url = self.stack.forge_url.replace("://", f"://{self.stack.owner}:{self.token}@")
        run_git("push", "--quiet", f"{url}/{self.project}.git", "main", cwd=self.work)
        return sha

    def job(self, name: str, sha: str) -> dict[str, Any]:
        """The job of this commit, once it has ended."""

        def ended() -> dict[str, Any] | None:
            rows = self.forge(f"pipelines?sha={sha}")
            for pipeline in rows:
                for job in self.forge(f"pipelines/{pipeline['id']}/jobs"):
                    if job["name"] == name and job["status"] in ("success", "failed", "canceled"):
                        found: dict[str, Any] = job
                        return found
            return None

        return wait_for(ended, 240, every=0.5)

    def forge(self, path: str) -> Any:
        import httpx

        answer = httpx.get(
            f"{self.stack.forge_url}/api/v4/projects/{self.project.replace('/', '%2F')}/{path}",
            headers={"PRIVATE-TOKEN": self.token},
            trust_env=False,
        )
        answer.raise_for_status()
        return answer.text if path.endswith("trace") else answer.json()

    def docker(self, *command: str, said: str = "") -> None:
        """The docker command, as the owner who is signed in at the registry."""
        subprocess.run(
            ["docker", "--host", self.engine.host, *command], input=said, text=True, check=True,
            capture_output=True, env={**os.environ, "HOME": str(self.stack.data.parent)},
        )  # fmt: skip

    def launch(self, sha: str, user: str | None = None, **chosen: Any) -> dict[str, Any]:
        namespace, project = self.project.split("/")
        body = {"namespace": namespace, "project": project, "commit_sha": sha}
        if chosen:
            body["serverOptions"] = chosen
        answer = self.stack.api("POST", "servers", user, json=body)
        assert answer.status_code in (200, 201), answer.text
        return self.settled(str(answer.json()["name"]), user)

    def settled(self, name: str, user: str | None = None) -> dict[str, Any]:
        if user is None:
            return settled(self.stack, name)

        def ended() -> dict[str, Any] | None:
            server: dict[str, Any] = self.stack.api("GET", f"servers/{name}", user).json()
            return server if server["status"]["state"] in ("running", "failed") else None

        return wait_for(ended, 240, every=0.3)

    def events(self, name: str) -> list[dict[str, Any]]:
        """What the page of a server that runs is told of its launch."""
        text = self.stack.api("GET", f"servers/{name}/events").text
        found = re.findall(r"^event: step\ndata: (.*)$", text, re.MULTILINE)
        return [json.loads(each) for each in found]

    def state(self, name: str, user: str | None = None) -> dict[str, Any]:
        found: dict[str, Any] = self.stack.api("GET", f"servers/{name}", user).json()["status"]
        return found

    def container(self, name: str, user: str | None = None) -> str:
        """The id of the container of somebody's server: two people's servers may have one name."""
        labels = {"kind": "server", "server": name, "user": user or self.stack.owner}
        wanted = [f"--filter=label=notebooks.{key}={value}" for key, value in labels.items()]
        found = self.engine.run("ps", "-q", self.ours, *wanted).stdout.split()
        assert len(found) == 1, found
        return found[0]

    def inside(self, name: str, *command: str, user: str | None = None) -> str:
        """What a terminal of the server would print."""
        done = self.engine.run("exec", "--workdir", "/work/work/parts", self.container(name, user), *command, check=False)  # fmt: skip
        return done.stdout + done.stderr

    def attack(self, name: str, targets: dict[str, Any], user: str) -> dict[str, Any]:
        said = self.inside(name, "python3", "-c", ATTACK, json.dumps(targets), user=user)
        found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def scene(
    docker_engine: Engine, tmp_path_factory: pytest.TempPathFactory, outside_site: str
) -> Iterator[Scene]:
    place = tmp_path_factory.mktemp("docker")
    environment = {
        "NOTEBOOKS_ALLOWED_EGRESS": outside.setting(outside_site),
        **docker_engine.environment,
        **mounts.environment(place),
        "NOTEBOOKS_SERVER_MEMORY": str(MEMORY),
        "NOTEBOOKS_SERVER_MEMORY_MOST": str(2 * MEMORY),
        "NOTEBOOKS_SERVER_CPU_MOST": "4",
        "NOTEBOOKS_GPUS": json.dumps([GPU]),
        "NOTEBOOKS_SERVER_GPU_MOST": "2",
        "NOTEBOOKS_ALLOWANCES": json.dumps([{"people": ["bob"], "cpu": 1}]),
    }
    stack = Stack(place / "data", arguments=("--runtime", "docker"), environment=environment)
    try:
        make_repository(place / "parts", {"README.md": "# Parts\n"})
        stack.start(place / "parts")
        scene = Scene(stack, docker_engine, place / "parts", site=outside_site)
        administration = stack.administration()
        try:
            scopes = [
                "api",
                "read_repository",
                "write_repository",
                "read_registry",
                "write_registry",
            ]
            scene.token = administration.personal_token(stack.owner, "tests", scopes)
        finally:
            administration.close()
        base = f"{scene.registry}/{scene.project}:base"
        scene.docker(
            "login", "-u", stack.owner, "--password-stdin", scene.registry, said=scene.token
        )
        docker_engine.run("tag", "notebooks-init", base)
        scene.docker("push", "--quiet", base)
        # What the engine pulls later is what came out of the job.
        docker_engine.run("rmi", base)
        targets = {
            "connect": [
                [docker_engine.address(1), int(json.loads((stack.data / "ports.json").read_text())["hub"])],
                [docker_engine.address(2), 8001], ["169.254.169.254", 80], ["127.0.0.1", stack.port],
            ],
            "resolve": ["debian.org"],
            "see": ["/var/run/docker.sock", "/run/docker.sock", "/run/notebooks", str(stack.data / "secrets")],
            "fetch": ["http://127.0.0.1:3128/"],
        }  # fmt: skip
        scene.shas.append(
            scene.push(
                Dockerfile=DOCKERFILE.format(base=base),
                **{
                    "__gitlab-ci__yml": CI,
                    "attack__py": ATTACK,
                    "targets__json": json.dumps(targets),
                },
            )
        )
        yield scene
        scene.stack.stop()
    finally:
        stack.stop()
