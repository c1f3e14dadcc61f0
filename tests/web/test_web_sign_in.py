"""Signing in by OAuth with a real hub, the session cookie, CSRF, tokens in headers."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from web_small_forge import SHA
from web_stage import PREFIX, Stage, run_stage

from notebooks_service.settings import Settings
from notebooks_service.web import csrf
from notebooks_service.web.app import make_app
from notebooks_service.web.parts import HubFacts, make_parts

COOKIE = "service-notebooks-session"


async def test_signing_in_comes_back_to_the_page_that_was_asked_for(stage: Stage) -> None:
    address = f"{PREFIX}group/rivers/{SHA}/notebooks/flow.ipynb?branch=feature%2Fslash"
    async with stage.browser() as browser:
        first = await browser.get(address)
        assert first.status_code == 302
        asked = urlsplit(first.headers["location"])
        assert asked.path == "/hub/api/oauth2/authorize"
        query = parse_qs(asked.query)
        assert query["client_id"] == ["service-notebooks"]
        assert query["redirect_uri"] == [f"{PREFIX}oauth_callback"]
        assert query["code_challenge_method"] == ["S256"]
        login = await browser.get(first.headers["location"], follow_redirects=True)
        done = await browser.post(
            login.url,
            data={"username": "ada", "password": "x", "_xsrf": browser.cookies["_xsrf"]},
            follow_redirects=True,
        )
        assert done.status_code == 200
        assert done.url.raw_path.decode() == address
        assert "Plot the flow with pandas" in done.text
        set_cookie = [
            header
            for answer in done.history
            for header in answer.headers.get_list("set-cookie")
            if header.startswith(f"{COOKIE}=")
        ]
        assert len(set_cookie) == 1
        lowered = set_cookie[0].lower()
        assert "httponly" in lowered and "samesite=lax" in lowered
        assert f"path={PREFIX}" in lowered and "secure" not in lowered
        assert not any("-state-" in name for name in browser.cookies)


async def test_the_session_outlives_the_service_and_ends_with_the_key(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with stage.browser() as browser:
        await browser.sign_in("ada")
        cookie = browser.cookies[COOKIE]
        token = stage.hub.token("ada")
    assert token not in cookie
    headers = {"Cookie": f"{COOKIE}={cookie}", "Accept": "application/json"}
    async with (
        run_stage(stage.hub, tmp_path_factory.mktemp("again")) as again,
        httpx.AsyncClient(base_url=again.url, trust_env=False) as client,
    ):
        answer = await client.get(f"{PREFIX}user", headers=headers)
        assert answer.status_code == 200 and answer.json()["name"] == "ada"
        headers["Cookie"] = f"{COOKIE}={cookie[:-4]}AAAA"
        assert (await client.get(f"{PREFIX}user", headers=headers)).status_code == 401


async def test_several_tabs_sign_in_at_once(stage: Stage) -> None:
    async with stage.browser() as browser:
        tabs = [await browser.get(f"{PREFIX}{page}") for page in ("servers", "projects")]
        await browser.sign_in("ada")
        for tab, page in zip(tabs, ("servers", "projects"), strict=True):
            end = await browser.get(tab.headers["location"], follow_redirects=True)
            assert end.status_code == 200
            assert end.url.path == f"{PREFIX}{page}"


async def test_a_forged_callback_signs_nobody_in(stage: Stage) -> None:
    async with stage.browser() as browser, stage.browser() as other:
        first = await other.get(PREFIX)
        state = parse_qs(urlsplit(first.headers["location"]).query)["state"][0]
        for query in ("", "?code=x", f"?code=x&state={state}", "?code=x&state=y"):
            answer = await browser.get(f"{PREFIX}oauth_callback{query}")
            assert answer.status_code == 403, query
            assert COOKIE not in browser.cookies
        # The right browser, but a code that the hub never gave.
        answer = await other.get(f"{PREFIX}oauth_callback?code=invented&state={state}")
        assert answer.status_code == 403
        assert "could not be completed" in answer.text


async def test_programs_get_401_and_browsers_the_sign_in(stage: Stage) -> None:
    async with httpx.AsyncClient(base_url=stage.url + PREFIX, trust_env=False) as client:
        for path in ("servers", "projects", "user", f"group/rivers/{SHA}", "logs/x"):
            answer = await client.get(path)
            assert answer.status_code == 401, path
            assert answer.json()["error"]["code"] == "not_signed_in"
            assert answer.headers["www-authenticate"].startswith("Bearer")
        page = await client.get("servers", headers={"Accept": "text/html"})
        assert page.status_code == 302
        # No sign-in for what is sent, and none by a token in the URL.
        assert (await client.post("servers", json={})).status_code == 401
        token = stage.hub.token("ada")
        assert (await client.get(f"user?token={token}")).status_code == 401
        for scheme in ("Bearer", "token", "TOKEN"):
            headers = {"Authorization": f"{scheme} {token}"}
            assert (await client.get("user", headers=headers)).status_code == 200
        for header in ("Bearer wrong", "Bearer", "Basic YWRhOng=", f"Bearer {token} x"):
            answer = await client.get("user", headers={"Authorization": header})
            assert answer.status_code == 401, header


async def test_a_token_without_access_to_this_service_is_refused(stage: Stage) -> None:
    """As a server's own token is: notebook code must not act as the person here."""
    token = stage.hub.token("ada", ["read:users:name!user=ada"])
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=stage.url + PREFIX, trust_env=False) as client:
        answer = await client.get("servers", headers=headers)
        assert answer.status_code == 403
        service = {"Authorization": f"Bearer {stage.hub.service_token}"}
        assert (await client.get("servers", headers=service)).status_code == 403


