"""``configure(c)``: what turns a JupyterHub into the hub of the notebooks service.

Two lines at the end of anyone's ``jupyterhub_config.py``::

    from notebooks_service.spawner.configure import configure
    configure(c)

Servers that are not ours stay as they were, with the administrator's own spawner class. Read by
JupyterHub 5.4 and 6 while it loads its configuration.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.spawner import LocalProcessSpawner
from traitlets.config.loader import LazyConfigValue
from traitlets.utils.importstring import import_item

from notebooks_service.errors import SettingsInvalid
from notebooks_service.high_water import Gauge, Marks
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.limits import BuildLimits
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.origins import origin
from notebooks_service.settings import Settings, load_settings
from notebooks_service.spawner import forge_events, roles
from notebooks_service.spawner.admissions import Admissions
from notebooks_service.spawner.cleanup import Cleanups
from notebooks_service.spawner.forge_events import ForgeEvents
from notebooks_service.spawner.launch import LaunchMixin
from notebooks_service.spawner.launch_queue import LaunchQueue
from notebooks_service.spawner.local import LocalRuntime
from notebooks_service.spawner.meter import Meter
from notebooks_service.spawner.refresh import TokenRefresher
from notebooks_service.spawner.runtime import Runtime
from notebooks_service.spawner.server_hosts import KnowsServerHosts
from notebooks_service.spawner.shared import Shared
from notebooks_service.usage.ledger import Ledger, ledger_file

SERVICE_TOKEN = "NOTEBOOKS_SERVICE_TOKEN"  # noqa: S105 - the variable's name
SERVICE_URL = "NOTEBOOKS_SERVICE_BACKEND"
_FOR_UV = re.compile(r"(PATH|HOME|TMPDIR|LANG|LC_.*|TZ|SSL_CERT_.*|UV_.*|PIP_.*|.*_proxy)\Z", re.I)
_ALLOWING = (
    "allow_all",
    "allow_existing_users",
    "allowed_users",
    "allowed_groups",
    "allowed_scopes",
    "allowed_gitlab_groups",
    "allowed_project_ids",
)


MakeRuntime = Callable[[Settings, EnvironmentStore], Runtime]


def configure(
    c: Any, settings: Settings | None = None, make_runtime: MakeRuntime | None = None
) -> Shared:
    """Set every required setting on ``c``; call it last.

    ``make_runtime`` gives servers another place to run in than the setting ``runtime`` names.

    The service's address and hub token come from NOTEBOOKS_SERVICE_BACKEND and
    NOTEBOOKS_SERVICE_TOKEN, unless ``c.JupyterHub.services`` names a service ``notebooks`` already.
    Raises ``SettingsInvalid`` when something is missing that only the administrator knows.
    """
    settings = settings or load_settings()
    shared = make_shared(settings, make_runtime)
    _hub(c, settings)
    _webhook(c, shared)
    _authenticator(c, settings, shared.refresher)
    _spawner(c, shared)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return shared  # read by a tool, not by a hub that is starting
    shared.cleanups.start()
    shared.meter.start()
    return shared


def make_shared(settings: Settings, make_runtime: MakeRuntime | None = None) -> Shared:
    """What all our servers share. Raises ``SettingsInvalid`` for a runtime that is not there."""
    if make_runtime is None and settings.runtime == "kubernetes":
        raise SettingsInvalid("The runtime `kubernetes` is not there yet; use `local` or `docker`.")
    # uv may run a package's build script: it gets nothing of the hub's secrets.
    environ = {key: value for key, value in os.environ.items() if _FOR_UV.match(key)}
    limits = BuildLimits(
        settings.build_wait,
        settings.environment_size,
        settings.disk_reserve,
        settings.memory_reserve,
    )
    store = EnvironmentStore(settings.data / "environments", environ=environ, limits=limits)
    containers = settings.runtime != "local"
    runtime = (make_runtime or (_docker if containers else LocalRuntime))(settings, store)
    meter = Meter(settings, Ledger(ledger_file(settings.data)), runtime)
    return Shared(
        settings=settings,
        refresher=TokenRefresher(timeout=settings.forge_timeout, ca_file=settings.forge_ca_file),
        watcher=ImageWatcher(settings, None if containers else store),
        runtime=runtime,
        cleanups=Cleanups(settings.data / "run" / "cleanup", runtime),
        queue=LaunchQueue(settings.concurrent_launches),
        admissions=Admissions(
            settings.quotas, runtime.holds_work, meter.spent, Gauge(Marks.of(settings))
        ),
        meter=meter,
    )


def _docker(settings: Settings, _store: EnvironmentStore) -> Runtime:
    """The ``docker`` runtime. Raises ``SettingsInvalid`` where its packages are missing."""
    try:
        from notebooks_service.spawner.docker import DockerRuntime
    except ImportError as error:
        raise SettingsInvalid(
            f"The runtime `docker` needs packages that are not installed ({error.name}): install "
            "`notebooks-service[docker]`."
        ) from None
    return DockerRuntime(settings)


def _hub(c: Any, settings: Settings) -> None:
    hub = c.JupyterHub
    hub.allow_named_servers = True
    hub.concurrent_spawn_limit = 0  # its own limit counts those who wait for builds, and says 429
    hub.cleanup_servers = False  # or stopping the hub ends people's servers
    tornado = _value(hub, "tornado_settings", {})
    hub.tornado_settings = {**tornado, "slow_spawn_timeout": 0}
    hub.custom_scopes = {**_value(hub, "custom_scopes", {}), **roles.CUSTOM_SCOPES}
    hub.load_roles = roles.merge_roles(_value(hub, "load_roles", []))
    services = _value(hub, "services", [])
    entry: dict[str, Any] = next((s for s in services if s.get("name") == roles.SERVICE), {})
    token = os.environ.get(SERVICE_TOKEN, "")
    backend = os.environ.get(SERVICE_URL, "")
    if not (token or entry.get("api_token")) or not (backend or entry.get("url")):
        raise SettingsInvalid(
            f"The hub must know the service: set {SERVICE_URL} (where it listens) and "
            f"{SERVICE_TOKEN} (its hub token), or give `c.JupyterHub.services` an entry "
            f"`{roles.SERVICE}` with `url` and `api_token`."
        )
    _subdomains(c, settings, backend or str(entry.get("url")))
    path = settings.service_url if settings.subdomains else urlsplit(settings.service_url).path
    hub.services = roles.merge_services(
        services,
        {
            "name": roles.SERVICE,
            "url": backend,
            "api_token": token,
            "oauth_client_id": f"service-{roles.SERVICE}",
            "oauth_redirect_uri": f"{path}oauth_callback",
            "oauth_no_confirm": True,
            "oauth_client_allowed_scopes": list(roles.CLIENT_SCOPES),
            "display": True,
        },
    )


def _subdomains(c: Any, settings: Settings, service: str) -> None:
    """Hosts of their own for service and servers; addresses below the hub's lead to the service too."""
    theirs = _value(c.JupyterHub, "subdomain_host", "")
    if not settings.subdomains:
        if theirs:
            raise SettingsInvalid(
                "`c.JupyterHub.subdomain_host` is set: the setting `subdomains` must be true then, here and "
                "for the service."
            )
        return
    ours = origin(settings.hub_url)
    if theirs and theirs.rstrip("/") != ours:
        raise SettingsInvalid(
            f"`c.JupyterHub.subdomain_host` is {theirs}, and the setting `hub_url` says {ours}."
        )
    c.JupyterHub.subdomain_host = ours
    hub = urlsplit(settings.hub_url)
    # A cookie that a server's page sets for all hosts below the hub's cannot take such a cookie's place.
    c.JupyterHub.cookie_host_prefix_enabled = hub.scheme == "https"
    routes = _value(c.Proxy, "extra_routes", {}) if "Proxy" in c else {}
    own = f"{hub.hostname}{hub.path}services/{roles.SERVICE}/"
    c.Proxy.extra_routes = {own: service, **routes}


