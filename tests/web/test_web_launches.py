"""A commit's address: who may, what it asks, what it starts, as page and as API."""

from __future__ import annotations

import html
import re
from pathlib import Path

import httpx
import pytest
from web_small_forge import FORK, OTHER, SHA, SHA_NAME
from web_stage import PREFIX, Browser, RealHub, Stage, run_stage, until

from notebooks_service.domain import server_name
from notebooks_service.images.fallback import SEE_LOG, default, explained
from notebooks_service.web.consent import starts_at_once

RIVERS = server_name(7, SHA, "main")
IN_RIVERS = {"project_path": "group/rivers", "commit": SHA, "branch": "main"}


def token_in(page: httpx.Response) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert found, page.text
    return found.group(1)


async def launch_page(browser: Browser, address: str = f"group/rivers/{SHA}") -> httpx.Response:
    await browser.sign_in("ada")
    return await browser.get(PREFIX + address)


async def test_a_get_asks_and_starts_nothing(stage: Stage) -> None:
    async with stage.browser() as browser:
        page = await launch_page(browser, f"group/rivers/{SHA}/notebooks/flow.ipynb")
        assert page.status_code == 200
        text = html.unescape(page.text)
        for said in (
            "group/rivers",
            "Ada Lovelace",
            "Plot the flow with pandas",
            "The table is read once",
            "notebooks/flow.ipynb",
            "your account on this machine reaches",
            "push to this project in your name",
        ):
            assert said in text, said
        assert 'data-auto="no"' in page.text
    assert stage.hub.call("GET", "/users/ada")["servers"] == {}


@pytest.mark.parametrize("wall", ["uids", "namespaces", "bubblewrap"])
async def test_behind_a_wall_the_question_says_what_the_code_reaches(
    web_hub: RealHub, tmp_path: Path, wall: str
) -> None:
    web_hub.forge_token("ada", "forge-token-of-ada")
    async with run_stage(web_hub, tmp_path, walls=wall) as stage, stage.browser() as browser:
        text = html.unescape((await launch_page(browser)).text)
        assert "the work that you keep in this server" in text
        assert "your account on this machine reaches" not in text


async def test_agreeing_by_form_starts_once_and_is_remembered(stage: Stage) -> None:
    stage.hub.script("ada", RIVERS, "wait")
    address = f"{PREFIX}group/rivers/{SHA}"
    async with stage.browser() as browser:
        page = await launch_page(browser)
        token = token_in(page)
        for _ in range(2):
            answer = await browser.submit(address, token)
            assert answer.status_code == 303
            assert answer.headers["location"] == address
        pending = await browser.get(address)
        assert 'data-mode="pending"' in pending.text
        assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in pending.text
        servers = stage.hub.call("GET", "/users/ada")["servers"]
        assert list(servers) == [RIVERS]
        assert servers[RIVERS]["user_options"] == {
            "notebooks": {"project": "group/rivers", "commit": SHA, "branch": "main"}
        }
        stage.hub.script("ada", RIVERS, "ready")

        async def opened() -> bool:
            answer = await browser.get(address)
            return answer.status_code == 302 and "lab/tree/rivers" in answer.headers["location"]

        await until(opened)
        answer = await browser.get(f"{address}/notebooks/flow.ipynb")
        assert answer.headers["location"].endswith(
            f"/user/ada/{RIVERS}/lab/tree/rivers/notebooks/flow.ipynb"
        )
        # Another commit of the same project: trusted, so the page starts by itself.
        page = await browser.get(f"{PREFIX}group/rivers/{OTHER}")
        assert 'data-auto="yes"' in page.text
        # One that no branch or tag contains, or a link that asks for more: it asks.
        page = await browser.get(f"{PREFIX}group/rivers/{FORK}")
        assert 'data-auto="no"' in page.text and "No branch or tag" in page.text
        page = await browser.get(f"{PREFIX}group/rivers/{OTHER}?image=evil&branch=main")
        assert 'data-auto="no"' in page.text and "<code>image</code>" in page.text
        # Another project: asks.
        page = await browser.get(f"{PREFIX}group/sub/deep/{SHA}")
        assert 'data-auto="no"' in page.text
    async with stage.browser() as browser:
        await browser.sign_in("bob")
        page = await browser.get(f"{PREFIX}group/rivers/{OTHER}")
        assert 'data-auto="no"' in page.text


