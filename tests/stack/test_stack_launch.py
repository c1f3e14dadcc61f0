"""The main job without a browser: a commit's server, its kernel, push, stop, and the same work again."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

import gitlab
import httpx
import pytest
from websockets.sync.client import connect

from notebooks_service.images.environment import Environment
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.platform import loopback
from stack_fixtures import Stack, wait_for

pytestmark = pytest.mark.stack

LAUNCH_SECONDS = 300


def launch(stack: Stack, sha: str, **more: Any) -> dict[str, Any]:
    """Ask for the sample's server at ``sha`` and wait until it runs."""
    body = {"namespace": stack.owner, "project": "nile", "commit_sha": sha, **more}
    answer = stack.api("POST", "servers", json=body)
    assert answer.status_code in (200, 201), answer.text
    server = settled(stack, answer.json()["name"])
    assert server["status"]["state"] == "running", f"{server}\n{stack.said()}"
    return server


def settled(stack: Stack, name: str) -> dict[str, Any]:
    """Wait until a launch of the owner's server has ended, well or not."""

    def ended() -> dict[str, Any] | None:
        server: dict[str, Any] = stack.api("GET", f"servers/{name}").json()
        return server if server["status"]["state"] in ("running", "failed") else None

    return wait_for(ended, LAUNCH_SECONDS, every=0.3)


def stop(stack: Stack, name: str) -> None:
    stopped = stack.api("PATCH", f"servers/{name}", json={"state": "hibernated"})
    assert stopped.status_code < 300, stopped.text
    wait_for(lambda: stack.api("GET", f"servers/{name}").json()["status"]["state"] == "stopped")


def execute(
    stack: Stack, name: str, code: str, folder: str = "nile", user: str | None = None
) -> str:
    """Run ``code`` in a new kernel of the server of ``user`` (the owner); what it printed."""
    base = stack.server_url(name, user)
    headers = {"Authorization": f"token {stack.token(user)}"}
    with httpx.Client(
        base_url=base, headers=headers, timeout=60, trust_env=False, mounts=loopback.mounts()
    ) as client:
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
        at = ("127.0.0.1", stack.port)
        with connect(address, additional_headers=headers, max_size=None, address=at) as socket:
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
    """Run a command as a terminal of the owner's server does; what it printed, errors and all."""
    return stack.inside(stack.owner, name, "bash", "-c", command).stdout.strip()


def said_inside(stack: Stack, name: str) -> str:
    """The image's origin as the server's own process has it."""
    return stack.server_process(stack.owner, name).environ()["NOTEBOOKS_IMAGE_ORIGIN"]


@dataclass
class Images:
    """The sample's images, and a commit on a branch of its own: another environment, and a pin."""

    stack: Stack
    pinning: str
    api: Any

    @classmethod
    def make(cls, stack: Stack, pinned: str) -> Images:
        """The commit's file pins the image of ``pinned``. The push has its own image built meanwhile."""
        administration = stack.administration()
        try:
            token = administration.personal_token(stack.owner, "tests", ["api"])
        finally:
            administration.close()
        project = gitlab.Gitlab(stack.forge_url, private_token=token).projects.get(
            f"{stack.owner}/nile"
        )
        pin = f'image = "{cls.name_of(stack, pinned)}"\n'
        made = project.commits.create(
            {
                "branch": "pinning",
                "start_branch": "main",
                "commit_message": "Another environment, and a pin",
                "actions": [
                    {"action": "create", "file_path": ".notebooks.toml", "content": pin},
                    {"action": "update", "file_path": "requirements.txt", "content": "\n"},
                ],
            }
        )
        return cls(stack, str(made.id), project)

    @staticmethod
    def name_of(stack: Stack, sha: str) -> str:
        return f"{stack.owner}/nile:{sha}".lower()

    @property
    def store(self) -> EnvironmentStore:
        return EnvironmentStore(self.stack.directory.path / "environments")

    def of(self, sha: str) -> Environment:
        """The environment that the commit's tag names, as soon as it has one."""
        return wait_for(lambda: self.store.tagged(self.api.id, sha), LAUNCH_SECONDS, every=0.3)