async def test_a_refused_forge_token_leads_to_signing_in_again(stage: Stage) -> None:
    async with stage.browser() as browser:
        await browser.sign_in("ada")
        for token in ("revoked", None):
            stage.hub.forge_token("ada", token)
            page = await browser.get(f"{PREFIX}projects")
            assert page.status_code == 401
            link = re.search(r'href="([^"]*sign-in-again[^"]*)"', page.text)
            assert link
            again = await browser.get(link.group(1))
            assert "/hub/logout" in again.text
            action = re.search(r'action="([^"]*sign-in-again[^"]*)"', again.text)
            csrf_token = re.search(r'name="csrf_token" value="([^"]+)"', again.text)
            assert action and csrf_token
            # The page alone ends nothing, whoever leads a browser to it.
            assert COOKIE in browser.cookies
            assert (await browser.submit(action.group(1), "wrong")).status_code == 403
            assert COOKIE in browser.cookies
            left = await browser.submit(action.group(1), csrf_token.group(1))
            assert left.status_code == 303 and left.headers["location"] == f"{PREFIX}projects"
            assert COOKIE not in browser.cookies
            async with stage.api("ada") as api:
                answer = await api.get("projects")
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "sign_in_expired"
            await browser.get("/hub/logout", follow_redirects=True)
            await browser.sign_in("ada")
            assert (await browser.get(f"{PREFIX}projects")).status_code == 200


