"""The settings of servers and jobs in containers, their data, and the registry of ``notebooks up``; part of ``Settings``."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_validator, model_validator

from notebooks_service.allowances import LEAST_CPU, LEAST_MEMORY, Allowances
from notebooks_service.mounts import Mounts


class DockerSettings(BaseModel):
    """Sizes in bytes."""

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
    gpus: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9:-]{1,64}$")], ...] = Field(
        (),
        description="`docker` only: GPUs of this machine that servers may have, each one server at a time: numbers or UUIDs, as `nvidia-smi -L` lists them. The engine needs NVIDIA's container toolkit.",
    )
    server_gpu_most: int = Field(
        0,
        ge=0,
        description="`docker` only: GPUs up to which a person may choose for one server; 0: nobody chooses but whom `allowances` names. No server has any without.",
    )
    allowances: Allowances = Field(
        (),
        description="`docker` only: how much one server of some people, projects or groups may have, in place of `server_cpu_most`, `server_memory_most` and `server_gpu_most`; see [Quotas](quotas.md#how-large-one-server-may-be).",
    )
    server_processes: int = Field(
        2000,
        ge=0,
        description="`docker` only: processes and threads that one server may have; 0 for no limit.",
    )
    default_urls: tuple[Literal["/lab", "/tree", "/rstudio"], ...] = Field(
        ("/lab", "/tree", "/rstudio"),
        min_length=1,
        description="`docker` only: what a person may choose a server to open in, the default first: JupyterLab, Notebook 7, RStudio by jupyter-rsession-proxy. Where the image has not got it, JupyterLab opens.",
    )
    mounts: Mounts = Field(
        (),
        description="`docker` only: data of yours that servers may have, below `/data`; see [Data](mounts.md).",
    )

    @field_validator("gpus")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("it names a GPU twice")
        return value

    @field_validator("server_cpu_most", "server_memory_most")
    @classmethod
    def _reaches_further(cls, value: float, info: ValidationInfo) -> float:
        name = str(info.field_name).removesuffix("_most")
        least = LEAST_CPU if name == "server_cpu" else LEAST_MEMORY
        default = info.data.get(name, 0)
        if value and not (default and max(default, least) <= value):
            raise ValueError(
                f"it must be 0, or at least {least} and what `{name}` says, which must be a limit then"
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
    def _has_the_login(self) -> DockerSettings:
        whole = self.registry_deploy_user and self.registry_deploy_secret.get_secret_value()
        if self.registry_login == "deploy_token" and not whole:
            raise ValueError(
                "`registry_login` is deploy_token: `registry_deploy_user` and `registry_deploy_secret` are needed"
            )
        return self
