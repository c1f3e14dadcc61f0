"""A GitLab's stand-in behind TLS of a private authority, and deploy/docker beside it on an engine of its own.

For ``stack_compose``. The forge runs on the host, as somebody else's GitLab would; names are the test's own.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from docker_fixtures import ROOT, Engine, free_range
from notebooks_service.forge.administration import Administration
from notebooks_service.settings import Settings
from ports import free_port
from runner_fixtures import until

PERSON, OTHER = "ada", "grace"
CLIENT_ID, CLIENT_SECRET = "notebooks", "canary-of-the-application"
HUB, FORGE = "hub.test", "gitlab.test"
SERVICE = f"notebooks--service.{HUB}"
# The embedded forge has no TLS of its own; a GitLab has.
SERVE_FORGE = """\
import sys, uvicorn
from pathlib import Path
from notebooks_service.forge.app import create_app
from notebooks_service.forge.config import ForgeConfig
data, url, port, tls = sys.argv[1:]
uvicorn.run(
    create_app(ForgeConfig(Path(data), url)), host="0.0.0.0", port=int(port), access_log=False,
    ssl_certfile=f"{tls}/fullchain.pem", ssl_keyfile=f"{tls}/privkey.pem",
)
"""


class Names(httpx.HTTPTransport):
    """Every name is this machine, and has to show a certificate of the authority for itself."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        extensions = {**request.extensions, "sni_hostname": request.url.host}
        at = request.url.copy_with(host="127.0.0.1")
        return super().handle_request(
            httpx.Request(
                request.method, at, headers=request.headers, stream=request.stream, extensions=extensions
            )
        )  # fmt: skip


def make_certificate(place: Path, authority: Path, *names: str) -> None:
    """``fullchain.pem`` and ``privkey.pem`` for these names; makes the authority if there is none."""
    place.mkdir(parents=True, exist_ok=True)

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    key = authority.with_suffix(".key")
    if not authority.exists():
        openssl("req", "-x509", *new, "-keyout", str(key), "-out", str(authority), "-days", "2", "-subj", "/CN=Tests")  # fmt: skip
    asked, extra = place / "asked.csr", place / "names"
    extra.write_text("subjectAltName=" + ",".join(f"DNS:{name}" for name in names))
    openssl("req", *new, "-keyout", str(place / "privkey.pem"), "-out", str(asked), "-subj", f"/CN={names[0]}")  # fmt: skip
    openssl(
        "x509", "-req", "-in", str(asked), "-CA", str(authority), "-CAkey", str(key), "-CAcreateserial",
        "-days", "2", "-extfile", str(extra), "-out", str(place / "fullchain.pem"),
    )  # fmt: skip


