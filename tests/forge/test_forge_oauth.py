"""OAuth and sign-in from the outside: oauthlib as the client, httpx as the browser."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import pytest
from oauthlib.oauth2 import WebApplicationClient
from sqlalchemy import select

from forge_fixtures import ForgeProcess
from notebooks_service.forge.models import OAuthToken

CALLBACK = "http://127.0.0.1:9/callback"
SCOPES = ["read_user", "read_api", "api"]


class Client:
    """An application with its person's browser."""

    def __init__(
        self, forge: ForgeProcess, name: str, *, trusted: bool = True, secret: str = "s3cret"
    ):
        self.forge = forge
        self.name = name
        self.secret = secret
        self.browser = httpx.Client(base_url=forge.url)
        self.oauth = WebApplicationClient(name)
        forge.administration.ensure_application(name, CALLBACK, SCOPES, name, secret, trusted)

    def sign_in(self, username: str) -> None:
        link = self.forge.administration.sign_in_url(self.forge.url, username, self.forge.url + "/")
        assert self.browser.get(link).status_code == 303

    def authorize(self, **more: str) -> httpx.Response:
        values = {"scope": ["read_user"], "state": "xyz", "redirect_uri": CALLBACK, **more}
        return self.browser.get(
            self.oauth.prepare_request_uri(f"{self.forge.url}/oauth/authorize", **values)
        )

    def code(self, **more: str) -> str:
        answer = self.authorize(**more)
        assert answer.status_code == 302, answer.text
        return self.oauth.parse_request_uri_response(answer.headers["location"], "xyz")["code"]

    def post(self, path: str, body: str | dict[str, str], **options: object) -> httpx.Response:
        if isinstance(body, dict):
            return httpx.post(f"{self.forge.url}/oauth/{path}", data=body, **options)
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return httpx.post(f"{self.forge.url}/oauth/{path}", content=body, headers=kind, **options)

    def exchange(self, code: str, **more: str) -> httpx.Response:
        values = {"redirect_uri": CALLBACK, "client_secret": self.secret, **more}
        return self.post("token", self.oauth.prepare_request_body(code, **values))

    def refresh(self, token: str) -> httpx.Response:
        body = self.oauth.prepare_refresh_body(
            refresh_token=token, client_id=self.name, client_secret=self.secret
        )
        return self.post("token", body)

    def me(self, token: str) -> httpx.Response:
        return httpx.get(
            f"{self.forge.url}/api/v4/user", headers={"Authorization": f"Bearer {token}"}
        )


