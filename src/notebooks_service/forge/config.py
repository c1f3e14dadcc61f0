"""What the forge is started with, and where its things lie under the data directory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from notebooks_service.forge.lfs_store import StoreOptions
from notebooks_service.forge.rate_limit_values import RateLimits
from notebooks_service.settings import Settings

DEFAULT_TOKEN_LIFETIME = 7200
DEFAULT_JOB_SILENCE = 180.0
DEFAULT_WEBHOOK_RETRY = 10.0


@dataclass(frozen=True)
class ForgeConfig:
    """Start values of the forge. ``data`` is the service's data directory (``settings.data``).

    ``url`` is the address that browsers and git use; every absolute link starts with it.
    ``oauth_token_lifetime`` is in seconds; GitLab's is 7200.
    ``pipelines_of``: the only person whose pushes and calls make pipelines; empty for everybody who
    may. ``job_silence``: seconds without a word from its runner after which a job counts as stuck.
    ``webhook_allowed``: addresses that webhooks may reach although they are not public ones;
    ``webhook_timeout`` and ``webhook_retry_seconds``: for one answer, and before the second try.
    ``registry``: the URL at which the forge asks a registry of containers that believes its tokens;
    empty: images are environments on this machine. ``registry_name``: its ``host[:port]`` as images
    are named, if that is not the URL's.
    """

    data: Path
    url: str
    oauth_token_lifetime: int = DEFAULT_TOKEN_LIFETIME
    pipelines_of: str = ""
    job_silence: float = DEFAULT_JOB_SILENCE
    lfs: StoreOptions = field(default_factory=StoreOptions)
    rate_limits: RateLimits = field(default_factory=RateLimits)
    artifacts_largest: int = 100 * 1024**2
    webhook_allowed: tuple[str, ...] = ()
    webhook_timeout: float = 10.0
    webhook_retry_seconds: float = DEFAULT_WEBHOOK_RETRY
    registry: str = ""
    registry_name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.expanduser().resolve())
        object.__setattr__(self, "url", self.url.rstrip("/"))
        object.__setattr__(self, "registry", self.registry.rstrip("/"))

    @property
    def root(self) -> Path:
        """The forge's own directory under the data directory."""
        return self.data / "forge"

    @property
    def database(self) -> Path:
        return self.root / "forge.sqlite"

    @property
    def repositories(self) -> Path:
        return self.root / "repositories"

    @property
    def large_files(self) -> Path:
        """Objects of Git LFS, unless the settings name another store."""
        return self.root / "lfs"

    @property
    def artifacts(self) -> Path:
        """Files that jobs left."""
        return self.root / "artifacts"

    @property
    def hooks(self) -> Path:
        """The only hooks that git runs for us; made at start, never from a repository."""
        return self.root / "hooks"

    @property
    def pushes(self) -> Path:
        """Reports of pushes under way; emptied at start."""
        return self.root / "pushes"

    @property
    def secrets(self) -> Path:
        """Infrastructure secrets, directory 0700, files 0600."""
        return self.data / "secrets"

    @property
    def environments(self) -> Path:
        """The environment store that the registry's answers come from."""
        return self.data / "environments"

    @property
    def host(self) -> str:
        """Host and port as browsers write them."""
        return urlsplit(self.url).netloc

    @property
    def registry_host(self) -> str:
        """What names of images begin with. Without a registry of containers it is the forge's own."""
        return self.registry_name or urlsplit(self.registry).netloc or self.host

    @property
    def secure(self) -> bool:
        return self.url.startswith("https:")

    @property
    def cookie_name(self) -> str:
        """Cookies are shared by all ports of a host, so the port is part of the name."""
        return f"notebooks_forge_{urlsplit(self.url).port or 'main'}"

    def repository(self, project_id: int) -> Path:
        """The bare repository of a project, named by id so that a rename moves nothing."""
        return self.repositories / f"{project_id}.git"


def rate_limits(settings: Settings) -> RateLimits:
    """How often people may call the API, as the settings say it."""
    return RateLimits(
        settings.forge_rate_limit,
        settings.forge_rate_limit_anonymous,
        settings.forge_rate_limit_period,
    )


def store_options(settings: Settings) -> StoreOptions:
    """Where large files are, as the settings say it."""
    return StoreOptions(
        location=settings.lfs_store,
        endpoint=settings.lfs_store_endpoint,
        key=settings.lfs_store_key,
        secret=settings.lfs_store_secret.get_secret_value(),
        largest=settings.lfs_largest,
    )
