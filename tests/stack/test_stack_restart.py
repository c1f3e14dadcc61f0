"""People's servers when `up` itself is killed, restarted or stopped in the middle of a launch."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from forge_fixtures import make_repository
from stack_fixtures import NewStack, Stack, wait_for

pytestmark = pytest.mark.stack


def begin(stack: Stack, sha: str) -> str:
    body = {"namespace": stack.owner, "project": "plain", "commit_sha": sha}
    answer = stack.api("POST", "servers", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["name"])


def state(stack: Stack, name: str) -> str:
    server = stack.api("GET", f"servers/{name}").json()
    return str(server["status"]["state"])


def of_servers(stack: Stack) -> list[psutil.Process]:
    """What runs in the notebook servers of this platform."""
    inside = f"{stack.data.resolve()}/servers/"
    found = []
    for process in stack.processes():
        try:
            if process.environ().get("HOME", "").startswith(inside):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_servers_outlive_a_killed_up_and_end_with_the_next(
    new_stack: NewStack, tmp_path: Path
) -> None:
    # Two commits that ask for no packages, by files of which each is another environment.
    sha, unbuilt = make_repository(
        tmp_path / "plain",
        {"README.md": "# Plain\n", "requirements.txt": "\n"},
        {"requirements.txt": "# None\n"},
    )
    stack = new_stack().start(tmp_path / "plain")
    name = begin(stack, sha)
    wait_for(lambda: state(stack, name) in ("running", "failed"), 240, every=0.3)
    assert state(stack, name) == "running", stack.said()
    server = of_servers(stack)[0]
    parts = stack.parts()
    stack.stop(signal.SIGKILL)
    psutil.wait_procs(parts, timeout=20)
    assert server.is_running()

    stack.start()
    assert state(stack, name) == "running"
    assert server.is_running()
    page = stack.client().get(f"{stack.hub_url}user/{stack.owner}/{name}/lab")
    assert (page.status_code, "jupyter-config-data" in page.text) == (200, True)

    # It is no child of this `up`, and yet its end is its end.
    assert server not in psutil.Process(stack.running.pid).children(recursive=True)
    assert stack.stop() == 0
    assert stack.processes() == []

    # The next start knows that it is stopped, and the same request brings the same work back.
    stack.start()
    wait_for(lambda: state(stack, name) == "stopped", 60)

    # Stopped in the middle of a launch, while a job builds its environment: nothing is left of it.
    under_way = begin(stack, unbuilt)
    wait_for(lambda: waits_for_a_job(stack, under_way), 60)
    assert stack.stop() == 0
    assert stack.processes() == []
    stack.start()
    wait_for(lambda: state(stack, under_way) in ("stopped", "failed"), 60)
    assert of_servers(stack) == []

    # A backup that is made while it runs is the same platform in another place.
    place = Path("servers") / stack.owner / name / "work" / "plain" / "mine.txt"
    (stack.data / place).write_text("mine")
    file = tmp_path / "all.backup"
    made = stack.command("backup", str(file))
    assert made.returncode == 0, made.stderr
    assert stack.stop() == 0
    other = new_stack("other", port=stack.port)
    restored = other.command("restore", str(file))
    assert restored.returncode == 0, restored.stderr
    other.start()
    answer = other.api("PATCH", f"servers/{name}", json={"state": "running"})
    assert answer.status_code < 300, answer.text
    wait_for(lambda: state(other, name) in ("running", "failed"), 240, every=0.3)
    assert state(other, name) == "running", other.said()
    assert (other.data / place).read_text() == "mine"
    assert (
        other.inside(other.owner, name, "git", "status", "--short").stdout.strip() == "?? mine.txt"
    )


def waits_for_a_job(stack: Stack, name: str) -> bool:
    server = stack.api("GET", f"servers/{name}").json()
    assert server["status"]["state"] == "starting", server
    return any(
        "Waiting for the job" in (step["message"] or "") for step in server["status"]["details"]
    )