@pytest.fixture(autouse=True)
def _plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """oauthlib's client refuses http:// otherwise; the forge of this test has no other."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.fixture
def person(forge: ForgeProcess) -> str:
    return forge.user()


@pytest.fixture
def client(forge: ForgeProcess, person: str) -> Iterator[Client]:
    made = Client(forge, f"app-of-{person}")
    made.sign_in(person)
    yield made
    made.browser.close()


def form_of(page: str) -> str:
    found = re.search(r'name="authenticity_token" value="([0-9a-f]+)"', page)
    assert found
    return found[1]


def test_a_code_becomes_tokens_once(client: Client, person: str) -> None:
    code = client.code()
    answer = client.exchange(code)
    assert answer.status_code == 200
    tokens = answer.json()
    assert tokens["token_type"] == "Bearer"
    assert tokens["expires_in"] == 7200
    assert tokens["scope"] == "read_user"
    assert abs(tokens["created_at"] - time.time()) < 60
    assert answer.headers["cache-control"] == "no-store"
    assert client.me(tokens["access_token"]).json()["username"] == person
    again = client.exchange(code)
    assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
    # Who used it twice may have stolen it: what the first use gave is revoked.
    assert client.me(tokens["access_token"]).status_code == 401


def test_state_comes_back_as_it_was_sent(client: Client) -> None:
    answer = client.authorize(state="a b&c=ü")
    assert parse_qs(urlsplit(answer.headers["location"]).query)["state"] == ["a b&c=ü"]


@pytest.mark.parametrize("method", ["S256", "plain", ""])
def test_pkce(client: Client, method: str) -> None:
    verifier = "v" * 50
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
    challenge = digest.decode() if method == "S256" else verifier
    more = {"code_challenge": challenge}
    if method:
        more["code_challenge_method"] = method
    assert client.exchange(client.code(**more)).status_code == 400
    assert client.exchange(client.code(**more), code_verifier="w" * 50).status_code == 400
    assert client.exchange(client.code(**more), code_verifier=verifier).status_code == 200


def test_a_public_client_has_to_use_pkce(forge: ForgeProcess, person: str) -> None:
    client = Client(forge, f"public-of-{person}", secret="")
    client.sign_in(person)
    refused = client.authorize()
    assert "error=invalid_request" in refused.headers["location"]
    verifier = "v" * 50
    code = client.code(code_challenge=verifier, code_challenge_method="plain")
    body = {
        "grant_type": "authorization_code",
        "code": code,
        "client_id": client.name,
        "redirect_uri": CALLBACK,
        "code_verifier": verifier,
    }
    assert client.post("token", body).status_code == 200


def test_a_refresh_ends_the_old_pair(client: Client) -> None:
    first = client.exchange(client.code()).json()
    second = client.refresh(first["refresh_token"])
    assert second.status_code == 200
    assert client.me(first["access_token"]).status_code == 401
    assert "revoked" in client.me(first["access_token"]).json()["error_description"]
    assert client.me(second.json()["access_token"]).status_code == 200
    reused = client.refresh(first["refresh_token"])
    assert (reused.status_code, reused.json()["error"]) == (400, "invalid_grant")
    assert client.me(second.json()["access_token"]).status_code == 200


def test_a_refresh_token_used_twice_ends_the_sign_in(client: Client, forge: ForgeProcess) -> None:
    """https://www.rfc-editor.org/rfc/rfc9700#section-4.14.2"""
    first = client.exchange(client.code()).json()
    second = client.refresh(first["refresh_token"]).json()
    third = client.refresh(second["refresh_token"]).json()
    other = client.exchange(client.code()).json()
    # Within a minute it is a race of the client with itself.
    assert client.refresh(first["refresh_token"]).status_code == 400
    assert client.me(third["access_token"]).status_code == 200
    with forge.administration.database.write() as session:
        for old in session.scalars(select(OAuthToken).where(OAuthToken.revoked_at.is_not(None))):
            old.revoked_at -= timedelta(seconds=61)
    assert client.refresh(first["refresh_token"]).json()["error"] == "invalid_grant"
    assert client.me(third["access_token"]).status_code == 401
    assert client.refresh(third["refresh_token"]).status_code == 400
    # Another sign-in of the same person goes on.
    assert client.me(other["access_token"]).status_code == 200


def test_of_five_parallel_refreshes_one_succeeds(client: Client) -> None:
    tokens = client.exchange(client.code()).json()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: client.refresh(tokens["refresh_token"]), range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]


def test_tokens_expire(start_forge: Callable[..., ForgeProcess]) -> None:
    forge = start_forge(token_lifetime=1)
    client = Client(forge, "short")
    client.sign_in(forge.user("ada"))
    tokens = client.exchange(client.code()).json()
    assert tokens["expires_in"] == 1
    end = time.monotonic() + 60
    while client.me(tokens["access_token"]).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.05)
    answer = client.me(tokens["access_token"])
    assert answer.json()["error"] == "invalid_token"
    assert "expired" in answer.json()["error_description"]
    assert client.refresh(tokens["refresh_token"]).status_code == 200


def test_client_authentication(client: Client) -> None:
    wrong = client.exchange(client.code(), client_secret="wrong")
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    missing = client.post(
        "token",
        {"grant_type": "authorization_code", "code": client.code(), "client_id": client.name},
    )
    assert missing.status_code == 401
    body = {"grant_type": "authorization_code", "code": client.code(), "redirect_uri": CALLBACK}
    assert client.post("token", body, auth=(client.name, client.secret)).status_code == 200


def test_a_code_is_for_its_client_and_redirect_address(forge: ForgeProcess, client: Client) -> None:
    other = Client(forge, client.name + "-other")
    code = client.code()
    assert other.exchange(code).json()["error"] == "invalid_grant"
    wrong = client.exchange(client.code(), redirect_uri=CALLBACK + "/x")
    assert wrong.status_code == 400