@pytest.mark.parametrize(
    ("trusted", "reachable", "ignored", "at_once"),
    [
        (True, True, [], True),
        (False, True, [], False),
        (True, False, [], False),
        (True, True, ["image"], False),
    ],
)
def test_when_a_page_starts_at_once(
    trusted: bool, reachable: bool, ignored: list[str], at_once: bool
) -> None:
    assert starts_at_once(trusted=trusted, reachable=reachable, ignored=ignored) is at_once


async def test_hidden_and_missing_are_the_same_answer(stage: Stage) -> None:
    paths = [
        f"secret/plan/{SHA}",
        f"no/such/{SHA}",
        f"group/rivers/{'9' * 40}",
        "projects/10",
        "projects/10/commits",
        "projects/999/commits",
        "servers/nothing",
        "servers/nothing/events",
        "logs/nothing",
        "secret/plan/main",
        "no/such/main",
        "-/p/secret/plan/-/main",
        f"group/rivers/{SHA}/..%2Fx",
        "nothing-at-all",
    ]
    async with stage.api("bob") as api, stage.browser() as browser:
        await browser.sign_in("bob")
        bodies, pages_ = set(), set()
        for path in paths:
            answer = await api.get(path)
            assert answer.status_code == 404, path
            id = answer.headers["x-request-id"]
            bodies.add(answer.text.replace(id, ""))
            page = await browser.get(PREFIX + path)
            assert page.status_code == 404, path
            pages_.add(page.text.replace(page.headers["x-request-id"], ""))
        assert len(bodies) == 1, bodies
        assert len(pages_) == 1
        for method in ("POST", "DELETE"):
            texts = set()
            for path in (f"secret/plan/{SHA}", f"no/such/{SHA}"):
                answer = await api.request(method, path)
                assert answer.status_code == 404
                texts.add(answer.text.replace(answer.headers["x-request-id"], ""))
            assert texts == bodies
        body = {"namespace": "secret", "project": "plan", "commit_sha": SHA}
        answer = await api.post("servers", json=body)
        assert answer.status_code == 404
        assert {answer.text.replace(answer.headers["x-request-id"], "")} == bodies
    async with stage.api("ada") as api:
        assert (await api.get("projects/10")).status_code == 200


async def test_projects_that_look_like_shas(stage: Stage) -> None:
    async with stage.api("ada") as api:
        for path, project in (
            (f"group/{SHA_NAME}/{SHA}", f"group/{SHA_NAME}"),
            (f"group/sub/{SHA_NAME}/{SHA}", f"group/sub/{SHA_NAME}"),
            (f"group/sub/deep/{SHA}", "group/sub/deep"),
        ):
            answer = await api.post(path)
            assert answer.status_code == 201, answer.text
            said = answer.json()["annotations"]
            got = f"{said['renku.io/namespace']}/{said['renku.io/projectName']}"
            assert (got, said["renku.io/commit-sha"]) == (project, SHA)


