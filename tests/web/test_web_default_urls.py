"""What a server opens in: what the page and the API offer, take and refuse, and where their links lead."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from test_web_choices import RIVERS, page_of, token_in
from web_small_forge import SHA
from web_stage import PREFIX, Stage, run_stage, until

ADDRESS = f"{PREFIX}group/rivers/{SHA}"
BODY = {"namespace": "group", "project": "rivers", "commit_sha": SHA}
SERVED = {
    "way": "jupyterhub-singleuser",
    "offers": ["/lab", "/tree"],
    "message": "It has <b>two</b>.",
}


@pytest.fixture
async def choosing(stage: Stage, tmp_path: Path) -> AsyncIterator[Stage]:
    async with run_stage(stage.hub, tmp_path / "choosing", runtime="docker") as found:
        yield found


async def test_the_page_offers_and_hands_on(choosing: Stage) -> None:
    choosing.hub.script("bob", RIVERS, "wait")
    async with choosing.browser() as browser:
        page = await page_of(browser)
        assert '<option value="/lab" selected>JupyterLab</option>' in page.text
        # A link chooses nothing.
        linked = await browser.get(f"{ADDRESS}?default_url=/tree")
        assert '<option value="/tree">Notebook</option>' in linked.text
        wrong = await browser.submit(
            ADDRESS, token_in(page), choices="yes", default_url="//evil.test"
        )
        assert wrong.status_code == 422, wrong.text
        answer = await browser.submit(ADDRESS, token_in(page), choices="yes", default_url="/tree")
        assert answer.status_code == 303, answer.text
    server = choosing.hub.call("GET", "/users/bob")["servers"][RIVERS]
    assert server["user_options"]["notebooks"]["default_url"] == "/tree"


@pytest.mark.parametrize(
    ("chosen", "opens"), [("/tree", "/tree"), ("/rstudio", "/lab"), (None, "/lab")]
)
async def test_links_lead_to_what_the_image_offers(
    choosing: Stage, chosen: str | None, opens: str
) -> None:
    choosing.hub.script("ada", RIVERS, "ready", served=SERVED)
    more = {"serverOptions": {"defaultUrl": chosen}} if chosen else {}
    path = "notebooks/flow.ipynb"
    where = f"{'lab/tree' if opens == '/lab' else 'tree'}/rivers"
    async with choosing.api("ada") as api:
        answer = await api.post("servers", json={**BODY, **more, "notebook": path})
        assert answer.status_code == 201, answer.text

        async def ready() -> bool:
            found = (await api.get(f"servers/{RIVERS}")).json()
            return bool(found["state"]["ready"])

        await until(ready)
        server = (await api.get(f"servers/{RIVERS}")).json()
        assert (server["default_url"], server["served"]) == (opens, "It has <b>two</b>.")
        assert server["url"] == f"{choosing.url}/user/ada/{RIVERS}/{where}"
        async with api.stream("GET", f"servers/{RIVERS}/events") as events:
            text = "".join([part async for part in events.aiter_text()])
        assert f"/user/ada/{RIVERS}/{where}" in text
    async with choosing.browser() as browser:
        await browser.sign_in("ada")
        opened = await browser.get(f"{ADDRESS}/{path}")
        assert opened.status_code == 302
        assert opened.headers["location"].endswith(f"/user/ada/{RIVERS}/{where}/{path}")
        listed = await browser.get(f"{PREFIX}servers")
        assert "It has &lt;b&gt;two&lt;/b&gt;." in listed.text


async def test_by_the_api(choosing: Stage) -> None:
    async with choosing.api("ada") as api:
        offered = (await api.get("server_options")).json()["defaultUrl"]
        assert offered["options"] == ["/lab", "/tree", "/rstudio"]
        for wrong in ("/voila", 7, ["/lab"]):
            body = {**BODY, "serverOptions": {"defaultUrl": wrong}}
            answer = await api.post("servers", json=body)
            assert answer.status_code == 422, answer.text


async def test_where_there_is_no_choice(stage: Stage) -> None:
    async with stage.api("ada") as api:
        assert "defaultUrl" not in (await api.get("server_options")).json()
        body = {**BODY, "serverOptions": {"defaultUrl": "/tree"}}
        answer = await api.post("servers", json=body)
        assert answer.status_code == 422 and "`/tree`" in answer.text
    async with stage.browser() as browser:
        assert "default_url" not in (await page_of(browser)).text
