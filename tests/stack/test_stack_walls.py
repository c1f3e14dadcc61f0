"""Hostile code on a machine of several people: in a notebook, in a CI job, in the build of a package.

``tests/walls/walls_attack.py`` goes for what a neighbour and the platform have; without a wall all of it
succeeds (``tests/walls``), here none of it may.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from test_stack_launch import execute, launch

from forge_fixtures import run_git
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.platform.parts import INTERNAL_PORTS
from notebooks_service.settings import Settings
from notebooks_service.walls.wall import Walls
from stack_fixtures import Stack, wait_for

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(
        os.getuid() != 0, reason="Not tested here: user numbers for people need root."
    ),
]

ATTACK = Path(__file__).parents[1] / "walls" / "walls_attack.py"
MARK = "NOTEBOOKS_SERVER_DIRECTORY=/"

# A package whose build attacks; it needs nothing of any index.
BACKEND = """
import os, subprocess, sys, zipfile
def build_wheel(directory, config_settings=None, metadata_directory=None):
    done = subprocess.run(
        [sys.executable, "attack.py", "targets.json"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    name = "evil-1.0-py3-none-any.whl"
    info = "evil-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("evil.py", "said = " + repr(done.stdout))
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: evil\\nVersion: 1.0\\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nGenerator: evil\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""
PYPROJECT = """
[build-system]
requires = []
backend-path = ["."]
build-backend = "backend"
[project]
name = "evil"
version = "1.0"
"""
CI = """
image_build:
  script:
    - notebooks image build
    - python attack.py targets.json
    - ls -A "$NOTEBOOKS_ENVIRONMENTS" && id -u
"""


@dataclass
class Scene:
    """The owner's server with a kernel, and what is to be stolen."""

    stack: Stack
    victim: str
    kernels: list[psutil.Process]
    targets: dict[str, list[Any]]
    people: list[str] = field(default_factory=list)


def sdist(targets: str) -> bytes:
    """``evil-1.0.tar.gz``"""
    files = {
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        "attack.py": ATTACK.read_text(),
        "targets.json": targets,
        "PKG-INFO": "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"evil-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def refused(*requests: tuple[str, str], own_token: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "label": f"{method} {url} {own_token}",
            "url": url,
            "method": method,
            "own_token": own_token,
        }
        for method, url in requests
    ]


@pytest.fixture(scope="module")
def scene(stack: Stack) -> Scene:
    server = launch(stack, stack.commits()[0])["name"]
    assert (
        execute(stack, server, "open('/dev/shm/theirs', 'w').write('x'); print('there')") == "there"
    )
    base = f"{stack.hub_url}user/{stack.owner}/{server}/"
    headers = {"Authorization": f"token {stack.token()}"}
    answer = httpx.post(
        f"{base}api/kernels", json={"path": "nile"}, headers=headers, timeout=60, trust_env=False
    )
    assert answer.status_code == 201, answer.text
    main = stack.server_process(stack.owner, server)
    kernels = wait_for(
        lambda: [p for p in main.children(recursive=True) if "ipykernel" in " ".join(p.cmdline())]
    )
    # Its kernel listens at files that only its own server has, below /run/jupyter there.
    place = Path(f"/proc/{main.pid}/root/run/jupyter")
    sockets = wait_for(lambda: [str(path) for path in place.glob("*") if path.is_socket()])
    folder = stack.data / "servers" / stack.owner / server
    data = stack.data
    own = [data / "servers" / stack.owner, folder, folder / "work" / "nile", folder / "home"]
    stores = [data / name for name in ("secrets", "hub", "forge", "service", "logs", "run")]
    files = [
        data / "secrets" / "proxy_token", data / "secrets" / "forge-runner-token",
        data / "hub" / "jupyterhub.sqlite", data / "forge" / "forge.sqlite",
        data / "walls" / "numbers.json", folder / "server.log", folder / "work" / "nile" / "README.md",
    ]  # fmt: skip
    for path in (*own, *stores, *files):
        assert path.exists(), path
    environments = [path.parent for path in (data / "environments").glob("*/*/image.json")]
    assert environments
    parts = stack.parts()
    api, hub = stack.running.hub_api_url, stack.hub_url
    proxy = json.loads((data / "ports.json").read_text())
    gateway = f"{stack.service_url}git/{stack.owner}/nile.git/info/refs?service=git-upload-pack"
    targets: dict[str, list[Any]] = {
        "read": [*map(str, (*own, *stores, *files)), f"/proc/{main.pid}/environ", "/dev/shm/theirs"],
        "write": [str(path) for path in (*own, *stores, *files, *environments)],
        "link": [str(files[0]), str(files[-1])],
        "processes": [str(data / "hub"), "jupyterhub_config", f"/servers/{stack.owner}/"],
        "signal": [p.pid for p in (main, *kernels, *parts) if p.pid > 200],
        "trace": [p.pid for p in (main, *kernels) if p.pid > 200],
        "memory": [p.pid for p in (main, *kernels) if p.pid > 200],
        "root": [p.pid for p in (main, *kernels) if p.pid > 200],
        "connect": sockets,
        "fetch": refused(
            ("GET", f"http://127.0.0.1:{proxy['proxy_api']}/api/routes"),
            ("GET", f"{api}/users"),
            ("GET", f"{api}/users/{stack.owner}"),
            ("GET", f"{hub}user/{stack.owner}/{server}/api/contents"),
            ("POST", f"{hub}user/{stack.owner}/{server}/api/kernels"),
            ("GET", f"{stack.service_url}servers"),
            ("GET", f"{stack.forge_url}/api/v4/projects/{stack.owner}%2Fnile"),
            ("POST", f"{stack.forge_url}/api/v4/jobs/request"),
            ("GET", gateway),
        ),
        "gain": ["rights"],
        "escape": ["user namespace"],
    }  # fmt: skip
    return Scene(stack, server, kernels, targets)


def attacker(scene: Scene, tmp_path: Path) -> tuple[str, str, int]:
    """A project of trudy's with the attack in its package, its job and its files; its commit."""
    stack = scene.stack
    stack.add_user("trudy")
    source = tmp_path / "evil"
    source.mkdir()
    text = json.dumps(scene.targets)
    (source / "evil-1.0.tar.gz").write_bytes(sdist(text))
    (source / "requirements.txt").write_text("./evil-1.0.tar.gz\n")
    (source / "attack.py").write_text(ATTACK.read_text())
    (source / "targets.json").write_text(text)
    (source / ".gitlab-ci.yml").write_text(CI)
    run_git("init", "--quiet", "--initial-branch=main", ".", cwd=source)
    run_git("add", "--all", cwd=source)
    run_git("commit", "--quiet", "-m", "Evil", cwd=source)
    done = stack.command("forge", "import", str(source), "--as", "trudy/evil")
    assert done.returncode == 0, done.stderr
    administration = stack.administration()
    try:
        token = administration.personal_token("trudy", "tests", ["api"])
    finally:
        administration.close()
    forge = httpx.Client(
        base_url=f"{stack.forge_url}/api/v4/projects/trudy%2Fevil",
        headers={"PRIVATE-TOKEN": token},
        trust_env=False,
        timeout=30,
    )
    with forge:
        project = forge.get("").raise_for_status().json()["id"]
        pipeline = forge.post("/pipeline", json={"ref": "main"})
        assert pipeline.status_code == 201, pipeline.text

        def ended() -> Any:
            job = forge.get(f"/pipelines/{pipeline.json()['id']}/jobs").json()[0]
            return job if job["status"] not in ("created", "pending", "running") else None

        job = wait_for(ended, 200, every=0.3)
        trace = forge.get(f"/jobs/{job['id']}/trace").text
    assert job["status"] == "success", f"{trace}\n{stack.said()}"
    return run_git("rev-parse", "HEAD", cwd=source).strip(), trace, project


def stolen(text: str) -> dict[str, Any]:
    """What the attack in this output got."""
    (line,) = [row for row in text.splitlines() if "ATTACK {" in row]
    found: dict[str, Any] = json.loads(line[line.index("ATTACK ") + 7 :])
    assert len(found) > 30
    return {name: what for name, what in found.items() if what is not None}


def sleepers() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["name", "cmdline"]) if p.info["name"] == "sleep"]


