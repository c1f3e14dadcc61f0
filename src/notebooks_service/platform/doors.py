"""The containers that lead to servers under ``notebooks up --runtime docker``: the hub's proxy, and the way
from a server to hub and gateway. ``up`` makes them; they run as parts of the platform.

Both are on a network of their own, whose host address the hub and the service listen on.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import logging
import os
import socket
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import docker
import docker.errors
import psutil
import requests
from docker.types import EndpointConfig, IPAMConfig, IPAMPool

from notebooks_service.errors import PlatformFailed
from notebooks_service.settings import Settings
from notebooks_service.spawner.containers import KIND, LOG, NO_NAMES, Kind, Ours
from notebooks_service.spawner.networks import front

log = logging.getLogger(__name__)

PROXY_PORT, API_PORT = 8000, 8001
HOME = "/opt/chp"
"""Where the image has the proxy's packages."""
ERRORS = "/opt/errors"
STOP_GRACE = 10
MOST_EGRESS = 64
"""Connections to the outside that one server may have at once."""
SERVERS: tuple[Kind, ...] = ("server", "init", "look")


@contextmanager
def engine(wait: float = 60) -> Iterator[docker.DockerClient]:
    """A client of the engine that ``DOCKER_HOST`` names. Raises ``PlatformFailed`` with what to do."""
    where = os.environ.get("DOCKER_HOST") or "/var/run/docker.sock"
    try:
        client = docker.from_env(timeout=int(wait))
        client.ping()
    except (docker.errors.DockerException, requests.RequestException) as error:
        if "permission denied" in str(error).lower():
            raise PlatformFailed(
                f"You may not use the Docker engine at {where}; add yourself to its group "
                "(`sudo usermod -aG docker $USER`, then sign in again), or run this as root."
            ) from None
        raise PlatformFailed(
            f"No Docker engine answers at {where}; install one (on Debian and Ubuntu: apt install "
            "docker.io), start it (systemctl start docker), or say in DOCKER_HOST where it is."
        ) from None
    try:
        yield client
    finally:
        client.close()


