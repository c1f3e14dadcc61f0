"""The main job without a browser: a commit's server, its kernel, push, stop, and the same work again."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from stack_fixtures import Stack, wait_for

pytestmark = pytest.mark.stack

LAUNCH_SECONDS = 300


def launch(stack: Stack, sha: str, **more: Any) -> dict[str, Any]:
    """Ask for the sample's server at ``sha`` and wait until it runs."""
    body = {"namespace": stack.owner, "project": "nile", "commit_sha": sha, **more}
    answer = stack.api("POST", "servers", json=body)
    assert answer.status_code in (200, 201), answer.text
    name = answer.json()["name"]

    def settled() -> dict[str, Any] | None:
        server: dict[str, Any] = stack.api("GET", f"servers/{name}").json()
        return server if server["status"]["state"] in ("running", "failed") else None

    server = wait_for(settled, LAUNCH_SECONDS, every=0.3)
    assert server["status"]["state"] == "running", f"{server}\n{stack.said()}"
    return server


def execute(
    stack: Stack, name: str, code: str, folder: str = "nile", user: str | None = None
) -> str:
    """Run ``code`` in a new kernel of the server of ``user`` (the owner); what it printed."""
    base = f"{stack.hub_url}user/{user or stack.owner}/{name}/"
    headers = {"Authorization": f"token {stack.token(user)}"}
    with httpx.Client(base_url=base, headers=headers, timeout=60, trust_env=False) as client:
        kernel = client.post("api/kernels", json={"path": folder}).raise_for_status().json()
        address = f"{base}api/kernels/{kernel['id']}/channels".replace("http://", "ws://")
        asked = uuid.uuid4().hex
        header = {"msg_id": asked, "msg_type": "execute_request", "session": asked}
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        message = {
            "header": {**header, "username": "", "version": "5.3"},
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": "shell",
        }
        printed, idle, replied = "", False, False
        with connect(address, additional_headers=headers, max_size=None) as socket:
            socket.send(json.dumps(message))
            while not (idle and replied):
                got = json.loads(socket.recv(timeout=60))
                if got["parent_header"].get("msg_id") != asked:
                    continue
                content = got["content"]
                if got["msg_type"] == "stream":
                    printed += content["text"]
                elif got["msg_type"] == "status":
                    idle = content["execution_state"] == "idle"
                elif got["msg_type"] == "execute_reply":
                    replied = True
                    assert content["status"] == "ok", content
        client.delete(f"api/kernels/{kernel['id']}")
    return printed.strip()


def shell(stack: Stack, name: str, command: str) -> str:
    """Run a shell command in the server's repository; what it printed, errors and all."""
    code = (
        "import subprocess; print(subprocess.run("
        f"{command!r}, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout)"
    )
    return execute(stack, name, code)


def test_the_whole_way(stack: Stack) -> None:
    newest, before = stack.commits()[:2]
    server = launch(stack, newest)
    name = server["name"]
    assert server["image_origin"] == "built on demand", server["image_reason"]

    # The kernel is in this commit's environment, not in ours: the sample pins its packages.
    version = execute(stack, name, "import tabulate, sys; print(tabulate.__version__, sys.prefix)")
    assert str(stack.data.resolve()) in version
    page = stack.client().get(f"{stack.hub_url}user/{stack.owner}/{name}/lab")
    assert (page.status_code, "jupyter-config-data" in page.text) == (200, True)

    # The tip of the default branch: checked out as that branch, clean.
    assert shell(stack, name, "git rev-parse HEAD") == newest
    assert shell(stack, name, "git status --porcelain --branch") == "## main...origin/main"
    # Its data are large files (Git LFS): git has what points at them, the folder has them.
    assert "oid sha256:" in shell(stack, name, "git show HEAD:data/nile.csv")
    assert shell(stack, name, "wc -l <data/nile.csv") == "101"

    # A commit and a push through the gateway, with the person's own right.
    done = shell(stack, name, "echo found >> notes.md && git commit -qam 'From inside' && git push")
    pushed = shell(stack, name, "git rev-parse HEAD")
    assert stack.commits()[0] == pushed, done

    # What is not saved in git is there again after a stop, at the same address.
    assert shell(stack, name, "echo unsaved > draft.txt; cat draft.txt") == "unsaved"
    stopped = stack.api("PATCH", f"servers/{name}", json={"state": "hibernated"})
    assert stopped.status_code < 300, stopped.text
    wait_for(lambda: stack.api("GET", f"servers/{name}").json()["status"]["state"] == "stopped")
    assert launch(stack, newest)["name"] == name
    assert shell(stack, name, "cat draft.txt") == "unsaved"
    assert shell(stack, name, "git rev-parse HEAD") == pushed

    # Another commit is another server, on a branch that a push can make.
    older = launch(stack, before)
    assert older["name"] != name
    assert shell(stack, older["name"], "git rev-parse HEAD") == before
    assert shell(stack, older["name"], "git branch --show-current") == f"main-{before[:8]}"

    for one in (name, older["name"]):
        deleted = stack.api("DELETE", f"servers/{one}?forced=true")
        assert deleted.status_code == 204, deleted.text
    wait_for(lambda: stack.api("GET", "servers").json()["servers"] == {})
    leftover = [
        process for process in stack.processes() if f"/{name}/" in process.environ().get("HOME", "")
    ]
    assert leftover == []


def test_somebody_else_is_not_let_in(stack: Stack) -> None:
    stack.add_user("mallory")
    newest = stack.commits()[0]
    body = {"namespace": stack.owner, "project": "nile", "commit_sha": newest}
    refused = stack.api("POST", "servers", "mallory", json=body)
    assert refused.status_code == 404, refused.text
    page = stack.client("mallory").get(f"{stack.service_url}{stack.owner}/nile/{newest}")
    assert page.status_code == 404
