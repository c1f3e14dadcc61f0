"""The registry of ``up --runtime docker``: Debian's own, with our configuration, on a disk and on S3."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.errors import SettingsInvalid
from notebooks_service.images.registry import MEDIA_TYPES, Login, RegistryClient
from notebooks_service.platform.container_registry import PROGRAM, environment, write_config
from notebooks_service.settings import Settings, load_settings
from ports import free_port
from registry_fixtures import need_registry, push_image
from runner_fixtures import until

PROJECT = "owner/stored"
CANARY = "registry-canary-secret"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3-compatible server from PyPI (moto), which is not what anybody keeps data in."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    bucket(boto3, url).create_bucket(Bucket="images")
    yield url
    server.stop()


def bucket(boto3: Any, url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key=CANARY,
    )


@contextmanager
def running(settings: Settings, port: int) -> Iterator[str]:
    """The registry with what ``write_config`` wrote."""
    path = write_config(settings, port, "0" * 64)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    log = path.with_name("log")
    with log.open("ab") as out:
        # Of whoever runs the platform: neither is the registry's business.
        theirs = {
            "AWS_CA_BUNDLE": "/etc/ssl/certs/ca-certificates.crt",
            "AWS_ACCESS_KEY_ID": "theirs",
        }
        process = subprocess.Popen(
            [PROGRAM, "serve", str(path)],
            stdout=out,
            stderr=out,
            env=environment({**os.environ, **theirs}),
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/v2/").status_code == 401
        except httpx.TransportError:
            return False

    try:
        until(answers, "the registry")
        yield url
    finally:
        process.terminate()
        process.wait(60)
    assert CANARY not in log.read_text()


@pytest.mark.parametrize("store", ["", "s3://images/all/ours"])
def test_images_outlive_the_registry(
    ci_forge: ForgeProcess, endpoint: str, tmp_path: Path, store: str
) -> None:
    need_registry()
    import boto3

    settings = load_settings(
        data=ci_forge.data,
        forge_url=ci_forge.url,
        runtime="docker",
        registry_store=store,
        registry_store_endpoint=endpoint if store else "",
        registry_store_key="key" if store else "",
        registry_store_secret=CANARY if store else "",
    )
    path = f"{PROJECT}-{'s3' if store else 'disk'}"
    make_repository(tmp_path / "stored", {"README.md": "# Stored\n"})
    administration = ci_forge.administration
    administration.ensure_owner("owner", "Owner", "owner@example.org")
    administration.import_repository(tmp_path / "stored", path, "private", "owner")
    scopes = ["read_registry", "write_registry"]
    login = Login("owner", administration.personal_token("owner", path, scopes))
    port = free_port()

    def client(url: str) -> RegistryClient:
        return RegistryClient(url, realms=[f"{ci_forge.url}/jwt/auth"], login=login)

    with running(settings, port) as url, closing(client(url)) as registry:
        made = push_image(registry, path, MEDIA_TYPES[1])
        registry.put(path, "kept", made)
    with running(settings, port) as url, closing(client(url)) as registry:
        assert registry.head(path, "kept") == made.digest
        assert registry.tags(path) == ["kept"]
    if store:
        listed = bucket(boto3, endpoint).list_objects_v2(Bucket="images")
        keys = [each["Key"] for each in listed["Contents"]]
        assert keys
        assert all(key.startswith("all/ours/docker/registry/v2/") for key in keys)
        assert not (ci_forge.data / "registry" / "images" / "docker" / path).exists()


def test_a_store_without_a_key_is_refused(tmp_path: Path) -> None:
    for name in ("s3://", "s3://bucket/x"):
        settings = load_settings(data=tmp_path, registry_store=name)
        with pytest.raises(SettingsInvalid, match="registry_store"):
            write_config(settings, 1, "")
    assert not (tmp_path / "registry" / "config.yml").exists()
