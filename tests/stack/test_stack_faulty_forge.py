"""A forge that fails at every step of a launch, and one that is away while servers run.

One running stack with a real forge behind ``faulty_forge``. Every case is a project of its own, so
that all of them can fail at the same time.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_stack_launch import execute
from test_stack_spawner import as_service

from faulty_forge import FAULTS, FaultyForge, Rule
from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.platform.signin import signed_in
from small_disk import fill
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
    "NOTEBOOKS_DISK_MARGIN": "4000000",  # the small disks have not much more
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
    small: list[str]
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


SMALL = ("hub", "service", "servers")
"""Places that are small disks of their own, where this machine lets us mount some."""


def mounted(directory: Path) -> bool:
    directory.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=96m,mode=0700", "tmpfs", str(directory)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    base = tmp_path_factory.mktemp("broken")
    (sha,) = make_repository(base / "thing", {"README.md": "# Thing\n", "a b/ü.txt": "x\n" * 2000})
    forge = ForgeProcess(base / "forge")
    proxy = FaultyForge(forge.port)
    forge.url = proxy.url
    stack = Stack(base / "data", port=free_ports(), arguments=("--forge", proxy.url))
    small: list[str] = []
    try:
        forge.start()
        owner = forge.user()
        callback = f"{stack.hub_url}hub/oauth_callback"
        forge.administration.ensure_application(
            "Hub", callback, SCOPES, "the-id", "the-secret", True
        )
        stack.environment = {**SETTINGS, "NOTEBOOKS_OWNER": owner}
        small = [place for place in SMALL if mounted(base / "data" / place)]
        stack.start()
        proxy.callers = lambda name: stack.part(name).pid
        signed_in(forge.administration, stack.running, owner).close()
        yield Broken(stack, forge, proxy, base / "thing", sha, owner, small)
    finally:
        stack.stop()
        for process in stack.processes():
            process.kill()
        forge.stop()
        forge.administration.close()
        proxy.close()
        for place in small:
            subprocess.run(["umount", "-l", str(base / "data" / place)], check=True)


def hub_servers(broken: Broken) -> dict[str, Any]:
    token = (broken.stack.data / "secrets" / "service_token").read_text().strip()
    url = f"{broken.stack.hub_url}hub/api/users/{broken.owner}?include_stopped_servers=1"
    headers = {"Authorization": f"token {token}"}
    answer = httpx.get(url, headers=headers, trust_env=False, timeout=30).raise_for_status()
    return {name: each for name, each in answer.json()["servers"].items() if name}


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


# -- a forge that is away, tokens, rights ----------------------------------------------------------


def sign_in(broken: Broken, person: str) -> None:
    signed_in(broken.forge.administration, broken.stack.running, person).close()


def auth_state(broken: Broken, person: str) -> dict[str, Any]:
    with as_service(broken.stack) as hub:
        return dict(hub.get(f"users/{person}").raise_for_status().json()["auth_state"])


def revoke(broken: Broken, person: str) -> None:
    """As GitLab's page of authorized applications does."""
    state = auth_state(broken, person)
    for name in ("access_token", "refresh_token"):
        form = {"client_id": "the-id", "client_secret": "the-secret", "token": state[name]}
        url = f"{broken.proxy.url}/oauth/revoke"
        assert httpx.post(url, data=form, trust_env=False, timeout=30).status_code == 200


def forge_api(broken: Broken, method: str, path: str, **more: Any) -> httpx.Response:
    """As the forge's administrator."""
    token = broken.forge.token(broken.forge.user(admin=True), "api")
    url = f"http://127.0.0.1:{broken.forge.port}/api/v4/{path}"
    headers = {"PRIVATE-TOKEN": token}
    return httpx.request(method, url, headers=headers, trust_env=False, timeout=30, **more)


