"""Servers that run: stopping, dying, the hub killed and back, deleting; and servers not ours."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import httpx
import psutil
import pytest
from spawner_real_hub import NAME, RealHub, wait_until
from spawner_small_forge import SHA, SmallForge, job


def launched(hub: RealHub, name: str = "ada") -> str:
    token = hub.person(name)
    assert hub.launch(token, name).status_code in (201, 202)
    assert hub.settled(name)["ready"], hub.record(name)
    return token


def answers(hub: RealHub, name: str = "ada") -> bool:
    port = hub.record(name)["runtime"]["port"]
    try:
        return httpx.get(f"http://127.0.0.1:{port}/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_stop_ends_every_process_and_keeps_and_names_the_work(hub: RealHub) -> None:
    token = launched(hub, "nia")
    (hub.folder("nia") / "work" / "thing" / "mine.txt").write_text("mine")
    assert len(hub.processes("nia", NAME)) == 4  # the clone's daemon; server, kernel, daemon
    first = hub.record("nia")
    assert hub.cancel(token, "nia") in (202, 204)
    assert not hub.settled("nia")["ready"]
    assert not hub.processes("nia", NAME)
    record = hub.record("nia")
    assert record["id"] == first["id"]
    assert (record["outcome"], record["runtime"]) == ("ready", {})
    assert record["work"] == {"uncommitted": ["mine.txt"]}
    assert hub.launch(token, "nia").status_code == 202
    assert hub.settled("nia")["ready"]
    assert (hub.folder("nia") / "work" / "thing" / "mine.txt").read_text() == "mine"
    assert hub.record("nia")["id"] != first["id"]
    hub.cancel(token, "nia")


def test_a_server_that_dies_is_noticed_and_takes_its_kernels_with_it(hub: RealHub) -> None:
    """At once, long before the hub looks for the next time: its port may be anybody's by then."""
    launched(hub, "oto")
    psutil.Process(hub.record("oto")["runtime"]["pid"]).kill()
    wait_until(lambda: not hub.is_ready("oto"))
    wait_until(lambda: not hub.processes("oto", NAME))
    wait_until(lambda: hub.record("oto")["runtime"] == {})
    assert hub.record("oto")["work"] == {"uncommitted": []}


def test_delete_moves_the_files_to_the_trash_with_a_note_of_what_it_was(hub: RealHub) -> None:
    token = launched(hub, "pia")
    (hub.folder("pia") / "work" / "thing" / "mine.txt").write_text("mine")
    assert hub.cancel(token, "pia", remove=True) in (202, 204)
    wait_until(lambda: hub.server("pia") is None)
    assert not hub.folder("pia").exists()
    assert not hub.processes("pia", NAME)
    (trashed,) = (hub.data / "trash").glob(f"*-pia-{NAME}")
    about = json.loads((trashed / "about.json").read_text())
    assert (about["project"], about["commit"], about["branch"]) == ("group/thing", SHA, "main")
    assert about["work"] == {"uncommitted": ["mine.txt"]}
    assert (trashed / "work" / "thing" / "mine.txt").read_text() == "mine"


def test_one_of_ours_is_not_renamed(hub: RealHub) -> None:
    if hub.version < 6:
        pytest.skip("JupyterHub 5 renames nothing")
    token = launched(hub, "quy")
    hub.cancel(token, "quy")
    hub.settled("quy")
    answer = hub.call("PATCH", f"/users/quy/servers/{NAME}", {"name": "mine"}, token)
    assert answer.status_code == 400
    assert "keeps its name" in answer.text


def test_a_server_that_is_not_ours_is_the_administrators_own(hub: RealHub) -> None:
    token = hub.person("ren")
    for server in ("", "their-own"):
        path = f"servers/{server}" if server else "server"
        assert hub.launch(token, "ren", server, {"profile": "small"}).status_code == 202
        found = hub.settled("ren", server)
        assert found["ready"]
        assert set(found["state"]) == {"pid", "theirs"}
        assert found["user_options"] == {"profile": "small"}
        process = psutil.Process(found["state"]["pid"])
        environ = process.environ()
        assert environ["THEIRS"] == "1"
        assert environ["HOME"] == str(hub.directory / "homes" / "ren")
        assert not [key for key in environ if key.startswith("NOTEBOOKS_")]
        assert hub.call("DELETE", f"/users/ren/{path}", token=token).status_code in (202, 204)
        assert not hub.settled("ren", server)["ready"]
        wait_until(lambda gone=process: not gone.is_running())
        assert hub.settled("ren", server)["state"] == {"theirs": True}
    assert not (hub.data / "servers" / "ren").exists()


