"""Event streams of launches with a real hub: live, resumed, cancelled, over restarts; and logs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web_small_forge import SHA
from web_stage import PREFIX, Stage, run_stage, until

from notebooks_service.domain import LaunchOutcome, LaunchRecord, LaunchStep, server_name
from notebooks_service.errors import InvalidRequest
from notebooks_service.gateway.hub import HubServer
from notebooks_service.web.events import Position, ending
from notebooks_service.web.logs import LARGEST_PIECE, byte_range, plain, read_file, whole_lines
from notebooks_service.web.states import state_of, steps_of, unsaved_of

RIVERS = server_name(7, SHA, "main")
ADDRESS = f"group/rivers/{SHA}"
LAUNCH = "0a1b2c3d4e5f"


def story(*steps: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A record with these events, and whatever else is given."""
    events = [
        {"id": number, "at": f"2026-11-22T10:00:{number:02}Z", "step": step, "message": said}
        for number, (step, said) in enumerate(steps, 1)
    ]
    return {
        "id": LAUNCH,
        "project_path": "group/rivers",
        "commit": SHA,
        "branch": "main",
        "step": steps[-1][0],
        "events": events,
        **more,
    }


@asynccontextmanager
async def watching(
    api: httpx.AsyncClient, last: str | None = None
) -> AsyncIterator[AsyncIterator[tuple[str, str, dict[str, Any]]]]:
    """The events of the server as they come: kind, id, data."""
    headers = {"Last-Event-ID": last} if last else {}

    async with api.stream("GET", f"servers/{RIVERS}/events", headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")

        async def events() -> AsyncIterator[tuple[str, str, dict[str, Any]]]:
            fields: dict[str, str] = {}
            async for line in answer.aiter_lines():
                if line and not line.startswith(":"):
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif not line and "data" in fields:
                    yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
                    fields = {}

        yield events()


async def next_of(events: AsyncIterator[Any], kind: str) -> Any:
    async with asyncio.timeout(60):
        async for event in events:
            if event[0] == kind:
                return event
    raise AssertionError(f"the stream ended without {kind}")


async def is_stopped(api: httpx.AsyncClient) -> bool:
    server = (await api.get(f"servers/{RIVERS}")).json()
    return bool(server["status"]["state"] == "stopped")


async def test_a_launch_is_told_from_beginning_to_end(stage: Stage) -> None:
    steps = [("access", "Asking the forge."), ("image", "Waiting for job 41.")]
    stage.hub.script("ada", RIVERS, "wait", **story(*steps, job={"id": 41, "status": "running"}))
    stage.forge.traces[41] = b"\x1b[32mcollecting\x1b[0m pandas\nhalf a li"
    async with stage.api("ada") as api:
        assert (await api.post(ADDRESS)).status_code == 201
        async with watching(api) as events:
            kind, id, data = await next_of(events, "step")
            assert (kind, id) == ("step", f"{LAUNCH}.1")
            assert data["step"] == "access" and data["message"] == "Asking the forge."
            _, id, data = await next_of(events, "step")
            assert id == f"{LAUNCH}.2"
            _, id, data = await next_of(events, "log")
            assert data["text"] == "collecting pandas\n"
            assert id == f"{LAUNCH}.2.{data['offset']}.41"
            stage.forge.traces[41] += b"ne, now whole\n"
            _, id, data = await next_of(events, "log")
            assert data["text"] == "half a line, now whole\n"
            stage.forge.traces[41] += b"the end"
            steps.append(("clone", "Cloning."))
            stage.hub.script("ada", RIVERS, "wait", **story(*steps, job={"id": 41}))
            _, _, data = await next_of(events, "step")
            assert data["step"] == "clone"
            _, last, data = await next_of(events, "log")
            assert data["text"] == "the end"
            stage.hub.script("ada", RIVERS, "ready", **story(*steps, job={"id": 41}))
            _, _, data = await next_of(events, "end")
            assert data["outcome"] == "ready"
            assert data["url"] == f"{stage.url}/user/ada/{RIVERS}/lab/tree/rivers"
        # A watcher that comes late and knows nothing is told everything; one that knows, the end.
        async with watching(api) as events:
            kinds = [kind async for kind, _, _ in events]
            assert kinds == ["step", "step", "step", "log", "end"]
        async with watching(api, last) as events:
            assert [kind async for kind, _, _ in events] == ["end"]
        async with watching(api, f"{LAUNCH}.2") as events:
            assert [kind async for kind, _, _ in events] == ["step", "log", "end"]
        async with watching(api, "another.9") as events:
            assert len([kind async for kind, _, _ in events]) == 5


async def test_watchers_of_a_cancelled_launch_are_never_told_ready(stage: Stage) -> None:
    stage.hub.script("ada", RIVERS, "wait", **story(("image", "Waiting.")))
    async with stage.api("ada") as api:
        await api.post(ADDRESS)

        async def watch() -> list[tuple[str, dict[str, Any]]]:
            async with watching(api) as events:
                return [(kind, data) async for kind, _, data in events]

        watchers = [asyncio.create_task(watch()) for _ in range(5)]
        await asyncio.sleep(0)
        answer = await api.patch(f"servers/{RIVERS}", json={"state": "hibernated"})
        assert answer.status_code == 200
        for told in await asyncio.gather(*watchers):
            assert told[-1][0] == "end"
            assert told[-1][1]["outcome"] == "cancelled"
            assert all(data.get("outcome") != "ready" for _, data in told)
        await until(lambda: is_stopped(api))


async def test_a_failed_launch_ends_with_its_sentence(stage: Stage) -> None:
    failure = {"code": "clone_failed", "message": "The repository could not be cloned."}
    record = story(("clone", failure["message"]), outcome="failed", failure=failure)
    stage.hub.script("ada", RIVERS, "wait", **story(("clone", "Cloning.")))
    async with stage.api("ada") as api:
        await api.post(ADDRESS)
        async with watching(api) as events:
            await next_of(events, "step")
            stage.hub.script("ada", RIVERS, "fail", **record)
            _, _, data = await next_of(events, "end")
            assert data == {"outcome": "failed", "failure": failure}


async def test_another_process_of_the_service_goes_on_with_the_stream(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    steps = [("access", "Asking."), ("image", "Waiting.")]
    stage.hub.script("ada", RIVERS, "wait", **story(*steps))
    async with stage.api("ada") as api:
        await api.post(ADDRESS)
        async with watching(api) as events:
            await next_of(events, "step")
            _, last, _ = await next_of(events, "step")
    async with (
        run_stage(stage.hub, tmp_path_factory.mktemp("restarted")) as again,
        again.api("ada") as api,
        watching(api, last) as events,
    ):
        steps.append(("clone", "Cloning."))
        stage.hub.script("ada", RIVERS, "ready", **story(*steps))
        _, id, data = await next_of(events, "step")
        assert (id, data["step"]) == (f"{LAUNCH}.3", "clone")
        await next_of(events, "end")


async def test_a_restart_of_the_hub_is_said_and_the_launch_asked_for_again(stage: Stage) -> None:
    stage.hub.script("ada", RIVERS, "wait", **story(("image", "Waiting.")))
    async with stage.api("ada") as api, stage.browser() as browser:
        await browser.sign_in("ada")
        await api.post(ADDRESS)
        async with watching(api) as events:
            await next_of(events, "step")
            await asyncio.to_thread(stage.hub.stop, kill=True)
            try:
                _, _, data = await next_of(events, "hub")
                assert data["available"] is False and "restarting" in data["message"]
                page = await browser.get(PREFIX + ADDRESS)
                assert page.status_code == 503 and "hub does not answer" in page.text
            finally:
                await asyncio.to_thread(stage.hub.start)
            _, _, data = await next_of(events, "hub")
            assert data["available"] is True
            _, _, data = await next_of(events, "end")
            assert data["outcome"] == "interrupted"
        stage.hub.script("ada", RIVERS, "ready", **story(("starting", "Starting.")))
        assert (await api.post(ADDRESS)).status_code == 201
        async with watching(api) as events:
            _, _, data = await next_of(events, "end")
            assert data["outcome"] == "ready"


async def test_only_the_owner_watches(stage: Stage) -> None:
    async with stage.api("ada") as api, stage.api("bob") as bob:
        await api.post(ADDRESS)
        for path in (f"servers/{RIVERS}/events", f"servers/{RIVERS}", f"logs/{RIVERS}"):
            assert (await bob.get(path)).status_code == 404
            head = await api.head(path)
            assert (head.status_code, head.content) == (200, b"")


async def test_pages_show_the_state_and_cancel_by_form(stage: Stage) -> None:
    notes = ["This image has no git-lfs; <b>`git lfs pull`</b> is ours."]
    told_of = story(("access", "Asking."), ("image", "Waiting."), checkout={"notes": notes})
    stage.hub.script("ada", RIVERS, "wait", **told_of)
    async with stage.browser() as browser, stage.api("ada") as api:
        home = await browser.sign_in("ada")
        found = re.search(r'name="csrf_token" value="([^"]+)"', home.text)
        assert found
        await browser.submit(PREFIX + ADDRESS, found.group(1))

        async def told() -> Any:
            """The page, once the hub has the first words of the launch."""
            page = await browser.get(PREFIX + ADDRESS)
            return page if 'data-step="access" data-state="done"' in page.text else None

        page = await until(told)
        assert 'data-step="image" data-state="current" aria-current="step"' in page.text
        assert 'data-step="ready" data-state="waiting"' in page.text
        answer = await browser.submit(
            f"{PREFIX}servers/{RIVERS}/stop", found.group(1), next=PREFIX + ADDRESS
        )
        assert (answer.status_code, answer.headers["location"]) == (303, PREFIX + ADDRESS)
        await until(lambda: is_stopped(api))
        page = await browser.get(PREFIX + ADDRESS)
        assert "The last launch was cancelled" in page.text and 'data-auto="no"' in page.text
        # What the clone had to remark outlives the page that shows it pass by.
        assert (await api.get(f"servers/{RIVERS}")).json()["notes"] == notes
        page = await browser.get(f"{PREFIX}servers")
        assert "has no git-lfs; &lt;b&gt;<code>git lfs pull</code>&lt;/b&gt; is ours" in page.text
        page = await browser.get(f"{PREFIX}servers/{RIVERS}/delete")
        assert "Nothing is known of unsaved work" in page.text
        answer = await browser.submit(f"{PREFIX}servers/{RIVERS}/delete", found.group(1))
        assert answer.status_code == 303
        assert (await api.get(f"servers/{RIVERS}")).status_code == 404


async def test_the_logs_of_a_server(stage: Stage) -> None:
    directory = stage.settings.data / "servers" / "ada" / RIVERS
    directory.mkdir(parents=True)
    (directory / "server.log").write_text("one\n\x1b[1mtwo\x1b[0m\nthree\n")
    (directory / "clone.log").symlink_to("/etc/hostname")
    async with stage.api("ada") as api:
        await api.post(ADDRESS)
        log = await api.get(f"logs/{RIVERS}?step=server&tail=2")
        assert log.text == "two\nthree\n"
        assert (await api.get(f"logs/{RIVERS}?step=clone")).text == ""
        assert "== server ==\none" in (await api.get(f"logs/{RIVERS}")).text
        assert (await api.get(f"logs/{RIVERS}?step=image")).status_code == 404
        assert (await api.get(f"logs/{RIVERS}?tail=0")).status_code == 422
        missed = await api.get(f"logs/{RIVERS}", headers={"Range": "bytes=99999-"})
        assert missed.status_code == 416


def test_no_link_fifo_or_second_name_is_read(tmp_path: Path) -> None:
    inside = tmp_path / "servers" / "ada"
    inside.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (inside / "good.log").write_text("good")
    (inside / "link.log").symlink_to(secret)
    os.link(secret, inside / "hard.log")
    os.mkfifo(inside / "fifo.log")
    (tmp_path / "servers" / "eve").symlink_to(inside)
    root = tmp_path / "servers"
    assert read_file(root, "ada", "good.log") == b"good"
    for names in (
        ("ada", "link.log"),
        ("ada", "hard.log"),
        ("ada", "fifo.log"),
        ("eve", "good.log"),
        ("..", "secret"),
        ("ada/../..", "secret"),
        ("ada", "missing"),
        ("ada",),
    ):
        assert read_file(root, *names) == b"", names


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("\x1b[0Ksection_start:1700000000:build[collapsed=true]\r\x1b[0KBuilding\n", "Building\n"),
        ("10%\r50%\r100%\ndone", "100%\ndone"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("\x1b]8;;http://evil\x07link\x1b]8;;\x07", "link"),
        ("bell\x07 and\x00 nul \x9b31m", "bell and nul 31m"),
        ("tab\tstays ä\n", "tab\tstays ä\n"),
    ],
)
def test_logs_are_plain_text(raw: str, text: str) -> None:
    assert plain(raw) == text


@pytest.mark.parametrize(
    "piece", ["section_start:1:a[", "\x1b[1", "\x1b]a", "\x1b", "section_start:1", "[a", "\r"]
)
def test_a_hostile_log_is_read_in_linear_time(piece: str) -> None:
    """Its job belongs to strangers: half a megabyte may take a moment, not the service's loop."""
    began = time.process_time()
    plain(piece * (LARGEST_PIECE * 8 // len(piece)))
    assert time.process_time() - began < 5


@given(st.text(max_size=200), st.booleans())
def test_whole_lines_lose_nothing(text: str, last: bool) -> None:
    data = text.encode()
    shown = whole_lines(data, last=last)
    assert data.startswith(shown)
    assert shown == data or not last
    assert shown.endswith(b"\n") or last or not shown
    shown.decode()


def test_a_line_without_end_is_cut_between_characters() -> None:
    for data in (b"x" * LARGEST_PIECE, ("é" * LARGEST_PIECE).encode()[:-1], "日".encode() * 30_000):
        shown = whole_lines(data, last=False)
        assert len(shown) >= len(data) - 4
        shown.decode()


@pytest.mark.parametrize(
    ("header", "bounds"),
    [
        (None, None),
        ("bytes=0-", (0, 10)),
        ("bytes=2-4", (2, 5)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=5-99", (5, 10)),
        ("bytes=-", None),
        ("lines=1-2", None),
        ("bytes=1-2,4-5", None),
    ],
)
def test_ranges(header: str | None, bounds: tuple[int, int] | None) -> None:
    assert byte_range(header, 10) == bounds


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=5-2", "bytes=-0"])
def test_ranges_outside(header: str) -> None:
    with pytest.raises(InvalidRequest):
        byte_range(header, 10)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        (None, Position()),
        ("", Position()),
        ("abc.7", Position("abc", 7)),
        ("abc.7.100", Position("abc", 7, 100)),
        ("abc.7.100.41", Position("abc", 7, 100, 41)),
        ("abc", Position()),
        ("ABC.7", Position()),
        ("abc.7.100.41.9", Position()),
        ("abc.-7", Position()),
        ("abc.7\nx", Position()),
    ],
)
def test_positions(text: str | None, position: Position) -> None:
    assert Position.parse(text) == position


def server(
    outcome: LaunchOutcome | None = None,
    *,
    ready: bool = False,
    pending: str | None = None,
    failure: dict[str, str] | None = None,
    record: bool = True,
    work: dict[str, Any] | None = None,
) -> HubServer:
    launch = LaunchRecord(
        "abc", 7, "group/rivers", SHA, "main", "", outcome=outcome, failure=failure, work=work
    )
    stopped = not ready and not pending
    return HubServer(
        "x",
        "x",
        ready,
        pending,
        stopped,
        "/user/ada/x/",
        None,
        None,
        record=launch if record else None,
    )


READY, FAILED, CANCELLED = LaunchOutcome.READY, LaunchOutcome.FAILED, LaunchOutcome.CANCELLED
LOST = {"code": "hub_restarted", "message": "…"}


@pytest.mark.parametrize(
    ("seen", "ready_for", "outcome"),
    [
        (None, 0, "gone"),
        (server(pending="spawn"), 0, None),
        (server(READY, pending="stop"), 0, None),
        (server(READY, pending="spawn", ready=True), 99, None),
        (server(READY, ready=True), 0, "ready"),
        (server(ready=True), 0, None),
        (server(ready=True), 6, "ready"),
        (server(ready=True, record=False), 0, "ready"),
        (server(CANCELLED, ready=True), 99, "cancelled"),
        (server(FAILED, ready=True), 99, "failed"),
        (server(CANCELLED), 0, "cancelled"),
        (server(FAILED, failure={"code": "x", "message": "y"}), 0, "failed"),
        (server(FAILED, failure=LOST), 0, "interrupted"),
        (server(READY), 0, "stopped"),
        (server(), 0, "interrupted"),
    ],
)
def test_how_a_launch_has_ended(
    seen: HubServer | None, ready_for: float, outcome: str | None
) -> None:
    end = ending(seen, ready_for)
    assert (end["outcome"] if end else None) == outcome


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (server(pending="spawn"), "starting"),
        (server(READY, ready=True), "running"),
        (server(READY, ready=True, pending="stop"), "stopping"),
        (server(FAILED), "failed"),
        (server(CANCELLED), "stopped"),
        (server(READY), "stopped"),
        (server(record=False), "stopped"),
    ],
)
def test_states(seen: HubServer, state: str) -> None:
    assert state_of(seen) == state


