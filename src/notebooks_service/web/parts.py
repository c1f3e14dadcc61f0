"""What every request needs, made once at the start by ``app`` and found at ``request.app.state.parts``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx
import requests
from fastapi import Request

from notebooks_service import origins
from notebooks_service.errors import SettingsInvalid
from notebooks_service.gateway.hub import HubClient
from notebooks_service.gateway.upstream import is_loopback
from notebooks_service.gitlab.forge import Forge
from notebooks_service.high_water import Gauge, Marks
from notebooks_service.settings import Settings
from notebooks_service.web.consent import TrustStore
from notebooks_service.web.database import database_url
from notebooks_service.web.health_cache import HealthCache
from notebooks_service.web.secret_store import SecretStore
from notebooks_service.web.sign_in import SignIn


@dataclass(frozen=True)
class HubFacts:
    """What the hub tells a service of itself, by the variables that it documents.

    https://jupyterhub.readthedocs.io/en/stable/reference/services.html
    """

    api_url: str
    api_token: str
    prefix: str = "/services/notebooks/"
    base_url: str = "/"
    client_id: str = "service-notebooks"
    service_name: str = "notebooks"
    former_token: str | None = None
    """The token before a rotation: session cookies made with it are still read."""

    @property
    def tokens(self) -> tuple[str, ...]:
        """The present token, and the one before if it is still believed."""
        return (self.api_token, *([self.former_token] if self.former_token else []))

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> HubFacts:
        """Raises ``SettingsInvalid`` naming the variable that is missing."""
        for name in ("JUPYTERHUB_API_URL", "JUPYTERHUB_API_TOKEN"):
            if not environ.get(name):
                raise SettingsInvalid(
                    f"{name} is not set: the hub's configuration and the service need the same."
                )
        name = environ.get("JUPYTERHUB_SERVICE_NAME") or "notebooks"
        base_url = "/" + environ.get("JUPYTERHUB_BASE_URL", "/").strip("/")
        base_url = base_url if base_url == "/" else base_url + "/"
        prefix = environ.get("JUPYTERHUB_SERVICE_PREFIX") or f"{base_url}services/{name}/"
        return cls(
            api_url=environ["JUPYTERHUB_API_URL"],
            api_token=environ["JUPYTERHUB_API_TOKEN"],
            prefix=f"/{prefix.strip('/')}/",
            base_url=base_url,
            client_id=environ.get("JUPYTERHUB_CLIENT_ID") or f"service-{name}",
            service_name=name,
            former_token=environ.get("NOTEBOOKS_FORMER_SERVICE_TOKEN") or None,
        )


@dataclass(frozen=True)
class Parts:
    """The service's connections; ``poll_seconds`` is how often an event stream looks by itself."""

    settings: Settings
    facts: HubFacts
    hub: HubClient
    sign_in: SignIn
    trust: TrustStore
    secrets: SecretStore
    forge: Callable[[str], Forge]
    http: httpx.AsyncClient
    poll_seconds: float = 1.0
    health: HealthCache = field(default_factory=HealthCache)
    gauge: Gauge = field(default_factory=Gauge)

    @property
    def prefix(self) -> str:
        return self.facts.prefix

    def server_url(self, user: str, server: str) -> str:
        """Where a browser opens somebody's server; ends with a slash."""
        settings = self.settings
        return origins.server_url(settings.hub_url, user, server, subdomains=settings.subdomains)

    async def aclose(self) -> None:
        await self.hub.aclose()
        await self.http.aclose()
        await self.sign_in.aclose()


def make_parts(
    settings: Settings,
    facts: HubFacts,
    *,
    hub_transport: httpx.AsyncBaseTransport | None = None,
    forge_session: Callable[[], requests.Session] | None = None,
    poll_seconds: float = 1.0,
) -> Parts:
    """The parts for these settings. Tests inject the network: transports, never our own code."""
    hub = HubClient(facts.api_url, facts.api_token, hub_transport)

    def forge(token: str) -> Forge:
        return Forge(
            settings.forge_url,
            token,
            timeout=settings.forge_timeout,
            ca_file=settings.forge_ca_file,
            session=forge_session() if forge_session else None,
        )

    return Parts(
        settings=settings,
        facts=facts,
        hub=hub,
        sign_in=SignIn(
            hub=hub,
            hub_url=settings.hub_url,
            own_url=settings.service_url if settings.subdomains else None,
            api_url=facts.api_url,
            api_token=facts.api_token,
            base_url=facts.base_url,
            prefix=facts.prefix,
            client_id=facts.client_id,
            service_name=facts.service_name,
            former_token=facts.former_token,
        ),
        trust=TrustStore(database_url(settings)),
        secrets=SecretStore(database_url(settings), facts.tokens),
        forge=forge,
        http=httpx.AsyncClient(
            timeout=5,
            # Asked every few seconds, so a connection would be used again just when the forge closes it.
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=not is_loopback(settings.forge_url),
            verify=_verify(settings),
        ),
        poll_seconds=poll_seconds,
        gauge=Gauge(Marks.of(settings)),
    )


def parts_of(request: Request) -> Parts:
    """The parts of the application that serves this request."""
    parts = request.app.state.parts
    assert isinstance(parts, Parts)
    return parts


def _verify(settings: Settings) -> bool | str:
    return str(settings.forge_ca_file) if settings.forge_ca_file else True
