"""Rotating keys: what was encrypted opens, what was signed is believed, and an end in the middle loses nothing."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet, InvalidToken
from jupyterhub import orm
from sqlalchemy import text
from tornado.web import create_signed_value, decode_signed_value

from forge_fixtures import make_repository
from notebooks_service.errors import PlatformFailed
from notebooks_service.forge import deploy_tokens
from notebooks_service.forge.administration import Administration
from notebooks_service.forge.ci_runners import find_runner
from notebooks_service.forge.models import Project
from notebooks_service.platform import keys, secrets
from notebooks_service.platform.checks import lock
from notebooks_service.platform.directory import LAYOUT, DataDirectory
from notebooks_service.platform.secrets import MADE_HERE, Secrets
from notebooks_service.web.secret_store import Grant, SecretStore, SecretUnreadable

PEOPLE = ("ada", "grace")


def fernet(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(bytes.fromhex(key)))


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    """Data with a hub that holds the sign-ins of two people, and tokens of our services and of ada."""
    made = DataDirectory(tmp_path / "data")
    made.make()
    (made.path / "version.json").write_text(json.dumps({"layout": LAYOUT, "version": "1"}))
    own = Secrets(made.secrets)
    own.make()
    box = fernet(own.read(secrets.CRYPT_KEY))
    session = orm.new_session_factory(f"sqlite:///{hub_file(made)}")()
    for name in PEOPLE:
        user = orm.User(name=name, encrypted_auth_state=box.encrypt(name.encode()))
        session.add(user)
    session.add(orm.User(name="never-here"))
    session.add(orm.OAuthClient(identifier="jupyterhub"))
    for name in (*keys.SERVICES, "other"):
        service = orm.Service(name=name)
        session.add(service)
        session.commit()
        service.new_api_token(f"token-of-{name}", scopes=[])
    session.query(orm.User).filter_by(name="ada").one().new_api_token("token-of-ada", scopes=[])
    session.commit()
    session.close()
    return made


def hub_file(directory: DataDirectory) -> Path:
    return directory.path / "hub" / "jupyterhub.sqlite"


def states(directory: DataDirectory) -> dict[str, bytes]:
    """The encrypted auth_state of everybody who has one."""
    session = orm.new_session_factory(f"sqlite:///{hub_file(directory)}")()
    rows = session.execute(text("SELECT name, encrypted_auth_state FROM users")).all()
    session.close()
    return {name: state for name, state in rows if state is not None}


def opened(directory: DataDirectory) -> dict[str, str]:
    box = fernet(Secrets(directory.secrets).read(secrets.CRYPT_KEY))
    return {name: box.decrypt(state).decode() for name, state in states(directory).items()}


def test_everything_is_new_and_sign_ins_open(directory: DataDirectory) -> None:
    own = Secrets(directory.secrets)
    before = {name: own.read(name) for name in MADE_HERE}
    done = keys.rotate(directory)
    assert (done.sign_ins, done.lost, done.forge) == (2, 0, False)
    after = {name: own.read(name) for name in MADE_HERE}
    # Of an application at a GitLab, where it is changed: there is no embedded forge here.
    assert [name for name in MADE_HERE if after[name] == before[name]] == [secrets.CLIENT_SECRET]
    assert opened(directory) == {"ada": "ada", "grace": "grace"}
    old = fernet(before[secrets.CRYPT_KEY])
    for state in states(directory).values():
        with pytest.raises(InvalidToken):
            old.decrypt(state)
    # Only what is believed once more is still there.
    for name in MADE_HERE:
        expected = before[name] if name in keys.BELIEVED_ONCE_MORE else None
        assert own.former(name) == expected
    assert {path.stat().st_mode & 0o777 for path in directory.secrets.iterdir()} == {0o600}


def test_the_hub_no_longer_believes_our_services_old_tokens(directory: DataDirectory) -> None:
    keys.rotate(directory)
    session = orm.new_session_factory(f"sqlite:///{hub_file(directory)}")()
    known = {
        name
        for name in ("notebooks", "platform", "other", "ada")
        if orm.APIToken.find(session, f"token-of-{name}") is not None
    }
    session.close()
    assert known == {"other", "ada"}


def test_a_replaced_ciphertext_is_not_in_the_file(directory: DataDirectory) -> None:
    before = states(directory)["ada"]
    assert before in hub_file(directory).read_bytes()
    keys.rotate(directory)
    beside = [*hub_file(directory).parent.glob("jupyterhub.sqlite*")]
    assert not [path for path in beside if before in path.read_bytes()]


@pytest.mark.parametrize("encrypted_by", ["former", "newest"])
def test_a_rotation_that_was_cut_off_is_finished(
    directory: DataDirectory, encrypted_by: str
) -> None:
    """Killed after the key was written: before people's sign-ins were encrypted by it, or after."""
    own = Secrets(directory.secrets)
    own.replace(secrets.CRYPT_KEY)
    if encrypted_by == "newest":
        former = own.former(secrets.CRYPT_KEY)
        keys.encrypted_anew(hub_file(directory), own)
        assert former is not None
        own.write(f"{secrets.CRYPT_KEY}.before", former)
    done = keys.rotate(directory)
    assert (done.sign_ins, done.lost) == (2, 0)
    assert opened(directory) == {"ada": "ada", "grace": "grace"}


