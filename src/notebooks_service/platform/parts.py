"""What the parts of the platform are: their commands, environments, and how to see that they answer.

Called by ``notebooks up``. Secrets reach a part by a file that it reads or by its environment; none
is in a command line.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from notebooks_service.platform import container_registry, secrets
from notebooks_service.platform.directory import DataDirectory
from notebooks_service.platform.secrets import Secrets
from notebooks_service.platform.supervise import Part
from notebooks_service.settings import Settings

if TYPE_CHECKING:
    from notebooks_service.platform.doors import Doors  # needs the extra `docker`

INTERNAL_PORTS = ("proxy_api", "hub", "service")
REGISTRY_PORT = "registry"
"""Where servers are containers and the forge is ours."""
EGRESS_PORT = "egress"
"""Where servers are containers that may reach something."""

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP on this machine: trusts nobody, where a client's own would read all authorities'
certificates, 20 ms of CPU, for every question."""

NOT_HANDED_ON = (
    # Of another hub, if we are started from a notebook's terminal.
    "JUPYTERHUB_", "JUPYTER_", "JPY_", "CONFIGPROXY_", "GITLAB_", "OAUTH_", "OAUTH2_",
    # Of a git hook or alias that we are started from.
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG", "GIT_OBJECT_", "GIT_ALTERNATE_", "GIT_NAMESPACE",
    # Ours: each part gets its own below.
    "NOTEBOOKS_",
)  # fmt: skip


