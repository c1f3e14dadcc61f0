"""Every setting of the service, typed and documented once: ``notebooks.toml`` and ``NOTEBOOKS_*``.

Read at start by the hub's ``configure(c)``, the service, the forge and the runner. A wrong value
ends the start with a sentence that names the key. ``docs/settings.md`` is held to it by a test. Those of
one area are in ``settings_forge``, ``settings_images`` and ``settings_docker``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from notebooks_service.errors import SettingsInvalid
from notebooks_service.origins import SERVICE, below, has_name
from notebooks_service.quotas import Quotas
from notebooks_service.settings_docker import DockerSettings
from notebooks_service.settings_forge import ForgeSettings
from notebooks_service.settings_images import ImageSettings

Runtime = Literal["local", "docker", "kubernetes"]
WallsAsked = Literal["auto", "uids", "namespaces", "bubblewrap", "none"]
MinimumAccess = Literal["read", "guest", "reporter", "developer", "maintainer", "owner"]


class Settings(DockerSettings, ImageSettings, ForgeSettings, BaseSettings):
    """The settings. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="NOTEBOOKS_", extra="forbid", frozen=True)

    runtime: Runtime = Field("local", description="Where servers run.")
    data: Path = Field(
        Path("~/.local/share/notebooks-service"),
        description="Directory of everything that outlives a stop: databases, repositories, environments, servers.",
    )
    hub_url: str = Field(
        "http://127.0.0.1:8000/", description="The hub's public base URL, as browsers open it."
    )
    subdomains: bool = Field(
        False,
        description="Give the service and every server a host of its own below the hub's, so that a page of one cannot act on the others: needs a wildcard name (`*.` and the host of `hub_url`) and, but for names that end in `.localhost`, a certificate for it.",
    )
    minimum_access: MinimumAccess = Field(
        "read",
        description="Who may launch: `read` is everybody who may read the code, otherwise the least membership level.",
    )
    disk_reserve: int = Field(
        256 * 2**20,
        gt=0,
        description="Bytes of disk that CI jobs and builds of environments have to leave free: what goes below is ended, what would begin there is not begun.",
    )
    disk_high_water: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Share of a disk in use from which no build begins there; what runs goes on until `disk_reserve`. 1: only then.",
    )
    memory_high_water: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Share of the machine's memory in use from which no build begins; what runs goes on until `memory_reserve`. 1: only then.",
    )
    memory_reserve: int = Field(
        256 * 2**20,
        ge=0,
        description="Bytes of the machine's memory that CI jobs and builds of environments have to leave free: below that they are ended.",
    )
    job_size: int = Field(
        50 * 2**30,
        gt=0,
        description="Bytes of disk that one CI job of the embedded runner may have at once: its checkout, home and temporary files, the layers of an image that it builds.",
    )
    job_log_size: int = Field(
        4 * 2**20,
        gt=0,
        le=12 * 2**20,
        description="Bytes of a CI job's log that the runner keeps; the job goes on after that, unseen.",
    )
    concurrent_launches: int = Field(
        8,
        ge=1,
        description="How many servers may be cloning or starting at once; waiting for a build does not count.",
    )
    start_wait: float = Field(
        120.0, gt=0, description="Longest wait in seconds for a started server's first answer."
    )
    clone_wait: float = Field(
        1800.0, gt=0, description="Longest time in seconds that one clone may take."
    )
    lfs_auto_fetch: bool = Field(
        True,
        description="Fetch a commit's large files (Git LFS) at launch, where the launch does not say; otherwise their pointers are there.",
    )
    partial_clone_from: int = Field(
        50 * 1024**2,
        ge=0,
        description="Size in bytes from which a repository is cloned without the contents of old files, which come when needed; also one of unknown size.",
    )
    disk_margin: int = Field(
        256 * 1024**2,
        ge=0,
        description="Bytes that a clone leaves free on the disk of the servers.",
    )
    checkout_files: int = Field(
        1_000_000,
        ge=1,
        description="Most files and directories that a commit may have to be checked out.",
    )
    unwalled_people: bool = Field(
        False,
        description="`local` only: let people other than the owner launch although nothing walls servers of one host off from each other.",
    )
    walls: WallsAsked = Field(
        "auto",
        description="`local` only: what walls servers, CI jobs and builds off from each other: `uids` (needs root), `namespaces`, `bubblewrap`, `none`, or `auto`, the first of these that works here.",
    )
    wall_first_uid: int = Field(
        200_000,
        ge=1000,
        description="`local` as root: the first of the user numbers that people and projects are given, one each, for good.",
    )
    wall_uid_count: int = Field(
        100_000, ge=1, description="`local` as root: how many user numbers may be given."
    )
    wall_read: tuple[Path, ...] = Field(
        (),
        description="`local` only: directories that every server, job and build may read although they are behind a wall, such as shared data or a package index.",
    )
    quotas: Quotas = Field(
        (),
        description="How many servers may run, how many be kept, and how many hours be used in a month, of a person, a project or a group; see [Quotas](quotas.md).",
    )
    usage_days: float = Field(
        400.0,
        ge=32,
        description="Days that it is kept who used how much; see [Usage](usage.md).",
    )
    owner: str = Field("", description="`local` only: the forge user whose machine this is.")
    trash_days: float = Field(
        14.0, gt=0, description="Days that a deleted server's files stay in the trash."
    )
    database_url: str = Field(
        "",
        description="SQLAlchemy URL of the service's small database (who trusts which project); empty: SQLite under `data`.",
    )

    @field_validator("hub_url")
    @classmethod
    def _ends_with_slash(cls, value: str) -> str:
        return value.rstrip("/") + "/"

    @field_validator("subdomains")
    @classmethod
    def _has_a_name(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not has_name(info.data.get("hub_url", "")):
            raise ValueError(
                "`hub_url` must have a name then, such as hub.example.org, not an address"
            )
        return value

    @model_validator(mode="after")
    def _keeps_data_apart(self) -> Settings:
        for each in self.mounts:
            path = Path(each.path).resolve()
            if each.path and (path.is_relative_to(self.data) or self.data.is_relative_to(path)):
                raise ValueError(f"the mount {each.name} would show the service's own `data`")
        return self

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()

    @property
    def service_url(self) -> str:
        """The public URL of the service, ending with a slash."""
        base = below(self.hub_url, SERVICE) if self.subdomains else self.hub_url
        return f"{base}services/notebooks/"

    @property
    def inside_url(self) -> str:
        """The hub's base URL as servers reach it, ending with a slash."""
        if self.runtime != "docker":
            return self.hub_url
        return f"{self.docker_inside.rstrip('/')}{urlsplit(self.hub_url).path}"

    @property
    def gateway_url(self) -> str:
        """What a server's git talks to instead of ``forge_url``; ends with a slash."""
        return f"{self.inside_url}services/notebooks/git/"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get("NOTEBOOKS_SETTINGS_FILE")
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, file)) if file else sources


def load_settings(**overrides: object) -> Settings:
    """The settings from ``overrides``, then ``NOTEBOOKS_*``, then the file that ``NOTEBOOKS_SETTINGS_FILE`` names.

    Raises ``SettingsInvalid`` with the name of the first wrong key.
    """
    file = os.environ.get("NOTEBOOKS_SETTINGS_FILE")
    if file and not Path(file).is_file():
        raise SettingsInvalid(f"NOTEBOOKS_SETTINGS_FILE names {file}, which is no file.")
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        raise SettingsInvalid(
            f"The setting `{key}` (or NOTEBOOKS_{key.upper()}) is wrong: {first['msg']}."
        ) from None
    except ValueError as error:
        raise SettingsInvalid(f"The settings file {file} is no valid TOML: {error}.") from None