def test_progress_of_a_server_that_is_not_ours_is_its_own(hub: RealHub) -> None:
    token = hub.person("sam")
    body = {"profile": "small"}
    hub.launch(token, "sam", "their-own", body)
    events = hub.watch(token, "sam", "their-own").all()
    assert events[-1]["ready"] is True
    assert not [event for event in events if "launch" in event]
    assert hub.cancel(token, "sam", "their-own") in (202, 204)
    assert not hub.settled("sam", "their-own")["ready"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_servers_outlive_the_hub_and_are_adopted(start_hub: Any, number: int) -> None:
    hub = start_hub()
    token = launched(hub)
    before = hub.record()
    hub.kill(number)
    assert len(hub.processes("ada", NAME)) == 4
    hub.start()
    wait_until(hub.is_ready)
    assert hub.record() == before
    assert answers(hub)
    assert len(hub.processes("ada", NAME)) == 4
    assert hub.launch(token).status_code == 400  # it is running
    if number == signal.SIGKILL:
        assert hub.cancel(token) in (202, 204)
    else:  # its end is noticed at once, too
        psutil.Process(before["runtime"]["pid"]).kill()
        wait_until(lambda: not hub.is_ready())
        wait_until(lambda: not hub.processes())
    assert not hub.settled()["ready"]
    assert not hub.processes()


def test_a_server_that_died_with_the_hub_away_is_not_taken_for_another(start_hub: Any) -> None:
    hub = start_hub()
    token = launched(hub)
    hub.kill()
    for process in hub.processes():
        process.kill()
    hub.start()
    assert not hub.settled()["ready"]
    assert hub.record()["runtime"] == {}
    assert hub.launch(token).status_code == 202
    assert hub.settled()["ready"]


def test_a_server_that_is_too_busy_to_answer_a_new_hub_goes_on(start_hub: Any) -> None:
    """JupyterHub itself would stop it, and what its kernels had computed were lost."""
    hub = start_hub()
    launched(hub)
    before = hub.record()
    hub.kill()
    for process in hub.processes("ada", NAME):
        process.suspend()
    hub.given["http_timeout"] = 1
    hub.start()
    wait_until(lambda: "it is left alone" in hub.log.read_text())
    for process in hub.processes("ada", NAME):
        process.resume()
    wait_until(hub.is_ready)
    assert hub.record() == before
    assert answers(hub)
    assert len(hub.processes("ada", NAME)) == 4


@pytest.mark.parametrize("step", ["image", "clone", "starting"])
def test_a_hub_killed_during_a_launch_cleans_up_when_it_is_back(
    start_hub: Any, small_forge: SmallForge, step: str
) -> None:
    hub = start_hub()
    token = hub.person("ada")
    if step == "image":
        small_forge.jobs[SHA] = [job(5, "running")]
    else:
        hub.tell(f"hold-{step}")
    assert hub.launch(token).status_code == 202
    wait_until((lambda: hub.record().get("job")) if step == "image" else lambda: hub.reached(step))
    if step == "starting":
        wait_until(lambda: hub.record()["runtime"].get("pid"))
    hub.kill()
    if step != "image":
        assert hub.processes()
    hub.start()
    found = hub.settled()
    assert not found["ready"]
    record = found["state"]["notebooks"]
    assert record["outcome"] == "failed"
    assert record["failure"]["code"] == "hub_restarted"
    assert "open the URL again" in record["failure"]["message"]
    assert record["events"][-1]["message"] == record["failure"]["message"]
    assert not hub.processes()
    # The clone had finished in step `starting`: a relaunch takes it up.
    assert hub.folder().exists() is (step == "starting")
    hub.reset()
    small_forge.jobs.clear()
    assert hub.launch(token).status_code == 202
    assert hub.settled()["ready"]


def test_a_hub_killed_right_after_a_cancel_finishes_the_cleanup(start_hub: Any) -> None:
    hub = start_hub()
    token = hub.person("ada")
    hub.tell("hold-clone")
    hub.launch(token)
    wait_until(lambda: hub.reached("clone"))
    assert hub.cancel(token) in (202, 204)
    hub.settled()
    wait_until(lambda: not hub.processes())
    hub.kill()
    # As it would lie there had the hub been killed a moment earlier.
    journal = hub.data / "run" / "cleanup"
    (hub.folder() / "work" / "half").mkdir(parents=True)
    (journal / "abc.json").write_text(
        json.dumps({"user": "ada", "server": NAME, "launch": "abc", "runtime": {}, "files": True})
    )
    (journal / "torn.json").write_text("{")
    hub.start()
    wait_until(lambda: not hub.folder().exists())
    wait_until(lambda: not (journal / "abc.json").exists())


def test_five_parallel_requests_with_an_expiring_token_make_one_refresh(
    hub: RealHub, forge_of_hub: SmallForge
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def refresh(form: dict[str, str]) -> tuple[int, Any]:
        assert form["client_id"] == "hub"
        if form["refresh_token"] != "r0":
            return 400, {"error": "invalid_grant"}
        return 200, {
            "access_token": "token-of-ted",
            "refresh_token": "r1",
            "created_at": time.time(),
            "expires_in": 7200,
        }

    forge_of_hub.refresh = refresh
    expiring = {
        "access_token": "old",
        "refresh_token": "r0",
        "token_response": {"created_at": time.time() - 7100, "expires_in": 7200},
    }
    token = hub.person("ted", expiring)
    before = forge_of_hub.refreshes
    with ThreadPoolExecutor(5) as pool:
        statuses = list(
            pool.map(lambda _: hub.call("GET", "/user", token=token).status_code, range(5))
        )
    assert statuses == [200] * 5
    assert forge_of_hub.refreshes - before == 1
    state = hub.call("GET", "/users/ted", token=hub.service_token).json()["auth_state"]
    assert (state["access_token"], state["refresh_token"]) == ("token-of-ted", "r1")
    assert state["expires_at"] > time.time() + 7000
    assert hub.launch(token, "ted").status_code == 202
    assert hub.settled("ted")["ready"]
    assert forge_of_hub.refreshes - before == 1


def test_a_refused_refresh_refuses_the_launch(hub: RealHub, forge_of_hub: SmallForge) -> None:
    forge_of_hub.refresh = lambda form: (400, {"error": "invalid_grant"})
    expiring = {"access_token": "token-of-una", "refresh_token": "r", "expires_at": 1.0}
    token = hub.person("una", expiring)
    answer = hub.launch(token, "una")
    if answer.status_code == 202:  # JupyterHub before 6.1 refuses the request itself
        assert not hub.settled("una")["ready"]
        assert hub.record("una")["failure"]["code"] == "sign_in_expired"
    else:
        assert answer.status_code == 403
