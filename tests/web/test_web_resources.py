"""Processors and memory: what the page, the API and ``server_options`` offer, take and refuse."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_web_choices import RIVERS, page_of, token_in
from web_small_forge import OTHER, SHA
from web_stage import PREFIX, Browser, Stage, run_stage, until

GIB = 2**30


@pytest.fixture
async def generous(stage: Stage, tmp_path: Path) -> AsyncIterator[Stage]:
    """Beside the usual one, over the same hub: its end removes the servers of both."""
    more = {"runtime": "docker", "server_cpu_most": 4, "server_memory_most": 8 * GIB}
    async with run_stage(stage.hub, tmp_path / "generous", **more) as found:
        yield found


def asked(stage: Stage, name: str) -> dict[str, Any]:
    server = stage.hub.call("GET", f"/users/{name}")["servers"][RIVERS]
    found: dict[str, Any] = server["user_options"]["notebooks"]
    return {key: found[key] for key in ("cpu", "memory") if key in found}


def selected(text: str) -> list[str]:
    return re.findall(r'<option value="([0-9.]+)" selected>', text)


async def test_the_page_offers_and_hands_on(generous: Stage) -> None:
    generous.hub.script("bob", RIVERS, "wait")
    async with generous.browser() as browser:
        page = await page_of(browser)
        assert selected(page.text) == ["2.0", str(4 * GIB)]
        address = f"{PREFIX}group/rivers/{SHA}"
        chosen = {"cpu": "0.5", "memory": str(2 * GIB)}
        answer = await browser.submit(address, token_in(page), choices="yes", **chosen)
        assert answer.status_code == 303, answer.text
        assert asked(generous, "bob") == {"cpu": 0.5, "memory": 2 * GIB}


async def test_a_server_that_has_stopped_can_have_others(generous: Stage) -> None:
    stage = generous
    stage.hub.script("bob", RIVERS, "wait")
    address = f"{PREFIX}group/rivers/{SHA}"
    async with stage.browser() as browser:
        page = await page_of(browser)
        await browser.submit(address, token_in(page), choices="yes", cpu="1.0", memory=str(GIB))
        await browser.submit(f"{PREFIX}servers/{RIVERS}/stop", token_in(page))
        stopped = await until(lambda: _stopped(browser))
        [link] = re.findall(r'href="([^"]*ask=resources)"', stopped)
        # The project is agreed to, so another commit starts at once, unless the link says to look first.
        other = f"{PREFIX}group/rivers/{OTHER}"
        assert 'data-auto="yes"' in (await browser.get(other)).text
        assert 'data-auto="no"' in (await browser.get(f"{other}?ask=resources")).text
        asked_again = await browser.get(html.unescape(link))
        assert 'data-auto="no"' in asked_again.text
        assert "This link also asks for" not in asked_again.text
        # At first what it had.
        assert selected(asked_again.text) == ["1.0", str(GIB)]


async def _stopped(browser: Browser) -> str:
    text = (await browser.get(f"{PREFIX}servers")).text
    return text if "Start again" in text else ""


@pytest.mark.parametrize(
    "chosen", [{"cpu": "99"}, {"memory": "1"}, {"memory": str(99 * GIB)}, {"cpu": "all"}]
)
async def test_a_form_that_asks_for_too_much(generous: Stage, chosen: dict[str, str]) -> None:
    async with generous.browser() as browser:
        page = await page_of(browser)
        address = f"{PREFIX}group/rivers/{SHA}"
        answer = await browser.submit(address, token_in(page), choices="yes", **chosen)
        assert answer.status_code == 422
        assert RIVERS not in generous.hub.call("GET", "/users/bob")["servers"]


async def test_by_the_api(generous: Stage) -> None:
    generous.hub.script("ada", RIVERS, "wait")
    body = {"namespace": "group", "project": "rivers", "commit_sha": SHA}
    async with generous.api("ada") as api:
        offered = (await api.get("server_options")).json()
        assert offered["mem_request"]["value_range"]["max"] == "8Gi"
        for wrong in ({"cpu_request": 9}, {"mem_request": "9Gi"}, {"mem_request": "much"}, {"gpu_request": 1}):  # fmt: skip
            answer = await api.post("servers", json={**body, "serverOptions": wrong})
            assert answer.status_code == 422, answer.text
        right = {"cpu_request": 1, "mem_request": "2Gi"}
        answer = await api.post("servers", json={**body, "serverOptions": right})
        assert answer.status_code == 201, answer.text
        assert answer.json()["resources"] == {"requests": {"cpu": 1.0, "memory": "2Gi"}}
    assert asked(generous, "ada") == {"cpu": 1.0, "memory": 2 * GIB}


async def test_where_nobody_chooses(stage: Stage) -> None:
    body = {"namespace": "group", "project": "rivers", "commit_sha": SHA}
    async with stage.api("bob") as api:
        assert list((await api.get("server_options")).json()) == ["lfs_auto_fetch"]
        answer = await api.post("servers", json={**body, "serverOptions": {"cpu_request": 1}})
        assert answer.status_code == 422
        assert "cannot be chosen here" in answer.text
    async with stage.browser() as browser:
        assert "<select" not in (await page_of(browser)).text


async def test_who_is_named_by_an_allowance_may_choose_up_to_there(
    stage: Stage, tmp_path: Path
) -> None:
    entries = [{"groups": ["group"], "cpu": 4}, {"people": ["bob"], "memory": 2 * GIB}]
    more = {"runtime": "docker", "server_cpu_most": 2, "allowances": entries}
    async with run_stage(stage.hub, tmp_path / "allowed", **more) as allowed:
        async with allowed.browser() as browser:
            page = await page_of(browser)
            # The default is no more than what may be had.
            assert selected(page.text) == ["2.0", str(2 * GIB)]
            address, token = f"{PREFIX}group/rivers/{SHA}", token_in(page)
            much = await browser.submit(address, token, choices="yes", cpu="5")
            assert much.status_code == 422 and "0.1 to 4 processors" in much.text
        for project, most in ((None, 2), ("group/rivers", 4)):
            there = {"project": project} if project else {}
            async with allowed.api("bob") as api:
                found = await api.get("server_options", params=there)
            assert found.json()["cpu_request"]["value_range"]["max"] == most
            assert found.json()["mem_request"]["value_range"]["max"] == "2Gi"
