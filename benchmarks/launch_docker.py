"""How long from "I want this commit" to the first HTTP answer and the first cell, with servers in containers.

Two contenders in turn over the same image (``notebooks-singleuser``) on the same engine: stock JupyterHub with
DockerSpawner, which neither clones nor walls off, and this service. Rows: the host has the image; a stopped server
comes back; the host lacks the image's last layer (100 MB, pulled from the same registry); ten at once (until the last
of them answers). Both run on one host name: names below ``localhost`` are not known to every program.

    deploy/docker/build --base debian init proxy singleuser builder
    .venv/bin/python benchmarks/launch_docker.py --runs 5 --json launch_docker.json

``DOCKER_HOST`` says which engine. It needs Debian's ``docker-registry``.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import docker
import httpx
from jupyter import execute_first_cell, wait_for_answer
from launch import (
    BIN,
    Figures,
    answers,
    bearer,
    free_port,
    only_project,
    record,
    running,
    stopped,
    wait_until,
)
from report import write

from notebooks_service.forge.administration import Administration
from notebooks_service.platform.proxy import install_proxy
from notebooks_service.platform.sample import build_sample

IMAGE = "notebooks-singleuser"
TEN = 10
LAYER = 100 * 10**6
STOCK = """
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.JupyterHub.bind_url = "http://127.0.0.1:{port}/"
c.JupyterHub.hub_bind_url = "http://{gateway}:{hub}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.concurrent_spawn_limit = 0
c.Authenticator.allow_all = True
c.JupyterHub.services = [{{"name": "bench", "api_token": "{token}"}}]
c.JupyterHub.load_roles = [
    {{"name": "bench", "services": ["bench"], "scopes": ["admin:users", "servers", "access:servers"]}}
]
c.DockerSpawner.image = "{image}"
c.DockerSpawner.cmd = ["jupyterhub-singleuser"]
c.DockerSpawner.network_name = "{network}"
c.DockerSpawner.use_internal_ip = True
c.DockerSpawner.remove = True
c.DockerSpawner.pull_policy = "ifnotpresent"
c.DockerSpawner.allowed_images = "*"
c.DockerSpawner.volumes = {{"bench-{{servername}}": "/work"}}
"""


@contextmanager
def stock_hub(proxy: list[str]) -> Iterator[tuple[str, str]]:
    client = docker.from_env()
    network = client.networks.create(f"bench-{secrets.token_hex(3)}", driver="bridge")
    network.reload()
    gateway = network.attrs["IPAM"]["Config"][0]["Gateway"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            port, token = free_port(), secrets.token_hex(32)
            Path(folder, "jupyterhub_config.py").write_text(
                STOCK.format(
                    port=port, hub=free_port(), api=free_port(), proxy=proxy, folder=folder, token=token,
                    gateway=gateway, image=IMAGE, network=network.name,
                )
            )  # fmt: skip
            command = [sys.executable, "-m", "jupyterhub", "-f", f"{folder}/jupyterhub_config.py"]
            environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
            with (
                Path(folder, "log").open("w") as log,
                running(command, cwd=folder, stdout=log, stderr=log, env=environment),
            ):
                url = f"http://127.0.0.1:{port}/"
                wait_until(lambda: answers(f"{url}hub/api/"))
                made = httpx.post(f"{url}hub/api/users/bench", headers=bearer(token))
                made.raise_for_status()
                yield url, token
    finally:
        for each in client.containers.list(all=True, filters={"network": network.name}):
            each.remove(force=True)
        network.remove()


class Stock:
    """Servers of the stock hub: a name each."""

    title = "stock DockerSpawner (no clone, no wall)"

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token
        self.client = httpx.Client(headers=bearer(token), timeout=120)
        self.images: dict[str, str] = {}
        """Of the servers that have another than the common one."""

    def start(self, name: str) -> str:
        options = {"image": self.images[name]} if name in self.images else {}
        address = f"{self.url}hub/api/users/bench/servers/{name}"
        self.client.post(address, json={"user_options": options}).raise_for_status()
        return f"{self.url}user/bench/{name}/"

    def stop(self, name: str, *, remove: bool) -> None:
        address = f"{self.url}hub/api/users/bench/servers/{name}"
        self.client.request("DELETE", address, json={"remove": remove}).raise_for_status()

        def gone() -> bool:
            user = self.client.get(f"{self.url}hub/api/users/bench").json()
            return name not in user.get("servers", {})

        wait_until(gone)


class Ours:
    """Servers of this service: a commit each."""

    title = "this service"

    def __init__(self, url: str, token: str, project: str) -> None:
        self.url, self.token, self.project = url, token, project
        self.client = httpx.Client(headers=bearer(token), timeout=120)
        self.names: dict[str, str] = {}

    def start(self, name: str) -> str:
        namespace, _, folder = self.project.rpartition("/")
        body = {"namespace": namespace, "project": folder, "commit_sha": name}
        service = f"{self.url}services/notebooks/servers"
        server = self.client.post(service, json=body).raise_for_status().json()
        self.names[name] = server["name"]
        return str(server["url"].partition("/lab")[0]) + "/"

    def stop(self, name: str, *, remove: bool) -> None:
        own = f"{self.url}services/notebooks/servers/{self.names[name]}"
        if remove:
            self.client.delete(own).raise_for_status()
        else:
            self.client.patch(own, json={"state": "hibernated"}).raise_for_status()
        wait_until(lambda: stopped(self.client, own))


def one(where: Stock | Ours, name: str, figures: Figures, row: str, *, remove: bool) -> None:
    began = time.monotonic()
    address = where.start(name)
    answered = wait_for_answer(where.client, address)
    executed, _ = execute_first_cell(where.client, address, where.token, "print(1)")
    record(figures, f"{where.title}: {row}", began, answered, executed)
    where.stop(name, remove=remove)


def ten(where: Stock | Ours, names: list[str], figures: Figures) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(len(names)) as threads:
        addresses = list(threads.map(where.start, names))
        answered = list(threads.map(lambda each: wait_for_answer(where.client, each), addresses))
    executed, _ = execute_first_cell(where.client, addresses[-1], where.token, "print(1)")
    record(figures, f"{where.title}: ten at once", began, max(answered), executed)
    for name in names:
        where.stop(name, remove=True)


def images_elsewhere(data: Path, project: str, tags: list[str]) -> list[str]:
    """Images that the registry has, and the host but for their last layer; their names."""
    client = docker.from_env()
    registry = f"127.0.0.1:{json.loads((data / 'ports.json').read_text())['registry']}"
    administration = Administration(data)
    try:
        owner = project.partition("/")[0]
        secret = administration.personal_token(owner, "bench", ["read_registry", "write_registry"])
    finally:
        administration.close()
    login = {"username": owner, "password": secret}
    names = []
    for tag in tags:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "layer").write_bytes(os.urandom(LAYER))
            Path(folder, "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY layer /layer\n")
            name = f"{registry}/{project}:{tag}"
            client.images.build(path=folder, tag=name)
        for line in client.images.push(name, auth_config=login, stream=True, decode=True):
            if "error" in line:
                raise RuntimeError(line["error"])
        client.images.remove(name, force=True)
        names.append(name)
    # The stock hub's engine client finds its login where `docker login` puts it.
    where = Path(os.environ.setdefault("DOCKER_CONFIG", str(data.parent / "docker")))
    where.mkdir(exist_ok=True)
    said = base64.b64encode(f"{owner}:{secret}".encode()).decode()
    (where / "config.json").write_text(json.dumps({"auths": {registry: {"auth": said}}}))
    return names


@contextmanager
def notebooks_up(data: Path, sample: Path) -> Iterator[tuple[str, str, int]]:
    port, forge_port = free_port(), free_port()
    command = [str(BIN / "notebooks"), "up", str(sample), "--no-browser", "--runtime", "docker"]
    command += ["--port", str(port), "--forge-port", str(forge_port), "--data", str(data)]
    with (
        Path(data.parent, "up.log").open("w") as log,
        running(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "NOTEBOOKS_SUBDOMAINS": "false"},
        ) as process,
    ):
        assert process.stdout is not None
        if not any(line.startswith("Ready: ") for line in process.stdout):
            raise RuntimeError(f"notebooks up ended: {Path(log.name).read_text()[-500:]}")
        asked = [str(BIN / "notebooks"), "token", "--data", str(data)]
        token = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        yield f"http://127.0.0.1:{port}/", token, forge_port


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("launch_docker.json"))
    options = parser.parse_args()
    figures: Figures = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        sample = build_sample(Path(folder, "nile"))
        listed = ["git", "-C", str(sample), "log", "--format=%H"]
        commits = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
        proxy = install_proxy(Path(folder, "proxy"))
        data = Path(folder, "data")
        with ExitStack() as both:
            url, token, _ = both.enter_context(notebooks_up(data, sample))
            project = only_project(url, token)
            pulled = commits[options.runs : 2 * options.runs]
            tags = [tag for commit in pulled for tag in (commit, f"stock-{commit}")]
            names = images_elsewhere(data, project, tags)
            stock_url, stock_token = both.enter_context(stock_hub(proxy))
            stock = Stock(stock_url, stock_token)
            ours = Ours(url, token, project)
            for run in range(options.runs):
                for where, name in ((stock, f"run-{run}"), (ours, commits[run])):
                    one(where, name, figures, "the host has the image", remove=False)
                    one(where, name, figures, "a stopped server comes back", remove=True)
            for run, commit in enumerate(pulled):
                stock.images[f"pull-{run}"] = names[2 * run + 1]
                for where, name in ((stock, f"pull-{run}"), (ours, commit)):
                    one(where, name, figures, "the image's last layer is pulled", remove=True)
            ten(stock, [f"ten-{number}" for number in range(TEN)], figures)
            ten(ours, commits[-TEN:], figures)
    print(write(figures, options.json))


if __name__ == "__main__":
    main()
