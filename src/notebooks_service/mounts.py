"""Data of the admin's that servers may have beside their repository: what there is, and who may have it; pure.

The service offers it and checks the choice for whoever asks, the launch checks it again for whoever asks the hub
itself.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from notebooks_service.domain import AccessLevel
from notebooks_service.errors import InvalidRequest

PLACE = "/data"
"""Below it, each has its name."""
OPTION = "mounts"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z")
MOST = 20
# A comma would begin another option of the engine's.
_NFS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(/[^,\x00-\x1f]*)\Z")


def _name(text: str) -> str:
    if not NAME.match(text):
        raise ValueError("a mount's name has 1 to 32 of a-z, 0-9 and - between them")
    return text


def _path(text: str) -> str:
    if text and (not text.startswith("/") or text == "/" or posixpath.normpath(text) != text):
        raise ValueError("a mount's path is an absolute one, without `..`, and not /")
    return text


def _nfs(text: str) -> str:
    if text and not _NFS.match(text):
        raise ValueError("`nfs` is `server:/directory`")
    return text


class Mount(BaseModel):
    """One entry of the setting. ``path`` is of the host, ``nfs`` is ``server:/directory``; one of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, AfterValidator(_name)]
    path: Annotated[str, AfterValidator(_path)] = ""
    nfs: Annotated[str, AfterValidator(_nfs)] = ""
    nfs_options: str = Field("", pattern=r"^[a-z0-9_.,=]*$")
    read_only: bool = True
    projects: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    role: Literal["read", "guest", "reporter", "developer", "maintainer", "owner"] = "developer"

    @model_validator(mode="after")
    def _whole(self) -> Mount:
        if bool(self.path) == bool(self.nfs):
            raise ValueError(f"the mount {self.name} needs `path` or `nfs`, and not both")
        if not (self.projects or self.groups or self.users):
            raise ValueError(
                f"the mount {self.name} says nobody: it needs `projects`, `groups` or `users`"
            )
        return self

    def admits(self, project: str, user: str, level: AccessLevel) -> bool:
        """Whether a server of this project may have it, started by this person with that role there."""
        # GitLab's paths differ in more than case.
        path = project.lower()
        here = path in {each.lower() for each in self.projects} or any(
            path.startswith(f"{each.strip('/').lower()}/") for each in self.groups
        )
        if (self.projects or self.groups) and not here:
            return False
        if self.users and user not in self.users:
            return False
        return self.role == "read" or level.number >= AccessLevel(self.role).number

    @property
    def at(self) -> str:
        return f"{PLACE}/{self.name}"

    def engine(self, prefix: str) -> dict[str, Any]:
        """It as the engine's API has mounts. ``prefix``: of our volumes' names.

        https://docs.docker.com/reference/api/engine/
        """
        found: dict[str, Any] = {"Target": self.at, "ReadOnly": self.read_only}
        if self.path:
            # What is mounted below the path would not be read-only with it.
            bind = {"Propagation": "rprivate", "NonRecursive": True}
            return {**found, "Type": "bind", "Source": self.path, "BindOptions": bind}
        server, _, directory = self.nfs.rpartition(":/")
        options = [
            f"addr={server.strip('[]')}",
            "ro" if self.read_only else "rw",
            "nosuid",
            "nodev",
        ]
        options += [self.nfs_options] if self.nfs_options else []
        driver = {"type": "nfs", "o": ",".join(options), "device": f":/{directory}"}
        # The engine keeps a volume's options: with others it is another volume.
        mark = hashlib.sha256(repr(sorted(driver.items())).encode()).hexdigest()[:12]
        volume = {"NoCopy": True, "DriverConfig": {"Name": "local", "Options": driver}}
        return {
            **found,
            "Type": "volume",
            "Source": f"{prefix}-data-{self.name}-{mark}",
            "VolumeOptions": volume,
        }


def unique(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    names = [each.name for each in mounts]
    if len(set(names)) != len(names):
        raise ValueError("two mounts have one name")
    return mounts


Mounts = Annotated[tuple[Mount, ...], AfterValidator(unique)]


def read(asked: object) -> tuple[str, ...]:
    """The names that were asked for, from JSON; None for nothing. Raises ``InvalidRequest``."""
    if asked is None:
        return ()
    if not isinstance(asked, list) or len(asked) > MOST or len(set(map(str, asked))) != len(asked):
        raise InvalidRequest(f"`{OPTION}` must be a list of at most {MOST} different names.")
    if any(not isinstance(each, str) or not NAME.match(each) for each in asked):
        raise InvalidRequest(f"`{OPTION}` must be a list of names.")
    return tuple(asked)


def admitted(
    mounts: Iterable[Mount], project: str, user: str, level: AccessLevel
) -> tuple[Mount, ...]:
    """Those that a server of this project may have."""
    return tuple(each for each in mounts if each.admits(project, user, level))


def check(admitted: Sequence[Mount], names: Sequence[str]) -> tuple[Mount, ...]:
    """Those that were asked for. Raises ``InvalidRequest``, the same for what is not there and not allowed."""
    by_name = {each.name: each for each in admitted}
    for name in names:
        if name not in by_name:
            raise InvalidRequest(
                f"There is no data `{name}` that this server may have. Start it without, or ask whoever runs "
                "this service."
            )
    return tuple(by_name[name] for name in names)


def offered(admitted: Sequence[Mount]) -> dict[str, Any]:
    """Its entry in the answer of ``GET server_options``."""
    return {
        "displayName": "Data",
        "order": 4,
        "type": "list",
        "default": [],
        "options": [
            {"name": each.name, "path": each.at, "read_only": each.read_only} for each in admitted
        ],
    }