@pytest.mark.parametrize(
    ("step", "outcome", "states"),
    [
        ("access", None, "current waiting waiting waiting waiting"),
        ("clone", None, "done done current waiting waiting"),
        ("clone", FAILED, "done done failed waiting waiting"),
        ("image", CANCELLED, "done cancelled waiting waiting waiting"),
        ("ready", READY, "done done done done done"),
    ],
)
def test_steps(step: str, outcome: LaunchOutcome | None, states: str) -> None:
    record = LaunchRecord("a", 7, "a/b", SHA, "main", "", step=LaunchStep(step), outcome=outcome)
    assert " ".join(each.state for each in steps_of(record)) == states
    assert [each.name for each in steps_of(None)] == [step.value for step in LaunchStep]


@pytest.mark.parametrize(
    ("work", "known", "summary"),
    [
        (None, False, ""),
        ({"repository": False}, False, ""),
        ({"repository": True, "clean": True, "files": [], "commits": []}, True, ""),
        ({"files": [{"path": "a", "state": "modified"}]}, True, "1 changed file"),
        (
            {
                "files": [{"path": "a", "state": "modified"}, {"path": "b", "state": "added"}],
                "commits": [{"sha": SHA, "title": "x"}],
                "stashes": ["one", "two"],
            },
            True,
            "2 changed files, 1 unpushed commit and 2 stashes",
        ),
        ({"files": [], "more": True}, True, "unsaved work, or more"),
        ({"files": "evil", "commits": [7], "stashes": None}, True, ""),
    ],
)
def test_unsaved_work(work: dict[str, Any] | None, known: bool, summary: str) -> None:
    unsaved = unsaved_of(server(work=work).record)
    assert (unsaved.known, unsaved.summary) == (known, summary)
