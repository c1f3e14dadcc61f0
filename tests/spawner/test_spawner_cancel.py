"""Cancelling a launch in every state, in a real hub: quick, and nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from spawner_real_hub import NAME, RealHub, wait_until
from spawner_small_forge import SHA, SmallForge, job


@contextmanager
def stuck_in(step: str, hub: RealHub, forge: SmallForge) -> Iterator[Callable[[], bool]]:
    """While this lasts, launches get stuck in ``step``; yields "one has got there"."""
    with ExitStack() as stack:
        if step == "access":
            came = stack.enter_context(forge.held("/repository/commits"))
            yield came.is_set
        elif step == "image":
            forge.jobs[SHA] = [job(5, "running")]
            stack.callback(forge.jobs.clear)
            yield lambda: hub.record(f"stuck-{step}").get("job") is not None
        else:
            hub.tell(f"hold-{step}")
            yield lambda: hub.reached(step)
            hub.untell(f"hold-{step}")


@pytest.mark.parametrize("step", ["access", "image", "clone", "starting"])
def test_cancel_leaves_nothing_and_tells_nobody_ready(
    hub: RealHub, forge_of_hub: SmallForge, step: str
) -> None:
    name = f"stuck-{step}"
    token = hub.person(name)
    with stuck_in(step, hub, forge_of_hub) as got_there:
        assert hub.launch(token, name).status_code == 202
        watchers = [hub.watch(token, name), hub.watch(token, name)]
        wait_until(got_there)
        wait_until(lambda: all(watcher.launch_events for watcher in watchers))
        if step in ("clone", "starting"):
            assert hub.processes(name, NAME)
        started = time.monotonic()
        assert hub.cancel(token, name) in (202, 204)
        assert time.monotonic() - started < 10
        assert not hub.settled(name)["ready"]
        for watcher in watchers:
            events = watcher.all()
            assert not any(event.get("ready") for event in events)
            assert events[-1]["failed"] is True
            assert events[-1]["message"] == "Spawn cancelled"
            assert watcher.launch_events[-1]["message"] == "Cancelled."
        record = hub.record(name)
        assert (record["outcome"], record["step"]) == ("cancelled", step)
        assert record["runtime"] == {}
        wait_until(lambda: not hub.processes(name, NAME))
        wait_until(lambda: not hub.folder(name).exists())
        wait_until(lambda: not list((hub.data / "run" / "cleanup").glob("*.json")))
    assert hub.launch(token, name).status_code == 202
    assert hub.settled(name)["ready"]
    assert hub.record(name)["id"] != record["id"]


def test_a_launch_right_after_a_cancel_waits_for_the_cleanup_and_succeeds(hub: RealHub) -> None:
    token = hub.person("again")
    for _ in range(3):
        hub.reset()
        hub.tell("hold-starting")
        assert hub.launch(token, "again").status_code == 202
        wait_until(lambda: hub.reached("starting"))
        assert hub.cancel(token, "again") in (202, 204)
        hub.untell("hold-starting")
        assert hub.launch(token, "again").status_code == 202
        assert hub.settled("again")["ready"], hub.record("again")
        assert hub.cancel(token, "again") in (202, 204)
        assert not hub.settled("again")["ready"]


def test_between_cancel_and_the_end_nobody_sees_a_ready_server(hub: RealHub) -> None:
    """JupyterHub itself calls a cancelled server ready for a second; ours must never."""
    token = hub.person("never")
    hub.tell("hold-starting")
    hub.launch(token, "never")
    wait_until(lambda: hub.reached("starting"))
    path = f"/users/never/servers/{NAME}"
    seen = []
    import threading

    cancel = threading.Thread(target=hub.cancel, args=(token, "never"))
    cancel.start()
    while cancel.is_alive():
        seen.append(hub.is_ready("never"))
        answer = hub.call("GET", f"{path}/progress", token=token) if len(seen) % 5 == 0 else None
        assert answer is None or '"ready": true' not in answer.text
    cancel.join()
    assert seen
    assert not any(seen)


def test_a_cancelled_launch_keeps_the_work_of_an_earlier_one(hub: RealHub) -> None:
    token = hub.person("keeps")
    hub.launch(token, "keeps")
    assert hub.settled("keeps")["ready"]
    (hub.folder("keeps") / "work" / "thing" / "mine.txt").write_text("unsaved")
    hub.cancel(token, "keeps")
    assert not hub.settled("keeps")["ready"]
    hub.reset()
    hub.tell("hold-starting")
    hub.launch(token, "keeps")
    wait_until(lambda: hub.reached("starting"))
    hub.cancel(token, "keeps")
    wait_until(lambda: not hub.processes("keeps", NAME))
    assert not hub.settled("keeps")["ready"]
    assert (hub.folder("keeps") / "work" / "thing" / "mine.txt").read_text() == "unsaved"
    record = hub.record("keeps")
    assert record["work"] == {"uncommitted": ["mine.txt"]}