def settled(broken: Broken, server: str, person: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = broken.api("GET", f"servers/{server}", person).json()
        return found if found["status"]["state"] not in ("starting", "stopping") else None

    return wait_for(ended, 90, every=0.3)


HELD = [step for step in STEPS if step.within]


def revoked_between(broken: Broken, step: Step, person: str, path: str) -> str:
    """A launch stands still in front of one request, whose token is revoked meanwhile."""
    values = {"quoted": path.replace("/", "%2F"), "id": broken.projects[path], "path": path}
    rule = Rule(step.pattern.format(**values), "hold", step.caller)
    broken.proxy.add(rule)
    answer = broken.post(path, person)
    if answer.status_code != 201:
        return f"{answer.status_code} {answer.text}"
    wait_for(lambda: any(re.search(rule.pattern, s.request) for s in broken.proxy.seen), 60)
    revoke(broken, person)
    broken.proxy.remove(rule)
    return str(answer.json()["name"])


def test_a_token_revoked_between_any_two_steps(broken: Broken) -> None:
    broken.proxy.seen.clear()
    cases = {step.name: (step, broken.forge.user(f"revoked-{step.name}")) for step in HELD}
    paths = {}
    for name, (_, person) in cases.items():
        paths[name] = broken.project(f"held-{name}")
        broken.forge.administration.add_member(paths[name], person, "developer")
        sign_in(broken, person)
    with ThreadPoolExecutor(len(cases)) as pool:
        waiting = {
            name: pool.submit(revoked_between, broken, step, person, paths[name])
            for name, (step, person) in cases.items()
        }
        servers = {name: each.result() for name, each in waiting.items()}
    for name, (step, person) in cases.items():
        found = settled(broken, servers[name], person)
        code = "clone_failed" if step.within == "clone" else "sign_in_expired"
        assert (found["status"]["state"], found["failure"]["code"]) == ("failed", code), (
            name,
            found,
        )
        said = found["status"]["message"]
        if step.name == "pack":  # git shows no words of an answer to a POST
            assert said == "The forge did not let you read this repository."
        else:
            assert "Your sign-in at the forge has expired or was revoked." in said
        assert not (broken.stack.data / "servers" / person / servers[name]).exists()
        # Said again, until the person has signed in again; then it goes on.
        refused = broken.post(paths[name], person)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "sign_in_expired")
        if name in ("access", "pack"):
            sign_in(broken, person)
            again = broken.post(paths[name], person)
            assert again.status_code == 201, again.text
            gone = broken.api("DELETE", f"servers/{servers[name]}", person)
            assert gone.status_code == 204, gone.text


def test_rights_that_are_taken_away(broken: Broken) -> None:
    bob = broken.forge.user("bob")
    path = broken.project("shared")
    number = broken.projects[path]
    broken.forge.administration.add_member(path, bob, "developer")
    sign_in(broken, bob)
    server = broken.launched(path, bob)["name"]
    number_of_bob = forge_api(broken, "GET", f"users?username={bob}").json()[0]["id"]
    work = "echo kept > kept.txt; git fetch 2>&1; git push 2>&1; cat kept.txt"

    def inside(command: str) -> str:
        return broken.stack.inside(bob, server, "bash", "-c", command).stdout

    assert inside(work).splitlines()[-1] == "kept"

    # Renamed: the same server, by its new address; git in it goes on.
    assert forge_api(broken, "PUT", f"projects/{number}", json={"path": "renamed"}).is_success
    new = f"{broken.owner}/renamed"
    assert "fatal" not in inside("git fetch")
    same = broken.post(new, bob)
    assert (same.status_code, same.json()["name"]) == (200, server), same.text

    # Removed from it: what runs keeps its files, git stops with a sentence, the next start is refused.
    member = f"projects/{number}/members/{number_of_bob}"
    assert forge_api(broken, "DELETE", member).is_success
    said = inside(work)
    assert "nothing that you may see" in said and said.splitlines()[-1] == "kept", said
    refused = broken.post(new, bob)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
    assert broken.api("PATCH", f"servers/{server}", bob, json={"state": "hibernated"}).is_success
    assert settled(broken, server, bob)["status"]["state"] == "stopped"
    resumed = broken.api("PATCH", f"servers/{server}", bob, json={"state": "running"})
    assert resumed.status_code == 200, resumed.text
    found = settled(broken, server, bob)
    assert (found["status"]["state"], found["failure"]["code"]) == ("failed", "not_found"), found
    kept = broken.stack.data / "servers" / bob / server / "work" / "shared" / "kept.txt"
    assert kept.read_text() == "kept\n"

    # Removed while the launch waits: it is not started.
    broken.forge.administration.add_member(new, bob, "developer")
    other = broken.project("waiting")
    broken.forge.administration.add_member(other, bob, "developer")
    broken.proxy.seen.clear()
    rule = Rule(f"^GET /api/v4/projects/{broken.projects[other]}/registry", "hold", "hub")
    broken.proxy.add(rule)
    name = broken.post(other, bob).json()["name"]
    wait_for(lambda: broken.proxy.seen, 30)
    member = f"projects/{broken.projects[other]}/members/{number_of_bob}"
    assert forge_api(broken, "DELETE", member).is_success
    broken.proxy.remove(rule)
    found = settled(broken, name, bob)
    assert (found["status"]["state"], found["failure"]["code"]) == ("failed", "not_found"), found
    assert not (broken.stack.data / "servers" / bob / name).exists()

    # Blocked at the forge: every answer says that it is the account.
    assert forge_api(broken, "POST", f"users/{number_of_bob}/block").is_success
    refused = broken.post(new, bob)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden"), (
        refused.text
    )
    assert "your account" in refused.json()["error"]["message"]
    assert forge_api(broken, "POST", f"users/{number_of_bob}/unblock").is_success

    # Deleted: the server's work is still there to be had, and can be thrown away.
    assert forge_api(broken, "DELETE", f"projects/{number}").is_success
    assert broken.post(new, bob).status_code == 404
    listed = broken.api("GET", "servers", bob).json()["servers"]
    assert server in listed
    assert kept.read_text() == "kept\n"
    assert broken.api("DELETE", f"servers/{server}", bob).status_code == 204


