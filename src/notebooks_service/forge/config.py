"""What the forge is started with, and where its things lie under the data directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_TOKEN_LIFETIME = 7200
DEFAULT_JOB_SILENCE = 180.0


@dataclass(frozen=True)
class ForgeConfig:
    """Start values of the forge. ``data`` is the service's data directory (``settings.data``).

    ``url`` is the address that browsers and git use; every absolute link starts with it.
    ``oauth_token_lifetime`` is in seconds; GitLab's is 7200.
    ``pipelines_of``: the only person whose pushes and calls make pipelines; empty for everybody who
    may. ``job_silence``: seconds without a word from its runner after which a job counts as stuck.
    """

    data: Path
    url: str
    oauth_token_lifetime: int = DEFAULT_TOKEN_LIFETIME
    pipelines_of: str = ""
    job_silence: float = DEFAULT_JOB_SILENCE

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", self.data.expanduser().resolve())
        object.__setattr__(self, "url", self.url.rstrip("/"))

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
    def secure(self) -> bool:
        return self.url.startswith("https:")

    @property
    def cookie_name(self) -> str:
        """Cookies are shared by all ports of a host, so the port is part of the name."""
        return f"notebooks_forge_{urlsplit(self.url).port or 'main'}"

    def repository(self, project_id: int) -> Path:
        """The bare repository of a project, named by id so that a rename moves nothing."""
        return self.repositories / f"{project_id}.git"