@pytest.mark.parametrize(
    "uri",
    [
        CALLBACK + "/",
        CALLBACK + "?x=1",
        "http://127.0.0.1:9/callbackk",
        "http://evil.example/",
        "//e",
    ],
)
def test_redirect_addresses_match_exactly(client: Client, uri: str) -> None:
    answer = client.authorize(redirect_uri=uri)
    assert answer.status_code == 400
    assert "location" not in answer.headers


def test_wrong_requests(client: Client) -> None:
    assert "error=invalid_scope" in client.authorize(scope=["sudo"]).headers["location"]
    unknown = client.browser.get("/oauth/authorize?client_id=nobody&response_type=code")
    assert unknown.status_code == 400
    implicit = client.browser.get(
        f"/oauth/authorize?client_id={client.name}&response_type=token&redirect_uri={CALLBACK}"
    )
    assert "error=unsupported_response_type" in implicit.headers["location"]
    grant = client.post("token", {"grant_type": "password", "username": "a", "password": "b"})
    assert grant.json()["error"] == "unsupported_grant_type"


def test_scopes_are_kept(client: Client) -> None:
    token = client.exchange(client.code(scope=["read_user"])).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    refused = httpx.get(f"{client.forge.url}/api/v4/projects", headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (403, "insufficient_scope")
    token = client.exchange(client.code(scope=["read_api"])).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{client.forge.url}/api/v4/projects", headers=headers).status_code == 200
    refused = httpx.post(f"{client.forge.url}/api/v4/projects", headers=headers, json={"name": "x"})
    assert refused.status_code == 403


def test_revoke_and_info(client: Client) -> None:
    tokens = client.exchange(client.code()).json()
    headers = {"Authorization": f"Bearer {tokens['access_token']}"}
    info = httpx.get(f"{client.forge.url}/oauth/token/info", headers=headers).json()
    assert info["application"] == {"uid": client.name}
    assert info["scope"] == ["read_user"]
    assert 7100 < info["expires_in"] <= 7200
    credentials = {"client_id": client.name, "client_secret": client.secret}
    wrong = {**credentials, "client_secret": "no", "token": tokens["access_token"]}
    assert client.post("revoke", wrong).status_code == 401
    assert client.me(tokens["access_token"]).status_code == 200
    answer = client.post("revoke", {**credentials, "token": tokens["access_token"]})
    assert (answer.status_code, answer.json()) == (200, {})
    assert client.me(tokens["access_token"]).status_code == 401
    assert client.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert httpx.get(f"{client.forge.url}/oauth/token/info", headers=headers).status_code == 401


def test_a_blocked_person_is_out(forge: ForgeProcess, client: Client, person: str) -> None:
    tokens = client.exchange(client.code()).json()
    admin = forge.token(forge.user(admin=True))
    me = client.me(tokens["access_token"]).json()
    url = f"{forge.url}/api/v4/users/{me['id']}/block"
    assert httpx.post(url, headers={"PRIVATE-TOKEN": admin}).status_code == 201
    assert client.me(tokens["access_token"]).status_code == 403
    assert client.refresh(tokens["refresh_token"]).json()["error"] == "invalid_grant"
    assert client.authorize().headers["location"].startswith("/users/sign_in")


def test_consent_is_asked_once_and_can_be_denied(forge: ForgeProcess, person: str) -> None:
    client = Client(forge, f"<b>app-of-{person}", trusted=False)
    client.sign_in(person)
    page = client.authorize()
    assert page.status_code == 200
    assert "<b>" not in page.text and "&lt;b&gt;" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    action = re.search(r'action="([^"]*oauth[^"]*)"', page.text)
    assert action
    address = action[1].replace("&amp;", "&")
    assert client.browser.post(address, data={"decision": "authorize"}).status_code == 422
    elsewhere = {"decision": "authorize", "authenticity_token": form_of(page.text)}
    refused = client.browser.post(
        address, data=elsewhere, headers={"Origin": "http://evil.example"}
    )
    assert refused.status_code == 422
    denied = client.browser.post(
        address, data={"decision": "deny", "authenticity_token": form_of(page.text)}
    )
    assert "error=access_denied" in denied.headers["location"]
    assert "state=xyz" in denied.headers["location"]
    given = client.browser.post(
        address, data={"decision": "authorize", "authenticity_token": form_of(page.text)}
    )
    code = parse_qs(urlsplit(given.headers["location"]).query)["code"][0]
    assert client.exchange(code).status_code == 200
    assert client.authorize().status_code == 302
    assert client.authorize(scope=["api"]).status_code == 200


def test_signing_in_by_password(forge: ForgeProcess) -> None:
    password = forge.administration.add_user(username := f"pw{time.monotonic_ns()}")
    client = Client(forge, f"app-of-{username}")
    to_sign_in = client.authorize()
    assert to_sign_in.status_code == 302
    page = client.browser.get(to_sign_in.headers["location"])
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie
    target = re.search(r'name="next" value="([^"]+)"', page.text)
    assert target
    form = {
        "authenticity_token": form_of(page.text),
        "next": target[1].replace("&amp;", "&"),
        "user[login]": username,
        "user[password]": "wrong",
    }
    assert client.browser.post("/users/sign_in", data=form).status_code == 401
    form["user[password]"] = password
    without = {**form, "authenticity_token": "0" * 64}
    assert client.browser.post("/users/sign_in", data=without).status_code == 422
    before = dict(client.browser.cookies)
    answer = client.browser.post("/users/sign_in", data=form)
    assert answer.status_code == 303
    assert dict(client.browser.cookies) != before
    answer = client.browser.get(answer.headers["location"])
    assert answer.headers["location"].startswith(CALLBACK + "?code=")
    start = client.browser.get("/")
    assert client.browser.post("/users/sign_out").status_code == 422
    left = client.browser.post("/users/sign_out", data={"authenticity_token": form_of(start.text)})
    assert left.status_code == 303
    assert client.browser.get("/").headers["location"] == "/users/sign_in"


@pytest.mark.parametrize("target", ["//evil.example", "http://evil.example", "/\\evil", "/a\nb"])
def test_signing_in_leads_nowhere_else(forge: ForgeProcess, target: str) -> None:
    with httpx.Client(base_url=forge.url) as browser:
        page = browser.get("/users/sign_in", params={"next": target})
        assert 'name="next" value="/"' in page.text


def test_guessing_is_slowed_down_and_keeps_nobody_out(
    start_forge: Callable[..., ForgeProcess],
) -> None:
    forge = start_forge()
    password = forge.administration.add_user("ada")
    forge.administration.add_user("bob")

    def attempt(browser: httpx.Client, name: str, word: str) -> int:
        token = form_of(browser.get("/users/sign_in").text)
        form = {"authenticity_token": token, "user[login]": name, "user[password]": word}
        return browser.post("/users/sign_in", data=form).status_code

    with (
        httpx.Client(base_url=forge.url) as own,
        httpx.Client(base_url=forge.url) as stranger,
        httpx.Client(base_url=forge.url) as new,
    ):
        assert attempt(own, "ada", password) == 303
        page = own.get("/").text
        own.post("/users/sign_out", data={"authenticity_token": form_of(page)})
        # A name that nobody has is counted, and refused, like one that somebody has.
        for name in ("ada", "nobody-here"):
            codes = [attempt(stranger, name, "wrong") for _ in range(11)]
            assert codes == [401] * 10 + [429]
        assert attempt(new, "ada", password) == 429
        assert attempt(stranger, "bob", "wrong") == 401
        # Nor is anybody at another address, with whatever browser.
        elsewhere = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(base_url=forge.url, transport=elsewhere) as away:
            assert attempt(away, "ada", password) == 303
        # The browser that Ada has used before, at the same address, is not kept out.
        assert attempt(own, "ada", password) == 303
        page = own.get("/").text
        own.post("/users/sign_out", data={"authenticity_token": form_of(page)})
        codes = [attempt(own, "ada", "wrong") for _ in range(11)]
        assert codes == [401] * 10 + [429]
        # Its mark is no use for another name, nor one that somebody wrote themselves.
        name = f"notebooks_forge_{forge.port}_known"
        stranger.cookies.set(name, own.cookies[name], path="/users/sign_in")
        assert attempt(stranger, "nobody-here", "wrong") == 429
        stranger.cookies.set(name, "1.mark." + "0" * 64, path="/users/sign_in")
        assert attempt(stranger, "ada", password) == 429


def test_a_name_that_nobody_has_takes_as_long(start_forge: Callable[..., ForgeProcess]) -> None:
    """For git and the registry as for the sign-in: the refusal must not tell who exists."""
    forge = start_forge()
    forge.administration.add_user("ada")
    forge.administration.ensure_owner("olga", "Olga", "olga@example.org")  # has no password

    process = psutil.Process(forge.process.pid)

    def work(name: str) -> float:
        """Seconds of processor time: unlike the clock they do not depend on what else runs."""
        times = process.cpu_times()
        for _ in range(8):
            asked = f"{forge.url}/jwt/auth?service=container_registry"
            assert httpx.get(asked, auth=(name, "wrong")).status_code == 401
        after = process.cpu_times()
        return after.user + after.system - times.user - times.system

    work("warm-up")
    spent = {name: work(name) for name in ("ada", "olga", "nobody-here")}
    assert min(spent.values()) > max(spent.values()) / 2, spent


def test_guessing_by_git_is_slowed_down(start_forge: Callable[..., ForgeProcess]) -> None:
    forge = start_forge()
    password = forge.administration.add_user("ada")
    url = f"{forge.url}/ada/thing.git/info/refs?service=git-upload-pack"
    for name in ("ada", "nobody-here"):
        codes = [httpx.get(url, auth=(name, "wrong")).status_code for _ in range(11)]
        assert codes == [401] * 10 + [429]
    assert httpx.get(url, auth=("ada", password)).status_code == 429
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as away:
        assert away.get(url, auth=("ada", password)).status_code == 404
    # Tokens are no passwords: a good one is good, and a bad one closes nothing.
    token = forge.token("ada")
    assert httpx.get(url, auth=("ada", token)).status_code == 404
    assert {httpx.get(url, auth=("oauth2", "gone")).status_code for _ in range(12)} == {401}


def test_a_sign_in_link_works_once(forge: ForgeProcess, person: str) -> None:
    target = "http://127.0.0.1:9/hub/"
    link = forge.administration.sign_in_url(forge.url, person, target)
    with httpx.Client() as browser, httpx.Client() as other:
        answer = browser.get(link)
        assert (answer.status_code, answer.headers["location"]) == (303, target)
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert f"@{person}" in browser.get(forge.url).text
        assert other.get(link).status_code == 403
        assert "set-cookie" not in other.get(link).headers
        # The same browser may follow it again.
        assert browser.get(link).headers["location"] == target


def test_a_sign_in_link_ends(forge: ForgeProcess, person: str) -> None:
    link = forge.administration.sign_in_url(forge.url, person, forge.url, seconds=0)
    assert httpx.get(link).status_code == 403
    assert httpx.get(f"{forge.url}/-/sign_in/guess").status_code == 403


def test_no_secret_is_logged_or_stored(start_forge: Callable[..., ForgeProcess]) -> None:
    forge = start_forge()
    client = Client(forge, "app")
    password = forge.administration.add_user("ada")
    link = forge.administration.sign_in_url(forge.url, "ada", forge.url)
    client.browser.get(link)
    code = client.code()
    tokens = client.exchange(code).json()
    personal = forge.token("ada")
    httpx.get(f"{forge.url}/api/v4/user?private_token={personal}")
    httpx.get(f"{forge.url}/api/v4/user?access_token={tokens['access_token']}")
    listed = httpx.get(f"{forge.url}/api/v4/projects?private_token={personal}")
    assert personal not in listed.headers["link"]
    secrets = [
        password,
        link.rsplit("/", 1)[-1],
        code,
        tokens["access_token"],
        tokens["refresh_token"],
        personal,
        client.secret,
        client.browser.cookies.get(f"notebooks_forge_{forge.port}"),
    ]
    forge.stop()
    places = [path for path in forge.data.rglob("*") if path.is_file()]
    assert forge.log in places and any(path.suffix == ".sqlite" for path in places)
    for place in places:
        content = place.read_bytes()
        for secret in secrets:
            assert secret and secret.encode() not in content, place
