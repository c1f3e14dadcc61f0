"""What a server's containers, volume and network are: names, labels, limits, as data; pure.

``docker.py`` hands it to the engine and to DockerSpawner. Everything that is ours carries labels, so that
it can be found again by them alone: https://docs.docker.com/reference/api/engine/
"""

from __future__ import annotations

import posixpath
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from notebooks_service.personal_secrets import PLACE as SECRETS
from notebooks_service.personal_secrets import VARIABLE
from notebooks_service.resources import Resources
from notebooks_service.settings import Settings
from notebooks_service.spawner.runtime import ServerKey, ServerPlan

Kind = Literal["server", "init", "look", "programs", "proxy", "inside", "volume", "network"]

INSTANCE, KIND = "notebooks.instance", "notebooks.kind"
USER, SERVER, LAUNCH = "notebooks.user", "notebooks.server", "notebooks.launch"
GPUS = "notebooks.gpus"
VISIBLE_GPUS = "NVIDIA_VISIBLE_DEVICES"
"""Read by NVIDIA's container toolkit; `void` is none:
https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/docker-specialized.html"""

PERSON = "1000:1000"
PORT = 8888
EGRESS_PORT = 3128
"""Of the way inside, as ``platform/chp/inside.js`` has it."""
PLACE = "/work"
"""Where a server's volume is: ``work/`` holds the repository, ``home/`` is the person's home."""
PROGRAMS = "/opt/notebooks"
"""Where our own programs are, read-only, in every container of a server."""
WORK, HOME = f"{PLACE}/work", f"{PLACE}/home"
SECRETS_MOUNT = {SECRETS: "rw,nosuid,nodev,noexec,size=8m,mode=0700,uid=1000,gid=1000"}
"""Memory of the server's own, which ends with its container; in no layer and no volume."""
NO_NAMES = "127.0.0.1"
"""Docker's name server asks the host's for what it does not know: names are a way out. Here it finds
nobody to ask, and answers for our own names only."""
LOG = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}


@dataclass(frozen=True)
class Ours:
    """One notebooks service on one engine. ``instance``: its short id, which is kept in its data."""

    instance: str

    @property
    def name(self) -> str:
        """What the names of all that is its own begin with."""
        return f"notebooks-{self.instance}"

    def fresh(self) -> str:
        """A name that nothing had before."""
        return f"{self.name}-{secrets.token_hex(6)}"

    def labels(self, kind: Kind, key: ServerKey | None = None, launch: str = "") -> dict[str, str]:
        """The labels of a thing of this kind, of a server's if ``key`` is given."""
        found = {INSTANCE: self.instance, KIND: kind}
        if key is not None:
            found |= {USER: key.user, SERVER: key.server}
        if launch:
            found[LAUNCH] = launch
        return found

    def filters(self, kind: Kind | None = None, key: ServerKey | None = None) -> dict[str, Any]:
        """What lists of the engine are asked for."""
        wanted = {INSTANCE: self.instance}
        if kind is not None:
            wanted[KIND] = kind
        if key is not None:
            wanted |= {USER: key.user, SERVER: key.server}
        return {"label": [f"{name}={value}" for name, value in wanted.items()]}


@dataclass(frozen=True)
class Limits:
    """What a server may use. ``cpu`` in processors, ``memory`` in bytes; 0 for no limit. ``gpus``: how many it has."""

    cpu: float
    memory: int
    processes: int
    gpus: int = 0

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(settings.server_cpu, settings.server_memory, settings.server_processes)

    def with_resources(self, granted: Resources) -> Limits:
        """For a server that has these."""
        return replace(self, cpu=granted.cpu, memory=granted.memory, gpus=granted.gpu)

    @property
    def variables(self) -> dict[str, str]:
        """What programs in a server read about their limits, under JupyterHub's names.

        https://jupyterhub.readthedocs.io/en/stable/reference/spawners.html#memory-limits-guarantees
        """
        found = {}
        if self.memory:
            found["MEM_LIMIT"] = str(self.memory)
        if self.cpu:
            found["CPU_LIMIT"] = str(self.cpu)
        return found