def _webhook(c: Any, shared: Shared) -> None:
    """The hub has no other way to add a handler; without a secret there is none."""
    secret = shared.settings.webhook_secret.get_secret_value()
    if secret:
        ours = (forge_events.PATH, ForgeEvents.made_for(shared.watcher, secret))
        c.JupyterHub.extra_handlers = [*_value(c.JupyterHub, "extra_handlers", []), ours]


def _authenticator(c: Any, settings: Settings, refresher: TokenRefresher) -> None:
    if "authenticator_class" not in c.JupyterHub:
        c.JupyterHub.authenticator_class = "gitlab"
    if settings.subdomains:
        theirs = named_class(c.JupyterHub.authenticator_class, "authenticator")
        c.JupyterHub.authenticator_class = type(theirs.__name__, (KnowsServerHosts, theirs), {})
    keys = _value(c.CryptKeeper, "keys", []) if "CryptKeeper" in c else []
    if not keys and not os.environ.get("JUPYTERHUB_CRYPT_KEY"):
        raise SettingsInvalid(
            "The hub keeps forge tokens encrypted: set JUPYTERHUB_CRYPT_KEY to 64 hex digits "
            "(`openssl rand -hex 32`) and keep it."
        )
    c.Authenticator.enable_auth_state = True
    c.OAuthenticator.refresh_user_hook = refresher.hook
    _unless_set(c, "client_id", settings.forge_client_id)
    _unless_set(c, "client_secret", settings.forge_client_secret.get_secret_value())
    _unless_set(c, "oauth_callback_url", f"{settings.hub_url}hub/oauth_callback")
    _unless_set(c, "scope", list(settings.forge_scopes))
    _unless_set(c, "gitlab_url", settings.forge_url, section="GitLabOAuthenticator")
    if settings.forge_ca_file is not None:
        _unless_set(c, "http_request_kwargs", {"ca_certs": str(settings.forge_ca_file)})
    if not any(_is_set(c, name) for name in _ALLOWING):
        c.OAuthenticator.allow_all = True  # who has an account at the forge may sign in