def test_five_requests_with_an_expiring_token_are_one_refresh(broken: Broken) -> None:
    """At the real token endpoint. Tokens of 902 seconds are due when two have passed."""
    path = broken.project("five")
    eve = broken.forge.user("eve")
    broken.forge.administration.add_member(path, eve, "developer")
    broken.forge.stop()
    broken.forge.token_lifetime = 902
    broken.forge.start()
    try:
        sign_in(broken, eve)
        before = auth_state(broken, eve)
        wait_for(lambda: time.time() > before["token_response"]["created_at"] + 3, 10)
        broken.proxy.requests.clear()
        with ThreadPoolExecutor(5) as pool:
            servers = [f"p{broken.projects[path]}-{'abcde'[n] * 16}" for n in range(5)]
            # Refused for their names, which is asked after the token.
            list(pool.map(lambda server: start_at_hub(broken, eve, path, server), servers))
        wait_for(lambda: broken.proxy.requests.count("POST /oauth/token") >= 1, 20)
        asked = [each for each in broken.proxy.requests if each.startswith("GET /api/v4/projects/")]
        assert len(asked) >= 5
        assert broken.proxy.requests.count("POST /oauth/token") == 1
        after = auth_state(broken, eve)
        assert after["access_token"] != before["access_token"]
        assert after["refresh_token"] != before["refresh_token"]

        # Refused for good: the old pair is dead, a revoked one too.
        form = {"client_id": "the-id", "client_secret": "the-secret"}
        form |= {"grant_type": "refresh_token", "refresh_token": before["refresh_token"]}
        again = httpx.post(f"{broken.proxy.url}/oauth/token", data=form, trust_env=False)
        assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
        revoke(broken, eve)
        assert start_at_hub(broken, eve, path, servers[0]) == "sign_in_expired"
        refused = broken.post(path, eve)
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "sign_in_expired")
        sign_in(broken, eve)
        assert broken.post(path, eve).status_code == 201
    finally:
        broken.forge.stop()
        broken.forge.token_lifetime = None
        broken.forge.start()


def start_at_hub(broken: Broken, person: str, path: str, server: str) -> str:
    """Ask the hub itself, past the service; the code with which the launch failed."""
    options = {"notebooks": {"project": path, "commit": broken.sha, "branch": "main"}}
    answer = broken.stack.hub_api(
        "POST",
        f"users/{person}/servers/{server}",
        person,
        json={"display_name": "x", "user_options": options},
    )
    assert answer.status_code in (201, 202), answer.text
    return str((settled(broken, server, person)["failure"] or {}).get("code"))


