"""OpenID Connect with clients that we did not write: Authlib, joserfc, and JupyterHub's authenticators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.forge import openid
from notebooks_service.forge.config import ForgeConfig
from ports import free_port
from runner_fixtures import until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it would rather have a successor of httpx
    from authlib.integrations.httpx_client import OAuth2Client
    from authlib.oidc.core import CodeIDToken, UserInfo

CALLBACK = "http://127.0.0.1:9/callback"
SECRET = "s3cret"


@pytest.fixture
def person(forge: ForgeProcess, tmp_path: Path) -> str:
    """Somebody who is Developer in one group, and through it in another."""
    owner, person = forge.user(), forge.user()
    make_repository(tmp_path / "thing")
    group = f"group-of-{person}"
    forge.project(tmp_path / "thing", f"{group}/below/thing", owner)
    forge.administration.add_member(group, person, "developer")
    return person


class Login:
    """An application that uses Authlib, and its person's browser."""

    def __init__(self, forge: ForgeProcess, person: str, scope: str) -> None:
        self.forge = forge
        self.name = f"oidc-of-{person}"
        forge.administration.ensure_application(
            self.name,
            CALLBACK,
            ["openid", "profile", "email", "read_user", "api"],
            self.name,
            SECRET,
            True,
        )
        self.found = httpx.get(f"{forge.url}/.well-known/openid-configuration").json()
        self.client = OAuth2Client(
            self.name,
            SECRET,
            scope=scope,
            redirect_uri=CALLBACK,
            code_challenge_method="S256",
            token_endpoint=self.found["token_endpoint"],
        )
        self.browser = httpx.Client(base_url=forge.url)
        self.browser.get(forge.administration.sign_in_url(forge.url, person, forge.url))

    def authorize(self, **more: str) -> httpx.Response:
        verifier = "v" * 48
        url, _ = self.client.create_authorization_url(
            self.found["authorization_endpoint"], state="xyz", code_verifier=verifier, **more
        )
        return self.browser.get(url)

    def tokens(self, **more: str) -> dict[str, Any]:
        answer = self.authorize(**more)
        assert answer.status_code == 302, answer.text
        return dict(
            self.client.fetch_token(
                self.found["token_endpoint"],
                authorization_response=answer.headers["location"],
                code_verifier="v" * 48,
                state="xyz",
            )
        )

    def claims(self, id_token: str, **expected: Any) -> CodeIDToken:
        """What the token says, after Authlib and joserfc have checked it."""
        keys = KeySet.import_key_set(httpx.get(self.found["jwks_uri"]).json())
        token = jwt.decode(id_token, keys, algorithms=["RS256"])
        assert token.header["alg"] == "RS256" and token.header["kid"]
        options = {
            "iss": {"essential": True, "value": self.found["issuer"]},
            "aud": {"essential": True, "value": self.name},
        }
        claims = CodeIDToken(token.claims, token.header, options, expected)
        claims.validate(now=int(time.time()))
        return claims


@pytest.fixture
def login(forge: ForgeProcess, person: str) -> Iterator[Login]:
    made = Login(forge, person, "openid profile email")
    yield made
    made.browser.close()
    made.client.close()


def test_what_is_discovered_is_there(forge: ForgeProcess) -> None:
    found = httpx.get(f"{forge.url}/.well-known/openid-configuration").json()
    assert found["issuer"] == forge.url
    for name in ("jwks_uri", "userinfo_endpoint", "authorization_endpoint", "token_endpoint"):
        assert found[name].startswith(forge.url)
        assert httpx.get(found[name]).status_code != 404, name
    keys = httpx.get(found["jwks_uri"]).json()["keys"]
    assert keys and all(set(key) == {"kty", "kid", "e", "n", "use", "alg"} for key in keys)


def test_an_id_token_says_who_signed_in(login: Login, person: str, forge: ForgeProcess) -> None:
    before = int(time.time())
    tokens = login.tokens(nonce="once-4711", max_age="300")
    claims = login.claims(tokens["id_token"], nonce="once-4711", max_age=300)
    with forge.administration.database.read() as session:
        from sqlalchemy import select

        from notebooks_service.forge.models import User

        user = session.scalars(select(User).where(User.username == person)).one()
    assert claims["sub"] == str(user.id) and len(claims["sub_legacy"]) == 64
    assert (claims["email"], claims["email_verified"]) == (f"{person}@example.org", True)
    assert claims["groups_direct"] == [f"group-of-{person}"]
    assert claims["exp"] - claims["iat"] == 120
    assert before - 60 <= claims["auth_time"] <= time.time()
    info = login.client.get(login.found["userinfo_endpoint"]).json()
    assert UserInfo(info)["sub"] == claims["sub"]
    assert (info["preferred_username"], info["nickname"]) == (person, person)
    assert info["name"] == person.title() and info["email"] == claims["email"]
    assert info["groups"] == [f"group-of-{person}", f"group-of-{person}/below"]
    assert info["https://gitlab.org/claims/groups/developer"] == [f"group-of-{person}"]
    assert info["profile"] == f"{forge.url}/{person}"
    by_form = httpx.post(
        login.found["userinfo_endpoint"], data={"access_token": tokens["access_token"]}
    )
    assert by_form.json() == info
    # A refresh gives one as well, of the same sign-in, without the nonce.
    again = login.client.refresh_token(login.found["token_endpoint"])
    renewed = login.claims(again["id_token"])
    assert renewed["auth_time"] == claims["auth_time"] and "nonce" not in renewed


