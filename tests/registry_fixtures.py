"""A real registry that believes the forge's tokens: Debian's docker-registry, for any room's tests."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge_fixtures import ForgeProcess
from notebooks_service.forge import registry_tokens
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.images.registry import MEDIA_TYPES, Manifest, RegistryClient
from ports import free_port
from runner_fixtures import until

SERVICE = "container_registry"


class Registry:
    """Debian's docker-registry, which believes the forge's tokens and nobody else's."""

    def __init__(self, forge: ForgeProcess, directory: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = ForgeConfig(forge.data, forge.url)
        self.directory = directory
        (directory / "config.yml").write_text(
            json.dumps(
                {
                    "version": "0.1",
                    "log": {"level": "warn"},
                    "storage": {
                        "filesystem": {"rootdirectory": str(directory / "images")},
                        "delete": {"enabled": True},
                    },
                    "http": {"addr": f"127.0.0.1:{self.port}"},
                    "auth": {
                        "token": {
                            "realm": f"{forge.url}/jwt/auth",
                            "service": SERVICE,
                            "issuer": registry_tokens.ISSUER,
                            "rootcertbundle": str(registry_tokens.certificates(config)),
                        }
                    },
                }
            )
        )
        self.log = directory / "registry.log"
        self.start()

    def start(self) -> None:
        """Starts it (again), with what it has on disk."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(self.directory / "config.yml")],
                stdout=log,
                stderr=log,
            )
        until(self._answers, "the registry")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/v2/").status_code == 401
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait(60)

    @property
    def name(self) -> str:
        """What images are called by."""
        return f"127.0.0.1:{self.port}"

    def call(
        self,
        forge: ForgeProcess,
        login: tuple[str, str] | None,
        method: str,
        path: str,
        **more: Any,
    ) -> httpx.Response:
        """As docker does it: asked, told where to get a token, asked again."""
        url = path if path.startswith("http") else f"{self.url}{path}"
        answer = httpx.request(method, url, **more)
        if answer.status_code != 401:
            return answer
        challenge = answer.headers["www-authenticate"]
        values = dict(
            part.split("=", 1)
            for part in challenge.removeprefix("Bearer ").replace('",', '"\n').splitlines()
        )
        values = {key: value.strip('"') for key, value in values.items()}
        query = {key: value for key, value in values.items() if key in ("service", "scope")}
        token = httpx.get(values["realm"], params=query, auth=login).json().get("token", "")
        headers = {**more.pop("headers", {}), "Authorization": f"Bearer {token}"}
        return httpx.request(method, url, headers=headers, **more)


def need_registry() -> None:
    if shutil.which("docker-registry") is None:
        pytest.skip(
            "docker-registry is not installed here (Debian has it: apt-get install docker-registry)"
        )


@pytest.fixture(scope="module")
def registry(
    ci_forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    need_registry()
    made = Registry(ci_forge, tmp_path_factory.mktemp("registry"))
    yield made
    made.stop()


def push_image(client: RegistryClient, repository: str, kind: str) -> Manifest:
    """Puts the parts of an image of this media type there; its manifest, which nothing tags yet."""
    docker = "docker" in kind
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Labels": {"a": "b"}},
         "rootfs": {"type": "layers", "diff_ids": []}}
    ).encode()  # fmt: skip
    one = MEDIA_TYPES[3 if docker else 1]
    inner: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": one,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json"
            if docker
            else "application/vnd.oci.image.config.v1+json",
            "size": len(config),
            "digest": digest_of(config),
        },
        "layers": [],
    }
    # An indented manifest: whoever writes it anew changes its digest.
    content = json.dumps(inner, indent=3).encode()
    base = f"{client.url}/v2/{repository}"
    scope = f"repository:{repository}:pull,push"
    began = client.connection.ask("POST", f"{base}/blobs/uploads/", scope)
    assert began.status_code == 202, began.text
    where = f"{began.headers['location']}&digest={digest_of(config)}"
    assert client.connection.ask("PUT", where, scope, content=config).status_code == 201
    if kind == one:
        return Manifest(kind, content, digest_of(content))
    client.put(repository, "inner", Manifest(one, content, digest_of(content)))
    listed = {
        "schemaVersion": 2,
        "mediaType": kind,
        "manifests": [
            {"mediaType": one, "digest": digest_of(content), "size": len(content),
             "platform": {"architecture": "amd64", "os": "linux"}}
        ],
    }  # fmt: skip
    outer = json.dumps(listed, indent=3).encode()
    return Manifest(kind, outer, digest_of(outer))


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()
