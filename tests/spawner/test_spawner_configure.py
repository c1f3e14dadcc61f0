"""``configure(c)`` on other people's configurations: it adds what it needs and takes nothing away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from dockerspawner import DockerSpawner
from jupyterhub.spawner import LocalProcessSpawner, SimpleLocalProcessSpawner, Spawner
from oauthenticator.gitlab import GitLabOAuthenticator
from traitlets.config import Config

from notebooks_service.errors import SettingsInvalid
from notebooks_service.settings import Settings
from notebooks_service.spawner import roles
from notebooks_service.spawner.configure import configure
from notebooks_service.spawner.launch import LaunchMixin
from notebooks_service.spawner.server_hosts import KnowsServerHosts

KEY = "0" * 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data=tmp_path,
        forge_url="https://gitlab.test/root/",
        hub_url="https://hub.test/base",
        forge_client_id="id",
        forge_client_secret="secret",
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_CRYPT_KEY", KEY)
    monkeypatch.setenv("NOTEBOOKS_SERVICE_TOKEN", "service-token")
    monkeypatch.setenv("NOTEBOOKS_SERVICE_BACKEND", "http://127.0.0.1:1234")


def configured(settings: Settings, c: Config | None = None) -> Any:
    c = c or Config()
    configure(c, settings)
    return c


def test_every_required_setting_is_set(settings: Settings) -> None:
    c = configured(settings)
    assert c.JupyterHub.allow_named_servers is True
    assert c.JupyterHub.concurrent_spawn_limit == 0
    assert c.JupyterHub.cleanup_servers is False
    assert c.JupyterHub.tornado_settings == {"slow_spawn_timeout": 0}
    assert c.Spawner.consecutive_failure_limit == 0
    assert c.Authenticator.enable_auth_state is True
    assert c.JupyterHub.authenticator_class == "gitlab"
    assert c.GitLabOAuthenticator.gitlab_url == "https://gitlab.test/root"
    assert c.OAuthenticator.oauth_callback_url == "https://hub.test/base/hub/oauth_callback"
    assert c.OAuthenticator.client_id == "id"
    assert c.OAuthenticator.client_secret == "secret"
    assert "read_repository" in c.OAuthenticator.scope
    assert c.OAuthenticator.allow_all is True
    assert callable(c.OAuthenticator.refresh_user_hook)
    (service,) = c.JupyterHub.services
    assert service == {
        "name": "notebooks",
        "url": "http://127.0.0.1:1234",
        "api_token": "service-token",
        "oauth_client_id": "service-notebooks",
        "oauth_redirect_uri": "/base/services/notebooks/oauth_callback",
        "oauth_no_confirm": True,
        "oauth_client_allowed_scopes": list(roles.CLIENT_SCOPES),
        "display": True,
    }
    by_name = {role["name"]: role for role in c.JupyterHub.load_roles}
    assert by_name["user"]["scopes"] == list(roles.USER_SCOPES)
    assert set(by_name["notebooks-service"]["scopes"]) == {
        *("admin:auth_state", "read:users:name", "read:servers", "admin:server_state"),
    }
    assert by_name["notebooks-service"]["services"] == ["notebooks"]
    assert c.Spawner.server_token_scopes == [
        "users:activity!user",
        "access:servers!server",
        "custom:notebooks:git!server",
    ]
    assert issubclass(c.JupyterHub.spawner_class, (LaunchMixin, LocalProcessSpawner))


def test_what_an_administrator_set_stays(settings: Settings) -> None:
    c = Config()
    c.JupyterHub.services = [{"name": "culler", "api_token": "x"}]
    c.JupyterHub.load_roles = [
        {"name": "culler", "scopes": ["list:users"], "services": ["culler"]},
        {"name": "user", "scopes": ["self", "shares!user"], "groups": ["all"]},
    ]
    c.JupyterHub.custom_scopes = {"custom:theirs": {"description": "theirs"}}
    c.JupyterHub.tornado_settings = {"headers": {"X": "y"}, "slow_spawn_timeout": 10}
    c.GitLabOAuthenticator.gitlab_url = "https://other.test"
    c.GitLabOAuthenticator.client_id = "theirs"
    c.Authenticator.allowed_users = {"ada"}
    c.Spawner.server_token_scopes = ["users:activity!user", "read:users:name!user"]
    configured(settings, c)
    assert [service["name"] for service in c.JupyterHub.services] == ["culler", "notebooks"]
    by_name = {role["name"]: role for role in c.JupyterHub.load_roles}
    assert by_name["culler"] == {
        "name": "culler",
        "scopes": ["list:users"],
        "services": ["culler"],
    }
    assert by_name["user"]["groups"] == ["all"]
    assert by_name["user"]["scopes"] == ["self", "shares!user", *roles.USER_SCOPES[1:]]
    assert set(c.JupyterHub.custom_scopes) == {"custom:theirs", "custom:notebooks:git"}
    assert c.JupyterHub.tornado_settings == {"headers": {"X": "y"}, "slow_spawn_timeout": 0}
    assert c.GitLabOAuthenticator.gitlab_url == "https://other.test"
    assert "client_id" not in c.OAuthenticator
    assert "allow_all" not in c.OAuthenticator
    assert c.Spawner.server_token_scopes[:2] == ["users:activity!user", "read:users:name!user"]


def test_what_was_appended_and_not_set_stays_too(settings: Settings) -> None:
    c = Config()
    c.JupyterHub.services.append({"name": "culler", "api_token": "x"})
    c.JupyterHub.load_roles.extend([{"name": "culler", "scopes": ["list:users"]}])
    c.JupyterHub.custom_scopes.update({"custom:theirs": {"description": "theirs"}})
    c.JupyterHub.tornado_settings.update({"x": 1})
    c.Spawner.server_token_scopes.append("read:users:name!user")
    configured(settings, c)
    assert [service["name"] for service in c.JupyterHub.services] == ["culler", "notebooks"]
    assert "culler" in {role["name"] for role in c.JupyterHub.load_roles}
    assert set(c.JupyterHub.custom_scopes) == {"custom:theirs", "custom:notebooks:git"}
    assert c.JupyterHub.tornado_settings == {"x": 1, "slow_spawn_timeout": 0}
    assert c.Spawner.server_token_scopes == [
        "users:activity!user",
        "access:servers!server",
        "read:users:name!user",
        "custom:notebooks:git!server",
    ]


def test_an_entry_for_the_service_itself_is_completed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTEBOOKS_SERVICE_TOKEN")
    monkeypatch.delenv("NOTEBOOKS_SERVICE_BACKEND")
    c = Config()
    c.JupyterHub.services = [
        {"name": "notebooks", "url": "http://web:80", "api_token": "t", "display": False}
    ]
    (service,) = configured(settings, c).JupyterHub.services
    assert (service["url"], service["api_token"], service["display"]) == (
        "http://web:80",
        "t",
        False,
    )
    assert service["oauth_client_id"] == "service-notebooks"


@pytest.mark.parametrize("missing", ["NOTEBOOKS_SERVICE_TOKEN", "NOTEBOOKS_SERVICE_BACKEND"])
def test_a_hub_that_does_not_know_the_service_does_not_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(SettingsInvalid, match=missing):
        configured(settings)


def test_a_hub_that_cannot_encrypt_does_not_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUPYTERHUB_CRYPT_KEY")
    with pytest.raises(SettingsInvalid, match="JUPYTERHUB_CRYPT_KEY"):
        configured(settings)
    c = Config()
    c.CryptKeeper.keys = [KEY]
    configured(settings, c)


@pytest.mark.parametrize(
    ("given", "beneath"),
    [
        (SimpleLocalProcessSpawner, SimpleLocalProcessSpawner),
        ("simple", SimpleLocalProcessSpawner),
        ("jupyterhub.spawner.SimpleLocalProcessSpawner", SimpleLocalProcessSpawner),
        ("localprocess", LocalProcessSpawner),
    ],
)
def test_the_administrators_spawner_is_beneath(
    settings: Settings, given: object, beneath: type
) -> None:
    c = Config()
    c.JupyterHub.spawner_class = given
    made = configured(settings, c).JupyterHub.spawner_class
    assert made.__mro__[1:3] == (LaunchMixin, beneath)


def test_a_spawner_that_is_nowhere_is_named(settings: Settings) -> None:
    c = Config()
    c.JupyterHub.spawner_class = "no.such.Spawner"
    with pytest.raises(SettingsInvalid, match="spawner_class"):
        configured(settings, c)


def test_a_runtime_that_is_not_there_is_named(settings: Settings) -> None:
    with pytest.raises(SettingsInvalid, match="kubernetes"):
        configured(settings.model_copy(update={"runtime": "kubernetes"}))


def test_containers_are_dockerspawners(settings: Settings) -> None:
    """With the runtime `docker`, unless the administrator names a class that is one."""
    c = configured(settings.model_copy(update={"runtime": "docker"}))
    assert issubclass(c.JupyterHub.spawner_class, (LaunchMixin, DockerSpawner))
    assert c.JupyterHub.spawner_class.__mro__.index(LaunchMixin) < c.JupyterHub.spawner_class.__mro__.index(DockerSpawner)  # fmt: skip


async def test_scopes_by_a_callable_get_ours_too() -> None:
    async def theirs(spawner: object) -> list[str]:
        return ["users:activity!user"]

    both = roles.server_scopes(theirs)
    assert await both(None) == ["users:activity!user", "custom:notebooks:git!server"]
    both = roles.server_scopes(lambda spawner: ["users:activity!user"])
    assert await both(None) == ["users:activity!user", "custom:notebooks:git!server"]


def test_an_authenticator_of_their_own_keeps_its_settings(settings: Settings) -> None:
    class Theirs(GitLabOAuthenticator):
        pass

    c = Config()
    c.JupyterHub.authenticator_class = Theirs
    c.Theirs.client_id = "theirs"
    c.Theirs.allow_all = False
    configured(settings, c)
    assert c.JupyterHub.authenticator_class is Theirs
    assert "client_id" not in c.OAuthenticator
    assert "allow_all" not in c.OAuthenticator


def test_the_mixin_takes_no_name_of_jupyterhubs_that_it_does_not_mean_to() -> None:
    """It once did: a method called like a private property of JupyterHub lost every server."""
    made_by_classes = set(vars(type("Plain", (LaunchMixin,), {})))
    own = set(vars(LaunchMixin)) - made_by_classes
    own -= {"__annotations__", "__init__"}
    assert {name for name in own if hasattr(Spawner, name)} == {
        *(
            "ready",
            "server",
            "start",
            "stop",
            "poll",
            "load_state",
            "get_state",
            "get_env",
            "progress",
        ),
        *("rename", "delete_forever", "_run_apply_user_options", "stop_polling"),
    }
    assert {name for name in own if not hasattr(Spawner, name)} == {"record"}


def test_hosts_of_their_own(settings: Settings) -> None:
    settings = settings.model_copy(update={"subdomains": True})
    c = Config()
    c.Proxy.extra_routes = {"hub.test/theirs/": "http://127.0.0.1:9"}
    configured(settings, c)
    assert c.JupyterHub.subdomain_host == "https://hub.test"
    assert c.JupyterHub.cookie_host_prefix_enabled is True
    assert c.Proxy.extra_routes == {
        "hub.test/theirs/": "http://127.0.0.1:9",
        "hub.test/base/services/notebooks/": "http://127.0.0.1:1234",
    }
    own = "https://notebooks--service.hub.test/base/services/notebooks/oauth_callback"
    assert c.JupyterHub.services[0]["oauth_redirect_uri"] == own
    assert issubclass(c.JupyterHub.authenticator_class, (KnowsServerHosts, GitLabOAuthenticator))
    assert c.JupyterHub.authenticator_class.__name__ == "GitLabOAuthenticator"


def test_a_cookie_of_plain_http_has_no_prefix(settings: Settings) -> None:
    plain = settings.model_copy(
        update={"subdomains": True, "hub_url": "http://hub.localhost:8000/"}
    )
    c = configured(plain)
    assert c.JupyterHub.subdomain_host == "http://hub.localhost:8000"
    assert c.JupyterHub.cookie_host_prefix_enabled is False


@pytest.mark.parametrize(
    ("subdomains", "theirs"), [(False, "https://hub.test"), (True, "https://other.test")]
)
def test_hub_and_service_have_to_agree_on_hosts(
    settings: Settings, subdomains: bool, theirs: str
) -> None:
    c = Config()
    c.JupyterHub.subdomain_host = theirs
    with pytest.raises(SettingsInvalid, match="subdomain"):
        configured(settings.model_copy(update={"subdomains": subdomains}), c)
