"""A forge that fails at every step of a launch, and one that is away while servers run.

One running stack with a real forge behind ``faulty_forge``. Every case is a project of its own, so
that all of them can fail at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from faulty_forge import FAULTS, FaultyForge, Rule
from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.platform.signin import signed_in
from stack_fixtures import Stack, free_ports, wait_for

pytestmark = pytest.mark.stack

SCOPES = ["read_user", "read_api", "read_repository", "write_repository", "read_registry"]
SETTINGS = {
    "NOTEBOOKS_FORGE_CLIENT_ID": "the-id",
    "NOTEBOOKS_FORGE_CLIENT_SECRET": "the-secret",
    "NOTEBOOKS_BUILD_ON_DEMAND": "false",
    "NOTEBOOKS_FORGE_TIMEOUT": "8",
    "NOTEBOOKS_IMAGE_WAIT": "6",
    "NOTEBOOKS_CLONE_WAIT": "20",
}
ORDER = ["access", "image", "clone", "starting", "ready"]
AWAY = "The forge does not answer at the moment."
BUSY = "The forge asks for fewer requests."


@dataclass(frozen=True)
class Step:
    """One thing that a launch asks of the forge, who asks it, and how its failure is told.

    ``within``: the step of the launch in which it fails; empty if the service refuses it itself.
    """

    name: str
    caller: str
    pattern: str
    code: str
    within: str = ""
    faults: tuple[str, ...] = FAULTS


STEPS = (
    Step("page", "service", r"^GET /api/v4/projects/{quoted}$", "forge_unavailable"),
    Step("access", "hub", r"^GET /api/v4/projects/{quoted}$", "forge_unavailable", "access"),
    Step(
        "commit",
        "hub",
        r"^GET /api/v4/projects/{id}/repository/commits/",
        "forge_unavailable",
        "access",
        ("types", "html"),
    ),
    Step(
        "registry",
        "hub",
        r"^GET /api/v4/projects/{id}/registry/repositories",
        "forge_unavailable",
        "image",
    ),
    Step(
        "jobs",
        "hub",
        r"^GET /api/v4/projects/{id}/pipelines",
        "forge_unavailable",
        "image",
        ("500", "types"),
    ),
    Step(
        "project",
        "service",
        r"^GET /api/v4/projects/{id}$",
        "clone_failed",
        "clone",
        ("429", "types"),
    ),
    Step("refs", "service", r"^GET /{path}\.git/info/refs", "clone_failed", "clone"),
    Step("pack", "service", r"^POST /{path}\.git/git-upload-pack", "clone_failed", "clone"),
)


@dataclass
class Broken:
    """The stack, its forge and what is between them."""

    stack: Stack
    forge: ForgeProcess
    proxy: FaultyForge
    source: Path
    sha: str
    owner: str
    projects: dict[str, int] = field(default_factory=dict)
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(
            timeout=120, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )
    )

    def project(self, name: str) -> str:
        path = f"{self.owner}/{name}"
        self.projects[path] = self.forge.project(self.source, path, self.owner)
        return path

    def api(self, method: str, path: str, person: str | None = None, **more: Any) -> httpx.Response:
        """As ``stack.api``, by one client: making hundreds takes longer than their requests."""
        headers = {"Authorization": f"Bearer {self.stack.token(person)}"}
        url = f"{self.stack.service_url}{path}"
        return self.client.request(method, url, headers=headers, **more)

    def post(self, path: str, person: str | None = None) -> httpx.Response:
        namespace, _, name = path.rpartition("/")
        body = {"namespace": namespace, "project": name, "commit_sha": self.sha}
        return self.api("POST", "servers", person, json=body)

    def watch(self, server: str, person: str | None = None) -> tuple[dict[str, Any], list[str]]:
        """Watch a launch to its end: the ``end`` event, and the steps that were told."""
        answer = self.api("GET", f"servers/{server}/events", person)
        assert answer.status_code == 200, answer.text
        end: dict[str, Any] = {}
        steps = []
        for event in answer.text.split("\n\n"):
            kind = next((x[7:] for x in event.split("\n") if x.startswith("event: ")), "")
            data = next((x[6:] for x in event.split("\n") if x.startswith("data: ")), "{}")
            if kind == "end":
                end = json.loads(data)
            elif kind == "step":
                steps.append(json.loads(data)["step"])
        return end, steps

    def launched(self, path: str, person: str | None = None) -> dict[str, Any]:
        """Launch and wait until the server runs."""
        answer = self.post(path, person)
        assert answer.status_code in (200, 201), answer.text
        end, _ = self.watch(answer.json()["name"], person)
        assert end["outcome"] == "ready", f"{end}\n{self.stack.said()}"
        server = self.api("GET", f"servers/{answer.json()['name']}", person).json()
        assert server["status"]["state"] == "running"
        return dict(server)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    base = tmp_path_factory.mktemp("broken")
    (sha,) = make_repository(base / "thing", {"README.md": "# Thing\n", "a b/ü.txt": "x\n" * 2000})
    forge = ForgeProcess(base / "forge")
    proxy = FaultyForge(forge.port)
    forge.url = proxy.url
    stack = Stack(base / "data", port=free_ports(), arguments=("--forge", proxy.url))
    try:
        forge.start()
        owner = forge.user()
        callback = f"{stack.hub_url}hub/oauth_callback"
        forge.administration.ensure_application(
            "Hub", callback, SCOPES, "the-id", "the-secret", True
        )
        stack.environment = {**SETTINGS, "NOTEBOOKS_OWNER": owner}
        stack.start()
        proxy.callers = lambda name: stack.part(name).pid
        signed_in(forge.administration, stack.running, owner).close()
        yield Broken(stack, forge, proxy, base / "thing", sha, owner)
    finally:
        stack.stop()
        for process in stack.processes():
            process.kill()
        forge.stop()
        forge.administration.close()
        proxy.close()


def hub_servers(broken: Broken) -> dict[str, Any]:
    token = (broken.stack.data / "secrets" / "service_token").read_text().strip()
    url = f"{broken.stack.hub_url}hub/api/users/{broken.owner}?include_stopped_servers=1"
    headers = {"Authorization": f"token {token}"}
    answer = httpx.get(url, headers=headers, trust_env=False, timeout=30).raise_for_status()
    return dict(answer.json()["servers"])


def fails_as_it_should(broken: Broken, step: Step, fault: str) -> str:
    """One case; an empty text, or what is wrong with it."""
    path = f"{broken.owner}/{step.name}-{fault}"
    values = {
        "quoted": path.replace("/", "%2F"),
        "id": broken.projects[path],
        "path": path,
    }
    rule = Rule(step.pattern.format(**values), fault, step.caller)
    broken.proxy.add(rule)
    answer = broken.post(path)
    if step.name == "page":
        error = answer.json()["error"]
        code, sentence = error["code"], error["message"]
        if answer.status_code != 503 or (fault == "429" and answer.headers["Retry-After"] != "1"):
            return f"{answer.status_code} {answer.headers}"
    else:
        if answer.status_code != 201:
            return f"{answer.status_code} {answer.text}"
        server = answer.json()["name"]
        end, steps = broken.watch(server)
        if end.get("outcome") != "failed" or steps[-1] != step.within:
            return f"ended with {end} after {steps}"
        code, sentence = end["failure"]["code"], end["failure"]["message"]
        told = broken.api("GET", f"servers/{server}").json()
        if (told["status"]["state"], told["status"]["message"]) != ("failed", sentence):
            return f"told as {told['status']}"
        directory = broken.stack.data / "servers" / broken.owner / server
        if directory.exists():
            return f"{directory} is left behind: {sorted(directory.rglob('*'))[:5]}"
    print(f"{step.name:9} {fault:6} {code:18} {sentence}")
    if code != step.code:
        return f"{code}: {sentence}"
    if not sentence.endswith(".") or "\n" in sentence or "Traceback" in sentence:
        return f"no sentence: {sentence}"
    if (fault == "429" and step.code == "forge_unavailable") != sentence.startswith(BUSY):
        return f"not what happened: {sentence}"

    broken.proxy.remove(rule)
    again = broken.post(path)
    if again.status_code != 201:
        return f"the next attempt: {again.status_code} {again.text}"
    name = again.json()["name"]

    def went_on() -> str:
        found = broken.api("GET", f"servers/{name}").json()
        if found["status"]["state"] in ("failed", "stopped"):
            return f"the next attempt: {found['status']}"
        at = [each["step"] for each in found["status"]["details"] if each["status"] == "executing"]
        further = ORDER[ORDER.index(step.within or "access") + 1 :]
        return "on" if (at and at[0] in further) or found["status"]["state"] == "running" else ""

    verdict = wait_for(went_on, 90, every=0.3)
    gone = broken.api("DELETE", f"servers/{name}")
    if gone.status_code != 204:
        return f"deleting it: {gone.status_code} {gone.text}"
    return "" if verdict == "on" else verdict


def test_every_fault_at_every_step(broken: Broken) -> None:
    cases = [(step, fault) for step in STEPS for fault in step.faults]
    cases.sort(key=lambda case: case[1] != "slow")  # those take their time while others run
    for step, fault in cases:
        broken.project(f"{step.name}-{fault}")
    broken.launched(broken.project("first"))  # the default environment is built once, here
    with ThreadPoolExecutor(12) as pool:
        verdicts = list(pool.map(lambda case: fails_as_it_should(broken, *case), cases))
    wrong = [
        f"{step.name} {fault}: {verdict}"
        for (step, fault), verdict in zip(cases, verdicts, strict=True)
        if verdict
    ]
    assert not wrong, "\n".join(wrong)
    # Every fault was one that a launch met.
    assert {seen.fault for seen in broken.proxy.seen} == set(FAULTS)
    # Nothing is left: one server, the first; no process, no directory, no journal of a cleanup.
    servers = hub_servers(broken)
    left = {
        str(each["state"]["notebooks"]["events"][-3:]): each["ready"] for each in servers.values()
    }
    assert list(left.values()) == [True], left
    folder = broken.stack.data / "servers" / broken.owner
    assert [each.name for each in folder.iterdir()] == list(servers)
    wait_for(lambda: not list((broken.stack.data / "run" / "cleanup").glob("*")), 20)
    homes = {process.environ().get("HOME") for process in broken.stack.processes()}
    inside = {home for home in homes if home and f"{broken.stack.data}/servers/" in home}
    assert inside == {str(folder / next(iter(servers)) / "home")}
