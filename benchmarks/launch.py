"""How long from "I want this commit" to the first HTTP answer and to the first executed cell.

One run on one machine, three contenders in turn, so that a noisy machine is noisy for all:

* by hand: clone, a virtual environment with pip, ``jupyter lab``;
* stock JupyterHub: a named server of ``SimpleLocalProcessSpawner``, in the hub's own environment
  (it neither clones nor builds: it is the floor of what a hub costs, not the same work);
* this service: a commit whose environment was never built, another commit of a built environment,
  and a stopped server that comes back.

    .venv/bin/python benchmarks/launch.py --runs 5 --json launch.json
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from jupyter import execute_first_cell, wait_for_answer
from report import write

from notebooks_service.platform.proxy import install_proxy
from notebooks_service.platform.sample import build_sample

ANSWER = "first HTTP answer"
CELL = "first executed cell"
CODE = "import numpy; print(numpy.__version__, numpy.__file__)"
BIN = Path(sys.executable).parent

Figures = defaultdict[str, defaultdict[str, list[float]]]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until(condition: Callable[[], bool], deadline: float = 180.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not come true in time")
        time.sleep(0.05)  # the interval of the poll


@contextmanager
def running(arguments: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process in its own group; the whole group is ended on the way out."""
    process = subprocess.Popen(arguments, start_new_session=True, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT if "up" in arguments else signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def by_hand(sample: Path, figures: Figures) -> None:
    """What a careful person types: exactly that commit, exactly its requirements, JupyterLab."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder, "project")
        port, token = free_port(), secrets.token_hex()
        began = time.monotonic()
        subprocess.run(["git", "clone", "-q", sample, work], check=True)
        subprocess.run([sys.executable, "-m", "venv", f"{folder}/venv"], check=True)
        pip = [f"{folder}/venv/bin/pip", "install", "-q", "-r", f"{work}/requirements.txt"]
        subprocess.run([*pip, "jupyterlab", "ipykernel"], check=True)
        lab = [f"{folder}/venv/bin/jupyter", "lab", "--no-browser", "--allow-root"]
        lab += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with running(lab, cwd=work, **quiet), httpx.Client() as client:
            client.headers["Authorization"] = f"token {token}"
            url = f"http://127.0.0.1:{port}/"
            answered = wait_for_answer(client, url)
            executed, _ = execute_first_cell(client, url, token, CODE)
    record(figures, "by hand: clone, venv and pip, jupyter lab", began, answered, executed)


STOCK = """
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "simple"
c.JupyterHub.bind_url = "http://127.0.0.1:{port}/"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie"
c.JupyterHub.allow_named_servers = True
c.Authenticator.allow_all = True
c.JupyterHub.services = [{{"name": "bench", "api_token": "{token}"}}]
c.JupyterHub.load_roles = [
    {{"name": "bench", "services": ["bench"], "scopes": ["admin:users", "servers", "access:servers"]}}
]
c.SimpleLocalProcessSpawner.home_dir_template = "{folder}/home-{{username}}"
c.Spawner.args = ["--allow-root"]
"""


@contextmanager
def stock_hub(proxy: list[str]) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        port, token = free_port(), secrets.token_hex(32)
        config = Path(folder, "jupyterhub_config.py")
        config.write_text(
            STOCK.format(
                port=port, hub=free_port(), api=free_port(), proxy=proxy, folder=folder, token=token
            )
        )
        command = [sys.executable, "-m", "jupyterhub", "-f", str(config)]
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
        with (
            Path(folder, "log").open("w") as log,
            running(command, cwd=folder, stdout=log, stderr=log, env=environment),
        ):
            url = f"http://127.0.0.1:{port}/"
            wait_until(lambda: answers(f"{url}hub/api/"))
            httpx.post(f"{url}hub/api/users/bench", headers=bearer(token)).raise_for_status()
            yield url, token


def stock(url: str, token: str, figures: Figures) -> None:
    name = f"run-{secrets.token_hex(4)}"
    with httpx.Client(headers=bearer(token), timeout=60) as client:
        began = time.monotonic()
        client.post(f"{url}hub/api/users/bench/servers/{name}").raise_for_status()
        server = f"{url}user/bench/{name}/"
        answered = wait_for_answer(client, server)
        executed, _ = execute_first_cell(client, server, token, "print(1)")
        client.delete(f"{url}hub/api/users/bench/servers/{name}", params={"remove": True})
    record(figures, "stock JupyterHub (no clone, no environment)", began, answered, executed)


@contextmanager
def notebooks_up(data: Path, sample: Path) -> Iterator[tuple[str, str]]:
    port = free_port()
    command = [str(BIN / "notebooks"), "up", str(sample), "--no-browser"]
    command += ["--port", str(port), "--forge-port", str(free_port()), "--data", str(data)]
    with (
        Path(data.parent, "up.log").open("w") as log,
        running(command, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Ready: "):
                break
        else:
            raise RuntimeError(f"notebooks up ended; its log is {log.name}")
        token = subprocess.run(
            [str(BIN / "notebooks"), "token", "--data", str(data)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        yield f"http://127.0.0.1:{port}/", token


def launch(
    url: str, token: str, project: str, commit: str, figures: Figures, name: str, remove: bool
) -> None:
    service = f"{url}services/notebooks/"
    namespace, _, folder = project.rpartition("/")
    body = {"namespace": namespace, "project": folder, "commit_sha": commit}
    with httpx.Client(headers=bearer(token), timeout=60) as client:
        began = time.monotonic()
        server = client.post(f"{service}servers", json=body).raise_for_status().json()
        address = server["url"].partition("/lab")[0] + "/"
        answered = wait_for_answer(client, address)
        executed, output = execute_first_cell(client, address, token, CODE)
        assert "environments" in output, f"the cell ran outside the commit's environment: {output}"
        own = f"{service}servers/{server['name']}"
        if remove:
            client.delete(own).raise_for_status()
        else:
            client.patch(own, json={"state": "hibernated"}).raise_for_status()
        wait_until(lambda: stopped(client, own))
    record(figures, name, began, answered, executed)


def stopped(client: httpx.Client, server: str) -> bool:
    answer = client.get(server)
    return answer.status_code == 404 or answer.json()["status"]["state"] == "stopped"


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def record(figures: Figures, name: str, began: float, answered: float, executed: float) -> None:
    figures[name][ANSWER].append(answered - began)
    figures[name][CELL].append(executed - began)
    print(f"{name}: {answered - began:.2f} s, {executed - began:.2f} s", file=sys.stderr)


def commits_by_requirements(sample: Path) -> list[list[str]]:
    """The sample's commits, newest first, grouped by the content of ``requirements.txt``."""
    log = subprocess.run(
        ["git", "-C", sample, "log", "--format=%H"], check=True, capture_output=True, text=True
    ).stdout.split()
    groups: dict[str, list[str]] = {}
    for commit in log:
        tree = subprocess.run(
            ["git", "-C", sample, "ls-tree", commit, "requirements.txt"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        found = re.search(r"blob ([0-9a-f]+)", tree)
        if found:
            groups.setdefault(found[1], []).append(commit)
    return list(groups.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("launch.json"))
    options = parser.parse_args()
    figures: Figures = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        sample = build_sample(Path(folder, "nile"))
        group = max(commits_by_requirements(sample), key=len)
        proxy = install_proxy(Path(folder, "proxy"))
        with stock_hub(proxy) as (stock_url, stock_token):
            for run in range(options.runs):
                by_hand(sample, figures)
                stock(stock_url, stock_token, figures)
                data = Path(folder, f"data-{run}")
                with notebooks_up(data, sample) as (url, token):
                    project = only_project(url, token)
                    first, second = group[0], group[1]
                    launch(url, token, project, first, figures, NEW, remove=False)
                    launch(url, token, project, first, figures, BACK, remove=True)
                    launch(url, token, project, second, figures, NEXT, remove=True)
                shutil.rmtree(data, ignore_errors=True)
    print(write(figures, options.json))


NEW = "this: environment never built"
BACK = "this: a stopped server comes back"
NEXT = "this: another commit, same requirements"


def only_project(url: str, token: str) -> str:
    (project,) = httpx.get(f"{url}services/notebooks/projects", headers=bearer(token)).json()
    return str(project["path_with_namespace"])


if __name__ == "__main__":
    main()