def test_what_nobody_can_open_is_counted_and_left(directory: DataDirectory) -> None:
    foreign = Fernet(Fernet.generate_key()).encrypt(b"x")
    session = orm.new_session_factory(f"sqlite:///{hub_file(directory)}")()
    session.query(orm.User).filter_by(name="grace").one().encrypted_auth_state = foreign
    session.commit()
    session.close()
    done = keys.rotate(directory)
    assert (done.sign_ins, done.lost) == (1, 1)
    assert states(directory)["grace"] == foreign


def test_not_while_it_runs_and_not_newer_data(directory: DataDirectory) -> None:
    own = Secrets(directory.secrets)
    before = {name: own.read(name) for name in MADE_HERE}
    with lock(directory), pytest.raises(PlatformFailed, match="Another `notebooks up` is running"):
        keys.rotate(directory)
    newer = json.dumps({"layout": LAYOUT + 1, "version": "9.9"})
    (directory.path / "version.json").write_text(newer)
    with pytest.raises(PlatformFailed, match=r"newer version \(9\.9\)"):
        keys.rotate(directory)
    assert {name: own.read(name) for name in MADE_HERE} == before


def cookie(settings: dict[str, Any], value: str) -> bytes:
    return create_signed_value(
        settings["cookie_secret"], "login", value, key_version=settings["key_version"]
    )


def believed(settings: dict[str, Any], signed: bytes) -> str | None:
    found = decode_signed_value(settings["cookie_secret"], "login", signed, min_version=2)
    return found.decode() if found else None


def test_cookies_are_believed_for_one_more_rotation(tmp_path: Path) -> None:
    own = Secrets(tmp_path)
    own.make()
    # As a hub signed them that knew one key only.
    oldest = create_signed_value(bytes.fromhex(own.read(secrets.COOKIE_SECRET)), "login", "oldest")
    first = own.cookie_settings()
    assert believed(first, oldest) == "oldest"
    signed = cookie(first, "first")
    own.replace(secrets.COOKIE_SECRET)
    second = own.cookie_settings()
    assert second["key_version"] != first["key_version"]
    assert (believed(second, oldest), believed(second, signed)) == ("oldest", "first")
    signed_later = cookie(second, "second")
    own.replace(secrets.COOKIE_SECRET)
    third = own.cookie_settings()
    assert believed(third, signed_later) == "second"
    assert (believed(third, oldest), believed(third, signed)) == (None, None)


