"""What is killed in the middle of a launch into a container: the page says what happened, and the next click works.

The tests run in ``test_stack_docker``, on its platform.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_stack_launch import execute

from forge_fixtures import make_repository
from stack_fixtures import wait_for

BIG = 160 * 2**20
"""Bytes that do not compress: a clone, or a pull, that takes seconds."""


@pytest.fixture(scope="module")
def big(scene: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What to launch: a commit whose clone takes long enough to be in the middle of it."""
    work = tmp_path_factory.mktemp("big") / "big"
    work.mkdir()
    (work / "data.bin").write_bytes(os.urandom(BIG))
    [sha] = make_repository(work, {"README.md": "# Big\n"})
    name = f"{scene.stack.owner}/big"
    done = scene.stack.command("forge", "import", str(work), "--as", name)
    assert done.returncode == 0, done.stderr
    yield {"namespace": scene.stack.owner, "project": "big", "commit_sha": sha}


def begin(scene: Any, asked: dict[str, str]) -> str:
    """Click once all answer; the server's name."""
    wait_for(lambda: healthy(scene), 90)
    answer = scene.stack.api("POST", "servers", json=asked)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["name"])


def healthy(scene: Any) -> bool:
    """Whether service, hub and forge answer; what `health` says may be some seconds old."""
    try:
        return bool(scene.stack.api("GET", "projects").status_code == 200)
    except httpx.HTTPError:
        return False


def begun(scene: Any, asked: dict[str, str], step: str) -> str:
    """A launch that is at this step; its server's name."""
    name = begin(scene, asked)

    def at() -> bool:
        details = scene.state(name)["details"]
        return any(each["step"] == step and each["status"] == "executing" for each in details)

    wait_for(at, 60, every=0.02)
    return name


def volumes(scene: Any) -> set[str]:
    said = scene.engine.run(
        "volume", "ls", "-q", scene.ours, "--filter", "label=notebooks.server"
    ).stdout
    return set(said.split())


def killed(scene: Any, part: str) -> None:
    process = scene.stack.part(part)
    process.send_signal(signal.SIGKILL)

    def again() -> bool:
        try:
            return bool(scene.stack.part(part).pid != process.pid)
        except AssertionError:
            return False

    wait_for(again, 60)


def engine_restarted(scene: Any) -> None:
    scene.engine.stop()
    scene.engine.start()


def answers(scene: Any, name: str) -> dict[str, Any] | None:
    """The server, once service, hub and forge answer again."""
    answer = scene.stack.api("GET", f"servers/{name}")
    # A proxy that was just started has a page for what it knows no way to yet.
    if answer.status_code >= 500 or "json" not in answer.headers["content-type"]:
        return None
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found if found["status"]["state"] in ("running", "failed", "stopped") else None


def settled_again(scene: Any, name: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        try:
            return answers(scene, name)
        except httpx.HTTPError:  # it is not up again
            return None

    return wait_for(found, 120, every=0.2)


CASES: list[tuple[str, Callable[[Any], None], str]] = [
    ("hub", lambda scene: killed(scene, "hub"), "restart"),
    ("service", lambda scene: killed(scene, "service"), "try again"),
    ("forge", lambda scene: killed(scene, "forge"), "try again"),
    ("engine", engine_restarted, "engine"),
]


@pytest.mark.parametrize(
    ("happens", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_launch_in_whose_middle_something_dies(
    scene: Any, big: dict[str, str], happens: Callable[[Any], None], says: str
) -> None:
    before = volumes(scene)
    name = begun(scene, big, "clone")
    happens(scene)
    server = settled_again(scene, name)
    if server["status"]["state"] != "running":
        # In words, and not as an exception's name.
        assert says in server["status"]["message"].lower(), server["status"]
        begin(scene, big)
        server = scene.settled(name)
    assert server["status"]["state"] == "running", (server, scene.stack.said())
    assert execute(
        scene.stack, name, "import os; print(os.path.getsize('data.bin'))", "big"
    ) == str(BIG)
    mine = [
        scene.ours,
        "--filter",
        f"label=notebooks.server={name}",
        "--format",
        '{{.Label "notebooks.kind"}}',
    ]
    left = scene.engine.run("ps", "-a", *mine).stdout.split()
    assert left == ["server"]
    # Those of deleted servers are in the trash.
    assert len(volumes(scene) - before) == 1
    assert scene.stack.api("DELETE", f"servers/{name}?forced=true").status_code == 204


def test_a_registry_that_dies_while_an_image_is_pulled(scene: Any, tmp_path: Path) -> None:
    project = f"{scene.stack.owner}/heavy"
    [sha] = make_repository(tmp_path / "heavy", {"README.md": "# Heavy\n"})
    done = scene.stack.command("forge", "import", str(tmp_path / "heavy"), "--as", project)
    assert done.returncode == 0, done.stderr
    context = tmp_path / "image"
    context.mkdir()
    (context / "data.bin").write_bytes(os.urandom(BIG))
    (context / "Dockerfile").write_text("FROM notebooks-init\nCOPY data.bin /data.bin\n")
    name = f"{scene.registry}/{project}:{sha}"
    scene.engine.run("build", "--quiet", "--network=none", "--tag", name, str(context))
    scene.docker("push", "--quiet", name)
    scene.engine.run("rmi", "--force", name)
    asked = {"namespace": scene.stack.owner, "project": "heavy", "commit_sha": sha}
    server = begin(scene, asked)
    wait_for(lambda: " MiB." in scene.state(server)["message"], 60, every=0.02)
    killed(scene, "registry")
    found = settled_again(scene, server)
    if found["status"]["state"] != "running":
        assert "image" in found["status"]["message"].lower(), found["status"]
        begin(scene, asked)
        found = scene.settled(server)
    assert (found["status"]["state"], found["image"]) == ("running", name), found
    assert scene.stack.api("DELETE", f"servers/{server}?forced=true").status_code == 204
