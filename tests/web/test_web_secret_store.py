"""Secrets at rest: sealed for one person and name, readable after new keys, in no file when they are gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from notebooks_service.errors import InvalidRequest
from notebooks_service.personal_secrets import MOST, TooManySecrets
from notebooks_service.web.consent import TrustStore
from notebooks_service.web.secret_store import Grant, SecretStore, SecretUnreadable

CANARY = b"canary-" + b"0123456789abcdef" * 4
HERE = [Grant(7, "group/rivers")]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'service.sqlite'}"


async def test_what_was_granted_is_had_by_that_person_and_project_alone(url: str) -> None:
    store = SecretStore(url, ["one"])
    assert await store.put("ada", "key", CANARY, HERE)
    assert await store.put("ada", "other", b"o", [])
    assert await store.put("bob", "key", b"bobs", [Grant(8, "group/deep")])
    assert await store.granted("ada", 7) == {"key": CANARY}
    assert await store.granted_names("ada", 7) == ["key"]
    for user, project in (("ada", 8), ("bob", 7), ("carol", 7), ("", 7)):
        assert await store.granted(user, project) == {}
    assert await store.granted("bob", 8) == {"key": b"bobs"}
    # What is left out stays; what is given replaces.
    assert not await store.put("ada", "key", None, [Grant(9, "a/b"), Grant(9, "a/b")])
    assert await store.granted("ada", 7) == {}
    assert await store.granted("ada", 9) == {"key": CANARY}
    assert not await store.put("ada", "key", b"new", None)
    assert await store.granted("ada", 9) == {"key": b"new"}
    assert await store.delete("ada", "key")
    assert not await store.delete("ada", "key")
    assert await store.granted("ada", 9) == {}
    assert await store.granted("bob", 8) == {"key": b"bobs"}
    # A grant does not wait for a secret of the same name.
    await store.put("ada", "key", b"again", [])
    assert await store.granted("ada", 9) == {}


async def test_a_new_one_needs_a_value_and_there_are_so_many(url: str) -> None:
    store = SecretStore(url, ["one"])
    with pytest.raises(InvalidRequest, match="needs a value"):
        await store.put("ada", "key", None, HERE)
    for number in range(MOST):
        await store.put("ada", f"key{number}", b"x", [])
    with pytest.raises(TooManySecrets):
        await store.put("ada", "one-more", b"x", HERE)
    assert await store.granted("ada", 7) == {}
    await store.put("ada", "key0", b"y", None)
    await store.put("bob", "key", b"x", [])


async def test_nothing_can_be_read_in_the_file(url: str, tmp_path: Path) -> None:
    store = SecretStore(url, ["one"])
    await store.put("ada", "key", CANARY, HERE)
    file = tmp_path / "service.sqlite"
    assert file.stat().st_mode & 0o077 == 0
    with create_engine(url).connect() as connection:
        sealed = bytes(connection.execute(text("SELECT sealed FROM personal_secret")).scalar_one())
    assert CANARY not in file.read_bytes()
    assert sealed[:40] in file.read_bytes()
    await store.delete("ada", "key")
    for path in tmp_path.iterdir():
        assert sealed[:40] not in path.read_bytes()


async def test_a_row_that_was_moved_opens_for_nobody(url: str) -> None:
    """Who can write the table, and has no key, gets no value into a server of theirs."""
    store = SecretStore(url, ["one"])
    await store.put("ada", "key", CANARY, HERE)
    await store.put("ada", "open", b"x", [])
    await store.put("mallory", "key", b"x", HERE)
    with create_engine(url).begin() as connection:
        connection.execute(
            text(
                "UPDATE personal_secret SET sealed = (SELECT sealed FROM personal_secret"
                " WHERE username = 'ada' AND name = 'key')"
            )
        )
    with pytest.raises(SecretUnreadable, match="`key`"):
        await store.granted("mallory", 7)
    await store.put("ada", "open", None, HERE)
    with pytest.raises(SecretUnreadable, match="`open`"):
        await store.granted("ada", 7)


async def test_new_keys_open_what_the_ones_before_sealed(url: str) -> None:
    await SecretStore(url, ["one"]).put("ada", "key", CANARY, HERE)
    # The service is started with a new token, and the one before.
    assert await SecretStore(url, ["two", "one"]).granted("ada", 7) == {"key": CANARY}
    # From then on the newest is enough.
    assert await SecretStore(url, ["three", "two"]).granted("ada", 7) == {"key": CANARY}
    lost = SecretStore(url, ["five", "four"])
    assert lost.seal_anew() == 1
    with pytest.raises(SecretUnreadable, match="Write its value again"):
        await lost.granted("ada", 7)
    await lost.put("ada", "key", b"again", None)
    assert await lost.granted("ada", 7) == {"key": b"again"}


async def test_a_database_of_before_there_were_secrets(url: str) -> None:
    with create_engine(url).begin() as connection:
        connection.execute(text("CREATE TABLE schema_version (version INTEGER PRIMARY KEY)"))
        connection.execute(text("INSERT INTO schema_version VALUES (1)"))
    assert await SecretStore(url, ["one"]).all("ada") == []
    assert not await TrustStore(url).trusts("ada", 7)
