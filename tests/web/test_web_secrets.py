"""Secrets by page and API: whose they are, what is granted, and that no answer ever has a value."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from test_web_choices import page_of, token_in
from web_stage import PREFIX, Stage

CANARY = "canary-0123456789abcdef"
SECRETS = f"{PREFIX}secrets"


def without(answer: httpx.Response) -> httpx.Response:
    assert CANARY not in answer.text
    assert base64.b64encode(CANARY.encode()).decode() not in answer.text
    return answer


async def test_by_the_api(stage: Stage) -> None:
    async with stage.api("ada") as ada, stage.api("bob") as bob:
        assert (await ada.get("secrets")).json() == {"secrets": []}
        made = await ada.put(
            "secrets/key.json", json={"value": CANARY, "projects": ["group/rivers"]}
        )
        assert made.status_code == 201, made.text
        secret = without(made).json()
        assert secret["projects"] == [{"id": 7, "path": "group/rivers"}]
        assert set(secret) == {"name", "changed_at", "projects"}
        assert without(await ada.get("secrets")).json() == {"secrets": [secret]}
        assert without(await ada.get("secrets/key.json")).json() == secret
        # Somebody else's is not there.
        for answer in (await bob.get("secrets/key.json"), await bob.delete("secrets/key.json")):
            assert answer.status_code == 404
        assert (await bob.get("secrets")).json() == {"secrets": []}
        assert (await bob.put("secrets/key.json", json={"projects": []})).status_code == 422

        granted = {"projects": ["group/sub/deep", "secret/plan"]}
        changed = await ada.put("secrets/key.json", json=granted)
        assert changed.status_code == 200
        assert [each["id"] for each in changed.json()["projects"]] == [8, 10]
        kept = await ada.put("secrets/key.json", json={"value_base64": "AP8="})
        assert [each["id"] for each in kept.json()["projects"]] == [8, 10]
        assert (await ada.delete("secrets/key.json")).status_code == 204
        assert (await ada.delete("secrets/key.json")).status_code == 404


@pytest.mark.parametrize(
    ("name", "body", "status"),
    [
        ("key", {}, 422),
        ("key", {"value": ""}, 422),
        ("key", {"value": "x", "projects": "group/rivers"}, 422),
        ("key", {"value": "x", "projects": ["group/none"]}, 422),
        ("key", {"value": "x", "projects": ["rivers"]}, 422),
        ("key", {"value": "x", "more": 1}, 422),
        (".netrc", {"value": "x"}, 422),
        ("a" * 65, {"value": "x"}, 422),
        ("a%2Fb", {"value": "x"}, 404),
        ("key", {"value": "x" * (64 * 1024 + 1)}, 422),
        ("key", {"value": "x" * (600 * 1024)}, 413),
    ],
)
async def test_what_is_refused(stage: Stage, name: str, body: dict[str, Any], status: int) -> None:
    async with stage.api("bob") as api:
        answer = await api.put(f"secrets/{name}", json=body)
        assert answer.status_code == status, answer.text
        assert (await api.get("secrets")).json() == {"secrets": []}


async def test_the_largest_there_may_be(stage: Stage) -> None:
    async with stage.api("ada") as api:
        large = await api.put("secrets/key", json={"value": "\x01" * 64 * 1024})
        assert large.status_code == 201, large.text
        # Elsewhere a body stays small.
        assert (await api.post("servers", json={"project": "x" * 70_000})).status_code == 413


async def test_a_project_that_this_person_may_not_see_cannot_be_named(stage: Stage) -> None:
    async with stage.api("bob") as api:
        bodies = [
            (await api.put("secrets/key", json={"value": "x", "projects": [path]})).json()
            for path in ("secret/plan", "secret/none")
        ]
    said = [body["error"]["message"].replace("none", "plan") for body in bodies]
    assert said[0] == said[1]


async def test_a_grant_is_of_the_project_and_not_of_its_path(stage: Stage) -> None:
    async with stage.api("ada") as api:
        await api.put("secrets/key", json={"value": "x", "projects": ["group/rivers"]})
        stage.forge.projects[7]["path"] = "group/renamed"
        stage.forge.add(77, "group/rivers", "Another project under the old path")
        # Saved again as it is: still the one that was meant.
        kept = await api.put("secrets/key", json={"projects": ["group/rivers"]})
        assert [each["id"] for each in kept.json()["projects"]] == [7]
    async with stage.browser() as browser:
        await browser.sign_in("ada")
        page = await browser.get(f"{SECRETS}/key")
        assert "group/renamed</textarea>" in page.text


async def test_by_the_page(stage: Stage) -> None:
    async with stage.browser() as browser:
        await browser.sign_in("ada")
        page = await browser.get(SECRETS)
        assert "You have no secrets." in page.text
        token = token_in(page)
        fields = {"name": "key.json", "value": CANARY, "projects": "group/rivers\r\n"}
        stolen = await browser.post(SECRETS, data=fields)
        assert stolen.status_code == 403
        assert (await browser.submit(SECRETS, "x" * 43, **fields)).status_code == 403
        added = await browser.submit(SECRETS, token, **fields)
        assert added.status_code == 303, added.text
        page = without(await browser.get(SECRETS))
        assert "<code>key.json</code>" in page.text
        assert "<code>group/rivers</code>" in page.text
        again = without(await browser.submit(SECRETS, token, **fields))
        assert again.status_code == 422
        assert "already" in again.text
        for name, value in (("projects", "group/none"), ("name", ".x"), ("value", "")):
            wrong = await browser.submit(SECRETS, token, **{**fields, "name": "new", name: value})
            assert without(wrong).status_code == 422

        edit = f"{SECRETS}/key.json"
        page = without(await browser.get(edit))
        assert "group/rivers</textarea>" in page.text
        done = await browser.submit(edit, token, value="", projects="")
        assert done.status_code == 303
        assert "no project" in (await browser.get(SECRETS)).text
        page = without(await browser.get(f"{edit}/delete"))
        assert "Delete this secret?" in page.text
        assert (await browser.submit(f"{edit}/delete", token)).status_code == 303
        assert "You have no secrets." in (await browser.get(SECRETS)).text
        assert (await browser.get(edit)).status_code == 404
    async with stage.browser() as stranger:
        assert (await stranger.get(SECRETS)).status_code == 302


async def test_a_launch_page_says_what_its_server_will_get(stage: Stage) -> None:
    async with stage.api("bob") as api, stage.api("ada") as ada:
        for name, project in (("mine", "group/rivers"), ("not-here", "group/sub/deep")):
            await api.put(f"secrets/{name}", json={"value": CANARY, "projects": [project]})
        await ada.put("secrets/zzz-hers", json={"value": "x", "projects": ["group/rivers"]})
    async with stage.browser() as browser:
        page = without(await page_of(browser))
        # The usual question, which says it too.
        assert 'data-auto="no"' in page.text
        assert "<dt>Secrets</dt><dd><code>mine</code>" in page.text
        assert "read the secrets that you granted to this project" in page.text
        assert "not-here" not in page.text
        assert "zzz-hers" not in page.text


async def test_a_servers_token_changes_nothing(stage: Stage) -> None:
    token = stage.hub.token("ada", ["users:activity!user"])
    async with httpx.AsyncClient(
        base_url=stage.url + PREFIX, headers={"Authorization": f"token {token}"}, trust_env=False
    ) as api:
        for answer in (
            await api.get("secrets"),
            await api.put("secrets/key", json={"value": "x", "projects": ["group/rivers"]}),
        ):
            assert answer.status_code in (401, 403), answer.text


async def test_a_running_servers_token_gets_nothing(stage: Stage) -> None:
    """Behind the gateway's route: a person's own token is no server's."""
    async with stage.api("ada") as api:
        await api.put("secrets/key", json={"value": CANARY, "projects": ["group/rivers"]})
        answer = without(await api.get("git/-/secrets"))
        assert answer.status_code == 403
        assert (await api.post("git/-/secrets")).status_code in (404, 405)
    async with httpx.AsyncClient(base_url=stage.url + PREFIX, trust_env=False) as nobody:
        assert (await nobody.get("git/-/secrets")).status_code == 401