@dataclass
class Deployment:
    """The containers of deploy/docker, made as docs/deploy-docker.md says."""

    place: Path
    engine: Engine
    forge_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    networks: str = field(default_factory=free_range)
    forge_process: subprocess.Popen[bytes] | None = None

    def address(self, number: int) -> str:
        """Of a container of compose.yml; the host has the first."""
        return str(ipaddress.IPv4Network(self.networks)[number])

    @property
    def directory(self) -> Path:
        """Where the files of deploy/docker are."""
        return self.place / "deploy"

    @property
    def data(self) -> Path:
        return self.place / "data"

    @property
    def authority(self) -> Path:
        return self.place / "authority.pem"

    @property
    def forge_url(self) -> str:
        return f"https://{FORGE}:{self.forge_port}"

    @property
    def hub_url(self) -> str:
        return f"https://{HUB}:{self.port}/"

    @property
    def service_url(self) -> str:
        return f"https://{SERVICE}:{self.port}/services/notebooks/"

    @property
    def browser_names(self) -> str:
        """What Chromium is told of the names."""
        return (
            f"--host-resolver-rules=MAP *.{HUB} 127.0.0.1,MAP {HUB} 127.0.0.1,MAP {FORGE} 127.0.0.1"
        )

    # -- the forge -----------------------------------------------------------------------------

    def start_forge(self) -> None:
        make_certificate(self.place / "forge-tls", self.authority, FORGE)
        administration = self.administration()
        try:
            administration.ensure_owner(PERSON, "Ada", "ada@example.org")
            administration.add_user(OTHER)
            administration.ensure_application(
                "Notebooks", f"{self.hub_url}hub/oauth_callback", Settings().forge_scopes,
                CLIENT_ID, CLIENT_SECRET, trusted=True,
            )  # fmt: skip
        finally:
            administration.close()
        command = [sys.executable, "-c", SERVE_FORGE, str(self.place / "forge"), self.forge_url]
        command += [str(self.forge_port), str(self.place / "forge-tls")]
        with (self.place / "forge.log").open("ab") as log:
            self.forge_process = subprocess.Popen(command, stdout=log, stderr=log)
        with self.client() as client:
            until(lambda: _answers(client, f"{self.forge_url}/-/health"), "the forge", 60)

    def administration(self) -> Administration:
        return Administration(self.place / "forge")

    def sign_in_url(self, user: str) -> str:
        administration = self.administration()
        try:
            to = f"{self.hub_url}hub/oauth_login?next={quote('/services/notebooks/', safe='')}"
            return administration.sign_in_url(self.forge_url, user, to)
        finally:
            administration.close()

    # -- the containers ------------------------------------------------------------------------

    def write_files(self) -> None:
        """What a person writes by hand, after ``cp env.example .env`` and so on."""
        shutil.copytree(ROOT / "deploy/docker", self.directory)
        make_certificate(self.place / "tls", self.authority, HUB, f"*.{HUB}")
        (self.directory / "certificates").mkdir()
        shutil.copy(self.authority, self.directory / "certificates/forge.pem")
        network = self.networks.removesuffix(".0.0/16")
        given = {
            "NOTEBOOKS_DATA_DIR": str(self.data),
            "NOTEBOOKS_LISTEN": f"127.0.0.1:{free_port()}",
            "NOTEBOOKS_NETWORK": network,
            "COMPOSE_FILE": "compose.yml:compose.tls.yml:names.yml",
            "NOTEBOOKS_TLS_DIR": str(self.place / "tls"),
            "NOTEBOOKS_HTTPS_LISTEN": f"127.0.0.1:{self.port}",
            "NOTEBOOKS_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
            "NOTEBOOKS_EGRESS_PORT": str(free_port()),
            "NOTEBOOKS_DOCKER_SOCKET": self.engine.host.removeprefix("unix://"),
            "COMPOSE_PROJECT_NAME": "notebooks",
        }
        (self.directory / ".env").write_text(
            "".join(f"{name}={value}\n" for name, value in given.items())
        )
        toml = (self.directory / "notebooks.example.toml").read_text()
        for old, new in {
            "https://hub.example.org/": self.hub_url,
            "https://gitlab.example.org": self.forge_url,
            'forge_client_id = ""': f'forge_client_id = "{CLIENT_ID}"',
            'owner = ""': f'owner = "{PERSON}"',
            "#forge_ca_file": "forge_ca_file",
        }.items():
            assert old in toml
            toml = toml.replace(old, new)
        (self.directory / "notebooks.toml").write_text(toml)
        # No name server knows the test's names.
        hosts = {"extra_hosts": [f"{FORGE}:{network}.0.1"]}
        services = {"services": {"hub": hosts, "service": hosts}}
        (self.directory / "names.yml").write_text(json.dumps(services))

    def prepare(self, secret: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.directory / "prepare")], input=secret, text=True, capture_output=True
        )

    def compose(self, *command: str, check: bool = True, given: bytes | None = None) -> bytes:
        """What the command prints; ``given`` is its standard input."""
        done = subprocess.run(
            [*COMPOSE, *command], cwd=self.directory, input=given, capture_output=True,
            env={**os.environ, "DOCKER_HOST": self.engine.host},
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr
        return done.stdout

    def up(self) -> None:
        """Start all, and wait until a page of the service's is answered through TLS and proxy."""
        self.compose("up", "-d")
        with self.client() as client:
            try:
                until(lambda: _answers(client, f"{self.service_url}health"), "the service", 120)
            except AssertionError as error:
                raise AssertionError(self.logs()) from error

    def logs(self) -> str:
        return self.compose("logs", "--no-color", check=False).decode()

    def stop(self) -> None:
        if (self.directory / "compose.yml").exists():
            self.compose("down", check=False)
            # Servers go on without the hub.
            ours = "--filter=label=notebooks.instance=compose"
            for kind in (("ps", "-a"), ("network", "ls")):
                for each in self.engine.run(*kind, "-q", ours, check=False).stdout.split():
                    gone = ("rm", "-f", each) if kind[0] == "ps" else ("network", "rm", each)
                    self.engine.run(*gone, check=False)
        if self.forge_process is not None:
            self.forge_process.terminate()
            self.forge_process.wait(30)

    # -- people --------------------------------------------------------------------------------

    def client(self, **more: Any) -> httpx.Client:
        """A program that believes the authority alone."""
        import ssl

        context = ssl.create_default_context(cafile=str(self.authority))
        return httpx.Client(
            transport=Names(verify=context), timeout=30, trust_env=False, follow_redirects=True, **more
        )  # fmt: skip

    @contextmanager
    def signed_in(self, user: str) -> Iterator[httpx.Client]:
        """A person's session at forge, hub and service, by the real way."""
        with self.client(headers={"Accept": "text/html,*/*;q=0.8"}) as client:
            page = client.get(self.sign_in_url(user))
            assert page.is_success and page.url.host == SERVICE, (page.url, page.text[:500])
            yield client

    def token(self, user: str) -> str:
        """A hub token, asked for as the hub's own page does."""
        with self.signed_in(user) as client:
            client.get(f"{self.hub_url}hub/token").raise_for_status()
            xsrf = next(c.value for c in client.cookies.jar if c.name.endswith("_xsrf") and c.domain.startswith(HUB))  # fmt: skip
            answer = client.post(
                f"{self.hub_url}hub/api/users/{user}/tokens",
                headers={"X-XSRFToken": str(xsrf), "Referer": f"{self.hub_url}hub/token"},
                json={"note": "tests"},
            )
            assert answer.is_success, answer.text
            return str(answer.json()["token"])


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).is_success
    except httpx.HTTPError:
        return False


def _compose() -> list[str]:
    """The command that there is: Debian's, or the engine's own."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    return ["docker", "compose"]


COMPOSE = _compose()
