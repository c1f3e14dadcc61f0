"""Fresh forge tokens: the hook against an injected transport, with the order of events decided."""

import asyncio
import time
from typing import Any

import httpx
import pytest

from notebooks_service.errors import SignInExpired
from notebooks_service.spawner.refresh import MARGIN, TokenRefresher, expires_at, renewed

NOW = 1_000_000.0


class Person:
    """A user of the hub, as far as the hook sees one; the state is copied as encryption would."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        self.name = "ada"
        self.state = state
        self.saved = 0

    async def get_auth_state(self) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        return None if self.state is None else dict(self.state)

    async def save_auth_state(self, auth_state: dict[str, Any] | None) -> None:
        await asyncio.sleep(0)
        self.state = auth_state
        self.saved += 1


class Application:
    token_url = "https://forge.test/oauth/token"
    client_id = "hub"
    client_secret = "s3cret"


def signed_in(left: float) -> dict[str, Any]:
    return {
        "access_token": "old",
        "refresh_token": "r0",
        "token_response": {"created_at": NOW - 7200 + left, "expires_in": 7200},
    }


class Forge:
    """Answers as GitLab does: each refresh token works once."""

    def __init__(self) -> None:
        self.valid = "r0"
        self.calls = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        form = dict(pair.split("=") for pair in request.content.decode().split("&"))
        await asyncio.sleep(0.01)
        if form["refresh_token"] != self.valid:
            return httpx.Response(400, json={"error": "invalid_grant"})
        self.valid = f"r{self.calls}"
        return httpx.Response(
            200,
            json={
                "access_token": f"new{self.calls}",
                "refresh_token": self.valid,
                "created_at": NOW,
                "expires_in": 7200,
                "scope": "read_user read_api",
            },
        )


def refresher(handler: Any) -> TokenRefresher:
    return TokenRefresher(transport=httpx.MockTransport(handler), clock=lambda: NOW)


async def test_nothing_is_fetched_while_time_remains() -> None:
    forge, person = Forge(), Person(signed_in(MARGIN + 1))
    assert await refresher(forge).hook(Application(), person) is True
    assert (forge.calls, person.saved) == (0, 0)


async def test_five_parallel_requests_make_one_refresh() -> None:
    forge, person = Forge(), Person(signed_in(60))
    hook = refresher(forge).hook
    stale = await person.get_auth_state()
    answers = await asyncio.gather(*(hook(Application(), person, stale) for _ in range(5)))
    assert answers == [True] * 5
    assert (forge.calls, person.saved) == (1, 1)
    assert person.state is not None
    assert person.state["access_token"] == "new1"
    assert person.state["refresh_token"] == "r1"
    assert person.state["scope"] == ["read_user", "read_api"]
    assert person.state["expires_at"] == NOW + 7200


async def test_two_people_do_not_wait_for_each_other() -> None:
    arrived = asyncio.Event()
    both = asyncio.Barrier(2)

    async def handler(request: httpx.Request) -> httpx.Response:
        await asyncio.wait_for(both.wait(), 60)
        arrived.set()
        return httpx.Response(503)

    hook = refresher(handler).hook
    ada, bob = Person(signed_in(60)), Person(signed_in(60))
    bob.name = "bob"
    assert await asyncio.gather(hook(Application(), ada), hook(Application(), bob)) == [True, True]
    assert arrived.is_set()


@pytest.mark.parametrize(
    "answer",
    [
        httpx.ConnectError("no route"),
        httpx.ReadTimeout("slow"),
        httpx.Response(503, text="<html>Deploying</html>"),
        httpx.Response(500, json={"error": "invalid_grant"}),
        httpx.Response(429, json={}),
        httpx.Response(200, text="<html>a portal</html>"),
        httpx.Response(200, json=["x"]),
        httpx.Response(401, json={"error": "invalid_client"}),
    ],
)
async def test_a_forge_that_cannot_say_costs_nobody_their_servers(answer: Any) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        return answer

    person = Person(signed_in(60))
    assert await refresher(handler).hook(Application(), person) is True
    assert person.saved == 0


async def test_a_refused_grant_needs_a_new_sign_in_and_is_asked_for_once() -> None:
    forge, person = Forge(), Person({**signed_in(60), "refresh_token": "revoked"})
    fresh = refresher(forge)
    assert await fresh.hook(Application(), person) is False
    assert await fresh.hook(Application(), person) is False
    assert (forge.calls, person.saved) == (1, 0)
    with pytest.raises(SignInExpired):
        await fresh.token(Application(), person)
    person.state = signed_in(60)  # signed in again
    assert await fresh.token(Application(), person) == "new2"


@pytest.mark.parametrize("state", [None, {}, {"access_token": ""}])
async def test_nobody_without_a_token_goes_on(state: dict[str, Any] | None) -> None:
    forge, person = Forge(), Person(state)
    assert await refresher(forge).hook(Application(), person) is False
    with pytest.raises(SignInExpired):
        await refresher(forge).token(Application(), person)
    assert forge.calls == 0


async def test_a_token_without_an_end_is_left_alone() -> None:
    forge, person = Forge(), Person({"access_token": "t", "refresh_token": "r0"})
    assert await refresher(forge).token(Application(), person) == "t"
    assert forge.calls == 0


@pytest.mark.parametrize(("left", "answer"), [(60, True), (-1, False)])
async def test_without_a_refresh_token_the_end_is_the_end(left: float, answer: bool) -> None:
    person = Person({**signed_in(left), "refresh_token": None})
    assert await refresher(Forge()).hook(Application(), person) is answer


@pytest.mark.parametrize(
    ("state", "until"),
    [
        ({"expires_at": 5}, 5.0),
        ({"token_response": {"created_at": 10, "expires_in": 20}}, 30.0),
        ({"expires_at": 5, "token_response": {"created_at": 10, "expires_in": 20}}, 5.0),
        ({"token_response": {"created_at": 10, "expires_in": None}}, None),
        ({"token_response": None}, None),
        ({}, None),
    ],
)
def test_when_a_token_ends(state: dict[str, Any], until: float | None) -> None:
    assert expires_at(state) == until


def test_an_answer_without_some_parts_keeps_the_old_ones() -> None:
    state = renewed({**signed_in(1), "gitlab_user": {"id": 1}}, {"access_token": "n"}, NOW)
    assert state["refresh_token"] == "r0"
    assert state["gitlab_user"] == {"id": 1}
    assert "expires_at" not in state


async def test_neither_log_nor_error_holds_a_token(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    started = time.monotonic()
    for person in (Person(signed_in(60)), Person({**signed_in(60), "refresh_token": "revoked"})):
        await refresher(Forge()).hook(Application(), person)
    assert time.monotonic() - started < 30
    assert caplog.text
    for secret in ("old", "r0", "revoked", "s3cret", "new1"):
        assert secret not in caplog.text


class Clocks:
    """The wall's clock, which somebody sets, and the steady one."""

    def __init__(self) -> None:
        self.wall, self.steady = NOW, 50.0

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def refresher(self, handler: Any) -> TokenRefresher:
        return TokenRefresher(
            transport=httpx.MockTransport(handler),
            clock=lambda: self.wall,
            steady=lambda: self.steady,
            patience=0.05,
        )