def test_servers_run_on_while_the_forge_is_away_for_a_minute(broken: Broken) -> None:
    """A real minute: nobody listens where the forge was."""
    path = broken.project("steady")
    server = broken.launched(path)["name"]
    stack, owner = broken.stack, broken.owner
    lab = f"{stack.hub_url}user/{owner}/{server}/"
    with (
        closing(signed_in(broken.forge.administration, stack.running, owner)) as browser,
        httpx.Client(
            headers={"Authorization": f"token {stack.token()}"}, trust_env=False, timeout=20
        ) as script,
    ):
        assert browser.get(f"{lab}lab").status_code == 200
        broken.proxy.go_away()
        try:
            end = time.monotonic() + 60
            rounds, slowest = 0, 0.0
            while time.monotonic() < end:
                rounds += 1
                for client, url, wanted in (
                    (browser, f"{lab}lab", 200),
                    (script, f"{lab}api/contents/steady", 200),
                    (browser, f"{stack.hub_url}hub/home", 200),
                    (script, f"{stack.hub_url}hub/api/user", 200),
                    (browser, f"{stack.service_url}servers", 200),
                    (script, f"{stack.service_url}servers/{server}", 200),
                    (script, f"{stack.service_url}health", 200),
                    (browser, f"{stack.service_url}{path}/{broken.sha}", 503),
                    (script, f"{stack.service_url}projects", 503),
                ):
                    began = time.monotonic()
                    answer = client.get(url)
                    slowest = max(slowest, time.monotonic() - began)
                    assert answer.status_code == wanted, f"{url}: {answer.status_code}"
                    if wanted == 503:
                        assert AWAY in answer.text, answer.text[:500]
                        assert answer.headers["Retry-After"]
                if rounds % 5 == 1:
                    assert execute(stack, server, "print(6 * 7)", "steady") == "42"
                time.sleep(1)
            assert rounds >= 5 and slowest < 15, (rounds, slowest)
            said = stack.inside(owner, server, "git", "fetch").stdout
            assert AWAY in said, said
        finally:
            broken.proxy.come_back()
        assert "fatal" not in stack.inside(owner, server, "git", "fetch").stdout
        assert browser.get(f"{lab}lab").status_code == 200
        assert script.get(f"{stack.service_url}projects").status_code == 200


# -- a disk that is full -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "codes"),
    [
        ("hub", {"no_space"}),
        ("servers", {"no_space"}),
        # A call with a token asks nothing of the service's own database.
        ("service", set()),
    ],
)
def test_a_disk_that_is_full(broken: Broken, place: str, codes: set[str]) -> None:
    """One sentence; what runs goes on; with space again the same request succeeds."""
    if place not in broken.small:
        pytest.skip("Only root can mount the small disks that this test fills.")
    running = broken.launched(broken.project(f"running-{place}"))["name"]
    path = broken.project(f"full-{place}")
    filler = fill(broken.stack.data / place)
    name = ""
    try:
        answer = broken.post(path)
        if answer.status_code in (200, 201):
            name = answer.json()["name"]
            found = settled(broken, name, broken.owner)
            failure = found["failure"] or {}
            code, sentence = failure.get("code"), found["status"]["message"]
        else:
            error = answer.json()["error"]
            code, sentence = error["code"], error["message"]
        print(f"{place:8} {answer.status_code} {code} {sentence}")
        if codes:
            assert code in codes, answer.text
            assert sentence.startswith("The disk is full."), sentence
        else:
            assert code is None and found["status"]["state"] == "running", found
        base = f"{broken.stack.hub_url}user/{broken.owner}/{running}/"
        headers = {"Authorization": f"token {broken.stack.token()}"}
        assert broken.client.get(f"{base}api", headers=headers).status_code == 200
        told = broken.api("GET", f"servers/{running}")
        if place == "hub":  # which notes in its database when a token was last used
            assert told.status_code in (200, 507), told.text
        else:
            assert told.json()["status"]["state"] == "running"
    finally:
        filler.unlink()
    again = broken.launched(path)
    for each in (again["name"], running):
        assert broken.api("DELETE", f"servers/{each}").status_code == 204


