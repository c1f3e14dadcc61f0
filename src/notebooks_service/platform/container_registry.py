"""The registry of ``notebooks up --runtime docker``: Debian's ``docker-registry``, which believes the
embedded forge's tokens and nobody else's. ``parts.py`` makes it a part of the platform.

https://distribution.github.io/distribution/about/configuration/
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from notebooks_service.errors import PlatformFailed, SettingsInvalid
from notebooks_service.forge import registry_tokens
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.settings import Settings

PROGRAM = "docker-registry"
SERVICE = "container_registry"  # as GitLab calls its own


def check_program() -> None:
    """The registry's program is on the host."""
    if shutil.which(PROGRAM) is None:
        raise PlatformFailed(
            f"The runtime `docker` keeps images in a registry, and `{PROGRAM}` was not found; install it "
            "(on Debian and Ubuntu: apt install docker-registry), then start again."
        )


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the registry gets of the machine's own: nothing that speaks of somebody's own buckets, whose
    keys it would take, and whose bundle of authorities (``AWS_CA_BUNDLE``) ends it at its start.
    """
    return {name: value for name, value in given.items() if not name.startswith("AWS_")}


def write_config(settings: Settings, port: int, secret: str) -> Path:
    """The registry's configuration, in a file that is ours alone: it holds its store's secret and its own
    (``secret``), by which an upload goes on after a restart.
    """
    forge = ForgeConfig(settings.data, settings.forge_url)
    config = {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            **_storage(settings),
            "delete": {"enabled": True},
            # What it hands out comes through it: an engine need not reach the store.
            "redirect": {"disable": True},
        },
        "http": {"addr": f"127.0.0.1:{port}", "secret": secret},
        "auth": {
            "token": {
                "realm": f"{settings.forge_url}/jwt/auth",
                "service": SERVICE,
                "issuer": registry_tokens.ISSUER,
                "rootcertbundle": str(registry_tokens.certificates(forge)),
            }
        },
    }
    directory = settings.data / "registry"
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / "config.yml"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(config, file, indent=2)  # which is YAML too
    return path


def _storage(settings: Settings) -> dict[str, Any]:
    store = settings.registry_store
    if not store.startswith("s3://"):
        root = Path(store) if store else settings.data / "registry" / "images"
        return {"filesystem": {"rootdirectory": str(root)}}
    parts = urlsplit(store)
    if not parts.netloc or not settings.registry_store_key:
        raise SettingsInvalid(
            "The setting `registry_store` needs a bucket (`s3://bucket/prefix`), and "
            "`registry_store_key` and `registry_store_secret` beside it."
        )
    found: dict[str, Any] = {
        "bucket": parts.netloc,
        "region": settings.registry_store_region,
        "accesskey": settings.registry_store_key,
        "secretkey": settings.registry_store_secret.get_secret_value(),
        "rootdirectory": parts.path,
    }
    if settings.registry_store_endpoint:
        endpoint = settings.registry_store_endpoint
        found |= {"regionendpoint": endpoint, "secure": endpoint.startswith("https")}
    return {"s3": found}
