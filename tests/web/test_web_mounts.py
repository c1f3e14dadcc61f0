"""Data: what the page, the API and ``server_options`` offer to whom, take and refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_web_choices import RIVERS, page_of, token_in
from web_small_forge import SHA
from web_stage import PREFIX, Stage, run_stage

MOUNTS = [
    {"name": "open", "path": "/srv/open", "groups": ["group"], "role": "read"},
    {"name": "mine", "path": "/srv/mine", "users": ["ada"], "role": "read", "read_only": False},
    {"name": "other", "path": "/srv/other", "projects": ["group/other"], "role": "read"},
]
BODY = {"namespace": "group", "project": "rivers", "commit_sha": SHA}


@pytest.fixture
async def furnished(stage: Stage, tmp_path: Path) -> AsyncIterator[Stage]:
    more: dict[str, Any] = {"runtime": "docker", "mounts": MOUNTS}
    async with run_stage(stage.hub, tmp_path / "furnished", **more) as found:
        yield found


def asked(stage: Stage, name: str) -> Any:
    server = stage.hub.call("GET", f"/users/{name}")["servers"][RIVERS]
    return server["user_options"]["notebooks"].get("mounts")


async def test_the_page_offers_what_this_person_may_have(furnished: Stage) -> None:
    furnished.hub.script("bob", RIVERS, "wait")
    address = f"{PREFIX}group/rivers/{SHA}"
    async with furnished.browser() as browser:
        page = await page_of(browser)
        assert 'name="mount-open"' in page.text
        assert "/data/open" in page.text
        assert "mount-mine" not in page.text
        assert "mount-other" not in page.text
        # A link checks nothing.
        linked = await browser.get(f"{address}?mounts=open&mount-open=yes")
        assert 'name="mount-open" value="yes">' in linked.text
        for name in ("mine", "other"):
            refused = await browser.submit(
                address, token_in(page), choices="yes", **{f"mount-{name}": "yes"}
            )
            assert refused.status_code == 422, refused.text
        answer = await browser.submit(
            address, token_in(page), choices="yes", **{"mount-open": "yes"}
        )
        assert answer.status_code == 303, answer.text
    assert asked(furnished, "bob") == ["open"]


async def test_by_the_api(furnished: Stage) -> None:
    furnished.hub.script("ada", RIVERS, "wait")
    async with furnished.api("ada") as api:
        assert "mounts" not in (await api.get("server_options")).json()
        offered = (await api.get("server_options", params={"project": "group/rivers"})).json()
        assert offered["mounts"]["options"] == [
            {"name": "open", "path": "/data/open", "read_only": True},
            {"name": "mine", "path": "/data/mine", "read_only": False},
        ]
        for wrong in ("open", ["other"], ["nothing"], [7], ["open", "open"]):
            answer = await api.post("servers", json={**BODY, "mounts": wrong})
            assert answer.status_code == 422, answer.text
        answer = await api.post("servers", json={**BODY, "mounts": ["mine"]})
        assert answer.status_code == 201, answer.text
        assert answer.json()["mounts"] == ["mine"]
    assert asked(furnished, "ada") == ["mine"]
    async with furnished.api("bob") as api:
        hidden = await api.get("server_options", params={"project": "secret/plan"})
        assert hidden.status_code == 404


async def test_where_there_is_none(stage: Stage) -> None:
    async with stage.api("bob") as api:
        answer = await api.post("servers", json={**BODY, "mounts": ["open"]})
        assert answer.status_code == 422
        found = (await api.get("server_options", params={"project": "group/rivers"})).json()
        assert found["mounts"]["options"] == []