def image_name(reference: str) -> str:
    """``host:port/group/project:tag`` or ``…@digest`` without the tag or digest."""
    name = reference.partition("@")[0]
    before, colon, last = name.rpartition(":")
    return before if colon and "/" not in last else name


def repository(name: str) -> str:
    """An image's name without the registry's host: what a token of that registry is for."""
    first, slash, rest = name.partition("/")
    return rest if slash and ("." in first or ":" in first or first == "localhost") else name


def environment(plan: ServerPlan, settings: Settings) -> dict[str, str]:
    """All variables of a server's containers: the hub's and ours, as they are true inside.

    The hub names its API as it is for itself; inside, it is behind ``inside_url``.
    """
    given = dict(plan.environment)
    api = given.get("JUPYTERHUB_API_URL", "").rstrip("/")
    if api:
        inside = posixpath.join(settings.inside_url, "hub/api")
        for name, value in given.items():
            if value.startswith(api):
                given[name] = inside + value[len(api) :]
    prefix = given.get("JUPYTERHUB_SERVICE_PREFIX", "/")
    return {
        "LANG": "C.UTF-8",
        **given,
        **base_environment(),
        **author(plan),
        **egress(settings),
        "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{PORT}{prefix}",
        "JUPYTERHUB_ROOT_DIR": WORK,
        "NOTEBOOKS_DEFAULT_URL": plan.default_url,
    }


def server_environment(plan: ServerPlan, settings: Settings, limits: Limits) -> dict[str, str]:
    """The variables of the container that is the server."""
    return {**environment(plan, settings), VARIABLE: SECRETS, **limits.variables}


def egress(settings: Settings) -> dict[str, str]:
    """How programs in a server find what `allowed_egress` lets them reach; nothing if that is nothing."""
    if not settings.allowed_egress:
        return {}
    inside = inside_host(settings)
    proxy, without = f"http://{inside}:{EGRESS_PORT}", f"{inside},localhost,127.0.0.1,::1"
    # curl reads `http_proxy` in small letters only; others the large ones.
    found = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": without}
    return found | {name.upper(): value for name, value in found.items()}


def base_environment() -> dict[str, str]:
    """What every program of ours in a server's containers is told."""
    return {
        "HOME": HOME,
        "GIT_TERMINAL_PROMPT": "0",
        "NOTEBOOKS_WORK_DIR": WORK,
        "NOTEBOOKS_SERVER_DIRECTORY": PLACE,
        # An image may ask for all: an engine whose default runtime is NVIDIA's would heed that.
        VISIBLE_GPUS: "void",
    }


def init_environment(plan: ServerPlan, settings: Settings) -> dict[str, str]:
    """The variables of the container that clones."""
    return {
        **environment(plan, settings),
        **plan.clone,
    }


def author(plan: ServerPlan) -> dict[str, str]:
    """Who commits: what git is told in each of a server's containers."""
    return {
        "GIT_CONFIG_GLOBAL": f"{HOME}/.gitconfig",
        "NOTEBOOKS_AUTHOR_NAME": plan.person.name,
        "NOTEBOOKS_AUTHOR_EMAIL": plan.person.email,
        **{name: plan.clone[name] for name in ("NOTEBOOKS_LFS_AUTO_FETCH",) if name in plan.clone},
    }


def wall(limits: Limits) -> dict[str, Any]:
    """The part of ``HostConfig`` that every container of a server has in common."""
    found: dict[str, Any] = {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Init": True,
        "Dns": [NO_NAMES],
        "RestartPolicy": {"Name": "no"},
        "LogConfig": LOG,
        "IpcMode": "private",
    }
    if limits.processes:
        found["PidsLimit"] = limits.processes
    if limits.memory:
        # No swap beside it: a server that is over its memory is to end, not to slow the host down.
        found |= {"Memory": limits.memory, "MemorySwap": limits.memory}
    if limits.cpu:
        found["NanoCpus"] = int(limits.cpu * 1_000_000_000)
    return found