class Doors:
    """The two containers of one data directory."""

    def __init__(self, settings: Settings, ours: Ours, port: int) -> None:
        """``port``: of the loopback address, for browsers."""
        self._settings = settings
        self._ours = ours
        self._port = port
        self.instance = ours.instance
        self.network = ours.name
        addresses = front(ipaddress.IPv4Network(settings.docker_networks)).hosts()
        self.host, self._proxy_address, self.inside_address = (
            str(next(addresses)) for _ in range(3)
        )
        self.proxy = f"{ours.name}-proxy"
        self.inside = f"{ours.name}-inside"

    @property
    def api_url(self) -> str:
        """The API of the hub's proxy, as the host reaches it."""
        return f"http://{self._proxy_address}:{API_PORT}"

    def check_images(self, client: docker.DockerClient, *, embedded: bool) -> None:
        """Raises ``PlatformFailed`` if an image that is always needed is not on the host."""
        settings = self._settings
        missing = []
        for name in dict.fromkeys(
            (
                settings.proxy_image,
                settings.init_image,
                settings.default_image,
                *((settings.job_image,) if embedded else ()),
            )
        ):
            try:
                client.images.get(name)
            except docker.errors.ImageNotFound:
                if not _pulled(client, name):
                    missing.append(name)
        if missing:
            raise PlatformFailed(
                f"These images are not on this machine: {', '.join(missing)}. Make them with "
                "`deploy/docker/build --base debian` (about a minute; it takes only packages of Debian, "
                "PyPI and npm), or name others in the settings."
            )

    def make_network(self, client: docker.DockerClient) -> None:
        """The network of the two, with an address of the host; what listens there needs it first."""
        range_ = ipaddress.IPv4Network(self._settings.docker_networks)
        subnet = str(front(range_))
        own = ""
        with contextlib.suppress(docker.errors.NotFound):
            known = client.networks.get(self.network)
            if [each["Subnet"] for each in known.attrs["IPAM"]["Config"]] == [subnet]:
                own = f"br-{known.id[:12]}"
            else:
                self._remove_containers(client)
                known.remove()
        if taken := [name for name in taken_by(range_) if name != own]:
            raise PlatformFailed(
                f"The addresses {range_} for the networks of servers are in use on this machine ({taken[0]}); "
                "choose others with the setting `docker_networks`, such as 10.204.0.0/16."
            )
        if own:
            return
        pool = IPAMPool(subnet=subnet, gateway=self.host)
        try:
            client.networks.create(
                self.network,
                driver="bridge",
                ipam=IPAMConfig(pool_configs=[pool]),
                labels=self._ours.labels("network"),
            )
        except docker.errors.APIError as error:
            raise PlatformFailed(
                f"The network {subnet} cannot be made ({error.explanation}); choose other addresses with "
                "the setting `docker_networks`."
            ) from None

    def make(
        self, client: docker.DockerClient, *, token: str, hub: str, service: str, egress: str
    ) -> None:
        """Make both anew; they do not run yet. ``hub`` and ``service`` are URLs on ``host``, ``egress`` is
        ``host:port`` of what servers reach the outside by, or empty.
        """
        self._remove_containers(client)
        command = ["--ip", self._proxy_address, "--port", str(PROXY_PORT)]
        command += ["--api-ip", self._proxy_address, "--api-port", str(API_PORT)]
        # Not the hub's own page: it may be the hub that is away, and a launch's look at a server that is
        # still starting is answered without it.
        command += ["--error-path", ERRORS]
        if self._settings.subdomains:
            command += ["--host-routing"]
        proxy = self._create(
            client, self.proxy, self._proxy_address, "proxy", command,
            {"CONFIGPROXY_AUTH_TOKEN": token}, {f"{PROXY_PORT}/tcp": ("127.0.0.1", self._port)},
        )  # fmt: skip
        page = _packaged("503.html")
        client.api.put_archive(
            proxy, "/", _archive({f"{ERRORS}/{n}.html": page for n in ("503", "error")})
        )
        inside = self._create(
            client, self.inside, self.inside_address, "inside", ["/opt/inside.js"],
            {
                "NOTEBOOKS_PROXY_HOME": HOME,
                "NOTEBOOKS_BASE_PATH": urlsplit(self._settings.hub_url).path,
                "NOTEBOOKS_INSIDE_HUB": hub,
                "NOTEBOOKS_INSIDE_SERVICE": service,
                "NOTEBOOKS_INSIDE_EGRESS": egress,
                "NOTEBOOKS_INSIDE_EGRESS_MOST": str(MOST_EGRESS),
            },
            {}, entrypoint=["node"],
        )  # fmt: skip
        client.api.put_archive(inside, "/", _archive({"/opt/inside.js": _packaged("inside.js")}))

    def _create(
        self,
        client: docker.DockerClient,
        name: str,
        address: str,
        kind: str,
        command: list[str],
        environment: Mapping[str, str],
        ports: Mapping[str, Any],
        **more: Any,
    ) -> str:
        api = client.api
        host = api.create_host_config(
            network_mode=self.network,
            port_bindings=dict(ports),
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            dns=[NO_NAMES],
            log_config=docker.types.LogConfig(type=LOG["Type"], config=LOG["Config"]),
            init=True,
        )
        made = api.create_container(
            self._settings.proxy_image,
            command,
            name=name,
            user="1000:1000",
            environment=dict(environment),
            ports=[int(each.partition("/")[0]) for each in ports],
            labels={**self._ours.labels("network"), KIND: kind},
            host_config=host,
            networking_config=api.create_networking_config(
                {self.network: EndpointConfig(api._version, ipv4_address=address)}
            ),
            **more,
        )
        return str(made["Id"])

    def clear(self) -> None:
        """Remove what an `up` that was killed has left running, and with it a port that it holds."""
        with engine() as client:
            self._remove_containers(client)

    def _remove_containers(self, client: docker.DockerClient) -> None:
        for name in (self.proxy, self.inside):
            with contextlib.suppress(docker.errors.NotFound):
                client.containers.get(name).remove(force=True)

    def end(self) -> None:
        """Stop every server, all at once, and remove the two: a command line that follows a container
        may have been ended without it. A server's container tells the next hub that it was shut down.
        """

        def stop(container: Any) -> None:
            with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
                container.stop(timeout=STOP_GRACE)

        try:
            with engine() as client, ThreadPoolExecutor(16) as threads:
                for kind in SERVERS:
                    found = client.containers.list(filters=self._ours.filters(kind))
                    list(threads.map(stop, found))
                self._remove_containers(client)
        except PlatformFailed as error:
            log.warning("Servers may go on running: %s", error.message)


def taken_by(range_: ipaddress.IPv4Network) -> list[str]:
    """The interfaces of this machine that have an address in this range, or are in it with theirs."""
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family == socket.AF_INET and each.address:
                mask = each.netmask or "255.255.255.255"
                if ipaddress.ip_interface(f"{each.address}/{mask}").network.overlaps(range_):
                    found.append(name)
    return found


def _pulled(client: docker.DockerClient, name: str) -> bool:
    """Whether a registry had the image; a plain name is one of our own, which no registry has."""
    if "/" not in name:
        return False
    try:
        client.images.pull(name)
    except docker.errors.APIError:
        return False
    return True


def _packaged(name: str) -> bytes:
    return (files("notebooks_service.platform") / "chp" / name).read_bytes()


def _archive(contents: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()
