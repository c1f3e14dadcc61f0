"""What a launch page asks beside the commit: submodules by name, and large files; and what it hands on."""

from __future__ import annotations

import html
import re
from typing import Any

import httpx
import pytest
from web_small_forge import OTHER, SHA
from web_stage import PREFIX, Browser, Stage

from notebooks_service.domain import server_name

RIVERS = server_name(7, SHA, "main")
MODULES = b"""
[submodule "deep"]
    path = libs/deep
    url = ../sub/deep.git
[submodule "plan"]
    path = libs/plan
    url = http://forge.test/secret/plan
[submodule "far"]
    path = libs/far
    url = https://elsewhere.example/<b>group</b>/far
"""


def token_in(page: httpx.Response) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert found, page.text
    return found.group(1)


@pytest.fixture
def with_submodules(stage: Stage) -> Stage:
    project = stage.forge.projects[7]
    project["contents"] = {".gitmodules": MODULES, ".gitattributes": b"*.bin filter=lfs\n"}
    project["links"] = {"libs/deep": OTHER, "libs/plan": SHA, "libs/far": SHA}
    return stage


async def page_of(browser: Browser, name: str = "bob", query: str = "") -> httpx.Response:
    await browser.sign_in(name)
    return await browser.get(f"{PREFIX}group/rivers/{SHA}{query}")


def options(stage: Stage, name: str) -> dict[str, Any]:
    server = stage.hub.call("GET", f"/users/{name}")["servers"][RIVERS]
    asked: dict[str, Any] = server["user_options"]["notebooks"]
    return {key: asked[key] for key in asked if key in ("submodules", "lfs_auto_fetch")}


async def test_each_is_named_and_what_cannot_be_had_says_why(with_submodules: Stage) -> None:
    async with with_submodules.browser() as browser:
        page = await page_of(browser)
        text = html.unescape(page.text)
        assert 'name="submodule-8" value="yes" checked' in page.text
        assert "<strong>group/sub/deep</strong> in <code>libs/deep</code>" in page.text
        # A project that bob may not see is one that is not there, in name and in words.
        assert "submodule-10" not in page.text
        assert "libs/plan</code>: there is no such project at the forge" in text
        assert "libs/far</code>: it is not on this forge" in text
        assert "elsewhere.example" not in page.text
        assert 'name="lfs_auto_fetch" value="yes" checked' in page.text
    async with with_submodules.browser() as browser:
        page = await page_of(browser, "ada")
        assert 'name="submodule-10"' in page.text


async def test_what_is_agreed_to_is_handed_on_and_remembered(with_submodules: Stage) -> None:
    stage, address = with_submodules, f"{PREFIX}group/rivers/{SHA}"
    stage.hub.script("bob", RIVERS, "wait")
    async with stage.browser() as browser:
        page = await page_of(browser)
        # 10 is hidden from bob, 999 is nothing: a form cannot name what the forge does not.
        chosen = {"submodule-8": "yes", "submodule-10": "yes", "submodule-999": "yes"}
        answer = await browser.submit(
            address, token_in(page), choices="large-files", lfs_auto_fetch="yes", **chosen
        )
        assert answer.status_code == 303
        assert options(stage, "bob") == {"submodules": [8], "lfs_auto_fetch": True}
        # Another commit with the same submodule: agreed, so the page starts by itself.
        again = await browser.get(f"{PREFIX}group/rivers/{OTHER}")
        assert 'data-auto="yes"' in again.text
        # One more submodule: the page asks again, although project and the first are agreed to.
        stage.forge.projects[7]["contents"][".gitmodules"] += (
            b'[submodule "new"]\npath = libs/new\nurl = ../sub/' + b"a" * 40 + b"\n"
        )
        stage.forge.projects[7]["links"]["libs/new"] = SHA
        again = await browser.get(f"{PREFIX}group/rivers/{OTHER}")
        assert 'data-auto="no"' in again.text and 'name="submodule-11"' in again.text


async def test_what_is_unchecked_is_left_out_and_asked_again(with_submodules: Stage) -> None:
    stage, address = with_submodules, f"{PREFIX}group/rivers/{SHA}"
    stage.hub.script("ada", RIVERS, "wait")
    async with stage.browser() as browser:
        page = await page_of(browser, "ada")
        await browser.submit(address, token_in(page), choices="large-files")
        assert options(stage, "ada") == {"lfs_auto_fetch": False}
        again = await browser.get(f"{PREFIX}group/rivers/{OTHER}")
        assert 'data-auto="no"' in again.text


async def test_a_link_may_ask_for_pointers_but_not_start_with_them(with_submodules: Stage) -> None:
    async with with_submodules.browser() as browser:
        page = await page_of(browser, "bob", "?lfs_auto_fetch=false")
        assert 'name="lfs_auto_fetch" value="yes">' in page.text
        assert 'data-auto="no"' in page.text
        assert "This link also asks for" not in page.text


@pytest.mark.parametrize(
    ("more", "handed"),
    [
        ({}, {"submodules": [8, 10]}),
        ({"lfs_auto_fetch": False}, {"submodules": [8, 10], "lfs_auto_fetch": False}),
        (
            {"serverOptions": {"lfs_auto_fetch": True}},
            {"submodules": [8, 10], "lfs_auto_fetch": True},
        ),
    ],
)
async def test_a_call_with_a_token_is_consent(
    with_submodules: Stage, more: dict[str, Any], handed: dict[str, Any]
) -> None:
    stage = with_submodules
    stage.hub.script("ada", RIVERS, "wait")
    body = {"namespace": "group", "project": "rivers", "commit_sha": SHA, **more}
    async with stage.api("ada") as api:
        answer = await api.post("servers", json=body)
        assert answer.status_code == 201, answer.text
    assert options(stage, "ada") == handed


@pytest.mark.parametrize(
    "more",
    [
        {"lfs_auto_fetch": "yes"},
        {"serverOptions": []},
        {"serverOptions": {"image": "evil"}},
        {"serverOptions": {"lfs_auto_fetch": 1}},
        {"submodules": [10]},
    ],
)
async def test_anything_else_is_not_taken(stage: Stage, more: dict[str, Any]) -> None:
    body = {"namespace": "group", "project": "rivers", "commit_sha": SHA, **more}
    async with stage.api("bob") as api:
        assert (await api.post("servers", json=body)).status_code == 422


async def test_a_project_without_a_default_branch_says_so(stage: Stage) -> None:
    stage.forge.projects[7]["default_branch"] = None
    async with stage.api("bob") as api:
        answer = await api.get(f"group/rivers/{SHA}")
        assert answer.status_code == 422
        assert "no default branch" in answer.json()["error"]["message"]
        named = await api.get(f"group/rivers/{SHA}?branch=main")
        assert named.json()["error"]["code"] == "no_server"
