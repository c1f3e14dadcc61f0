"""Whatever is sent, the forge answers with a code of its own: never 500, never silence."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from forge_fixtures import ForgeProcess, living, make_repository

P = "/api/v4/projects/{id}"
READS = (
    "/api/v4/projects/{x}",
    "/api/v4/projects?search={x}",
    "/api/v4/projects?page={x}",
    "/api/v4/groups/{x}",
    "/api/v4/users/{x}",
    "/api/v4/users?search={x}",
    "/api/v4/personal_access_tokens/{x}",
    "/api/v4/namespaces/{x}",
    P + "/repository/tree?path={x}",
    P + "/repository/tree?ref={x}",
    P + "/repository/files/{x}?ref=main",
    P + "/repository/files/a.txt/raw?ref={x}",
    P + "/repository/commits/{x}",
    P + "/repository/commits?path={x}",
    P + "/repository/commits?author={x}",
    P + "/repository/commits?since={x}",
    P + "/repository/commits?ref_name={x}",
    P + "/repository/branches/{x}",
    P + "/repository/branches?search={x}",
    P + "/repository/tags/{x}",
    P + "/repository/blobs/{x}",
    P + "/repository/compare?from={x}&to=main",
    P + "/search?scope=commits&search={x}",
    P + "/members/all/{x}",
    P + "/protected_branches/{x}",
    P + "/protected_tags/{x}",
    P + "/variables/{x}",
    P + "/deploy_tokens/{x}",
    P + "/repository/commits/{x}/statuses",
    P + "/repository/commits/main/statuses?pipeline_id={x}",
    P + "/repository/tree?pagination=keyset&page_token={x}",
    P + "/jobs?pagination=keyset&order_by=id&cursor={x}",
    P + "/jobs/artifacts/{x}/download?job=a",
    P + "/jobs/artifacts/main/raw/{x}?job=a",
    P + "/jobs/1/artifacts/{x}",
    "/api/v4/projects?pagination=keyset&order_by=id&id_after={x}",
    "/{x}",
    "/{x}.git/info/refs?service=git-upload-pack",
    "/-/sign_in/{x}",
    "/users/sign_in?next={x}",
    "/oauth/authorize?client_id={x}",
    "/static/{x}",
)
TEXTS = ("%00", "%ff", "%ed%a0%80", "..%2f..", "%2e%2e", "--output=%2Ftmp%2Fx", "9" * 23, "-1", "*")
WRITES = (
    ("/api/v4/projects", {"name": "x"}),
    ("/api/v4/groups", {"name": "x", "path": "x"}),
    (P + "/members", {"user_id": 1, "access_level": 10}),
    (P + "/repository/branches", {"branch": "x", "ref": "main"}),
    (P + "/repository/tags", {"tag_name": "x", "ref": "main", "message": "m"}),
    (P + "/repository/files/q", {"branch": "x", "content": "c", "commit_message": "m"}),
    (P + "/repository/commits", {"branch": "x", "commit_message": "m", "actions": []}),
    (P + "/protected_branches", {"name": "x*", "push_access_level": 40, "allowed_to_push": []}),
    (P + "/protected_tags", {"name": "x*", "create_access_level": 40}),
    (P + "/variables", {"key": "x", "value": "y", "environment_scope": "*"}),
    (P + "/deploy_tokens", {"name": "x", "scopes": ["read_repository"], "expires_at": None}),
    (P + "/statuses/main", {"state": "success", "name": "n", "ref": "main", "coverage": 1}),
    (P + "/job_token_scope/allowlist", {"target_project_id": 1}),
    ("/oauth/token", {"grant_type": "authorization_code", "code": "x", "client_id": "x"}),
)
VALUES = ("\0", "\ud800", "", None, [], {}, -1, 10**30, True, "../x", "a\nb", "<>")


@pytest.fixture
def client(forge: ForgeProcess, tmp_path: Path) -> httpx.Client:
    owner = forge.user()
    make_repository(tmp_path / "thing", {"a.txt": "1"})
    number = forge.project(tmp_path / "thing", f"{owner}/thing", owner)
    headers = {"PRIVATE-TOKEN": forge.token(owner), "X-Project": str(number)}
    return httpx.Client(base_url=forge.url, headers=headers)


def is_answer(answer: httpx.Response) -> bool:
    return answer.status_code < 500 or answer.status_code == 501


def test_addresses(client: httpx.Client) -> None:
    number = client.headers["X-Project"]
    for template, text in itertools.product(READS, TEXTS):
        address = template.replace("{id}", number).replace("{x}", text)
        answer = client.get(address)
        assert is_answer(answer), (address, answer.text)


def test_bodies(client: httpx.Client) -> None:
    number = client.headers["X-Project"]
    headers = {"Content-Type": "application/json"}
    for template, body in WRITES:
        address = template.replace("{id}", number)
        for key, value in itertools.product(body, VALUES):
            content = json.dumps({**body, key: value})
            answer = client.post(address, content=content, headers=headers)
            assert is_answer(answer), (address, key, value, answer.text)
        for raw in (b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10_000):
            answer = client.post(address, content=raw, headers=headers)
            assert is_answer(answer), (address, raw[:10], answer.text)


@pytest.mark.parametrize(
    "header", [b"Basic x", b"Basic \xff", b"Basic Og==", b"Bearer", b"Negotiate x", b"Basic YQ=="]
)
def test_authorization_headers(client: httpx.Client, header: bytes) -> None:
    for address in ("/a/b.git/info/refs?service=git-upload-pack", "/oauth/token/info"):
        answer = httpx.get(f"{client.base_url}{address}", headers={"Authorization": header})
        assert answer.status_code == 401


def test_forms_with_any_token(client: httpx.Client) -> None:
    client.get("/users/sign_in")
    for token in ("", "ü", "\0", "0" * 64):
        form = {"authenticity_token": token, "user[login]": "a", "user[password]": "b"}
        assert client.post("/users/sign_in", data=form).status_code == 422
        assert client.post("/users/sign_out", data=form).status_code == 422


def test_stopping_in_a_push_leaves_no_process(
    start_forge: Callable[..., ForgeProcess], tmp_path: Path
) -> None:
    forge = start_forge()
    owner = forge.user("ada")
    source = tmp_path / "source"
    make_repository(source)
    number = forge.project(source, "ada/thing", owner)
    (source / "big.bin").write_bytes(os.urandom(30_000_000))
    make_repository(source, {"x": "1"})
    push = subprocess.Popen(
        ["git", "push", forge.git_url("ada/thing", owner, forge.token(owner)), "main"],
        cwd=source,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"},
    )
    repository = forge.data / "forge" / "repositories" / f"{number}.git"
    end = time.monotonic() + 60
    while not list(repository.glob("objects/*incoming*")) and push.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    assert forge.process is not None
    children = psutil.Process(forge.process.pid).children(recursive=True)
    forge.stop(signal.SIGKILL)
    push.wait(60)
    while living(children):
        assert time.monotonic() < end
        time.sleep(0.02)
    forge.start()
    assert not list(repository.glob("objects/*incoming*"))