def program_config(
    ours: Ours,
    kind: Kind,
    command: list[str],
    variables: Mapping[str, str],
    *,
    image: str,
    volumes: Mapping[str, str],
    network: str,
    limits: Limits,
    key: ServerKey | None = None,
    launch: str = "",
) -> dict[str, Any]:
    """A container of the engine's API that runs one program of ours and ends. ``volumes``: to where, with
    ``:ro`` for those that it may only read.
    """
    return {
        "Image": image,
        "Entrypoint": command,
        "Cmd": [],
        "User": PERSON,
        "WorkingDir": PLACE,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": ours.labels(kind, key, launch),
        "Tty": False,
        "HostConfig": {
            **wall(limits),
            "NetworkMode": network,
            "Binds": [f"{volume}:{at}" for volume, at in volumes.items()],
        },
    }


def server_traits(
    ours: Ours,
    plan: ServerPlan,
    *,
    image: str,
    name: str,
    volume: str,
    programs: Mapping[str, str],
    network: str,
    limits: Limits,
    gpus: Sequence[str] = (),
) -> dict[str, Any]:
    """DockerSpawner's traits for one server, in the order in which they have to be set.

    DockerSpawner formats templates in what it is given: a brace of ours is no template's.
    https://jupyterhub-dockerspawner.readthedocs.io/en/latest/api/index.html
    """
    host: dict[str, Any] = {
        # A container that has ended says why; we remove it when it has been asked.
        "auto_remove": False,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "init": True,
        "dns": [NO_NAMES],
        "restart_policy": {"Name": "no"},
        "log_config": LOG,
        "ipc_mode": "private",
        "privileged": False,
        "tmpfs": SECRETS_MOUNT,
    }
    if limits.processes:
        host["pids_limit"] = limits.processes
    if limits.memory:
        host["memswap_limit"] = limits.memory
    if gpus:
        # https://docs.docker.com/engine/containers/resource_constraints/#gpu
        request = {"Driver": "", "Count": 0, "DeviceIDs": list(gpus), "Capabilities": [["gpu"]]}
        host["device_requests"] = [{**request, "Options": {}}]
    if plan.mounts:
        # Not DockerSpawner's own trait: it knows no bind that leaves out what is mounted below.
        host["mounts"] = [each.engine(ours.name) for each in plan.mounts]
    return {
        "image": image,
        "pull_policy": "skip",  # it is there
        "remove": True,
        "name_template": name,
        "object_name": name,
        "object_id": "",
        "network_name": network,
        "use_internal_ip": True,
        "port": PORT,
        "volumes": {volume: PLACE},
        "read_only_volumes": dict(programs),
        "mounts": [],
        "links": {},
        "post_start_cmd": False,
        "cmd": [f"{PROGRAMS}/serve.sh"],
        "args": [],
        **({"mem_limit": limits.memory} if limits.memory else {}),
        **({"cpu_limit": limits.cpu} if limits.cpu else {}),
        "extra_create_kwargs": literal(
            {
                "entrypoint": ["/bin/sh"],
                "user": PERSON,
                "working_dir": PLACE,
                "labels": {
                    **ours.labels("server", plan.key, plan.launch),
                    **({GPUS: ",".join(gpus)} if gpus else {}),
                },
                # A name of the server's inside its own container, not the engine's id of it.
                "hostname": "notebook",
            }
        ),
        "extra_host_config": literal(host),
    }


def literal(value: Any) -> Any:
    """``value`` with every brace doubled, as ``str.format`` wants those that it shall leave alone."""
    if isinstance(value, str):
        return value.replace("{", "{{").replace("}", "}}")
    if isinstance(value, Mapping):
        return {literal(key): literal(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [literal(each) for each in value]
    return value


def inside_host(settings: Settings) -> str:
    """The name by which servers find hub and gateway."""
    return urlsplit(settings.inside_url).hostname or "notebooks.internal"
