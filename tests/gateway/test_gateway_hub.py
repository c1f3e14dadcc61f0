"""The hub client against a real JupyterHub process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_real_hub import RealHub

from notebooks_service.domain import LaunchRecord, LaunchStep
from notebooks_service.errors import (
    Conflict,
    Forbidden,
    HubUnavailable,
    NotFound,
    NotSignedIn,
    SignInExpired,
)
from notebooks_service.gateway.hub import HubClient, HubServer, Identity


@pytest.fixture
async def client(real_hub: RealHub) -> AsyncIterator[HubClient]:
    client = HubClient(real_hub.api_url, real_hub.service_token)
    yield client
    await client.aclose()


async def until(client: HubClient, name: str, server: str, wanted: str) -> HubServer | None:
    """Polls the hub until the server is ``wanted``: ready, spawn, stopped or gone."""
    async with asyncio.timeout(60):
        while True:
            found = await client.server(name, server)
            state = (
                "gone"
                if found is None
                else "ready"
                if found.ready
                else found.pending or ("stopped" if found.stopped else "")
            )
            if state == wanted:
                return found
            await asyncio.sleep(0.02)


RECORD = LaunchRecord(
    id="abcabcabcabc",
    project_id=7,
    project_path="group/sub/project",
    commit="a" * 40,
    branch="main",
    requested_at="2026-01-01T00:00:00Z",
).with_event("2026-01-01T00:00:01Z", LaunchStep.ACCESS, "Access granted")


async def test_a_persons_token_says_who_it_is_and_is_no_servers_token(
    real_hub: RealHub, client: HubClient
) -> None:
    token = real_hub.user("ada", "forge-token-of-ada")
    identity = await client.identify(token)
    assert identity.name == "ada"
    assert identity.kind == "user"
    assert "custom:notebooks:git!user=ada" in identity.scopes
    assert identity.servers == ()


@pytest.mark.parametrize("token", ["0" * 32, "not a token", "häh", "", "x\r\nCookie: a=b"])
async def test_an_unknown_token_is_refused(client: HubClient, token: str) -> None:
    with pytest.raises(NotSignedIn):
        await client.identify(token)


@pytest.mark.parametrize(
    ("scopes", "servers"),
    [
        ({"custom:notebooks:git!server=ada/one"}, ("one",)),
        ({"custom:notebooks:git!server=ada/one", "users:activity!user=ada"}, ("one",)),
        ({"custom:notebooks:git!server=ada/a", "custom:notebooks:git!server=ada/b"}, ("a", "b")),
        ({"custom:notebooks:git!server=bob/one"}, ()),
        ({"custom:notebooks:git!server=ada/one", "custom:notebooks:git!server=bob/one"}, ()),
        ({"custom:notebooks:git"}, ()),
        ({"custom:notebooks:git!user=ada"}, ()),
        ({"custom:notebooks:git!user=ada", "custom:notebooks:git!server=ada/one"}, ()),
        ({"custom:notebooks:gitlab!server=ada/one"}, ()),
        (set(), ()),
    ],
)
def test_which_servers_a_token_is_for(scopes: set[str], servers: tuple[str, ...]) -> None:
    assert Identity("ada", frozenset(scopes)).servers == servers
    assert Identity("ada", frozenset(scopes), kind="service").servers == ()


async def test_forge_token_is_the_present_one(real_hub: RealHub, client: HubClient) -> None:
    real_hub.user("ada", "first")
    assert await client.forge_token("ada") == "first"
    real_hub.user("ada", "second")
    assert await client.forge_token("ada") == "second"
    real_hub.user("ada", None)
    with pytest.raises(SignInExpired):
        await client.forge_token("ada")
    with pytest.raises(NotFound):
        await client.forge_token("nobody")
    with pytest.raises(NotFound):
        await client.forge_token("..")


async def test_the_life_of_a_server(real_hub: RealHub, client: HubClient, tmp_path: Path) -> None:
    token = real_hub.user("ada", "forge-token")
    gate = tmp_path / "gate"
    options = {"record": RECORD.to_dict(), "gate": str(gate)}
    assert await client.server("ada", "one") is None

    answers = await asyncio.gather(
        *(client.start_server(token, "ada", "one", "group/sub · main", options) for _ in range(3))
    )
    assert sorted(answers) == [False, False, True]
    starting = await client.server("ada", "one")
    assert starting is not None
    assert (starting.pending, starting.ready, starting.stopped) == ("spawn", False, False)
    named = await client.version() >= (6,)  # JupyterHub 5 knows no display names
    assert starting.display_name == ("group/sub · main" if named else "one")
    assert starting.options == options
    assert starting.record == RECORD
    assert await client.start_server(token, "ada", "one", "x", {"record": None}) is False

    async with aclosing(client.progress(token, "ada", "one")) as events:
        assert (await anext(events))["message"] == "Server requested"
        working = await anext(events)
        assert (working["launch"], working["launch_event"]) == ("abc", {"id": 1})
        gate.touch()
        last = [event async for event in events][-1]
    assert last["ready"] is True

    ready = await until(client, "ada", "one", "ready")
    assert ready is not None
    assert ready.options == options  # the second start's options were dropped
    assert ready.url == "/user/ada/one/"
    assert await client.start_server(token, "ada", "one", "x", options) is False

    identity = await client.identify(real_hub.server_token("ada", "one"))
    assert (identity.name, identity.servers) == ("ada", ("one",))

    await client.stop_server(token, "ada", "one")
    stopped = await until(client, "ada", "one", "stopped")
    assert stopped is not None
    assert not stopped.ready
    assert "one" not in [server.name for server in (await client.person("ada")).servers]
    assert "one" in [server.name for server in await client.servers("ada")]
    with pytest.raises(NotSignedIn):
        await client.identify(real_hub.server_token("ada", "one"))

    assert await client.start_server(token, "ada", "one", "again", options) is True
    await until(client, "ada", "one", "ready")
    await client.stop_server(token, "ada", "one", remove=True)
    await until(client, "ada", "one", "gone")
    with pytest.raises(NotFound):
        await client.stop_server(token, "ada", "one")


async def test_a_start_can_be_cancelled(
    real_hub: RealHub, client: HubClient, tmp_path: Path
) -> None:
    token = real_hub.user("ada", "forge-token")
    options = {"gate": str(tmp_path / "never")}
    assert await client.start_server(token, "ada", "cancelled", "x", options)
    await until(client, "ada", "cancelled", "spawn")
    await client.stop_server(token, "ada", "cancelled", remove=True)
    await until(client, "ada", "cancelled", "gone")


async def test_nobody_touches_anothers_servers(real_hub: RealHub, client: HubClient) -> None:
    bob = real_hub.user("bob", "forge-token")
    real_hub.user("ada", "forge-token")
    with pytest.raises((NotFound, Forbidden)):
        await client.start_server(bob, "ada", "two", "x", {})
    with pytest.raises((NotFound, Forbidden)):
        await client.stop_server(bob, "ada", "two")
    with pytest.raises((NotFound, Forbidden)):
        async with aclosing(client.progress(bob, "ada", "two")) as events:
            await anext(events)
    assert await client.server("ada", "two") is None


async def test_the_services_token_starts_and_stops_nothing(
    real_hub: RealHub, client: HubClient
) -> None:
    real_hub.user("ada", "forge-token")
    with pytest.raises((NotFound, Forbidden)):
        await client.start_server(real_hub.service_token, "ada", "three", "x", {})


async def test_refusals_carry_the_hubs_sentence(real_hub: RealHub, client: HubClient) -> None:
    token = real_hub.user("dora", "forge-token")
    with pytest.raises(NotSignedIn):
        await client.start_server("0" * 32, "dora", "four", "x", {})
    for number in range(5):
        assert await client.start_server(token, "dora", f"many-{number}", "x", {"refuse": True})
    with pytest.raises(Conflict, match="maximum of 5 named servers"):
        await client.start_server(token, "dora", "one-more", "x", {})
    with pytest.raises((Conflict, NotFound)):
        async with aclosing(client.progress(token, "dora", "no-such")) as events:
            await anext(events)


async def test_a_failed_start_is_told_to_watchers(real_hub: RealHub, client: HubClient) -> None:
    token = real_hub.user("group.admin", "forge-token")
    assert await client.start_server(token, "group.admin", "bad", "x", {"refuse": True})
    async with aclosing(client.progress(token, "group.admin", "bad")) as events:
        last = [event async for event in events][-1]
    assert last["failed"] is True
    found = await until(client, "group.admin", "bad", "stopped")
    assert found is not None


def answering(handler: Any) -> HubClient:
    return HubClient("http://hub/hub/api", "service", httpx.MockTransport(handler))


async def test_a_hub_that_is_away_is_unavailable(unused_port: int) -> None:
    client = HubClient(f"http://127.0.0.1:{unused_port}/hub/api", "service")
    with pytest.raises(HubUnavailable):
        await client.identify("token")
    with pytest.raises(HubUnavailable):
        await client.forge_token("ada")
    with pytest.raises(HubUnavailable):
        async with aclosing(client.progress("token", "ada", "one")) as events:
            await anext(events)
    await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(503, text="<html>Service unavailable</html>"),
        httpx.Response(302, headers={"Location": "/hub/login"}),
        httpx.Response(200, text="<html>not the hub</html>"),
        httpx.Response(200, json=["list"]),
        httpx.Response(200, json={}),
        httpx.Response(500, text="boom"),
    ],
)
async def test_what_a_broken_proxy_answers_is_unavailable(answer: httpx.Response) -> None:
    client = answering(lambda request: answer)
    with pytest.raises(HubUnavailable):
        await client.identify("token")
    with pytest.raises(HubUnavailable):
        await client.person("ada")
    await client.aclose()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (403, {"message": "auth has expired for ada, login again"}, SignInExpired),
        (403, {"message": "Missing or invalid credentials."}, NotSignedIn),
        (403, {"message": "Not yours"}, Forbidden),
        (429, {"message": "Too many users trying to log in right now."}, HubUnavailable),
        (400, {"message": "is pending stop"}, Conflict),
    ],
)
async def test_what_a_refused_start_means(
    status: int, body: dict[str, str], error: type[Exception]
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(status, json=body, headers={"Retry-After": "30"})
        if request.url.path == "/hub/api/":
            return httpx.Response(200, json={"version": "6.1.1"})
        return httpx.Response(404, json={"message": "Not Found"})

    client = answering(handler)
    with pytest.raises(error) as caught:
        await client.start_server("token", "ada", "one", "x", {})
    assert type(caught.value) is error
    if status == 429:
        assert caught.value.detail == {"retry_after": 30}  # type: ignore[attr-defined]
    await client.aclose()


@pytest.mark.parametrize(("failures", "works"), [(0, True), (2, True), (10, False)])
async def test_a_cancel_that_the_hub_is_too_slow_for_is_tried_again(
    failures: int, works: bool
) -> None:
    asked: list[str] = []
    model = {"name": "one", "ready": False, "pending": "spawn", "url": "/", "stopped": False}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "DELETE":
            asked.append(request.content.decode())
            late = len(asked) <= failures
            return httpx.Response(500 if late else 202, json={"message": "pending spawn"})
        if request.url.path == "/hub/api/":
            return httpx.Response(200, json={"version": "6.1.1"})
        return httpx.Response(200, json=model)

    client = answering(handler)
    if works:
        await client.stop_server("token", "ada", "one")
        assert len(asked) == failures + 1
    else:
        with pytest.raises(HubUnavailable):
            await client.stop_server("token", "ada", "one")
    await client.aclose()


async def test_an_unreadable_record_is_none() -> None:
    model = {
        "name": "one",
        "ready": True,
        "pending": None,
        "url": "/user/ada/one/",
        "state": {"notebooks": {"id": "x", "step": "dancing"}},
    }
    client = answering(
        lambda request: httpx.Response(
            200, json={"auth_state": None, "servers": {"one": model, "two": model}}
        )
    )
    assert [server.record for server in await client.servers("ada")] == [None, None]
    await client.aclose()
