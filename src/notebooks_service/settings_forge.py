"""The settings of the forge: GitLab, or the embedded one; part of ``Settings``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr, field_validator


class ForgeSettings(BaseModel):
    """Durations are in seconds, sizes in bytes."""

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

    @field_validator("forge_url")
    @classmethod
    def _ends_without_slash(cls, value: str) -> str:
        return value.rstrip("/")