def test_a_hub_whose_disk_fills_in_the_middle(broken: Broken) -> None:
    """A launch ends with that sentence where it is, and a stop is one; later both are as they should be."""
    if "hub" not in broken.small:
        pytest.skip("Only root can mount the small disks that this test fills.")
    running = broken.launched(broken.project("running-middle"))["name"]
    path = broken.project("full-middle")
    broken.proxy.seen.clear()
    rule = Rule(f"^GET /api/v4/projects/{broken.projects[path]}/registry", "hold", "hub")
    broken.proxy.add(rule)
    name = broken.post(path).json()["name"]
    wait_for(lambda: broken.proxy.seen, 30)
    filler = fill(broken.stack.data / "hub")
    try:
        broken.proxy.remove(rule)
        directory = broken.stack.data / "servers" / broken.owner / name
        said = []

        def told() -> bool:
            """Asked meanwhile, everything that is no answer is that sentence."""
            answer = broken.api("GET", f"servers/{name}")
            said.append(answer)
            if answer.status_code == 507:
                assert answer.json()["error"]["message"].startswith("The disk is full."), (
                    answer.text
                )
            else:
                assert answer.status_code == 200, answer.text
            log = (broken.stack.data / "logs" / "hub.log").read_text()
            return f"Not starting {broken.owner}'s server {name}" in log

        wait_for(told, 90, every=0.3)
        assert said and not directory.exists()
        stopped = broken.api("PATCH", f"servers/{running}", json={"state": "hibernated"})
        if not stopped.is_success:
            assert stopped.status_code == 507, stopped.text
            assert stopped.json()["error"]["message"].startswith("The disk is full."), stopped.text
    finally:
        filler.unlink()
    log = (broken.stack.data / "logs" / "hub.log").read_text()
    (line,) = re.findall(f"Not starting {broken.owner}'s server {name}: (.*)", log)
    assert "no_space" in line and "The disk is full." in line, line
    assert broken.api("PATCH", f"servers/{running}", json={"state": "hibernated"}).is_success
    assert settled(broken, running, broken.owner)["status"]["state"] == "stopped"
    homes = {process.environ().get("HOME", "") for process in broken.stack.processes()}
    assert not [home for home in homes if f"/{running}/" in home]
    work = broken.stack.data / "servers" / broken.owner / running / "work"
    assert (work / "running-middle" / "README.md").is_file()
    assert broken.launched(path)["name"] == name
    for each in (name, running):
        assert broken.api("DELETE", f"servers/{each}").status_code == 204


def test_an_agreement_that_cannot_be_kept_is_asked_for_again(broken: Broken) -> None:
    """The page's form, with the service's disk full: it starts what was agreed to, this once."""
    if "service" not in broken.small:
        pytest.skip("Only root can mount the small disks that this test fills.")
    path = broken.project("agreed")
    url = f"{broken.stack.service_url}{path}/{broken.sha}?branch=main"
    stack = broken.stack
    with closing(signed_in(broken.forge.administration, stack.running, broken.owner)) as browser:
        page = browser.get(url)
        token = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
        assert token is not None, page.text
        headers = {"Origin": stack.hub_url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}

        def click() -> httpx.Response:
            form = {"csrf_token": token.group(1)}
            return browser.post(url, data=form, headers=headers, follow_redirects=False)

        before = set(hub_servers(broken))
        filler = fill(stack.data / "service")
        try:
            answer = click()
            assert answer.status_code == 303, answer.text
        finally:
            filler.unlink()
        (name,) = set(hub_servers(broken)) - before
        assert settled(broken, name, broken.owner)["status"]["state"] == "running"
        assert broken.api("DELETE", f"servers/{name}").status_code == 204
        assert trusted(broken, path) == []
        assert click().status_code == 303
        assert trusted(broken, path) == [(broken.owner,)]
        assert broken.api("DELETE", f"servers/{name}").status_code == 204


def trusted(broken: Broken, path: str) -> list[tuple[str]]:
    """Who is remembered by the service to have agreed to this project."""
    (file,) = (broken.stack.data / "service").glob("*.sqlite*")
    with closing(sqlite3.connect(file)) as database:
        asked = "SELECT username FROM trust WHERE project_id = ?"
        return database.execute(asked, [broken.projects[path]]).fetchall()
