"""The pages in a real Chromium: agreeing, watching, cancelling, coming back, with and without scripts.

Screenshots go to the directory that ``NOTEBOOKS_SCREENSHOTS`` names, if it is set.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect
from test_web_events import RIVERS, story
from web_small_forge import OTHER, SHA
from web_stage import PREFIX, Stage, until

from notebooks_service.domain import server_name

pytestmark = pytest.mark.browser

ADDRESS = f"{PREFIX}group/rivers/{SHA}"
SHOTS = os.environ.get("NOTEBOOKS_SCREENSHOTS")
STORY = [
    ("access", "You may read group/rivers; your role is developer."),
    ("image", "Waiting for the job `image_build` <41>: running."),
]
LOG = b"$ notebooks image build\nResolved 41 packages in 812ms\nInstalled pandas 3.0.1\n"


@pytest.fixture
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        expect.set_options(timeout=60_000)
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        yield browser
        await browser.close()


async def opened(
    chromium: Browser, stage: Stage, **options: Any
) -> tuple[BrowserContext, Page, list[str]]:
    """A page signed in as Ada, and a list that fills with whatever the console complains about."""
    context = await chromium.new_context(base_url=stage.url, **options)
    context.set_default_timeout(60_000)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(PREFIX)
    await page.fill("input[name=username]", "ada")
    await page.fill("input[name=password]", "x")
    await page.click("input[type=submit]")
    await page.wait_for_url(f"**{PREFIX}")
    complaints.clear()  # the hub's own login page has its own
    return context, page, complaints


async def shot(page: Page, name: str) -> None:
    if SHOTS:
        directory = Path(SHOTS)
        directory.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=directory / f"{name}.png", full_page=True)


async def test_from_the_list_to_the_notebook(stage: Stage, chromium: Browser) -> None:
    stage.hub.script("ada", RIVERS, "wait", **story(*STORY, job={"id": 41}))
    stage.forge.traces[41] = LOG
    _, page, complaints = await opened(chromium, stage)
    await page.get_by_role("link", name="group/rivers").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("rivers")
    await page.get_by_role("link", name="Open Plot the flow").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Start rivers?")
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Starting rivers")
    image = page.locator('[data-step="image"]')
    await expect(image).to_have_attribute("data-state", "current")
    await expect(image.locator("code")).to_have_text("image_build")
    await expect(page.locator("#job-log pre")).to_contain_text("Installed pandas")
    stage.forge.traces[41] += b"<b>bold?</b>\n"
    await expect(page.locator("#job-log pre")).to_contain_text("<b>bold?</b>")
    more = [*STORY, ("clone", "Cloning the repository.")]
    stage.hub.script("ada", RIVERS, "wait", **story(*more, job={"id": 41}))
    await expect(page.locator('[data-step="clone"]')).to_have_attribute("data-state", "current")
    await expect(image).to_have_attribute("data-state", "done")
    await expect(page.locator("#status")).to_have_text("Cloning the repository.")
    stage.hub.script("ada", RIVERS, "ready", **story(*more, job={"id": 41}))
    await page.wait_for_url(f"**/user/ada/{RIVERS}/lab/tree/rivers")
    # The same project again: nothing to agree to, one visit starts it.
    other = server_name(7, OTHER, "main")
    await page.goto(f"{PREFIX}group/rivers/{OTHER}/notebooks/flow.ipynb")
    await page.wait_for_url(f"**/user/ada/{other}/lab/tree/rivers/notebooks/flow.ipynb")
    assert complaints == []


async def test_cancelling_and_trying_again(stage: Stage, chromium: Browser) -> None:
    stage.hub.script("ada", RIVERS, "wait", **story(*STORY))
    _, page, complaints = await opened(chromium, stage)
    await page.goto(ADDRESS)
    await page.get_by_role("button", name="Start").click()
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_text("The last launch was cancelled.")).to_be_visible()
    failure = {"code": "build_failed", "message": "The environment could not be built."}
    record = story(*STORY, ("image", failure["message"]), outcome="failed", failure=failure)
    stage.hub.script("ada", RIVERS, "fail", **record)
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("rivers did not start")
    await expect(page.get_by_role("alert")).to_contain_text(failure["message"])
    stage.hub.script("ada", RIVERS, "ready", **story(("starting", "Starting JupyterLab.")))
    await page.get_by_role("button", name="Try again").click()
    await page.wait_for_url(f"**/user/ada/{RIVERS}/lab/tree/rivers")
    assert complaints == []


async def test_a_hub_killed_in_a_launch_is_asked_again(stage: Stage, chromium: Browser) -> None:
    stage.hub.script("ada", RIVERS, "wait", **story(*STORY))
    _, page, _ = await opened(chromium, stage)
    await page.goto(ADDRESS)
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Starting rivers")
    stage.hub.stop(kill=True)
    try:
        await expect(page.locator("#hub")).to_contain_text("The hub is restarting")
        stage.hub.script("ada", RIVERS, "ready", **story(("starting", "Starting JupyterLab.")))
    finally:
        stage.hub.start()
    await page.wait_for_url(f"**/user/ada/{RIVERS}/lab/tree/rivers")


async def test_without_scripts(stage: Stage, chromium: Browser) -> None:
    stage.hub.script("ada", RIVERS, "wait", **story(*STORY))
    _, page, _ = await opened(chromium, stage, java_script_enabled=False)
    await page.goto(ADDRESS)
    await page.get_by_role("button", name="Start").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Starting rivers")
    await expect(page.get_by_text("Waiting for the job image_build <41>: running.")).to_be_visible()
    stage.hub.script("ada", RIVERS, "ready", **story(("starting", "Starting JupyterLab.")))
    await page.wait_for_url(f"**/user/ada/{RIVERS}/lab/tree/rivers")
    await page.goto(f"{PREFIX}servers")
    await page.get_by_role("button", name="Stop").click()
    await page.get_by_role("link", name="Delete").click()
    await page.get_by_role("button", name="Delete the server").click()
    await expect(page.get_by_text("You have no servers.")).to_be_visible(timeout=15_000)


async def test_keys_reach_everything_on_a_small_screen(stage: Stage, chromium: Browser) -> None:
    _, page, _ = await opened(chromium, stage, viewport={"width": 320, "height": 640})
    for path in (
        "",
        "projects/7/commits",
        f"group/rivers/{SHA}",
        "servers",
        "secrets",
        "docs",
        "nothing",
    ):
        await page.goto(PREFIX + path)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 320, f"{path or '/'} is {wide} wide"
    await page.goto(ADDRESS)
    await page.keyboard.press("Tab")
    assert await page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(15):
        await page.keyboard.press("Tab")
        reached.add(await page.evaluate("document.activeElement.textContent.trim()"))
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or await page.evaluate("document.activeElement === document.body")
    assert {"Start", "Your servers", "Sign out"} <= reached


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("light", {"viewport": {"width": 1100, "height": 800}}),
        ("dark", {"viewport": {"width": 1100, "height": 800}, "color_scheme": "dark"}),
        ("mobile", {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2}),
    ],
)
async def test_every_page_in_every_light(
    stage: Stage, chromium: Browser, name: str, options: dict[str, Any]
) -> None:
    """Goes through all pages; what they look like is for people to judge."""
    stage.forge.traces[41] = LOG
    _, page, complaints = await opened(chromium, stage, **options)
    await shot(page, f"{name}-1-projects")
    await page.goto(f"{PREFIX}projects?search=zzz")
    await shot(page, f"{name}-2-nothing-found")
    await page.goto(f"{PREFIX}projects/7/commits")
    await shot(page, f"{name}-3-commits")
    await page.goto(f"{ADDRESS}/notebooks/flow.ipynb?image=x")
    await shot(page, f"{name}-4-question")
    stage.hub.script("ada", RIVERS, "wait", **story(*STORY, job={"id": 41}))
    await page.goto(ADDRESS)
    await page.get_by_role("button", name="Start").click()
    await expect(page.locator("#job-log pre")).to_contain_text("Installed pandas")
    await shot(page, f"{name}-5-launch")
    failure = {"code": "clone_failed", "message": "The repository could not be cloned."}
    record = story(*STORY, ("clone", failure["message"]), outcome="failed", failure=failure)
    stage.hub.script("ada", RIVERS, "fail", **record)
    await expect(page.get_by_role("heading", level=1)).to_have_text("rivers did not start")
    await shot(page, f"{name}-6-failed")
    deep = server_name(8, SHA, "main")
    image = {
        "reference": f"group/sub/deep:{SHA}",
        "digest": None,
        "origin": "commit",
        "reason": "the job image_build (41) of this commit built it",
        "evidence": {},
    }
    work = {
        "repository": True,
        "files": [{"path": "notebooks/flow.ipynb", "state": "modified"}],
        "commits": [{"sha": OTHER, "title": "Try a longer window"}],
    }
    stage.hub.script(
        "ada", deep, "ready", **story(*STORY, project_path="group/sub/deep", image=image, work=work)
    )
    async with stage.api("ada") as api:
        await api.post(f"group/sub/deep/{SHA}")

        async def is_running() -> bool:
            answer = await api.get(f"servers/{deep}")
            return bool(answer.json()["status"]["state"] == "running")

        await until(is_running)
        await page.goto(f"{PREFIX}servers")
        await expect(page.get_by_text("running", exact=True)).to_be_visible()
        await shot(page, f"{name}-7-servers")
        await page.goto(f"{PREFIX}servers/{deep}/delete")
        await shot(page, f"{name}-8-delete-running")
        await page.get_by_role("button", name="Stop it first").click()
        await expect(page.get_by_text("Only this server has")).to_be_visible(timeout=15_000)
        await shot(page, f"{name}-9-delete")
    assert complaints == []
    await page.goto(f"{PREFIX}nothing")
    await shot(page, f"{name}-10-not-found")
    await page.goto(f"{PREFIX}docs")
    await shot(page, f"{name}-11-api")
    stage.hub.forge_token("ada", "revoked")
    await page.goto(PREFIX)
    await shot(page, f"{name}-12-expired")
    await page.get_by_role("link", name="Sign in again").click()
    await shot(page, f"{name}-13-sign-in-again")