async def test_a_path_that_leads_out_of_the_tree_opens_the_folder(stage: Stage) -> None:
    """A link's target is on the server's machine, and not what the commit's address means."""
    stage.forge.projects[7]["symlinks"] = {
        "notebooks/passwd": b"/etc/passwd",
        "notebooks/up": b"../../other/work",
        "notebooks/out": b"up",
        "notebooks/same": b"flow.ipynb",
    }
    stage.hub.script("ada", RIVERS, "ready")
    address, lab = f"{PREFIX}group/rivers/{SHA}", f"/user/ada/{RIVERS}/lab/tree/rivers"
    async with stage.browser() as browser:
        await browser.submit(address, token_in(await launch_page(browser)))

        async def opened() -> bool:
            return (await browser.get(address)).status_code == 302

        await until(opened)
        for path, place in (
            ("notebooks/passwd", lab),
            ("notebooks/up", lab),
            ("notebooks/out", lab),
            ("notebooks/up/secret.ipynb", lab),
            # A link that stays inside is a file like others; so is what the server alone has by now.
            ("notebooks/same", f"{lab}/notebooks/same"),
            ("notebooks/flow.ipynb", f"{lab}/notebooks/flow.ipynb"),
            ("notebooks/new.ipynb", f"{lab}/notebooks/new.ipynb"),
        ):
            answer = await browser.get(f"{address}/{path}")
            assert answer.status_code == 302, path
            assert answer.headers["location"].endswith(place), (path, answer.headers["location"])


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("group/rivers/main", f"group/rivers/{SHA}"),
        ("group/rivers/feature/slash", f"group/rivers/{OTHER}?branch=feature%2Fslash"),
        ("group/rivers/v1", f"group/rivers/{OTHER}"),
        ("group/rivers/fedcba98", f"group/rivers/{OTHER}"),
        ("group/rivers/main/notebooks/flow.ipynb", f"group/rivers/{SHA}/notebooks/flow.ipynb"),
        ("group/sub/deep/main", f"group/sub/deep/{SHA}"),
        ("-/p/group/rivers/-/main?path=a%20b.ipynb", f"group/rivers/{SHA}/a%20b.ipynb"),
        (f"-/p/group/sub/{SHA_NAME}/-/{SHA}", f"group/sub/{SHA_NAME}/{SHA}"),
        ("-/p/group/rivers/-/feature/slash", f"group/rivers/{OTHER}?branch=feature%2Fslash"),
    ],
)
async def test_refs_redirect_to_their_commit(stage: Stage, path: str, location: str) -> None:
    async with stage.api("ada") as api:
        answer = await api.get(path)
        assert answer.status_code == 302, answer.text
        assert answer.headers["location"] == PREFIX + location
        refused = await api.post(path)
        assert refused.status_code == 405
        assert "full commit id" in refused.json()["error"]["message"]


async def test_the_api_starts_shows_stops_and_deletes(stage: Stage) -> None:
    body = {
        "namespace": "group",
        "project": "rivers",
        "commit_sha": SHA,
        "branch": "main",
        "notebook": "notebooks/flow.ipynb",
    }
    async with stage.api("ada") as api, stage.api("bob") as bob:
        assert (await api.get(f"group/rivers/{SHA}")).json()["error"]["code"] == "no_server"
        first = await api.post("servers", json=body)
        assert first.status_code == 201, first.text
        server = first.json()
        assert server["name"] == RIVERS
        assert server["url"] == (
            f"{stage.url}/user/ada/{RIVERS}/lab/tree/rivers/notebooks/flow.ipynb"
        )
        assert server["annotations"]["renku.io/branch"] == "main"
        again = await api.post("servers", json=body)
        assert (again.status_code, again.json()["name"]) == (200, RIVERS)
        assert (await api.post(f"group/rivers/{SHA}")).status_code == 200
        assert (await bob.post("servers", json=body)).status_code == 201

        async def state() -> str:
            return str((await api.get(f"servers/{RIVERS}")).json()["status"]["state"])

        await until(lambda: running(state))
        listed = (await api.get("servers")).json()["servers"]
        assert list(listed) == [RIVERS]
        assert (await api.get("servers?project=other")).json() == {"servers": {}}
        answer = await api.patch(f"servers/{RIVERS}", json={"state": "hibernated"})
        assert answer.status_code == 200
        await until(lambda: is_state(state, "stopped"))
        answer = await api.patch(f"servers/{RIVERS}", json={"state": "running"})
        assert answer.status_code == 200
        await until(lambda: running(state))
        assert (await api.delete(f"group/rivers/{SHA}")).status_code == 204
        assert (await api.get(f"servers/{RIVERS}")).status_code == 404
        assert (await api.delete(f"servers/{RIVERS}")).status_code == 404
        assert list((await bob.get("servers")).json()["servers"]) == [RIVERS]