@dataclass(frozen=True)
class Platform:
    """What the parts are made of. ``embedded``: the forge and its runner are ours."""

    settings: Settings
    directory: DataDirectory
    ports: Mapping[str, int]
    port: int
    forge_port: int
    embedded: bool
    proxy_command: tuple[str, ...]
    runner_token_file: Path | None
    doors: Doors | None = None

    @property
    def host(self) -> str:
        """The address that hub and service listen on: one that only the proxy and this host reach."""
        return "127.0.0.1" if self.doors is None else self.doors.host

    @property
    def public_address(self) -> str:
        """The hub's proxy on this machine, where not every program knows the name that browsers open."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def hub_address(self) -> str:
        return f"http://{self.host}:{self.ports['hub']}"

    @property
    def service_address(self) -> str:
        return f"http://{self.host}:{self.ports['service']}"

    @property
    def proxy_api(self) -> str:
        if self.doors is not None:
            return self.doors.api_url
        return f"http://127.0.0.1:{self.ports['proxy_api']}"

    @property
    def hub_api_url(self) -> str:
        """The hub's API, past the proxy."""
        return f"{self.hub_address}/hub/api"

    @property
    def _secrets(self) -> Secrets:
        return Secrets(self.directory.secrets)

    def proxy(self) -> Part:
        token = self._secrets.read(secrets.PROXY_TOKEN)
        api = self.proxy_api
        if self.doors is not None:
            return Part(
                "proxy",
                _container(self.doors.proxy),
                self._environment(),
                ready=lambda: _answers(f"{api}/api/routes", token=token),
                after_restart=self._fill_proxy,
            )
        command = [*self.proxy_command, "--ip", "127.0.0.1", "--port", str(self.port)]
        command += ["--api-ip", "127.0.0.1", "--api-port", str(self.ports["proxy_api"])]
        # Until the hub has said where it is, and whenever it is away.
        command += ["--error-target", f"http://127.0.0.1:{self.ports['hub']}/hub/error"]
        if self.settings.subdomains:
            command += ["--host-routing"]
        return Part(
            "proxy",
            command,
            {**self._environment(), "CONFIGPROXY_AUTH_TOKEN": token},
            ready=lambda: _answers(f"{api}/api/routes", token=token),
            after_restart=self._fill_proxy,
        )

    def inside(self) -> Part:
        """The way from servers to hub and gateway, where servers are containers."""
        assert self.doors is not None
        # It has no address that the host may ask; the platform's own tests ask from a server's place.
        return Part(
            "inside", _container(self.doors.inside), self._environment(), ready=lambda: True
        )

    @property
    def egress_address(self) -> str:
        """``host:port`` of what servers reach the outside by; empty if they reach nothing."""
        return f"{self.host}:{self.ports[EGRESS_PORT]}" if EGRESS_PORT in self.ports else ""

    def egress(self) -> Part:
        """The proxy by which servers in containers reach what `allowed_egress` names."""
        assert self.doors is not None
        port = self.ports[EGRESS_PORT]
        arguments = ["--host", self.host, "--port", str(port), "--peer", self.doors.inside_address]
        return Part(
            "egress",
            _python("notebooks_service.egress", *arguments),
            self._environment(),
            ready=lambda: _listens(self.host, port),
        )

    def registry(self) -> Part:
        """The registry of images, where servers are containers and the forge is ours."""
        secret = self._secrets.read(secrets.REGISTRY_SECRET)
        config = container_registry.write_config(self.settings, self.ports[REGISTRY_PORT], secret)
        return Part(
            "registry",
            [container_registry.PROGRAM, "serve", str(config)],
            container_registry.environment(self._environment()),
            ready=lambda: _answers(f"{self.registry_url}/v2/", any_code=True),
        )

    @property
    def registry_url(self) -> str:
        return f"http://127.0.0.1:{self.ports[REGISTRY_PORT]}"

    def forge(self) -> Part:
        arguments = ["--data", str(self.directory.path), "--port", str(self.forge_port)]
        arguments += ["--url", self.settings.forge_url]
        arguments += ["--oauth-token-lifetime", str(self.settings.forge_token_lifetime)]
        if self.settings.walls == "none" and not self.settings.unwalled_people:
            # What a job runs could read everything here that is its runner's, so its owner's.
            arguments += ["--pipelines-of", self.settings.owner]
        if self.doors is not None:
            arguments += ["--registry", self.registry_url]
        environment = self._environment()
        if secret := self.settings.lfs_store_secret.get_secret_value():
            environment["NOTEBOOKS_LFS_STORE_SECRET"] = secret
        return Part(
            "forge",
            _python("notebooks_service.forge", *arguments),
            environment,
            ready=lambda: _answers(f"http://127.0.0.1:{self.forge_port}/-/health"),
        )

    def service(self) -> Part:
        url = f"{self.service_address}/services/notebooks/health"
        environment = {
            **self._environment(),
            "JUPYTERHUB_API_TOKEN": self._secrets.read(secrets.SERVICE_TOKEN),
            "JUPYTERHUB_API_URL": self.hub_api_url,
            "JUPYTERHUB_BASE_URL": "/",
            "JUPYTERHUB_CLIENT_ID": "service-notebooks",
            "JUPYTERHUB_HOST": "",
            "JUPYTERHUB_SERVICE_NAME": "notebooks",
            "JUPYTERHUB_SERVICE_PREFIX": "/services/notebooks/",
            "JUPYTERHUB_SERVICE_URL": f"{self.service_address}/",
        }
        if former := self._secrets.former(secrets.SERVICE_TOKEN):
            environment["NOTEBOOKS_FORMER_SERVICE_TOKEN"] = former
        return Part(
            "service",
            _python(
                "notebooks_service.web", "--port", str(self.ports["service"]), "--host", self.host
            ),
            environment,
            # It answers before the hub does, and may then call itself unwell: any answer will do.
            ready=lambda: _answers(url, any_code=True),
        )

    def hub(self) -> Part:
        config = Path(__file__).with_name("jupyterhub_config.py")
        # Through the proxy: true when the hub has made its route and the service's.
        service = urlsplit(self.settings.service_url)
        health = f"{self.public_address.rstrip('/')}{service.path}health"
        environment = {
            **self._environment(),
            "NOTEBOOKS_PLATFORM_PROXY_API": self.proxy_api,
            "NOTEBOOKS_PLATFORM_HUB": self.hub_address,
            "NOTEBOOKS_PLATFORM_SERVICE": self.service_address,
            "NOTEBOOKS_PLATFORM_ADDRESS": self.public_address,
        }
        if secret := self.settings.registry_deploy_secret.get_secret_value():
            environment["NOTEBOOKS_REGISTRY_DEPLOY_SECRET"] = secret
        secret = self.settings.forge_client_secret.get_secret_value()
        if secret and not self.embedded:
            environment["NOTEBOOKS_FORGE_CLIENT_SECRET"] = secret
        return Part(
            "hub",
            _python("jupyterhub", "-f", str(config)),
            environment,
            ready=lambda: (
                _answers(f"{self.hub_api_url}/") and _answers(health, host=service.netloc)
            ),
            start_wait=120,
            # Before the servers, so that it does not take their end for a crash.
            end_first=True,
        )

    def runner(self) -> Part:
        arguments = ["--url", self.settings.forge_url, "--token-file", str(self.runner_token_file)]
        arguments += ["--data", str(self.directory.path)]
        if self.doors is not None:
            arguments += ["--executor", "docker", "--registry", self.registry_url]
            arguments += ["--instance", self.doors.instance]
        return Part(
            "runner",
            _python("notebooks_service.runner", *arguments),
            self._environment(),
            ready=lambda: True,
            # While the forge still takes its word on the jobs that it had to end.
            end_first=True,
        )

    def _environment(self) -> dict[str, str]:
        """What every part gets: the person's own environment without foreign matter, and settings."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(NOT_HANDED_ON)
        }
        programs = sysconfig.get_path("scripts")
        environment["PATH"] = f"{programs}{os.pathsep}{environment.get('PATH', os.defpath)}"
        # Our parts speak to each other on this machine; a proxy for the internet cannot help there.
        for name in ("no_proxy", "NO_PROXY"):
            given = [environment[name]] if environment.get(name) else []
            environment[name] = ",".join([*given, "127.0.0.1", "localhost", self.host])
        environment["PYTHONUNBUFFERED"] = "1"
        return {**environment, **self._settings_environment()}

    def _settings_environment(self) -> dict[str, str]:
        """Every ``NOTEBOOKS_*`` that was given to us, but secrets, and what we decided ourselves."""
        given = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("NOTEBOOKS_") and "SECRET" not in name
        }
        settings = self.settings
        decided = {
            "NOTEBOOKS_RUNTIME": settings.runtime,
            "NOTEBOOKS_DATA": str(settings.data),
            "NOTEBOOKS_HUB_URL": settings.hub_url,
            "NOTEBOOKS_SUBDOMAINS": str(settings.subdomains).lower(),
            "NOTEBOOKS_DOCKER_PROXY_URL": settings.docker_proxy_url or self.public_address,
            "NOTEBOOKS_FORGE_URL": settings.forge_url,
            "NOTEBOOKS_FORGE_CLIENT_ID": settings.forge_client_id,
            "NOTEBOOKS_OWNER": settings.owner,
            "NOTEBOOKS_WALLS": settings.walls,
            "NOTEBOOKS_UNWALLED_PEOPLE": str(settings.unwalled_people).lower(),
        }
        return {**given, **decided}

    def _fill_proxy(self) -> None:
        """Have the hub tell a new proxy its routes now, not within five minutes."""
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(
                f"{self.hub_api_url}/proxy",
                headers={"Authorization": f"token {self._secrets.read(secrets.PLATFORM_TOKEN)}"},
                timeout=10,
                trust_env=False,
                verify=NO_TLS,
            )


def _container(name: str) -> list[str]:
    """Runs a container that is there already, for as long as it runs; its networks outlive its crash."""
    return ["docker", "start", "--attach", name]


def _python(module: str, *arguments: str) -> list[str]:
    # -P: a file in the working directory is not a module of ours.
    return [sys.executable, "-P", "-m", module, *arguments]


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def _answers(url: str, *, token: str = "", host: str = "", any_code: bool = False) -> bool:
    headers = {"Authorization": f"token {token}"} if token else {}
    if host:
        headers["Host"] = host
    verify = NO_TLS if url.startswith("http://") else True
    try:
        response = httpx.get(url, headers=headers, timeout=1, trust_env=False, verify=verify)
    except httpx.HTTPError:
        return False
    return any_code or response.is_success