@pytest.fixture
def forge(directory: DataDirectory, tmp_path: Path) -> Path:
    """A forge with a project whose jobs get a deploy token. Its ``secrets/``."""
    administration = Administration(directory.path)
    administration.ensure_owner("ada", "Ada", "ada@example.org")
    make_repository(tmp_path / "thing", {"a": "1"})
    administration.import_repository(tmp_path / "thing", None, "private", "ada")
    with administration.database.write() as session:
        project = session.query(Project).filter_by(full_path="ada/thing").one()
        deploy_tokens.create(
            session,
            project,
            deploy_tokens.FOR_JOBS,
            ["read_registry"],
            secrets=administration.config.secrets,
        )
    administration.close()
    return administration.config.secrets


def token_for_jobs(directory: DataDirectory) -> tuple[str, str] | None:
    administration = Administration(directory.path)
    try:
        with administration.database.read() as session:
            project = session.query(Project).filter_by(full_path="ada/thing").one()
            return deploy_tokens.for_jobs(session, administration.config.secrets, project)
    finally:
        administration.close()


def test_the_forges_keys_are_new_too(directory: DataDirectory, forge: Path) -> None:
    administration = Administration(directory.path)
    runner = administration.runner_token()
    administration.rotate_keys()
    administration.close()
    token = token_for_jobs(directory)
    assert token is not None
    key = (forge / deploy_tokens.KEY).read_text()
    signing = sorted(path.name for path in forge.glob("forge-*-keys/*.pem"))
    assert keys.rotate(directory).forge
    assert (forge / deploy_tokens.KEY).read_text() != key
    assert not (forge / deploy_tokens.FORMER_KEY).exists()
    assert token_for_jobs(directory) == token
    administration = Administration(directory.path)
    with administration.database.read() as session:
        assert find_runner(session, runner) is None
        assert find_runner(session, administration.runner_token()) is not None
    administration.close()
    assert sorted(path.name for path in forge.glob("forge-*-keys/*.pem")) != signing
    assert not list(forge.glob("*.new"))


def test_a_forges_rotation_that_was_cut_off_is_finished(
    directory: DataDirectory, forge: Path
) -> None:
    token = token_for_jobs(directory)
    key, before = forge / deploy_tokens.KEY, forge / deploy_tokens.FORMER_KEY
    before.hardlink_to(key)
    half = forge / "half"
    half.write_text("another")
    half.replace(key)
    assert token_for_jobs(directory) == token
    keys.rotate(directory)
    assert not before.exists()
    assert token_for_jobs(directory) == token


def test_command(directory: DataDirectory, tmp_path: Path) -> None:
    def rotate(data: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "notebooks_service", "keys", "rotate", "--data", str(data)]
        return subprocess.run([*command, *more], capture_output=True, text=True)

    done = rotate(directory.path)
    said = "All keys and secrets are new; 2 people's sign-ins were kept.\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
    facts = json.loads(rotate(directory.path, "--json").stdout)
    assert facts == {"sign_ins": 2, "lost": 0, "forge": False, "lost_secrets": 0}
    nothing = rotate(tmp_path / "nothing")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert nothing.stderr.startswith(f"There is no data of a `notebooks up` in {tmp_path}")
    assert not (tmp_path / "nothing").exists()


async def test_personal_secrets_open_after_two_rotations(directory: DataDirectory) -> None:
    """Without a start in between: neither the first token nor the second is known any more."""
    own = Secrets(directory.secrets)
    (directory.path / "service").mkdir()
    url = f"sqlite:///{directory.path / 'service' / 'service.sqlite'}"
    first = own.read(secrets.SERVICE_TOKEN)
    store = SecretStore(url, [first])
    await store.put("ada", "key", b"canary", [Grant(7, "group/rivers")])
    for _ in range(2):
        assert keys.rotate(directory).lost_secrets == 0
    newest = [own.read(secrets.SERVICE_TOKEN)]
    assert await SecretStore(url, newest).granted("ada", 7) == {"key": b"canary"}
    with pytest.raises(SecretUnreadable):
        await SecretStore(url, [first]).granted("ada", 7)
    # One that nothing opens is counted, and stays as it is.
    await SecretStore(url, ["another"]).put("ada", "lost", b"x", [])
    assert keys.rotate(directory).lost_secrets == 1