async def running(state: object) -> bool:
    return await is_state(state, "running")


async def is_state(state: object, wanted: str) -> bool:
    assert callable(state)
    return bool(await state() == wanted)


async def test_deleting_a_launch_that_waits_cancels_it(stage: Stage) -> None:
    stage.hub.script("ada", RIVERS, "wait")
    async with stage.api("ada") as api:
        assert (await api.post(f"group/rivers/{SHA}")).status_code == 201
        assert (await api.delete(f"servers/{RIVERS}")).status_code == 204
        assert (await api.get("servers")).json() == {"servers": {}}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": ["evil:1"]}, "`image`"),
        ({"environment_variables": {}}, "`environment_variables`"),
        ({"commit_sha": "main"}, "`commit_sha`"),
        ({"commit_sha": SHA.upper()}, "`commit_sha`"),
        ({"commit_sha": None}, "`commit_sha`"),
        ({"branch": 7}, "`branch`"),
        ({"branch": "no-such"}, "branch"),
        ({"notebook": "../../etc/passwd"}, "`notebook`"),
        ({"namespace": "group/../x"}, "`namespace`"),
        ({"project": ""}, "`project`"),
    ],
)
async def test_what_the_api_does_not_take(
    stage: Stage, change: dict[str, object], word: str
) -> None:
    body = {"namespace": "group", "project": "rivers", "commit_sha": SHA, **change}
    async with stage.api("ada") as api:
        answer = await api.post("servers", json=body)
        assert answer.status_code == 422, answer.text
        assert word in answer.json()["error"]["message"]
        for content in (b"[1]", b"{", b'"x"', b"\xff"):
            answer = await api.post("servers", content=content)
            assert answer.status_code == 422
        assert (await api.post("servers", content=b"x" * 70_000)).status_code == 413
        answer = await api.post(f"group/rivers/{SHA}", json={"image": "x"})
        assert answer.status_code == 422
        answer = await api.post(f"group/rivers/{SHA}?image=x")
        assert answer.status_code == 422 and "`image`" in answer.text
        assert (await api.get("servers")).json() == {"servers": {}}


async def test_a_failed_launch_says_why_and_asks_before_the_next(stage: Stage) -> None:
    why = "The environment could not be built; its <log> says why."
    # What its build failed at, in the words of a log that anybody's script has written.
    evil = "ERROR: <script>alert(1)</script>"
    image = explained(default(f"The build failed{SEE_LOG}", cause="failed", job=41), evil)
    record = {
        **IN_RIVERS,
        "step": "image",
        "outcome": "failed",
        "failure": {"code": "build_failed", "message": why},
        "job": {"id": 41},
        "image": image.to_dict(),
        "events": [
            {"id": 1, "at": "2026-11-22T10:00:00Z", "step": "image", "message": image.reason}
        ],
    }
    stage.hub.script("ada", RIVERS, "fail", **record)
    stage.forge.traces[41] = b"\x1b[31mno such package\x1b[0m\n"
    async with stage.browser() as browser, stage.api("ada") as api:
        page = await launch_page(browser)
        await browser.submit(f"{PREFIX}group/rivers/{SHA}", token_in(page))

        async def failed() -> bool:
            return bool((await api.get(f"servers/{RIVERS}")).json()["status"]["state"] == "failed")

        await until(failed)
        page = await browser.get(f"{PREFIX}group/rivers/{SHA}")
        assert 'data-mode="failed"' in page.text and 'data-auto="no"' in page.text
        assert html.escape(why, quote=False) in page.text and "<log>" not in page.text
        servers = await browser.get(f"{PREFIX}servers")
        line = html.escape(evil.removeprefix("ERROR: "))
        assert f"The build failed. Its log says: {line}." in page.text
        assert f"<code>ERROR: {line}</code>" in servers.text
        assert "<script>alert" not in page.text + servers.text
        assert "Try again" in page.text
        assert ">no such package</pre>" in page.text
        server = (await api.get(f"servers/{RIVERS}")).json()
        assert server["failure"] == {"code": "build_failed", "message": why}
        log = await api.get(f"logs/{RIVERS}?step=image")
        assert log.text == "no such package\n"
        assert log.headers["content-type"].startswith("text/plain")
        part = await api.get(f"logs/{RIVERS}?step=image", headers={"Range": "bytes=3-6"})
        assert (part.status_code, part.text) == (206, "such")
        assert part.headers["content-range"] == "bytes 3-6/16"
        assert image.reason in (await api.get(f"logs/{RIVERS}")).text
        assert (await api.get(f"logs/{RIVERS}?step=../x")).status_code == 422