def test_whatever_listens_here_asks_who_is_there(scene: Scene) -> None:
    """There is one network for all: what stops people at our ports is that each of them asks."""
    stack = scene.stack
    listening: dict[int, str] = {}
    servers: set[int] = set()
    # A kernel's one port gives nothing, and takes only what carries its secret (no HTTP).
    kernels: set[int] = set()
    # (The stack is shared: tests before this one may have left servers running.)
    for process in stack.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    listening[one.laddr.port] = one.laddr.ip
                    if "ipykernel" in command:
                        kernels.add(one.laddr.port)
                    elif "singleuser" in command:
                        servers.add(one.laddr.port)
    assert set(listening.values()) == {"127.0.0.1"}
    main = stack.server_process(stack.owner, scene.victim)
    (server,) = {c.laddr.port for c in main.net_connections("tcp") if c.status == "LISTEN"}
    assert server in servers
    parts = json.loads((stack.data / "ports.json").read_text())
    asked = {stack.port, stack.port + 1, *servers, *(parts[name] for name in INTERNAL_PORTS)}
    assert set(listening) == asked | kernels

    user, project = f"user/{stack.owner}/{scene.victim}", f"{stack.owner}%2Fnile"
    git = f"{stack.owner}/nile.git/info/refs?service=git-upload-pack"
    paths = [
        "api/routes", "hub/api/users", f"hub/api/users/{stack.owner}", "hub/api/services", "hub/home",
        "hub/metrics", f"{user}/lab", f"{user}/api/contents", f"{user}/api/kernels",
        f"{user}/api/terminals", f"{user}/files/nile/README.md", "services/notebooks/servers",
        f"services/notebooks/git/{git}", "api/v4/user", f"api/v4/projects/{project}", "api/v4/runners",
        git,
    ]  # fmt: skip
    answered: set[str] = set()
    with httpx.Client(trust_env=False, timeout=20) as stranger:
        for port in sorted(asked):
            for path in paths:
                answer = stranger.get(f"http://127.0.0.1:{port}/{path}")
                assert answer.status_code >= 300 and answer.status_code != 500, (port, path, answer)
                # Whose path it is says so itself; others know no such path, or send on to its place.
                leads = answer.headers.get("location", "")
                if answer.status_code in (401, 403) or "login" in leads or "oauth" in leads:
                    answered.add(path)
    # (The forge does not say that a private project is there.)
    assert {one for one in paths if one not in answered} == {f"api/v4/projects/{project}"}


