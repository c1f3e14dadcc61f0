"""Personal secrets with ``local``: there for whom they are granted, and nowhere else.

The value is a canary: it is looked for in the data, the logs, all pages, and every process' arguments and environment.
"""

from __future__ import annotations

import base64
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from test_stack_launch import settled, shell, stop
from test_stack_people import launch, terminal
from test_stack_secrets import places

from forge_fixtures import make_repository
from stack_fixtures import NewStack, Stack

pytestmark = pytest.mark.stack

LOOK = 'cd "$NOTEBOOKS_SECRETS_DIR" && ls -A | sort | tr "\\n" " "; stat -f -c %T .; pwd'
ASK = """
import os, urllib.request, urllib.error
request = urllib.request.Request(os.environ["NOTEBOOKS_GATEWAY_URL"] + "-/secrets")
request.add_header("Authorization", "token " + os.environ["JUPYTERHUB_API_TOKEN"])
try:
    print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_secrets_are_where_they_were_granted_and_nowhere_else(
    new_stack: NewStack, tmp_path: Path
) -> None:
    sources = [tmp_path / "one", tmp_path / "two"]
    shas = [make_repository(each, {"README.md": f"# {each.name}\n"})[0] for each in sources]
    stack = new_stack().start(*sources)
    one, two = (f"{stack.owner}/{each.name}" for each in sources)
    bob = stack.add_user("bob")
    added = stack.command("forge", "member", "add", one, bob, "developer")
    assert added.returncode == 0, added.stderr
    canaries = [f"canary-{secrets.token_hex(24)}" for _ in range(3)]
    put(stack, None, "key.json", value=canaries[0], projects=[one])
    put(stack, None, "not-granted", value=canaries[1], projects=[])
    put(stack, bob, "key.json", value=canaries[2], projects=[one])

    mine = launch(stack, stack.owner, shas[0], one)["name"]
    other = launch(stack, stack.owner, shas[1], two)["name"]
    his = launch(stack, bob, shas[0], one)["name"]
    names, place = shell(stack, mine, LOOK).splitlines()
    assert names == "key.json tmpfs"
    assert shell(stack, mine, 'cat "$NOTEBOOKS_SECRETS_DIR/key.json"') == canaries[0]
    mode = shell(stack, mine, 'stat -c "%a %u" "$NOTEBOOKS_SECRETS_DIR/key.json"; id -u').split()
    assert mode == ["600", mode[2], mode[2]]
    assert shell(stack, other, LOOK).splitlines()[0] == "tmpfs"
    assert terminal(stack, bob, his, 'cat "$NOTEBOOKS_SECRETS_DIR/key.json"') == canaries[2]
    # What runs there cannot have it given again.
    assert shell(stack, mine, f"python3 -c '{ASK}'") == "403"

    pages = [
        stack.client().get(f"{stack.service_url}{path}").text
        for path in ("secrets", "secrets/key.json", "servers", f"logs/{mine}", f"{two}/{shas[1]}")
    ]
    pages += [stack.api("GET", path).text for path in ("secrets", "servers", f"logs/{mine}")]
    assert "key.json" in pages[0]
    assert f"Secrets in {place}: key.json" in stack.api("GET", f"logs/{mine}").text
    is_nowhere(stack, canaries, pages)

    # What is changed is there at the next start, and not before.
    put(stack, None, "key.json", value=canaries[1])
    assert shell(stack, mine, 'cat "$NOTEBOOKS_SECRETS_DIR/key.json"') == canaries[0]
    stop(stack, mine)
    assert not Path(place).exists()
    launch(stack, stack.owner, shas[0], one)
    assert shell(stack, mine, 'cat "$NOTEBOOKS_SECRETS_DIR/key.json"') == canaries[1]
    put(stack, None, "key.json", projects=[two])
    stop(stack, mine)
    launch(stack, stack.owner, shas[0], one)
    assert shell(stack, mine, LOOK).splitlines()[0] == "tmpfs"
    is_nowhere(stack, canaries, [])

    keys_may_rotate(stack, other, shas[1], two, canaries)
    unreadable_is_said(stack, shas[1], two)


def keys_may_rotate(stack: Stack, server: str, sha: str, project: str, canaries: list[str]) -> None:
    assert stack.stop() == 0
    for _ in range(2):
        done = stack.command("keys", "rotate")
        assert done.returncode == 0, done.stderr
        assert "personal secrets" not in done.stdout
    stack.start()
    launch(stack, stack.owner, sha, project)
    assert shell(stack, server, 'cat "$NOTEBOOKS_SECRETS_DIR/key.json"') == canaries[1]
    is_nowhere(stack, canaries, [])


def unreadable_is_said(stack: Stack, sha: str, project: str) -> None:
    """A server does not start without what was granted to it, and says so."""
    with sqlite3.connect(stack.data / "service" / "service.sqlite") as database:
        database.execute("UPDATE personal_secret SET sealed = x'00' WHERE name = 'key.json'")
    name = launch(stack, stack.owner, sha, project)["name"]  # it runs
    stop(stack, name)
    namespace, _, folder = project.rpartition("/")
    body = {"namespace": namespace, "project": folder, "commit_sha": sha}
    stack.api("POST", "servers", json=body)
    status = settled(stack, name)["status"]
    assert status["state"] == "failed"
    assert "could not be brought to it, so it was not started" in status["message"]
    assert (
        "Your secret `key.json` cannot be opened any more" in stack.api("GET", f"logs/{name}").text
    )


def put(stack: Stack, user: str | None, name: str, **body: Any) -> None:
    answer = stack.api("PUT", f"secrets/{name}", user, json=body)
    assert answer.status_code in (200, 201), answer.text
    assert "canary" not in answer.text


def is_nowhere(stack: Stack, canaries: list[str], pages: list[str]) -> None:
    marks = [form for each in canaries for form in (each, base64.b64encode(each.encode()).decode())]
    found = [
        where for where, content in places(stack) if any(mark.encode() in content for mark in marks)
    ]
    # They are in no swapped or deleted row either: the whole files were read.
    assert found == []
    assert not [page for page in pages if any(mark in page for mark in marks)]