async def test_a_tag_that_has_moved_is_shown_and_asked_about(stage: Stage) -> None:
    image = {
        "reference": f"registry/group/rivers:{SHA}",
        "digest": "sha256:" + "a" * 64,
        "origin": "commit",
        "reason": "The image of this server's first launch; its tag has moved.",
        "evidence": {
            "digest": "sha256:" + "a" * 64,
            "moved_to": "sha256:" + "b" * 64,
            "moved_tag": f"registry/group/rivers:{SHA}",
            "inputs": ["Dockerfile", "<b>.txt"],
        },
    }
    record = {**IN_RIVERS, "outcome": "cancelled", "image": image}
    address = f"{PREFIX}group/rivers/{SHA}"
    stage.hub.script("ada", RIVERS, "fail", **record)
    async with stage.browser() as browser, stage.api("ada") as api:
        page = await launch_page(browser)
        assert "new_image" not in page.text
        await browser.submit(address, token_in(page))

        async def ended() -> bool:
            return bool((await api.get(f"servers/{RIVERS}")).json()["state"]["stopped"])

        await until(ended)
        page = await browser.get(address)
        assert 'name="new_image"' in page.text and "has been moved since" in page.text
        assert 'data-auto="no"' in page.text
        servers = await browser.get(f"{PREFIX}servers")
        assert "<code>&lt;b&gt;.txt</code>" in servers.text and "<b>.txt" not in servers.text
        stage.hub.script("ada", RIVERS, "wait")
        await browser.submit(address, token_in(page), choices="yes", new_image="yes")
        asked = stage.hub.call("GET", "/users/ada")["servers"][RIVERS]["user_options"]
        assert asked["notebooks"]["new_image"] is True


async def test_an_image_may_be_named_by_a_call_and_by_no_link(stage: Stage) -> None:
    stage.hub.script("ada", RIVERS, "wait")
    body = {"namespace": "group", "project": "rivers", "commit_sha": SHA, "image": "g/p:v1"}
    async with stage.api("ada") as api:
        assert (await api.post("servers", json=body)).status_code == 201
        asked = stage.hub.call("GET", "/users/ada")["servers"][RIVERS]["user_options"]
        assert asked["notebooks"]["image"] == "g/p:v1"


async def test_the_forge_away_is_503_and_servers_go_on(stage: Stage) -> None:
    async with stage.api("ada") as api, stage.browser() as browser:
        await browser.sign_in("ada")
        await api.post(f"group/rivers/{SHA}")
        stage.forge.down = True
        answer = await api.get("projects")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "forge_unavailable"
        assert answer.headers["retry-after"]
        page = await browser.get(f"{PREFIX}group/rivers/{SHA}")
        assert page.status_code == 503 and "Try again" in page.text
        assert RIVERS in (await api.get("servers")).json()["servers"]
        page = await browser.get(f"{PREFIX}servers")
        assert page.status_code == 200 and "group/rivers" in page.text


async def test_people_below_the_least_level_are_refused(stage: Stage) -> None:
    object.__setattr__(stage.settings, "minimum_access", "maintainer")
    async with stage.api("ada") as api:
        answer = await api.post(f"group/rivers/{SHA}")
        assert answer.status_code == 403
        assert "maintainer" in answer.json()["error"]["message"]
        stage.forge.projects[7]["level"] = 40
        assert (await api.post(f"group/rivers/{SHA}")).status_code == 201