def test_an_id_token_is_for_openid_only(forge: ForgeProcess, person: str) -> None:
    login = Login(forge, person, "read_user")
    tokens = login.tokens()
    assert "id_token" not in tokens
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    answer = httpx.get(f"{forge.url}/oauth/userinfo", headers=bearer)
    assert (answer.status_code, answer.json()["error"]) == (403, "insufficient_scope")
    for headers in (
        {},
        {"Authorization": "Bearer nothing"},
        {"PRIVATE-TOKEN": forge.token(person)},
    ):
        answer = httpx.get(f"{forge.url}/oauth/userinfo", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_token")
    # Without the scope `email` there is no address, and `openid` opens nothing of the API.
    bare = Login(forge, person, "openid")
    tokens = bare.tokens()
    assert "email" not in bare.claims(tokens["id_token"])
    bearer = {"Authorization": f"Bearer {tokens['access_token']}"}
    assert "email" not in httpx.get(f"{forge.url}/oauth/userinfo", headers=bearer).json()
    assert httpx.get(f"{forge.url}/api/v4/user", headers=bearer).status_code == 403


def test_a_changed_id_token_is_not_believed(login: Login) -> None:
    head, body, mark = login.tokens()["id_token"].split(".")
    with pytest.raises(JoseError):
        login.claims(f"{head}.{body[:-4]}AAAA.{mark}")


def test_a_new_key_and_the_one_before_it(login: Login, forge: ForgeProcess) -> None:
    old = login.tokens()["id_token"]
    keys = openid.signing_keys(ForgeConfig(forge.data, forge.url))
    before = keys.newest().kid
    keys.rotate()
    new = login.tokens()["id_token"]
    login.claims(old)
    login.claims(new)
    assert jwt.decode(old, KeySet.import_key_set({"keys": [k.jwk for k in keys.all()]})).header[
        "kid"
    ] == (before)
    keys.rotate()
    with pytest.raises((JoseError, ValueError)):
        login.claims(old)
    files = list((forge.data / "secrets" / "forge-openid-keys").iterdir())
    assert len(files) == 2 and {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_prompts(forge: ForgeProcess, login: Login) -> None:
    """https://openid.net/specs/openid-connect-core-1_0.html#AuthRequest"""

    def error(answer: httpx.Response) -> str:
        return parse_qs(urlsplit(answer.headers["location"]).query).get("error", [""])[0]

    assert "code=" in login.authorize(prompt="none").headers["location"]
    stranger = httpx.Client(base_url=forge.url)
    signed_in, login.browser = login.browser, stranger
    assert error(login.authorize(prompt="none")) == "login_required"
    login.browser = signed_in
    again = login.authorize(prompt="login")
    assert again.headers["location"].startswith("/users/sign_in?next=")
    assert "prompt" not in again.headers["location"]
    assert error(login.authorize(prompt="none")) == "login_required"


@pytest.mark.parametrize("kind", ["generic-oauth", "gitlab"])
def test_jupyterhub_signs_people_in(forge: ForgeProcess, tmp_path: Path, kind: str) -> None:
    """A real hub with a stock authenticator: who is in a group may, another may not."""
    member, stranger = forge.user(), forge.user()
    owner = forge.user()
    make_repository(tmp_path / "thing")
    if not _exists(forge, "labs"):
        forge.project(tmp_path / "thing", "labs/thing", owner)
    forge.administration.add_member("labs", member, "developer")
    port, name = free_port(), f"hub-{kind}"
    forge.administration.ensure_application(
        name,
        f"http://127.0.0.1:{port}/hub/oauth_callback",
        ["openid", "profile", "email", "read_user", "read_api"],
        name,
        SECRET,
        True,
    )
    given = {
        "forge": forge.url,
        "directory": str(tmp_path),
        "port": port,
        "kind": kind,
        "client_id": name,
        "secret": SECRET,
    }
    with (tmp_path / "hub.log").open("wb") as log:
        hub = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterhub",
                "-f",
                str(Path(__file__).with_name("forge_login_hub_config.py")),
            ],
            cwd=tmp_path,
            env={
                **os.environ,
                "LOGIN_TEST_HUB": json.dumps(given),
                "JUPYTERHUB_CRYPT_KEY": "0" * 64,
            },
            stdout=log,
            stderr=log,
        )
    try:
        url = f"http://127.0.0.1:{port}/hub"
        until(lambda: _answers(hub, url, tmp_path / "hub.log"), "the hub", 60)
        for person, admitted in ((member, True), (stranger, kind == "generic-oauth")):
            with httpx.Client(follow_redirects=True, trust_env=False) as browser:
                browser.get(forge.administration.sign_in_url(forge.url, person, forge.url))
                answer = browser.get(f"{url}/oauth_login", params={"next": "/hub/home"})
                assert answer.status_code == (200 if admitted else 403), answer.text
                if admitted:
                    assert f'user: "{person}"' in answer.text
                    # Who is in the group `labs` is an administrator, by the claim `groups`.
                    administers = browser.get(f"{url}/admin").status_code == 200
                    assert administers is (kind == "generic-oauth" and person == member)
    finally:
        hub.terminate()
        hub.wait(60)


def _exists(forge: ForgeProcess, path: str) -> bool:
    from notebooks_service.forge import namespaces

    with forge.administration.database.read() as session:
        return namespaces.find_namespace(session, path) is not None


def _answers(hub: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert hub.poll() is None, log.read_text()[-3000:]
    try:
        return httpx.get(f"{url}/api/").status_code == 200
    except httpx.TransportError:
        return False