async def test_writes_need_our_token_and_our_origin(stage: Stage) -> None:
    async with stage.browser() as browser:
        home = await browser.sign_in("ada")
        found = re.search(r'name="csrf_token" value="([^"]+)"', home.text)
        assert found
        token, url = found.group(1), f"{PREFIX}group/rivers/{SHA}"
        own = {"Origin": stage.url, "Sec-Fetch-Site": "same-origin"}
        refused = [
            ({}, token),
            ({"Origin": "http://evil.example"}, token),
            ({**own, "Sec-Fetch-Site": "cross-site"}, token),
            ({**own, "Sec-Fetch-Site": "same-site"}, token),
            ({**own, "Origin": "http://evil.example"}, token),
            (own, ""),
            (own, token[:-1] + ("A" if token[-1] != "A" else "B")),
        ]
        for headers, given in refused:
            answer = await browser.post(url, data={"csrf_token": given}, headers=headers)
            assert answer.status_code == 403, (headers, given)
        async with stage.browser() as other:
            page = await other.sign_in("ada")
            foreign = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
            assert foreign and foreign.group(1) != token
            answer = await browser.submit(url, foreign.group(1))
            assert answer.status_code == 403
        assert stage.hub.call("GET", "/users/ada")["servers"] == {}
        assert (await browser.submit(f"{PREFIX}-/sign-out", "wrong")).status_code == 403
        kept = {"Cookie": f"{COOKIE}={browser.cookies[COOKIE]}", "Accept": "application/json"}
        out = await browser.submit(f"{PREFIX}-/sign-out", token)
        assert out.status_code == 303 and COOKIE not in browser.cookies
        assert out.headers["location"] == "/hub/logout"
        async with httpx.AsyncClient(base_url=stage.url, trust_env=False) as thief:
            assert (await thief.get(f"{PREFIX}user", headers=kept)).status_code == 200
            await browser.get(out.headers["location"], follow_redirects=True)
            # The hub's sign-out has ended the token in the cookie, wherever a copy of it is.
            assert (await thief.get(f"{PREFIX}user", headers=kept)).status_code == 401


@pytest.mark.parametrize(
    ("origin", "site", "own"),
    [
        ("http://hub.test", "same-origin", True),
        ("http://hub.test", None, True),
        ("http://localhost:8000", None, True),
        (None, "same-origin", True),
        ("null", "same-origin", True),
        ("null", None, False),
        (None, None, False),
        (None, "none", False),
        ("http://hub.test", "cross-site", False),
        ("http://evil.test", "same-origin", False),
        ("http://[", None, False),
        ("", None, False),
    ],
)
def test_own_origin(origin: str | None, site: str | None, own: bool) -> None:
    said = csrf.is_own_origin(
        origin=origin, fetch_site=site, host="localhost:8000", page_url="http://hub.test/"
    )
    assert said is own


async def test_a_service_with_a_host_of_its_own(stage: Stage, tmp_path: Path) -> None:
    """From any other host a browser is led there; programs with a token are answered; cookies are its own."""
    hub_url = "https://hub.test:8443/"
    own = f"https://notebooks--service.hub.test:8443{PREFIX}"
    settings = Settings(
        data=tmp_path, hub_url=hub_url, forge_url="http://forge.test", subdomains=True
    )
    facts = HubFacts(api_url=stage.hub.api_url, api_token=stage.hub.service_token)
    parts = make_parts(settings, facts, forge_session=stage.forge.session)
    app = httpx.ASGITransport(make_app(parts))
    page = {"Accept": "text/html"}
    async with httpx.AsyncClient(transport=app) as client:
        for host in (hub_url.rstrip("/"), "http://127.0.0.1:8000"):
            asked = f"{host}{PREFIX}projects?page=2"
            for method in ("GET", "POST"):
                answer = await client.request(method, asked, headers=page)
                assert (answer.status_code, answer.headers["location"]) == (
                    303,
                    f"{own}projects?page=2",
                )
            assert (await client.get(f"{host}{PREFIX}version")).status_code == 200
            token = {"Authorization": f"Bearer {stage.hub.token('ada')}"}
            assert (await client.get(f"{host}{PREFIX}user", headers=token)).status_code == 200
            git = f"{host}{PREFIX}git/group/rivers.git/info/refs?service=git-upload-pack"
            assert (await client.get(git)).status_code == 401
        answer = await client.get(f"{own}servers", headers=page)
        to = urlsplit(answer.headers["location"])
        assert (answer.status_code, to.netloc, to.path) == (
            302,
            "hub.test:8443",
            "/hub/api/oauth2/authorize",
        )
        assert parse_qs(to.query)["redirect_uri"] == [f"{own}oauth_callback"]
        [cookie] = answer.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-") and "Path=/;" in cookie and "Secure" in cookie
        assert "Domain" not in cookie
    await parts.aclose()
