"""The network that each server has for itself, and the doors that lead into it; ``docker.py`` calls this.

A server's network is internal and has no address of the host. The hub's proxy and the one way to hub and
gateway are containers that join it (docs/decisions/0230).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from notebooks_service.errors import StartFailed
from notebooks_service.spawner.containers import KIND, Ours
from notebooks_service.spawner.engine import Engine, Taken
from notebooks_service.spawner.runtime import ServerKey

Net = ipaddress.IPv4Network

PREFIX = 29
"""Room for the server, the proxy, the way inside and one more, beside what Docker keeps for itself."""
FIRST_KEPT = 24
"""The first /24 of the range is for what is not a server's: the proxy's own network."""
DOORS = ("proxy", "inside")


@dataclass(frozen=True)
class Doors:
    """The containers that join every server's network. ``inside`` is the one that servers talk to."""

    proxy: str
    inside: str


def front(range_: Net) -> Net:
    """The network of the proxy, the host and nobody else."""
    return next(range_.subnets(new_prefix=max(FIRST_KEPT, range_.prefixlen)))


def free(range_: Net, taken: Iterable[Net], beyond: Net | None = None) -> Net | None:
    """The first /29 of ``range_`` that overlaps nothing; with ``beyond`` the first after that one."""
    busy = sorted({n for n in (*taken, front(range_)) if n.overlaps(range_)})
    at = int(range_.network_address) if beyond is None else int(beyond.broadcast_address) + 1
    size = 2 ** (32 - PREFIX)
    last = int(range_.broadcast_address)
    for other in busy:
        start, end = int(other.network_address), int(other.broadcast_address)
        if end < at:
            continue
        if at + size <= start:
            break
        at = -(-(end + 1) // size) * size
    return Net((at, PREFIX)) if at + size - 1 <= last else None


def addresses(networks: Iterable[Mapping[str, Any]]) -> list[Net]:
    """The IPv4 networks of the engine's ``networks``."""
    found = []
    for network in networks:
        for config in (network.get("IPAM") or {}).get("Config") or []:
            try:
                found.append(Net(config["Subnet"]))
            except (KeyError, TypeError, ValueError):
                continue  # IPv6, or none
    return found


def network_config(
    ours: Ours, name: str, subnet: Net, key: ServerKey, launch: str
) -> dict[str, Any]:
    """A server's network for the engine's API."""
    return {
        "Name": name,
        "Driver": "bridge",
        "Internal": True,
        "CheckDuplicate": True,
        "IPAM": {"Config": [{"Subnet": str(subnet)}]},
        "Options": {
            "com.docker.network.bridge.inhibit_ipv4": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "false",
        },
        "Labels": ours.labels("network", key, launch),
    }


class Networks:
    """The servers' networks of one hub; one is made at a time, so that no two take the same addresses."""

    def __init__(self, engine: Engine, ours: Ours, range_: Net, alias: str) -> None:
        self._engine = engine
        self._ours = ours
        self._range = range_
        self._alias = alias
        self._making = asyncio.Lock()

    async def doors(self) -> Doors:
        """The containers that lead into servers' networks. Raises ``StartFailed`` if one is missing."""
        found: dict[str, str] = {}
        for each in await self._engine.containers(self._ours.filters()):
            kind = each["Labels"].get(KIND)
            if kind in DOORS and each.get("State") == "running":
                found[kind] = each["Id"]
        missing = [kind for kind in DOORS if kind not in found]
        if missing:
            raise StartFailed(
                f"The container that leads to servers (`{missing[0]}`) does not run. Try again in a "
                "minute; if it stays so, tell whoever runs this service."
            )
        return Doors(found["proxy"], found["inside"])

    async def make(self, name: str, key: ServerKey, launch: str) -> None:
        """A network for one server, with the doors in it. Raises ``StartFailed`` if no addresses are left."""
        doors = await self.doors()
        async with self._making:
            taken = addresses(await self._engine.networks())
            subnet = free(self._range, taken)
            while subnet is not None:
                try:
                    await self._engine.make_network(
                        network_config(self._ours, name, subnet, key, launch)
                    )
                    break
                except Taken:  # by something of the host that is no network of Docker's
                    subnet = free(self._range, taken, subnet)
            if subnet is None:
                raise StartFailed(
                    "No network is left for another server: all addresses of the setting "
                    "`docker_networks` are in use. Tell whoever runs this service."
                )
        await self._open(name, doors)

    async def _open(self, name: str, doors: Doors) -> None:
        await self._engine.join(name, doors.inside, [self._alias])
        await self._engine.join(name, doors.proxy, [])

    async def open(self, name: str) -> None:
        """See to it that the doors are in a network: one of them may have been made anew."""
        found = await self._engine.network(name)
        if found is None:
            return
        doors = await self.doors()
        inside = found.get("Containers") or {}
        if doors.inside not in inside or doors.proxy not in inside:
            await self._open(name, doors)

    async def remove(self, key: ServerKey) -> None:
        """Remove the networks of a server whose containers are gone.

        A door leaves them also while it does not run, and the engine does not name it then: it would
        never start again, for want of a network that is gone.
        """
        networks = await self._engine.networks(self._ours.filters("network", key))
        if not networks:
            return
        doors = [
            each["Id"]
            for each in await self._engine.containers(self._ours.filters())
            if each["Labels"].get(KIND) in DOORS
        ]
        for network in networks:
            known = await self._engine.network(network["Id"])
            for container in {*doors, *((known or {}).get("Containers") or {})}:
                await self._engine.leave(network["Id"], container)
            await self._engine.remove_network(network["Id"])
