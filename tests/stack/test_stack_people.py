"""Two people on one platform: two servers, each with their own rights, for as long as the forge says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from test_stack_spawner import as_service

from forge_fixtures import make_repository
from stack_fixtures import NewStack, Stack, wait_for

pytestmark = pytest.mark.stack

# Always within the quarter of an hour in which a token is renewed.
SHORT = {"NOTEBOOKS_FORGE_TOKEN_LIFETIME": "880"}


def launch(stack: Stack, name: str, sha: str, project: str) -> dict[str, Any]:
    namespace, _, folder = project.rpartition("/")
    body = {"namespace": namespace, "project": folder, "commit_sha": sha}
    answer = stack.api("POST", "servers", name, json=body)
    assert answer.status_code in (200, 201), answer.text
    server = answer.json()["name"]

    def settled() -> dict[str, Any] | None:
        found: dict[str, Any] = stack.api("GET", f"servers/{server}", name).json()
        return found if found["status"]["state"] in ("running", "failed") else None

    found = wait_for(settled, 240, every=0.3)
    assert found["status"]["state"] == "running", f"{found}\n{stack.said()}"
    return found


def terminal(stack: Stack, name: str, server: str, command: str) -> str:
    """Run a command with exactly what a terminal of that server has: its environment and folder."""
    return stack.inside(name, server, "bash", "-c", command).stdout


def forge_token(stack: Stack, name: str) -> str:
    with as_service(stack) as hub:
        return str(hub.get(f"users/{name}").raise_for_status().json()["auth_state"]["access_token"])


def test_two_people_two_servers_each_with_their_rights(new_stack: NewStack, tmp_path: Path) -> None:
    source = tmp_path / ("ab" * 20)
    (sha,) = make_repository(source, {"README.md": "# Deep\n", "requirements.txt": "\n"})
    stack = new_stack(environment=SHORT)
    stack.start(make_and_commit(tmp_path / "plain"))
    project = f"lab/Rivers/nested/{source.name}"
    done = stack.command("forge", "import", str(source), "--as", project)
    assert done.returncode == 0, done.stderr
    for person, level in (("bob", "reporter"), ("carol", "developer")):
        stack.add_user(person)
        added = stack.command("forge", "member", "add", "lab/Rivers", person, level)
        assert added.returncode == 0, added.stderr
    stack.add_user("mallory")

    # Inherited members of a group may; somebody else gets the 404 of what is not there.
    servers = {name: launch(stack, name, sha, project)["name"] for name in (stack.owner, "bob")}
    assert (
        len({stack.api("GET", f"servers/{servers[name]}", name).json()["url"] for name in servers})
        == 2
    )
    again = stack.api(
        "POST", project_url(project, sha), "bob", headers={"Accept": "application/json"}
    )
    assert (again.status_code, again.json()["name"]) == (200, servers["bob"])
    assert list(stack.api("GET", "servers", "bob").json()["servers"]) == [servers["bob"]]
    hidden = stack.api("GET", project_url(project, sha), "mallory")
    missing = stack.api("GET", project_url("lab/no/such", sha), "mallory")
    assert (hidden.status_code, missing.status_code) == (404, 404)
    assert without_id(hidden) == without_id(missing)

    # Author from the forge; a push without the right shows the forge's own message, and loses nothing.
    change = "echo more >> README.md && git commit -qam 'More of it' && git log -1 --format=%an && git push"
    refused = terminal(stack, "bob", servers["bob"], change)
    assert "bob" in refused
    assert "You are not allowed to push code to this project" in refused
    assert "More of it" in terminal(stack, "bob", servers["bob"], "git log -1 --format=%s")

    # The forge token of the start is renewed; the old one is dead; git in the server goes on.
    before = forge_token(stack, "bob")
    stopped = stack.api("PATCH", f"servers/{servers['bob']}", "bob", json={"state": "hibernated"})
    assert stopped.status_code < 300
    wait_for(lambda: state(stack, "bob", servers["bob"]) == "stopped")
    launch(stack, "bob", sha, project)
    after = forge_token(stack, "bob")
    assert after != before
    old = httpx.get(
        f"{stack.forge_url}/api/v4/user",
        headers={"Authorization": f"Bearer {before}"},
        trust_env=False,
    )
    assert old.status_code == 401
    assert "HEAD" in terminal(stack, "bob", servers["bob"], "git fetch && git ls-remote origin")

    # A right that comes is there at the next push, without anybody signing in again.
    raised = stack.command("forge", "member", "add", project, "bob", "maintainer")
    assert raised.returncode == 0, raised.stderr
    pushed = terminal(stack, "bob", servers["bob"], "git push && git status --branch --porcelain")
    assert "## main...origin/main" in pushed, pushed


def make_and_commit(path: Path) -> Path:
    make_repository(path, {"README.md": "# Plain\n"})
    return path


def without_id(answer: httpx.Response) -> dict[str, Any]:
    """An error's body without the id of its request, which always differs."""
    error: dict[str, Any] = answer.json()["error"]
    del error["detail"]["request_id"]
    return error


def project_url(project: str, sha: str) -> str:
    return f"{project}/{sha}"


def state(stack: Stack, name: str, server: str) -> str:
    return str(stack.api("GET", f"servers/{server}", name).json()["status"]["state"])
