"""Data in servers, with a real engine: what was chosen is there, read-only unless the setting says otherwise;
nobody has what they may not have, by whatever way they ask. ``test_stack_docker.py`` runs it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stack_fixtures import wait_for

# Tests with an engine run as root, whose projects these are.
GROUP = "root"


def environment(place: Path) -> dict[str, str]:
    """The setting, and the directories that it names, but one."""
    for name in ("numbers", "shared"):
        directory = place / "mounts" / name
        directory.mkdir(parents=True)
        (directory / "a.txt").write_text(f"{name}\n")
    (place / "mounts/shared").chmod(0o777)
    mounts = [
        {"name": "numbers", "path": str(place / "mounts/numbers"), "groups": [GROUP]},
        {
            "name": "shared",
            "path": str(place / "mounts/shared"),
            "projects": [f"{GROUP}/parts"],
            "read_only": False,
        },
        {"name": "gone", "path": str(place / "mounts/gone"), "groups": [GROUP]},
        {"name": "elsewhere", "path": str(place / "mounts/numbers"), "groups": ["else"]},
    ]
    return {"NOTEBOOKS_MOUNTS": json.dumps(mounts)}


def start(scene: Any, *names: str, user: str | None = None) -> Any:
    namespace, project = scene.project.split("/")
    body = {"namespace": namespace, "project": project, "commit_sha": scene.shas[0]}
    return scene.stack.api("POST", "servers", user, json={**body, "mounts": list(names)})


def stop(scene: Any, name: str) -> None:
    scene.stack.api("PATCH", f"servers/{name}", json={"state": "hibernated"})
    wait_for(lambda: scene.state(name)["state"] in ("stopped", "failed"))


def test_data_is_there_for_whom_it_is_allowed(scene: Any) -> None:
    place = scene.stack.data.parent / "mounts"
    name = scene.launch(scene.shas[0])["name"]
    assert "No such file" in scene.inside(name, "ls", "/data")
    stop(scene, name)

    answer = start(scene, "numbers", "shared")
    assert answer.status_code in (200, 201), answer.text
    server = scene.settled(name)
    assert (server["status"]["state"], server["mounts"]) == ("running", ["numbers", "shared"])
    assert scene.inside(name, "cat", "/data/numbers/a.txt", "/data/shared/a.txt").split() == [
        "numbers",
        "shared",
    ]
    said = scene.inside(
        name, "sh", "-c", "echo x > /data/numbers/a.txt; echo y > /data/shared/b.txt"
    )
    assert "Read-only file system" in said
    assert (place / "numbers/a.txt").read_text() == "numbers\n"
    assert (place / "shared/b.txt").read_text() == "y\n"
    assert (place / "shared/b.txt").stat().st_uid == 1000
    # What the host has there with another user's rights gives none here.
    (place / "shared/id").write_bytes(Path("/usr/bin/id").read_bytes())
    (place / "shared/id").chmod(0o4755)
    os.mknod(place / "shared/memory", 0o20666, os.makedev(1, 1))
    assert scene.inside(name, "/data/shared/id", "-u").strip() == "1000"
    assert "not permitted" in scene.inside(name, "head", "-c1", "/data/shared/memory")
    offered = scene.stack.api("GET", f"server_options?project={scene.project}").json()["mounts"]
    assert [each["name"] for each in offered["options"]] == ["numbers", "shared", "gone"]

    # What is gone is named, and not made.
    stop(scene, name)
    assert start(scene, "gone").status_code in (200, 201)
    failed = scene.settled(name)["status"]
    assert failed["state"] == "failed"
    assert "The data `gone` is not on this machine" in failed["message"]
    assert not (place / "gone").exists()
    assert start(scene, "elsewhere").status_code == 422

    # The hub itself believes nobody: neither the owner for another group's, nor who has too small a role.
    carol = scene.stack.add_user("carol")
    added = scene.stack.command("forge", "member", "add", scene.project, carol, "reporter")
    assert added.returncode == 0, added.stderr
    assert start(scene, "numbers", user=carol).status_code == 422
    for user, data in ((carol, "numbers"), (None, "elsewhere")):
        refused = past_the_service(scene, name, user, data)
        assert f"There is no data `{data}`" in refused, refused


def past_the_service(scene: Any, name: str, user: str | None, data: str) -> str:
    """What the hub says of a launch that is asked of it alone."""
    import httpx

    options = {
        "project": scene.project,
        "commit": scene.shas[0],
        "branch": "main",
        "mounts": [data],
    }
    answer = httpx.post(
        f"{scene.stack.hub_url}hub/api/users/{user or scene.stack.owner}/servers/{name}",
        json={"display_name": "x", "user_options": {"notebooks": options}},
        headers={"Authorization": f"token {scene.stack.token(user)}"},
        timeout=60,
        trust_env=False,
    )
    state = wait_for(lambda: failed(scene, name, user), 60)
    return f"{answer.text} {state}"


def failed(scene: Any, name: str, user: str | None) -> str:
    status = scene.state(name, user)
    return str(status["message"]) if status["state"] == "failed" else ""
