"""Personal secrets in containers, with a real engine: in memory of the granted project's servers, and neither in what
the engine tells of them nor in layers, volumes, logs. ``test_stack_docker.py`` runs it.
"""

from __future__ import annotations

import base64
import io
import secrets
import tarfile
from pathlib import Path
from typing import Any

from stack_docker_mounts import stop
from test_stack_secrets import places

ASK = """
import os, urllib.request, urllib.error
request = urllib.request.Request(os.environ["NOTEBOOKS_GATEWAY_URL"] + "-/secrets")
request.add_header("Authorization", "token " + os.environ["JUPYTERHUB_API_TOKEN"])
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_personal_secrets_are_in_memory_alone(scene: Any) -> None:
    value = f"canary-{secrets.token_hex(24)}"
    body = {"value": value, "projects": [scene.project]}
    made = scene.stack.api("PUT", "secrets/key.json", json=body)
    assert made.status_code == 201, made.text
    carol = scene.stack.add_user("secretless")
    added = scene.stack.command("forge", "member", "add", scene.project, carol, "developer")
    assert added.returncode == 0, added.stderr

    name = scene.launch(scene.shas[0])["name"]
    if scene.inside(name, "ls", "/run/secrets").strip() != "key.json":
        stop(scene, name)  # it ran before there was one
        name = scene.launch(scene.shas[0])["name"]
    assert scene.inside(name, "cat", "/run/secrets/key.json") == value
    said = scene.inside(
        name, "sh", "-c", "cd /run/secrets && stat -c '%a %u' . key.json && stat -f -c %T ."
    )
    assert said.split() == ["700", "1000", "600", "1000", "tmpfs"]
    assert scene.inside(name, "printenv", "NOTEBOOKS_SECRETS_DIR").strip() == "/run/secrets"
    assert scene.inside(name, "python3", "-c", ASK).strip() == "403"
    theirs = scene.launch(scene.shas[0], carol)
    assert theirs["status"]["state"] == "running", theirs
    assert scene.inside(name, "ls", "-A", "/run/secrets", user=carol) == ""
    # The way from servers leads to that one address more, and only for who has a server's token.
    inside = "http://notebooks.internal:8000/services/notebooks"
    targets = {"fetch": [f"{inside}/git/-/secrets", f"{inside}/secrets"]}
    found = scene.attack(name, targets, carol)["status"]
    assert found == {f"{inside}/git/-/secrets": 401, f"{inside}/secrets": 404}

    container = scene.container(name)
    marks = [value, base64.b64encode(value.encode()).decode()]
    told = {
        "inspect": scene.engine.run("inspect", container).stdout,
        "logs": scene.engine.run("logs", container).stdout,
        "environment": scene.inside(name, "env"),
        "diff": scene.engine.run("diff", container).stdout,
        "page": scene.stack.client().get(f"{scene.stack.service_url}secrets").text,
        "log": scene.stack.api("GET", f"logs/{name}").text,
    }
    assert "key.json" in told["page"]
    assert "Secrets in /run/secrets: key.json" in told["log"]
    assert [where for where, text in told.items() if any(mark in text for mark in marks)] == []
    client = scene.engine.client()
    try:
        running = client.containers.get(container)
        exported = b"".join(running.export())
        archive, _ = running.get_archive("/work")
        volume = b"".join(archive)
    finally:
        client.close()
    with tarfile.open(fileobj=io.BytesIO(volume)) as kept:
        assert any(each.name.startswith("work") for each in kept)
    for content in (exported, volume):
        assert not any(mark.encode() in content for mark in marks)
    places_with_it = [
        where for where, content in places(scene.stack) if any(m.encode() in content for m in marks)
    ]
    assert places_with_it == []
    assert Path(scene.stack.data / "service" / "service.sqlite").exists()

    assert scene.stack.api("DELETE", "secrets/key.json").status_code == 204
    stop(scene, name)
    assert scene.launch(scene.shas[0])["status"]["state"] == "running"
    assert scene.inside(name, "ls", "-A", "/run/secrets") == ""