def test_the_whole_way(stack: Stack) -> None:
    newest, before = stack.commits()[:2]
    images = Images.make(stack, newest)
    server = launch(stack, newest)
    name = server["name"]
    assert server["image_origin"] == "built on demand", server["image_reason"]
    assert said_inside(stack, name) == "built on demand"

    # The kernel is in this commit's environment, not in ours: the sample pins its packages.
    cell = "import subprocess, sys, tabulate; print(tabulate.__version__, sys.prefix); "
    cell += "print(subprocess.check_output(['git', 'rev-parse', 'HEAD'], text=True))"
    printed = execute(stack, name, cell)
    assert str(stack.data.resolve()) in printed
    page = stack.client().get(f"{stack.hub_url}user/{stack.owner}/{name}/lab")
    assert (page.status_code, "jupyter-config-data" in page.text) == (200, True)

    # The tip of the default branch: checked out as that branch, clean.
    assert printed.splitlines()[-1] == newest
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
    stop(stack, name)
    a_moved_tag_is_taken_when_asked(stack, images, newest, server)
    assert shell(stack, name, "cat draft.txt") == "unsaved"
    assert shell(stack, name, "git rev-parse HEAD") == pushed

    # Another commit is another server, on a branch that a push can make. A call may name its image.
    other = images.of(images.pinning)
    asked = f"{images.name_of(stack, images.pinning)}@{other.digest}"
    older = launch(stack, before, image=asked)
    assert older["name"] != name
    assert (older["image_origin"], older["image_digest"]) == ("pinned", other.digest)
    assert (older["image_evidence"]["pinned"], older["image_evidence"]["by"]) == (
        asked,
        "this launch",
    )
    assert said_inside(stack, older["name"]) == "pinned"
    assert shell(stack, older["name"], "git rev-parse HEAD") == before
    assert shell(stack, older["name"], "git branch --show-current") == f"main-{before[:8]}"

    a_missing_image_is_no_server(stack, images)
    # The commit's own file names an image too: that one counts, not the commit's own.
    pinning = launch(stack, images.pinning)
    assert (pinning["image_origin"], pinning["image_digest"]) == ("pinned", server["image_digest"])
    assert pinning["image_evidence"]["by"] == "`.notebooks.toml`"
    assert said_inside(stack, pinning["name"]) == "pinned"

    for one in (name, older["name"], pinning["name"]):
        deleted = stack.api("DELETE", f"servers/{one}?forced=true")
        assert deleted.status_code == 204, deleted.text
    wait_for(lambda: stack.api("GET", "servers").json()["servers"] == {})
    assert of_server(stack, name) == []
    images.api.branches.delete("pinning")


def of_server(stack: Stack, name: str) -> list[int]:
    """What runs of a server."""
    return [
        process.pid
        for process in stack.processes()
        if f"/{name}/" in process.environ().get("HOME", "")
    ]


def a_moved_tag_is_taken_when_asked(
    stack: Stack, images: Images, sha: str, first: dict[str, Any]
) -> None:
    """A server keeps the image of its first launch, says that the tag has moved, and minds its person."""
    name, mine, other = first["name"], images.of(sha), images.of(images.pinning)
    assert first["image_digest"] == mine.digest != other.digest
    images.store.tag(images.api.id, sha, other.fingerprint)
    kept = launch(stack, sha)
    assert (kept["name"], kept["image_digest"]) == (name, mine.digest)
    assert kept["image_evidence"]["moved_to"] == other.digest
    assert "its tag has moved" in kept["image_reason"]
    assert said_inside(stack, name) == "built on demand"
    stop(stack, name)

    browser, address = stack.client(), f"{stack.service_url}{stack.owner}/nile/{sha}"
    page = browser.get(address).text
    assert "has been moved since" in page and (other.digest or "")[:19] in page
    token = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert token is not None
    form = {"csrf_token": token[1], "choices": "large-files", "lfs_auto_fetch": "yes"}
    origin = {"Origin": stack.hub_url.rstrip("/")}
    answer = browser.post(
        address, data={**form, "new_image": "yes"}, headers=origin, follow_redirects=False
    )
    assert answer.status_code == 303, answer.text
    taken = settled(stack, name)
    assert taken["status"]["state"] == "running", taken
    assert (taken["image_origin"], taken["image_digest"]) == ("commit", other.digest)
    assert "moved_to" not in taken["image_evidence"]
    assert said_inside(stack, name) == "commit"
    images.store.tag(images.api.id, sha, mine.fingerprint)


def a_missing_image_is_no_server(stack: Stack, images: Images) -> None:
    namespace, sha = stack.owner, images.pinning
    body = {"namespace": namespace, "project": "nile", "commit_sha": sha}
    asked = images.name_of(stack, "0" * 40)
    images.of(images.pinning)
    there = images.name_of(stack, images.pinning)
    found = stack.api("GET", "images", params={"image_url": there})
    assert (found.status_code, found.json()["project_id"]) == (200, images.api.id), found.text
    stack.add_user("otto")
    for name, who in ((asked, None), ("no/such:tag", None), ("&?", None), (there, "otto")):
        refused = stack.api("GET", "images", who, params={"image_url": name})
        assert refused.status_code == 404, (name, who, refused.text)
    answer = stack.api("POST", "servers", json={**body, "image": asked})
    assert answer.status_code == 201, answer.text
    name = answer.json()["name"]
    failed = settled(stack, name)
    assert (failed["status"]["state"], failed["failure"]["code"]) == ("failed", "image_unavailable")
    assert asked in failed["status"]["message"]
    assert of_server(stack, name) == []


def test_somebody_else_is_not_let_in(stack: Stack) -> None:
    stack.add_user("oscar")
    newest = stack.commits()[0]
    body = {"namespace": stack.owner, "project": "nile", "commit_sha": newest}
    refused = stack.api("POST", "servers", "oscar", json=body)
    assert refused.status_code == 404, refused.text
    page = stack.client("oscar").get(f"{stack.service_url}{stack.owner}/nile/{newest}")
    assert page.status_code == 404
