"""What an installation left on a Docker engine that nobody needs any more; ``notebooks prune`` asks, then removes it.

Only while no ``notebooks up`` runs on the data: what is half made then belongs to nobody. Everything is
found by its labels, and nothing that is not this service's is ever looked at.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import docker
import docker.errors
import requests

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.doors import engine
from notebooks_service.settings import Settings
from notebooks_service.spawner.cloning import CARRIED
from notebooks_service.spawner.containers import KIND, PLACE, SERVER, USER, Ours
from notebooks_service.spawner.programs import archive, jupyter_volume, programs_volume
from notebooks_service.spawner.volumes import volume_of

What = Literal["container", "network", "copy", "work"]
ORDER: tuple[What, ...] = ("container", "network", "copy", "work")
"""What a thing is in the way of comes after it."""
BACKUP_MAY_READ = 3600.0
"""Seconds for which a container that looks into a volume is left alone: a backup may be using it."""
DOORS = ("proxy", "inside")


@dataclass(frozen=True)
class Thing:
    """A container, network or volume of ours, as the engine shows it.

    ``made``: seconds since 1970. ``volumes``: names of those that a container has; ``holds_work``: the one
    of them that is a server's. ``members``: ids of the containers in a network.
    """

    id: str
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    running: bool = False
    made: float = 0.0
    volumes: Collection[str] = ()
    holds_work: str = ""
    members: Collection[str] = ()

    @property
    def kind(self) -> str:
        return self.labels.get(KIND, "")


@dataclass(frozen=True)
class OnEngine:
    """All that is ours. ``kept``: the volumes that a server's directory or the trash names; ``current``: the
    copies of programs that the next server takes; ``front``: the network that ``up`` makes anew itself.
    """

    containers: Sequence[Thing] = ()
    networks: Sequence[Thing] = ()
    volumes: Sequence[Thing] = ()
    kept: Collection[str] = ()
    current: Collection[str] = ()
    front: str = ""


@dataclass(frozen=True)
class Leftover:
    """``work``: a server's volume, which may hold the only copy of what ``person`` did."""

    what: What
    id: str
    name: str
    why: str
    person: str = ""
    server: str = ""
    made: float = 0.0


def leftovers(found: OnEngine, now: float) -> list[Leftover]:
    """What nobody needs, in the order in which it can be removed. Pure.

    A server that runs stays, with all that it has: an ``up`` that was killed left it, and the next finds
    it again.
    """
    going = {each.id: why for each in found.containers if (why := _of_container(each, found, now))}
    staying = [each for each in found.containers if each.id not in going]
    serving = {each.id for each in staying if each.kind not in DOORS}
    used = {name for each in staying for name in each.volumes}
    result = [
        _leftover("container", each, going[each.id])
        for each in found.containers
        if each.id in going
    ]
    result += [
        _leftover("network", each, "no server is in it")
        for each in found.networks
        if each.name != found.front and not serving & set(each.members)
    ]
    for each in found.volumes:
        if each.name in used:
            continue
        if each.kind == "programs":
            if each.name not in found.current:
                result.append(_leftover("copy", each, "of programs or an image of before"))
        elif each.kind == "volume" and each.name not in found.kept:
            result.append(_leftover("work", each, "no server and no trash of this data names it"))
    return sorted(result, key=lambda each: (ORDER.index(each.what), each.name))


def _of_container(each: Thing, found: OnEngine, now: float) -> str:
    """Why a container can go; empty if it cannot."""
    if each.kind == "server":
        if each.running:
            return ""
        # The hub asks the ended container of a server that it knows for the reason.
        known = each.holds_work in found.kept
        return "" if known else "it has ended, and no server of this data is its own"
    if each.kind in DOORS:
        if any(other.kind == "server" and other.running for other in found.containers):
            return ""
        return "it leads to servers, and none runs"
    if each.kind == "look" and now - each.made < BACKUP_MAY_READ:
        return ""
    return "nobody waits for it any more"


