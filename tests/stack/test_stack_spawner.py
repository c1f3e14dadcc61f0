"""Real servers of the whole stack: the hub killed beneath them, and secrets that must not be in them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from test_stack_launch import launch, shell

from stack_fixtures import Stack, wait_for

pytestmark = pytest.mark.stack


def server_of(stack: Stack, name: str, client: httpx.Client) -> dict[str, Any]:
    """The hub's own view with the record, by the service's token."""
    answer = client.get(f"users/{stack.owner}?include_stopped_servers=1").raise_for_status()
    return answer.json()["servers"][name]  # type: ignore[no-any-return]


def as_service(stack: Stack) -> httpx.Client:
    token = (stack.data / "secrets" / "service_token").read_text().strip()
    return httpx.Client(
        base_url=f"{stack.hub_url}hub/api/",
        headers={"Authorization": f"token {token}"},
        trust_env=False,
        timeout=30,
    )


def test_a_killed_hub_costs_no_server_and_no_kernel(stack: Stack) -> None:
    name = launch(stack, stack.commits()[0])["name"]
    base = f"{stack.hub_url}user/{stack.owner}/{name}/"
    headers = {"Authorization": f"token {stack.token()}"}
    with (
        httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as server,
        as_service(stack) as hub,
    ):
        specs = server.get("api/kernelspecs").raise_for_status().json()["kernelspecs"]
        assert list(specs) == ["python3"]
        assert str(stack.data.resolve()) in specs["python3"]["spec"]["argv"][0]
        kernel = server.post("api/kernels", json={"path": "nile"}).raise_for_status().json()["id"]
        before = server_of(stack, name, hub)["state"]["notebooks"]
        old = stack.part("hub")
        old.kill()
        # The server answers all the while: the proxy knows the way without the hub.
        assert server.get("api").status_code == 200
        assert psutil.Process(before["runtime"]["pid"]).is_running()
        wait_for(lambda: not old.is_running(), 30)

        def ready() -> bool:
            try:
                return bool(server_of(stack, name, hub)["ready"])
            except (httpx.HTTPError, KeyError):
                return False

        wait_for(ready, 90)
        assert server_of(stack, name, hub)["state"]["notebooks"] == before
        kernels = [found["id"] for found in server.get("api/kernels").raise_for_status().json()]
        assert kernel in kernels
        assert shell(stack, name, "git fetch && git status --porcelain") == ""
        assert stack.api("DELETE", f"servers/{name}?forced=true").status_code == 204
    wait_for(lambda: not psutil.pid_exists(before["runtime"]["pid"]))


def test_no_forge_token_is_anywhere_in_or_around_a_server(stack: Stack) -> None:
    name = launch(stack, stack.commits()[0])["name"]
    canary = f"canary-{uuid.uuid4().hex}"
    assert shell(stack, name, f"echo {canary} > ../{canary}; echo done") == "done"
    assert shell(stack, name, "git fetch && git ls-remote origin | head -1") != ""
    with as_service(stack) as hub:
        state = hub.get(f"users/{stack.owner}").raise_for_status().json()["auth_state"]
        record = server_of(stack, name, hub)
    secrets = [state["access_token"], state["refresh_token"]]
    assert all(secrets)
    folder = stack.data / "servers" / stack.owner / name
    places: dict[str, str] = {"record": str(record), "said": stack.said()}
    for process in stack.processes():
        if process.environ().get("NOTEBOOKS_SERVER_DIRECTORY") == str(folder.resolve()):
            places[f"environment of {process.pid}"] = str(process.environ())
        places[f"argv of {process.pid}"] = str(process.cmdline())
    assert sum(place.startswith("environment") for place in places) >= 1
    for path in (*folder.rglob("*"), *(stack.data / "logs").rglob("*")):
        if path.is_file() and not path.is_symlink():
            places[str(path)] = path.read_bytes().decode(errors="replace")
    assert any(canary in place for place in places), "the search looks where a server's files are"
    assert str(folder / "server.log") in places
    for place, text in places.items():
        for secret in secrets:
            assert secret not in text, f"a forge token lies in {Path(place).name}"
    assert stack.api("DELETE", f"servers/{name}?forced=true").status_code == 204


def test_the_hub_starts_no_server_that_is_not_of_a_commit(stack: Stack) -> None:
    """JupyterHub's own class would run it as the system's user of that name, whoever owns this machine."""
    for server, options in (("", {}), ("plain", {}), ("odd", {"image": "x"})):
        path = f"users/{stack.owner}/servers/{server}"
        answer = stack.hub_api("POST", path, json={"display_name": "x", "user_options": options})
        assert answer.status_code in (202, 403), answer.text
        if answer.status_code == 202:
            said = stack.hub_api("GET", f"{path}/progress").text
            assert "the servers of commits only" in said and '"ready": true' not in said
        stack.hub_api("DELETE", path, json={"remove": True})