def test_hostile_code_gets_nothing_from_a_notebook_a_job_or_a_build(
    scene: Scene, tmp_path: Path
) -> None:
    stack = scene.stack
    sha, trace, project = attacker(scene, tmp_path)

    # In the job: nothing, as a user of its own.
    assert stolen(trace) == {}
    numbers = Walls("uids", Settings(data=stack.data.resolve()))
    assert str(numbers.number(f"project:{project}")) in trace.split()

    # What it downloaded is its project's, and apart from what its other branches download.
    caches = stack.data / "runner" / "caches"
    assert (caches / f"{project}-protected").stat().st_uid == numbers.number(f"project:{project}")
    assert not (caches / str(project)).exists()

    # What it built is taken over: nobody's to change, and found by its commit.
    environment = EnvironmentStore(stack.data.resolve() / "environments").tagged(project, sha)
    assert environment is not None
    for path in (environment.path, *environment.path.rglob("*")):
        facts = path.lstat()
        assert (facts.st_uid, facts.st_gid) == (0, 0), path
        assert stat.S_ISLNK(facts.st_mode) or not facts.st_mode & 0o6222, path

    # In the build of its package: nothing; the package remembers what it got.
    remembered: dict[str, Any] = {}
    exec((environment.library / "evil.py").read_text(), remembered)
    assert stolen(str(remembered["said"])) == {}

    # In a notebook: nothing either, also with the token that this server has.
    body = {"namespace": "trudy", "project": "evil", "commit_sha": sha}
    answer = stack.api("POST", "servers", "trudy", json=body)
    assert answer.status_code == 201, answer.text
    name = answer.json()["name"]

    def settled() -> Any:
        server = stack.api("GET", f"servers/{name}", "trudy").json()
        return server if server["status"]["state"] in ("running", "failed") else None

    server = wait_for(settled, 120, every=0.3)
    assert server["status"]["state"] == "running", f"{server}\n{stack.said()}"
    assert server["image_origin"] == "commit"
    work = stack.data / "servers" / "trudy" / name / "work" / "evil"
    tokens = [
        {**one, "label": f"{one['label']} own", "own_token": True} for one in scene.targets["fetch"]
    ]
    more = {**scene.targets, "write": [*scene.targets["write"], str(environment.path)]}
    more["fetch"] = [*scene.targets["fetch"], *tokens]
    (work / "targets.json").write_text(json.dumps(more))
    cell = "import runpy, sys; sys.argv = ['attack.py', 'targets.json']; runpy.run_path('attack.py', run_name='__main__')"
    said = execute(stack, name, cell, "evil", "trudy")
    assert stolen(said) == {}
    assert "own" in said

    # Theirs it is: their files are of their number, and their kernels' channels are no ports.
    assert work.stat().st_uid == numbers.number("person:trudy")
    # (ipykernel has one port, for what its forked children print: it takes, by a secret, and gives nothing.)
    owners = stack.server_process(stack.owner, scene.victim)
    connections = [*Path(f"/proc/{owners.pid}/root/run/jupyter").glob("kernel-*.json")]
    assert connections
    assert {json.loads(path.read_text())["transport"] for path in connections} == {"ipc"}
    for kernel in scene.kernels:
        ports = [one for one in kernel.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert len(ports) <= 1

    # The end of the server is the end of all that it started.
    main = stack.server_process("trudy", name)
    daemon = "setsid -f env -i sleep 987654 > /dev/null 2>&1 < /dev/null"
    stack.inside("trudy", name, "bash", "-c", daemon)
    wait_for(lambda: any("987654" in (p.info["cmdline"] or []) for p in sleepers()))
    assert stack.api("DELETE", f"servers/{name}?forced=true", "trudy").status_code == 204
    wait_for(lambda: not main.is_running())
    assert not any("987654" in (p.info["cmdline"] or []) for p in sleepers())
    assert stack.api("DELETE", f"servers/{scene.victim}?forced=true").status_code == 204