def _leftover(what: What, each: Thing, why: str) -> Leftover:
    labels = each.labels
    return Leftover(
        what, each.id, each.name, why, labels.get(USER, ""), labels.get(SERVER, ""), each.made
    )


class EngineOfOurs:
    """What is ours on the engine that ``DOCKER_HOST`` names."""

    def __init__(self, ours: Ours, settings: Settings) -> None:
        self._ours = ours
        self._settings = settings

    def leftovers(self) -> list[Leftover]:
        """Raises ``PlatformFailed`` if the engine cannot be asked."""
        with engine() as client, _said():
            return leftovers(self._look(client), time.time())

    def _look(self, client: docker.DockerClient) -> OnEngine:
        filters = self._ours.filters()
        containers = [
            _container(client.api.inspect_container(each["Id"]))
            for each in client.api.containers(all=True, filters=filters)
        ]
        networks = [
            _network(client.api.inspect_network(each["Id"]))
            for each in client.api.networks(filters=filters)
        ]
        volumes = [_volume(each) for each in client.api.volumes(filters=filters)["Volumes"] or ()]
        # After the volumes: a directory names its volume before that is made.
        data = self._settings.data
        places = [*data.glob("servers/*/*"), *data.glob("trash/*")]
        kept = {name for place in places if (name := volume_of(place))}
        current = [programs_volume(self._ours, archive(CARRIED))]
        with contextlib.suppress(docker.errors.ImageNotFound):
            image = client.api.inspect_image(self._settings.default_image)
            current.append(jupyter_volume(self._ours, image["Id"]))
        return OnEngine(containers, networks, volumes, kept, current, self._ours.name)

    def remove(self, going: Sequence[Leftover], say: Callable[[str], None]) -> int:
        """Remove them, in this order; how many are gone. What cannot be removed is said, and stays."""
        removed = 0
        with engine(120) as client:
            for each in going:
                try:
                    _remove(client.api, each)
                except (docker.errors.DockerException, requests.RequestException) as error:
                    said = getattr(error, "explanation", None) or type(error).__name__
                    say(f"{each.name} stays: {said}")
                else:
                    removed += 1
        return removed


def _remove(api: docker.APIClient, each: Leftover) -> None:
    with contextlib.suppress(docker.errors.NotFound):
        if each.what == "container":
            api.remove_container(each.id, force=True)
        elif each.what == "network":
            for member in api.inspect_network(each.id)["Containers"] or {}:
                api.disconnect_container_from_network(member, each.id, force=True)
            api.remove_network(each.id)
        else:
            # Never by force: the engine refuses one that a container has.
            api.remove_volume(each.name)


def _container(facts: Mapping[str, Any]) -> Thing:
    mounts = [each for each in facts["Mounts"] if each.get("Type") == "volume"]
    return Thing(
        id=facts["Id"],
        name=facts["Name"].lstrip("/"),
        labels=facts["Config"]["Labels"] or {},
        running=bool(facts["State"]["Running"]),
        made=_seconds(facts["Created"]),
        volumes=[each["Name"] for each in mounts],
        holds_work=next((each["Name"] for each in mounts if each["Destination"] == PLACE), ""),
    )


def _network(facts: Mapping[str, Any]) -> Thing:
    members = list(facts["Containers"] or {})
    made = _seconds(facts["Created"])
    return Thing(facts["Id"], facts["Name"], facts["Labels"] or {}, made=made, members=members)


def _volume(facts: Mapping[str, Any]) -> Thing:
    made = _seconds(facts.get("CreatedAt") or "")
    return Thing(facts["Name"], facts["Name"], facts["Labels"] or {}, made=made)


def _seconds(text: str) -> float:
    """The engine's times have nanoseconds, which Python reads as far as it can."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


@contextlib.contextmanager
def _said() -> Any:
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as error:
        said = getattr(error, "explanation", None) or type(error).__name__
        raise PlatformFailed(
            f"The Docker engine could not say what is left on it: {said}."
        ) from None
