"""The hub's configuration under ``notebooks up`` and in deploy/docker: what is particular to one machine, then
``configure``.

JupyterHub runs this file. Secrets come from files under the data directory that are ours alone, so
none is in the hub's environment (but an external forge's client secret, which a person may set there).
"""

import os
import time
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from notebooks_service.platform import secrets
from notebooks_service.platform.parts import NO_TLS
from notebooks_service.platform.secrets import Secrets
from notebooks_service.settings import load_settings
from notebooks_service.spawner.configure import configure
from notebooks_service.spawner.only_ours import OnlyOurs, RefusesOthers

c = get_config()  # type: ignore[name-defined]  # noqa: F821 - JupyterHub gives it

settings = load_settings()
own = Secrets(settings.data / "secrets")
if not settings.forge_client_secret.get_secret_value():
    client_secret = SecretStr(own.read(secrets.CLIENT_SECRET))
    settings = settings.model_copy(update={"forge_client_secret": client_secret})

hub = c.JupyterHub
# The address for browsers is the proxy's, which `up` starts: servers outlive the hub's own process.
hub.bind_url = settings.hub_url
hub.hub_bind_url = os.environ["NOTEBOOKS_PLATFORM_HUB"]
if connect := os.environ.get("NOTEBOOKS_PLATFORM_HUB_CONNECT"):
    hub.hub_connect_url = connect
    # Nobody tells it there when the proxy was made anew, and has no routes: it looks this often, in seconds.
    hub.last_activity_interval = 10
hub.proxy_class = "configurable-http-proxy"
hub.cleanup_proxy = False
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = os.environ["NOTEBOOKS_PLATFORM_PROXY_API"]
c.ConfigurableHTTPProxy.auth_token = own.read(secrets.PROXY_TOKEN)

hub.db_url = f"sqlite:///{settings.data / 'hub' / 'jupyterhub.sqlite'}"
hub.upgrade_db = True
hub.cookie_secret_file = str(own.path(secrets.COOKIE_SECRET))
hub.tornado_settings = own.cookie_settings()
# The former one is there only if a rotation was cut off before all was encrypted anew.
crypt_keys = (own.read(secrets.CRYPT_KEY), own.former(secrets.CRYPT_KEY))
c.CryptKeeper.keys = [bytes.fromhex(key) for key in crypt_keys if key]
hub.default_url = "/services/notebooks/"
# Only the launch knows who may start what on this machine; a server of another kind would pass it by.
hub.spawner_class = OnlyOurs
if settings.runtime == "docker":
    from dockerspawner import DockerSpawner

    hub.spawner_class = type("OnlyOursInDocker", (RefusesOthers, DockerSpawner), {})

# Whoever may sign in at the forge may sign in here, without another click.
hub.authenticator_class = "gitlab"
c.OAuthenticator.allow_all = True
c.OAuthenticator.auto_login = True
c.OAuthenticator.admin_users = {settings.owner} if settings.owner else set()

hub.services = [
    {
        "name": "notebooks",
        "url": os.environ["NOTEBOOKS_PLATFORM_SERVICE"],
        "api_token": own.read(secrets.SERVICE_TOKEN),
    },
    {"name": "platform", "api_token": own.read(secrets.PLATFORM_TOKEN), "display": False},
]
hub.load_roles = [
    {
        "name": "platform",
        "services": ["platform"],
        # `proxy`: fill a proxy that was started again. `tokens`: `notebooks token`.
        "scopes": ["proxy", "tokens", "read:users:name"],
    }
]

address = urlsplit(os.environ.get("NOTEBOOKS_PLATFORM_ADDRESS", "")).hostname
if settings.subdomains and address:
    # Programs of this machine ask there: not all know the names that browsers open.
    c.Proxy.extra_routes = {
        f"{address}/services/notebooks/": os.environ["NOTEBOOKS_PLATFORM_SERVICE"]
    }

if own_config := os.environ.get("NOTEBOOKS_PLATFORM_CONFIG"):
    load_subconfig(own_config)  # type: ignore[name-defined]  # noqa: F821 - JupyterHub gives it

configure(c, settings)

# All parts start at once, and loading JupyterHub takes the longest. It looks for proxy and service
# only once: a service that answers later gets no route.
PATIENCE = 60
for address in (c.ConfigurableHTTPProxy.api_url, os.environ["NOTEBOOKS_PLATFORM_SERVICE"]):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            httpx.get(address, timeout=5, trust_env=False, verify=NO_TLS)
        except httpx.TransportError:
            time.sleep(0.05)
        else:
            break
