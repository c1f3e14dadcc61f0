"""Every setting of the service, typed and documented once: ``notebooks.toml`` and ``NOTEBOOKS_*``.

Read at start by the hub's ``configure(c)``, the service, the forge and the runner. A wrong value
ends the start with a sentence that names the key. ``docs/settings.md`` is held to this file by a test.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SecretStr,
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
from notebooks_service.mounts import Mounts
from notebooks_service.origins import SERVICE, below, has_name
from notebooks_service.quotas import Quotas

Runtime = Literal["local", "docker", "kubernetes"]
WallsAsked = Literal["auto", "uids", "namespaces", "bubblewrap", "none"]
MinimumAccess = Literal["read", "guest", "reporter", "developer", "maintainer", "owner"]


LEAST_CPU = 0.1
LEAST_MEMORY = 256 * 2**20
"""Less is no server: processors, and bytes of memory."""


class Settings(BaseSettings):
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
    forge_url: str = Field(
        "http://127.0.0.1:8001",
        description="Base URL of the GitLab that projects live on, as browsers and git open it; relative roots are kept.",
    )
    forge_client_id: str = Field(
        "", description="Id of the OAuth application registered at the forge."
    )
    forge_client_secret: SecretStr = Field(
        SecretStr(""), description="Secret of the OAuth application registered at the forge."
    )
    forge_scopes: tuple[str, ...] = Field(
        ("read_user", "read_api", "read_repository", "write_repository", "read_registry"),
        description="OAuth scopes asked of the forge. Older GitLab versions need only `api`.",
    )
    forge_ca_file: Path | None = Field(
        None,
        description="CA bundle (PEM) that signs the forge's certificate, if it is a private one.",
    )
    forge_timeout: float = Field(
        20.0, gt=0, description="Seconds to wait for one answer of the forge's API."
    )
    forge_token_lifetime: int = Field(
        7200,
        gt=0,
        description="Embedded forge only: seconds that a person's OAuth token lives. GitLab's live two hours.",
    )
    forge_rate_limit: int = Field(
        0,
        ge=0,
        description="Embedded forge only: calls of its API that one person may make in `forge_rate_limit_period`; 0 for no limit, as in GitLab unless an administrator sets one (then 7200).",
    )
    forge_rate_limit_anonymous: int = Field(
        0,
        ge=0,
        description="Embedded forge only: the same for one address without a token; 0 for no limit.",
    )
    forge_rate_limit_period: int = Field(
        3600,
        gt=0,
        description="Embedded forge only: seconds that `forge_rate_limit` counts over.",
    )
    artifacts_largest: int = Field(
        100 * 1024**2,
        gt=0,
        description="Embedded forge only: largest archive in bytes that a CI job may leave; GitLab's is 100 MiB too.",
    )
    lfs_store: str = Field(
        "",
        description="Embedded forge only: where large files (Git LFS) are; a directory or `s3://bucket/prefix`; empty: a directory under `data`.",
    )
    lfs_store_endpoint: str = Field(
        "", description="URL of the S3-compatible store of `lfs_store`; empty: Amazon's."
    )
    lfs_store_key: str = Field("", description="Access key of the S3 store of `lfs_store`.")
    lfs_store_secret: SecretStr = Field(
        SecretStr(""), description="Secret key of the S3 store of `lfs_store`."
    )
    lfs_largest: int = Field(
        20 * 1024**3,
        gt=0,
        description="Embedded forge only: largest file in bytes that Git LFS may bring.",
    )
    lfs_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts besides the forge that the forge may keep large files on (`host` or `host:port`); a server's Git LFS reaches no other.",
    )
    webhook_allowed_addresses: tuple[str, ...] = Field(
        (),
        description="Embedded forge only: addresses that webhooks may reach although they are not public ones: `host`, `host:port` or a network such as `10.0.0.0/8`.",
    )
    webhook_timeout: float = Field(
        10.0,
        gt=0,
        le=60,
        description="Embedded forge only: seconds that the receiver of a webhook has to answer.",
    )
    minimum_access: MinimumAccess = Field(
        "read",
        description="Who may launch: `read` is everybody who may read the code, otherwise the least membership level.",
    )
    image_job: str = Field(
        "image_build", description="Name of the CI job that builds a commit's image."
    )
    build_on_demand: bool = Field(
        True,
        description="Have the CI of a project build the image of a commit that nobody has built, when somebody who may push opens it.",
    )
    builds_per_project: int = Field(
        2,
        ge=1,
        description="How many environments of one project may be built on demand at once; who comes later waits for a turn.",
    )
    on_demand_ci_file: Path | None = Field(
        None,
        description="CI configuration (YAML) of the commits that builds on demand are made of; it needs the job `image_job`. Without it, that job runs `notebooks image build`.",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret token of the forge's webhook for job and pipeline events, which saves most looks at builds; empty: no webhook, the hub polls.",
    )
    image_wait: float = Field(
        3600.0, gt=0, description="Longest wait in seconds for an image build that is on its way."
    )
    image_silence: float = Field(
        1800.0,
        gt=0,
        description="Longest silence in seconds in the log of an image build before it counts as timed out.",
    )
    image_poll: float = Field(
        1.0, gt=0, description="Seconds between two looks at a build; grows to ten times that."
    )
    default_requirements: tuple[str, ...] = Field(
        ("ipykernel",),
        description="Packages of the default environment of the `local` runtime, as pip requirements.",
    )
    rebuild_after: float = Field(
        7 * 24 * 3600.0,
        ge=0,
        description="Seconds after which an image is built anew if something in it may have changed that no file of the commit pins, such as the tag of its base; 0 for never.",
    )
    base_image: str = Field(
        "",
        description="Container image that the images of projects without a Dockerfile are built on, from the files that describe their Python environment; empty: no image is built for them.",
    )
    base_registries: tuple[str, ...] = Field(
        (),
        description="Registries that are asked, as nobody, which digest the tag of a base image has (`docker.io`, `host:port`, or `host=https://address/of/its/tokens`); a project's own registry is asked anyway. What another names is only built anew after `rebuild_after`.",
    )
    build_wait: float = Field(
        1800.0,
        gt=0,
        description="`local` only: longest time in seconds that building one environment may take.",
    )
    environment_size: int = Field(
        20 * 2**30,
        gt=0,
        description="`local` only: largest size in bytes of one environment.",
    )
    disk_reserve: int = Field(
        256 * 2**20,
        gt=0,
        description="Bytes of disk that CI jobs and builds of environments have to leave free: what goes below is ended, what would begin there is not begun.",
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
    job_image: str = Field(
        "notebooks-builder",
        description="`docker` only: image that CI jobs of the embedded runner run in; `deploy/docker/build` makes it.",
    )
    job_cpu: float = Field(
        0.0, ge=0, description="`docker` only: processors that one CI job may use; 0 for no limit."
    )
    job_memory: int = Field(
        8 * 2**30,
        ge=0,
        description="`docker` only: bytes of memory that one CI job may use; 0 for no limit.",
    )
    job_processes: int = Field(
        4000,
        ge=0,
        description="`docker` only: processes and threads that one CI job may have; 0 for no limit.",
    )
    job_egress: tuple[str, ...] = Field(
        ("*",),
        description="`docker` only: what CI jobs may reach beside forge and registry, by HTTP and HTTPS: `*` for every public address, `pypi.org`, `*.debian.org`; addresses that are not public with their port or as a network.",
    )
    allowed_egress: tuple[str, ...] = Field(
        (),
        description="`docker` only: what servers may reach beside hub and gateway, by HTTP and HTTPS through a proxy, written as in `job_egress`; empty: nothing.",
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
    registry_store: str = Field(
        "",
        description="`notebooks up --runtime docker` only: where its registry keeps images; a directory or `s3://bucket/prefix`; empty: a directory under `data`.",
    )
    registry_store_endpoint: str = Field(
        "", description="URL of the S3-compatible store of `registry_store`; empty: Amazon's."
    )
    registry_store_region: str = Field(
        "us-east-1", description="Region of the S3 store of `registry_store`."
    )
    registry_store_key: str = Field(
        "", description="Access key of the S3 store of `registry_store`."
    )
    registry_store_secret: SecretStr = Field(
        SecretStr(""), description="Secret key of the S3 store of `registry_store`."
    )
    registry_login: Literal["person", "deploy_token"] = Field(
        "person",
        description="`docker` only: with which login images are pulled from the forge's registry: the person's own sign-in, or a deploy token where a GitLab takes no such sign-in there; the forge is asked with the person's own right first.",
    )
    registry_deploy_user: str = Field(
        "", description="User name of the deploy token, for `registry_login`."
    )
    registry_deploy_secret: SecretStr = Field(
        SecretStr(""),
        description="The deploy token itself; it needs the scope `read_registry`, best of a group that holds all projects.",
    )
    docker_instance: str = Field(
        "",
        pattern=r"^([a-z0-9][a-z0-9-]{0,30})?$",
        description="`docker` only: short name of this service on its Docker engine, in the names and labels of all that it makes there; empty: one that is kept under `data`.",
    )
    docker_networks: str = Field(
        "10.203.0.0/16",
        description="`docker` only: IPv4 addresses for the networks of servers, eight for each; nothing that the host reaches may be among them.",
    )
    docker_proxy_url: str = Field(
        "",
        description="`docker` only: base URL of the hub's proxy as the hub's own process reaches it; empty: `hub_url`.",
    )
    docker_inside: str = Field(
        "http://notebooks.internal:8000",
        description="`docker` only: under which address servers find hub and gateway; the container that leads there has this name in every server's network.",
    )
    proxy_image: str = Field(
        "notebooks-proxy",
        description="`docker` only: image with the hub's proxy (configurable-http-proxy), for `notebooks up`; `deploy/docker/build` makes it.",
    )
    init_image: str = Field(
        "notebooks-init",
        description="`docker` only: image with Python, git and git-lfs that clones; `deploy/docker/build` makes it.",
    )
    default_image: str = Field(
        "notebooks-singleuser",
        description="`docker` only: the image of commits that have none of their own; `deploy/docker/build` makes it.",
    )
    server_cpu: float = Field(
        2.0, ge=0, description="`docker` only: processors that one server may use; 0 for no limit."
    )
    server_memory: int = Field(
        4 * 2**30,
        ge=0,
        description="`docker` only: bytes of memory that one server may use; 0 for no limit.",
    )
    server_cpu_most: float = Field(
        0.0,
        ge=0,
        description="`docker` only: processors up to which a person may choose for one server; 0: nobody chooses.",
    )
    server_memory_most: int = Field(
        0,
        ge=0,
        description="`docker` only: bytes of memory up to which a person may choose for one server; 0: nobody chooses.",
    )
    server_processes: int = Field(
        2000,
        ge=0,
        description="`docker` only: processes and threads that one server may have; 0 for no limit.",
    )
    quotas: Quotas = Field(
        (),
        description="How many servers may run, and how many be kept, of a person, a project or a group; see [Quotas](quotas.md).",
    )
    mounts: Mounts = Field(
        (),
        description="`docker` only: data of yours that servers may have, below `/data`; see [Data](mounts.md).",
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

    @field_validator("server_cpu_most", "server_memory_most")
    @classmethod
    def _reaches_further(cls, value: float, info: ValidationInfo) -> float:
        name = str(info.field_name).removesuffix("_most")
        least = LEAST_CPU if name == "server_cpu" else LEAST_MEMORY
        default = info.data.get(name, 0)
        if value and not (default and max(default, least) <= value):
            raise ValueError(
                f"it must be 0, or at least {least:g} and what `{name}` says, which must be a limit then"
            )
        return value

    @field_validator("docker_networks")
    @classmethod
    def _is_range(cls, value: str) -> str:
        if ipaddress.IPv4Network(value).prefixlen > 24:
            raise ValueError(
                "a range of at least 256 IPv4 addresses is needed, such as 10.203.0.0/16"
            )
        return value

    @model_validator(mode="after")
    def _has_the_login(self) -> Settings:
        whole = self.registry_deploy_user and self.registry_deploy_secret.get_secret_value()
        if self.registry_login == "deploy_token" and not whole:
            raise ValueError(
                "`registry_login` is deploy_token: `registry_deploy_user` and `registry_deploy_secret` are needed"
            )
        return self

    @model_validator(mode="after")
    def _keeps_data_apart(self) -> Settings:
        for each in self.mounts:
            path = Path(each.path).resolve()
            if each.path and (path.is_relative_to(self.data) or self.data.is_relative_to(path)):
                raise ValueError(f"the mount {each.name} would show the service's own `data`")
        return self

    @field_validator("forge_url")
    @classmethod
    def _ends_without_slash(cls, value: str) -> str:
        return value.rstrip("/")

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