@pytest.mark.parametrize("hours", [-30, -5, 5, 30])
async def test_a_clock_that_is_set_keeps_nobody_from_a_fresh_token(hours: float) -> None:
    forge, person, clocks = Forge(), Person(signed_in(7200)), Clocks()
    fresh = clocks.refresher(forge)
    assert await fresh.token(Application(), person) == "old"
    clocks.wall += hours * 3600
    clocks.pass_by(3600)
    await fresh.hook(Application(), person)
    clocks.pass_by(2800)
    # 6,400 of 7,200 seconds have passed, whatever the wall says.
    assert await fresh.token(Application(), person) != "old"
    assert forge.calls >= 1


async def test_a_refused_token_is_renewed_whatever_the_clocks_say() -> None:
    forge, person = Forge(), Person(signed_in(7200))
    fresh = refresher(forge)
    assert await fresh.token(Application(), person, refused="old") == "new1"
    # Somebody else has renewed it meanwhile: not once more.
    assert await fresh.token(Application(), person, refused="old") == "new1"
    assert forge.calls == 1
    forge.valid = "somebody has revoked it"
    with pytest.raises(SignInExpired):
        await fresh.token(Application(), person, refused="new1")
    with pytest.raises(SignInExpired):
        await fresh.token(Application(), person, refused="new1")
    assert forge.calls == 2


async def test_a_launch_that_is_cancelled_loses_no_refresh() -> None:
    """The forge has killed the old pair by then: an answer that nobody takes is a lost sign-in."""
    forge, person = Forge(), Person(signed_in(-1))
    asking = asyncio.create_task(refresher(forge).token(Application(), person))
    while not forge.calls:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(60):
        while not person.saved:
            await asyncio.sleep(0.001)
    assert person.state is not None and person.state["refresh_token"] == "r1"


async def test_a_forge_that_hangs_holds_up_nobody_whose_token_is_good() -> None:
    answers = asyncio.Event()
    calls = 0

    async def hangs(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        await answers.wait()
        return httpx.Response(503)

    person, clocks = Person(signed_in(600)), Clocks()
    fresh = clocks.refresher(hangs)
    async with asyncio.timeout(60):
        both = await asyncio.gather(*(fresh.hook(Application(), person) for _ in range(5)))
        assert both == [True] * 5 and calls == 1
        answers.set()
        await asyncio.sleep(0.01)
        # It said that it cannot: for a moment it is not asked again.
        assert await fresh.hook(Application(), person) is True and calls == 1
        clocks.pass_by(6)
        assert await fresh.hook(Application(), person) is True and calls == 2


@pytest.mark.parametrize(
    "odd",
    [
        {"refresh_token": None},
        {"refresh_token": 7},
        {"created_at": "yesterday"},
        {"created_at": None, "expires_in": "7200"},
        {"created_at": NOW - 90_000},  # a forge whose clock is a day late
    ],
)
def test_parts_of_a_wrong_type_cost_nobody_their_sign_in(odd: dict[str, Any]) -> None:
    answer = {"access_token": "n", "refresh_token": "r1", "created_at": NOW, "expires_in": 7200}
    state = renewed(signed_in(1), {**answer, **odd}, NOW)
    assert isinstance(state["refresh_token"], str)
    assert expires_at(state) == NOW + 7200