def _spawner(c: Any, shared: Shared) -> None:
    given = c.JupyterHub.get("spawner_class")
    if shared.settings.runtime == "docker" and given is None:
        given = "dockerspawner.DockerSpawner"
    beneath = spawner_class(given)
    c.JupyterHub.spawner_class = with_launches(beneath, shared)
    c.Spawner.consecutive_failure_limit = 0
    theirs = c.Spawner.get("server_token_scopes")
    if isinstance(theirs, LazyConfigValue):
        theirs = theirs.get_value(list(roles.STOCK_SERVER_SCOPES))
    c.Spawner.server_token_scopes = roles.server_scopes(theirs)


def with_launches(beneath: type[Any], shared: Shared) -> type[Any]:
    """The class of servers: launches of ours before ``beneath``, whose settings it goes on reading."""
    return type(f"Notebooks{beneath.__name__}", (LaunchMixin, beneath), {"shared": shared})


def spawner_class(given: object) -> type[Any]:
    """The administrator's spawner: a class, a name, or JupyterHub's own where there is none."""
    return LocalProcessSpawner if given is None else named_class(given, "spawner")


def named_class(given: object, kind: str) -> type[Any]:
    """What ``c.JupyterHub.<kind>_class`` says: a class, a dotted name, an entry point's name."""
    if isinstance(given, type):
        return given
    for point in entry_points(group=f"jupyterhub.{kind}s"):
        if point.name.lower() == str(given).lower():
            return point.load()  # type: ignore[no-any-return]
    try:
        return import_item(str(given))  # type: ignore[no-any-return]
    except ImportError as error:
        raise SettingsInvalid(f"`c.JupyterHub.{kind}_class` cannot be imported: {error}.") from None


def _value(section: Any, name: str, empty: Any) -> Any:
    """A setting as it stands, with ``.append`` and ``.update`` of the file before us applied."""
    if name not in section:
        return empty
    value = section[name]
    return value.get_value(empty) if isinstance(value, LazyConfigValue) else value


_SECTIONS = (
    "Authenticator",
    "OAuthenticator",
    "GitLabOAuthenticator",
    "LocalGitLabOAuthenticator",
)


def _is_set(c: Any, name: str) -> bool:
    sections = [*_SECTIONS]
    given = c.JupyterHub.get("authenticator_class")
    if isinstance(given, type):
        sections += [cls.__name__ for cls in given.__mro__]
    return any(name in c[section] for section in sections if section in c)


def _unless_set(c: Any, name: str, value: Any, section: str = "OAuthenticator") -> None:
    if not _is_set(c, name) and value:
        setattr(c[section], name, value)
