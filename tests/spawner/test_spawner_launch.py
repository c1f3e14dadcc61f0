"""Launches in a real hub: from the request to a server that answers, and everything refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from spawner_real_hub import (
    NAME,
    OPTIONS,
    OTHER_NAME,
    OTHER_OPTIONS,
    RealHub,
    wait_until,
)
from spawner_small_forge import OTHER, SHA, SmallForge, job

from notebooks_service.domain import server_name
from notebooks_service.errors import NotFound, SignInExpired
from notebooks_service.spawner.forge_events import LARGEST
from notebooks_service.spawner.launches import ASK_AGAIN

HIDDEN = {"notebooks": {"project": "secret/plan", "commit": SHA, "branch": "main"}}
MISSING = {"notebooks": {"project": "no/such", "commit": SHA, "branch": "main"}}
NOWHERE = "0" * 40


def launched(hub: RealHub, name: str) -> str:
    """A running server of a new person; their hub token."""
    token = hub.person(name)
    assert hub.launch(token, name).status_code == 202
    assert hub.settled(name)["ready"], hub.record(name)
    return token


def test_a_launch_starts_a_server_and_says_so_to_every_watcher(hub: RealHub) -> None:
    token = hub.person("eve")
    hub.tell("hold-clone")
    assert hub.launch(token, "eve").status_code == 202
    first = hub.watch(token, "eve")
    wait_until(lambda: hub.reached("clone"))
    late = hub.watch(token, "eve")
    wait_until(lambda: any(e["step"] == "clone" for e in late.launch_events))
    assert not hub.is_ready("eve")
    hub.untell("hold-clone")
    for watcher in (first, late):
        events = watcher.all()
        assert events[-1]["ready"] is True
        ids = [event["id"] for event in watcher.launch_events]
        assert ids == list(range(1, len(ids) + 1))
        steps = list(dict.fromkeys(event["step"] for event in watcher.launch_events))
        assert steps == ["access", "image", "clone", "starting", "ready"]
    assert first.launch_events == late.launch_events
    record = hub.record("eve")
    assert record["outcome"] == "ready"
    assert record["id"] in hub.log.read_text()
    assert record["runtime"]["log"] == f"servers/eve/{NAME}/server.log"
    assert record["image"]["origin"] == "default"
    note = "This image has no git-lfs."
    assert record["checkout"] == {"branch": "main", "upstream": True, "notes": [note]}
    clone = [event["message"] for event in record["events"] if event["step"] == "clone"]
    assert clone[-1] == note and clone.count(note) == 1
    assert record["events"][-1]["step"] == "ready"
    assert hub.is_ready("eve")


def test_a_second_request_does_not_make_a_second_server(hub: RealHub) -> None:
    token = hub.person("twice")
    hub.tell("hold-starting")
    assert hub.launch(token, "twice").status_code == 202
    wait_until(lambda: hub.reached("starting"))
    assert hub.launch(token, "twice").status_code == 202
    hub.untell("hold-starting")
    assert hub.settled("twice")["ready"]
    assert hub.launch(token, "twice").status_code == 400
    assert len(hub.processes("twice", NAME)) == 4  # the clone's daemon; server, kernel, daemon


def test_a_server_gets_what_it_needs_and_nothing_of_the_hub(hub: RealHub) -> None:
    launched(hub, "fay")
    environ = json.loads((hub.folder("fay") / "environ.json").read_text())
    ours = {key: value for key, value in environ.items() if key.startswith("NOTEBOOKS_")}
    assert ours.pop("NOTEBOOKS_SECRETS_DIR").startswith("/dev/shm/notebooks-")
    assert ours == {
        "NOTEBOOKS_GATEWAY_URL": f"{hub.settings['hub_url']}services/notebooks/git/",
        "NOTEBOOKS_FORGE_URL": hub.settings["forge_url"],
        "NOTEBOOKS_PROJECT": "group/thing",
        "NOTEBOOKS_PROJECT_ID": "7",
        "NOTEBOOKS_COMMIT": SHA,
        "NOTEBOOKS_BRANCH": "main",
        "NOTEBOOKS_IMAGE_ORIGIN": "default",
        "NOTEBOOKS_IMAGE_REASON": hub.record("fay")["image"]["reason"],
        "NOTEBOOKS_SERVER_DIRECTORY": str(hub.folder("fay")),
    }
    assert environ["HOME"] == str(hub.folder("fay") / "home")
    assert environ["GIT_CONFIG_GLOBAL"] == str(hub.folder("fay") / "home" / ".gitconfig")
    assert environ["THEIRS"] == "1"  # an administrator's `c.Spawner.environment`
    known = ("JUPYTER", "NOTEBOOKS_", "LC_", "THEIRS", "PYTHON")
    others = sorted(key for key in environ if not key.startswith(known))
    assert set(others) <= {
        *("GIT_CONFIG_GLOBAL", "GIT_TERMINAL_PROMPT", "HOME", "IPYTHONDIR", "LANG"),
        *("MEM_LIMIT", "CPU_LIMIT", "PATH", "SHELL", "TZ", "USER", "VIRTUAL_ENV"),
    }
    text = json.dumps(environ)
    for secret in secrets_of(hub, "fay"):
        assert secret not in text


def secrets_of(hub: RealHub, name: str) -> list[str]:
    return [
        f"token-of-{name}",
        "hub-environment-canary",
        "client-secret-canary",
        hub.crypt_key,
        hub.service_token,
        str(hub.given["test_token"]),
    ]


def test_no_secret_lies_in_any_file_log_event_or_argument(hub: RealHub) -> None:
    token = launched(hub, "gil")
    own = json.loads((hub.folder("gil") / "environ.json").read_text())["JUPYTERHUB_API_TOKEN"]
    (hub.folder("gil") / "environ.json").unlink()
    places = {
        str(path.relative_to(hub.directory)): path.read_text(errors="replace")
        for path in hub.directory.rglob("*")
        if path.is_file() and "sqlite" not in path.name and path.name != "cookie_secret"
    }
    assert f"data/servers/gil/{NAME}/server.log" in places
    assert "hub.log" in places
    places["record"] = json.dumps(hub.server("gil"))
    for process in hub.processes("gil", NAME):
        places[f"argv of {process.pid}"] = " ".join(process.cmdline())
    for place, text in places.items():
        for secret in [*secrets_of(hub, "gil"), own, token]:
            assert secret not in text, place


def test_a_server_token_names_its_server_and_nobody_can_make_one_for_another(hub: RealHub) -> None:
    token = launched(hub, "hal")
    hub.person("ivy")
    own = json.loads((hub.folder("hal") / "environ.json").read_text())["JUPYTERHUB_API_TOKEN"]
    scopes = hub.call("GET", "/user", token=own).json()["scopes"]
    assert f"custom:notebooks:git!server=hal/{NAME}" in scopes
    assert [s for s in scopes if s.startswith("custom:")] == [
        f"custom:notebooks:git!server=hal/{NAME}"
    ]
    assert f"access:servers!server=hal/{NAME}" in scopes
    forged = {"scopes": [f"custom:notebooks:git!server=ivy/{NAME}"]}
    assert hub.call("POST", "/users/hal/tokens", forged, token).status_code in (400, 403)
    forged = {"scopes": ["custom:notebooks:git"]}
    assert hub.call("POST", "/users/hal/tokens", forged, token).status_code in (400, 403)


@pytest.mark.parametrize(
    ("server", "options", "sentence"),
    [
        (server_name(8, SHA, "main"), HIDDEN, NotFound.message),
        (server_name(9, SHA, "main"), MISSING, NotFound.message),
        (
            server_name(7, NOWHERE, "main"),
            {"notebooks": {**OPTIONS["notebooks"], "commit": NOWHERE}},
            NotFound.message,
        ),
        (
            server_name(7, SHA, "gone"),
            {"notebooks": {**OPTIONS["notebooks"], "branch": "gone"}},
            "This branch does not exist",
        ),
        (OTHER_NAME, OPTIONS, "name does not belong"),
        ("anything", OPTIONS, "name does not belong"),
        ("", OPTIONS, "name does not belong"),
        (NAME, {**OPTIONS, "profile": "big"}, "'profile'"),
        (NAME, {"notebooks": {**OPTIONS["notebooks"], "image": "evil/image"}}, "`evil/image`"),
        (NAME, {"notebooks": {**OPTIONS["notebooks"], "variables": {}}}, "'variables'"),
        (NAME, {"notebooks": {**OPTIONS["notebooks"], "commit": "main"}}, "40"),
        (NAME, {"notebooks": "please"}, "object"),
    ],
)
def test_a_forged_request_is_refused_with_a_sentence(
    hub: RealHub, server: str, options: Any, sentence: str
) -> None:
    token = hub.person("mal")
    # 201: the hub answers so when the start before this one failed.
    assert hub.launch(token, "mal", server, options).status_code in (201, 202)
    path = f"servers/{server}" if server else "server"
    found = hub.settled("mal", server)
    assert not found["ready"]
    answer = hub.call("GET", f"/users/mal/{path}/progress", token=token)
    told = json.loads(answer.text.strip().removeprefix("data: "))
    assert told["failed"] is True
    assert sentence in told["message"]
    assert "ready" not in told
    assert not hub.processes("mal", server)
    assert not hub.folder("mal", server).exists() or not server


def test_hidden_and_missing_cannot_be_told_apart(hub: RealHub) -> None:
    token = hub.person("spy")
    answers = []
    for options in (HIDDEN, MISSING):
        hub.launch(token, "spy", "probe-" + "a" * 16, options)
        found = hub.settled("spy", "probe-" + "a" * 16)
        record = found["state"]["notebooks"]
        answers.append((record["failure"], record["step"], record["project_id"], found["ready"]))
    assert answers[0] == answers[1]
    owl = hub.person("owl")
    name = server_name(8, SHA, "main")
    hub.launch(owl, "owl", name, HIDDEN)
    assert hub.settled("owl", name)["state"]["notebooks"]["project_id"] == 8


def test_a_waiting_build_holds_no_slot_and_its_job_is_named(
    hub: RealHub, forge_of_hub: SmallForge
) -> None:
    forge_of_hub.jobs[SHA] = [job(5, "running")]
    token = hub.person("jim")
    for name in ("b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"):
        hub.launch(hub.person(name), name)  # more than `concurrent_launches`
    hub.launch(token, "jim")
    watcher = hub.watch(token, "jim")
    wait_until(lambda: any("image_build" in e["message"] for e in watcher.launch_events))
    record = hub.record("jim")
    assert (record["step"], record["outcome"]) == ("image", None)
    assert record["job"]["id"] == 5
    assert record["job"]["status"] == "running"
    assert hub.launch(token, "jim", OTHER_NAME, OTHER_OPTIONS).status_code == 202
    assert hub.settled("jim", OTHER_NAME)["ready"]
    assert not hub.is_ready("jim")
    forge_of_hub.jobs[SHA] = [job(5, "failed")]
    events = watcher.all()
    assert events[-1]["ready"] is True
    assert hub.record("jim")["image"]["origin"] == "default"
    assert hub.record("jim", OTHER_NAME)["commit"] == OTHER
    for name in ("b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"):
        assert hub.settled(name)["ready"]
        hub.cancel(hub.person(name), name)


def test_who_is_removed_while_a_build_is_waited_for_is_not_started(
    hub: RealHub, forge_of_hub: SmallForge
) -> None:
    forge_of_hub.jobs[SHA] = [job(6, "running")]
    token = hub.person("gone")
    hub.launch(token, "gone")
    watcher = hub.watch(token, "gone")
    wait_until(lambda: any("image_build" in e["message"] for e in watcher.launch_events))
    waited = time.monotonic() + ASK_AGAIN
    wait_until(lambda: time.monotonic() > waited)
    forge_of_hub.removed.add("gone")
    forge_of_hub.jobs[SHA] = [job(6, "failed")]
    events = watcher.all()
    assert events[-1]["failed"] is True
    record = hub.record("gone")
    assert record["failure"]["code"] == "not_found"
    assert not hub.is_ready("gone") and not hub.folder("gone").exists()
    assert not hub.processes("gone", NAME)


@pytest.mark.parametrize("step", ["clone", "starting"])
def test_a_failing_step_gives_its_sentence_and_leaves_nothing(hub: RealHub, step: str) -> None:
    name = f"fails-{step}"
    token = hub.person(name)
    hub.tell(f"hold-{step}", f"fail-{step}")
    hub.launch(token, name)
    watcher = hub.watch(token, name)
    wait_until(lambda: hub.reached(step))
    hub.untell(f"hold-{step}")
    events = watcher.all()
    assert events[-1]["failed"] is True
    failure = hub.record(name)["failure"]
    assert failure["code"] == {"clone": "clone_failed", "starting": "start_failed"}[step]
    assert f"told to fail in {step}" in failure["message"]
    assert failure["message"].splitlines()[0] in events[-1]["message"]
    assert not hub.is_ready(name)
    assert not hub.processes(name, NAME)
    assert not hub.folder(name).exists()
    hub.untell(f"fail-{step}")
    hub.launch(token, name)
    assert hub.settled(name)["ready"]


def test_a_port_that_somebody_else_took_is_another_try(hub: RealHub) -> None:
    token = hub.person("port")
    hub.tell("busy-once")
    hub.launch(token, "port")
    assert hub.settled("port")["ready"]
    assert not (hub.directory / "busy-once").exists()
    assert "already in use" in (hub.folder("port") / "server.log.1").read_text()


def test_a_revoked_token_is_refused_with_what_to_do(hub: RealHub, forge_of_hub: SmallForge) -> None:
    token = hub.person("kim")
    forge_of_hub.revoked.add("token-of-kim")
    hub.launch(token, "kim")
    assert not hub.settled("kim")["ready"]
    assert hub.record("kim")["failure"] == {
        "code": "sign_in_expired",
        "message": SignInExpired.message,
    }


def test_a_forge_that_is_away_costs_no_running_server(
    hub: RealHub, forge_of_hub: SmallForge
) -> None:
    token = launched(hub, "lee")
    own = json.loads((hub.folder("lee") / "environ.json").read_text())["JUPYTERHUB_API_TOKEN"]
    forge_of_hub.away = True
    expiring = {"access_token": "token-of-lee", "refresh_token": "r", "expires_at": 1.0}
    hub.person("lee", expiring)
    assert hub.call("GET", "/user", token=own).status_code == 200
    assert hub.is_ready("lee")
    hub.launch(token, "lee", OTHER_NAME, OTHER_OPTIONS)
    assert not hub.settled("lee", OTHER_NAME)["ready"]
    assert hub.record("lee", OTHER_NAME)["failure"]["code"] == "forge_unavailable"


@pytest.fixture(scope="module")
def owners_hub(
    tmp_path_factory: pytest.TempPathFactory, shared_forge: SmallForge
) -> Iterator[RealHub]:
    """A hub whose servers no wall keeps apart, and which the forge's webhook may wake."""
    directory = tmp_path_factory.mktemp("owner") / "hub"
    hub = RealHub(directory, shared_forge.url, webhook_secret="hook-canary")
    try:
        hub.start()
        yield hub
    finally:
        hub.close()


def test_a_webhook_is_heard_with_its_secret_only(owners_hub: RealHub) -> None:
    hub = owners_hub
    url = f"{hub.api_url.removesuffix('/api')}/notebooks/forge-events"
    event = {"object_kind": "build", "project_id": 7}
    for secret, status in (("hook-canary", 204), ("hook", 401), ("", 401), ("hook-canary-", 401)):
        headers = {"X-Gitlab-Token": secret} if secret else {}
        answer = hub.client.post(url, json=event, headers=headers)
        assert answer.status_code == status, secret
    headers = {"X-Gitlab-Token": "hook-canary"}
    assert hub.client.post(url, content=b"x" * (LARGEST + 1), headers=headers).status_code == 413
    assert "hook-canary" not in hub.log.read_text()


def test_only_the_owner_launches_where_nothing_walls_servers_off(owners_hub: RealHub) -> None:
    hub = owners_hub
    bob = hub.person("bob")
    hub.launch(bob, "bob")
    assert not hub.settled("bob")["ready"]
    failure = hub.record("bob")["failure"]
    assert failure["code"] == "launch_refused"
    assert "owner only" in failure["message"]
    hub.launch(hub.person("ada"))
    assert hub.settled()["ready"]
