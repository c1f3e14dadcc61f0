"""Servers of images that we did not build: what each of them needs is in one real container of it. ``test_stack_docker.py`` takes these tests in, because engine and images are made once there.

The images are made here from Debian's packages. A container has the walls of the docker runtime, but the
network of the host, so that it can be asked without a proxy between.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack_images_hub import SCOPE, SERVER, TOKEN, USER, small_hub
from websockets.asyncio.client import connect

import notebooks_service
from docker_fixtures import Engine as DockerEngine
from runner_fixtures import until

PROGRAMS = Path(notebooks_service.__file__).parent / "singleuser"
PREFIX = f"/user/{USER}/{SERVER}/"

WHOSE = "RUN echo 'HERE = \"in the image\"' >/usr/lib/python3/dist-packages/whose.py\n"
"""A package of the image's own, which its kernels have to find."""
PLAIN = "FROM notebooks-base\n" + WHOSE
OWN = (
    "FROM notebooks-singleuser\nUSER 0\n"
    "RUN echo 'HERE = \"in the image\"' >$(echo /opt/jupyter/lib/python3*/site-packages)/whose.py\n"
)
IMAGES = {
    "own": OWN,
    # What people find as python3 is another Python than that of the image's Jupyter.
    "elsewhere": OWN + "RUN ln -s /opt/jupyter/bin/jupyterhub-singleuser /usr/local/bin/\n"
    "ENV PATH=/usr/local/bin:/usr/bin:/bin\n",
    "lab": OWN + "RUN rm -r /opt/jupyter/bin/jupyterhub* /opt/jupyter/lib/python3*/site-packages/"
    "jupyterhub*\n",
    "python": PLAIN,
    # All that the runtime overrides or provides: program, user, home, directory.
    "odd": PLAIN
    + 'RUN rm -r /home\nENTRYPOINT ["/bin/false"]\nCMD ["no"]\nENV HOME=/nowhere SHELL=/bin/none\n'
    "USER nobody\nWORKDIR /var/empty\n",
    # The project pins what a kernel needs, in a version that is too old for a new one.
    "old": PLAIN
    + "RUN mkdir /usr/lib/python3/dist-packages/traitlets && echo 'version_info = (1,)' "
    ">/usr/lib/python3/dist-packages/traitlets/__init__.py\n",
}
NOTEBOOK = (
    "FROM notebooks-singleuser\nUSER 0\nCOPY notebook /opt/notebook\n"
    "RUN cp -r /opt/notebook/etc /opt/notebook/share /opt/jupyter/ && "
    "cp -r /opt/notebook/notebook* $(echo /opt/jupyter/lib/python3*/site-packages)/\n"
)
EMPTY = "FROM scratch\nCOPY busybox /bin/sh\nENV PATH=/bin\n"


@dataclass
class Engine:
    """A dockerd with the images, and the volume with what is lent to images that have no Jupyter."""

    host: str
    hub: str
    lent: str = "lent"

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", "--host", self.host, *arguments], capture_output=True, text=True, check=False
        )
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    def lend(self) -> None:
        self.docker(
            "run", "--rm", "--network=none", "--user=0:0", "--env=HOME=/tmp",
            f"--volume={PROGRAMS}:/opt/notebooks:ro", f"--volume={self.lent}:/opt/notebooks-jupyter",
            "--entrypoint=/bin/sh", "notebooks-singleuser",
            "/opt/notebooks/fill.sh", "/opt/notebooks-jupyter",
        )  # fmt: skip

    def build(self, name: str, dockerfile: str, directory: Path) -> None:
        directory.mkdir()
        (directory / "Dockerfile").write_text(dockerfile)
        if "busybox" in dockerfile:
            program = shutil.which("busybox")
            assert program, "CI installs busybox-static"
            (directory / "busybox").write_bytes(Path(program).read_bytes())
            (directory / "busybox").chmod(0o755)
        if "COPY notebook" in dockerfile:
            install = ["uv", "pip", "install", "--quiet", "--no-deps", "--target"]
            packages = [str(directory / "notebook"), "notebook>=7", "notebook_shim"]
            subprocess.run([sys.executable, "-m", *install, *packages], check=True)
        self.docker("build", "--network=none", "--quiet", "--tag", name, str(directory))

    @contextmanager
    def server(self, image: str, **variables: str) -> Iterator[Server]:
        """A server of this image, with the walls that the runtime gives it."""
        port = _free_port()
        given = {
            "HOME": "/work/home",
            "NOTEBOOKS_WORK_DIR": "/work/work",
            "NOTEBOOKS_SERVER_DIRECTORY": "/work",
            "NOTEBOOKS_FORGE_URL": "http://forge.test/",
            "NOTEBOOKS_GATEWAY_URL": "http://gateway.test/services/notebooks/git/",
            "NOTEBOOKS_AUTHOR_NAME": "Ann Other",
            "NOTEBOOKS_AUTHOR_EMAIL": "ann@forge.test",
            "GIT_CONFIG_GLOBAL": "/work/home/.gitconfig",
            "JUPYTERHUB_USER": USER,
            "JUPYTERHUB_SERVER_NAME": SERVER,
            "JUPYTERHUB_API_TOKEN": TOKEN,
            "JUPYTERHUB_API_URL": self.hub,
            "JUPYTERHUB_ACTIVITY_URL": f"{self.hub}/users/{USER}/activity",
            "JUPYTERHUB_BASE_URL": "/",
            "JUPYTERHUB_CLIENT_ID": f"jupyterhub-user-{USER}-{SERVER}",
            "JUPYTERHUB_HOST": "",
            "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps([SCOPE]),
            "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{PREFIX}oauth_callback",
            "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
            "JUPYTERHUB_SERVICE_URL": f"http://127.0.0.1:{port}{PREFIX}",
            "JUPYTERHUB_ROOT_DIR": "/work/work",
            **variables,
        }
        volume = self.docker("volume", "create").stdout.strip()
        self.docker(
            "run", "--rm", "--network=none", f"--volume={volume}:/work", "notebooks-init", "true"
        )
        container = self.docker(
            "run", "--detach", "--network=host", "--user=1000:1000", "--cap-drop=ALL",
            "--security-opt=no-new-privileges", "--init", "--workdir=/work", "--pids-limit=400",
            f"--volume={PROGRAMS}:/opt/notebooks:ro", f"--volume={volume}:/work",
            f"--volume={self.lent}:/opt/notebooks-jupyter:ro",
            *(f"--env={name}={value}" for name, value in given.items()),
            "--entrypoint=/bin/sh", image, "/opt/notebooks/serve.sh",
        ).stdout.strip()  # fmt: skip
        try:
            yield Server(self, container, f"http://127.0.0.1:{port}{PREFIX}")
        finally:
            self.docker("rm", "--force", container)
            self.docker("volume", "rm", volume)


@dataclass
class Server:
    engine: Engine
    container: str
    url: str

    @property
    def log(self) -> str:
        done = self.engine.docker("logs", self.container)
        return done.stdout + done.stderr

    @property
    def said(self) -> dict[str, Any]:
        """The one line that says which way it took."""
        lines = [line for line in self.log.splitlines() if line.startswith('{"notebooks": "serve"')]
        assert len(lines) == 1, self.log[-3000:]
        found: dict[str, Any] = json.loads(lines[0])
        return found

    def answers(self) -> None:
        def asked() -> bool:
            state = self.engine.docker("inspect", "--format={{.State.Running}}", self.container)
            assert state.stdout.strip() == "true", self.log[-3000:]
            try:
                return httpx.get(f"{self.url}api", timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        try:
            until(asked, "the server's answer", 60)
        except AssertionError:
            raise AssertionError(self.log[-4000:]) from None

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"token {TOKEN}"}, timeout=20)

    def runs(self, code: str) -> str:
        """What a kernel of this server prints."""
        return asyncio.run(self._runs(code))

    async def _runs(self, code: str) -> str:
        headers = {"Authorization": f"token {TOKEN}"}
        async with httpx.AsyncClient(headers=headers, timeout=30) as client:
            made = await client.post(f"{self.url}api/kernels", json={"name": "python3"})
            assert made.status_code == 201, made.text
            address = f"{self.url}api/kernels/{made.json()['id']}/channels".replace("http:", "ws:")
            header = {"msg_id": "1", "username": "", "session": "1", "version": "5.3"}
            header["msg_type"] = "execute_request"
            message = {"header": header, "parent_header": {}, "metadata": {}, "channel": "shell"}
            content = {"code": code, "silent": False, "allow_stdin": False}
            printed, done = "", set[str]()
            async with asyncio.timeout(60), connect(address, additional_headers=headers) as socket:
                await socket.send(json.dumps({**message, "content": content, "buffers": []}))
                async for each in socket:
                    heard = json.loads(each)
                    if heard["parent_header"].get("msg_id") != "1":
                        continue
                    if heard["msg_type"] == "stream":
                        printed += heard["content"]["text"]
                    if heard["msg_type"] == "error":
                        printed += "\n".join(heard["content"]["traceback"])
                    if heard["msg_type"] == "execute_reply":
                        done.add("replied")
                    if heard["content"].get("execution_state") == "idle":
                        done.add("idle")
                    # The reply comes another way than what is printed, and may come before it.
                    if len(done) == 2:
                        return printed
        raise AssertionError("the kernel's connection ended")


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def engine(
    docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    with small_hub() as hub:
        found = Engine(docker_engine.host, hub)
        # A platform on this engine may have made what it lends.
        made = docker_engine.run("volume", "ls", "-q", "--filter", "name=-jupyter-").stdout.split()
        if made:
            found.lent = made[0]
        else:
            found.lend()
        directory = tmp_path_factory.mktemp("serve")
        for name, dockerfile in {**IMAGES, "notebook": NOTEBOOK, "empty": EMPTY}.items():
            found.build(f"test-{name}", dockerfile, directory / name)
        yield found


@pytest.mark.parametrize(
    ("image", "way"),
    [
        ("own", "jupyterhub-singleuser"),
        ("elsewhere", "jupyterhub-singleuser"),
        ("lab", "jupyter"),
        ("python", "python"),
        ("odd", "python"),
        ("old", "python"),
    ],
)
def test_a_kernel_of_the_image_runs(engine: Engine, image: str, way: str) -> None:
    with engine.server(f"test-{image}") as server:
        server.answers()
        assert server.said["way"] == way
        assert "/lab" in server.said["offers"]
        page = server.get("lab/tree")
        assert page.status_code == 200 and "JupyterLab" in page.text
        script = re.search(r'src="([^"]+/main[^"]*\.js)', page.text)
        assert script, page.text
        assert httpx.get(httpx.URL(server.url).join(script[1])).status_code == 200
        asked = "import getpass, os, whose; print(whose.HERE, os.getcwd(), getpass.getuser())"
        assert server.runs(asked) == f"in the image /work/work {USER}\n"
        who = "import subprocess; print(subprocess.run(['git', 'config', 'user.email'], capture_output=True, text=True).stdout)"
        assert server.runs(who).strip() == "ann@forge.test"
        # The terminal's and the kernel's git ask a helper that is run by a Python of this image.
        ask = (
            "import subprocess; asked = 'protocol=http\\nhost=gateway.test\\npath=services/notebooks/git/g/p.git\\n\\n'\n"
            "done = subprocess.run(['git', 'credential', 'fill'], input=asked, capture_output=True, text=True)\n"
            "print('username=server' in done.stdout, done.stderr)"
        )
        assert server.runs(ask).strip() == "True"
        assert server.get("api/terminals").status_code == 200
        opened = httpx.post(
            f"{server.url}api/terminals", headers={"Authorization": f"token {TOKEN}"}, timeout=20
        )
        assert opened.status_code == 200
        assert TOKEN not in server.log


def test_notebook_opens_where_the_image_has_it(engine: Engine) -> None:
    with engine.server("test-notebook", NOTEBOOKS_DEFAULT_URL="/tree") as server:
        server.answers()
        assert server.said["offers"] == ["/lab", "/tree"]
        assert re.search(r'"notebookPage": ?"tree"', server.get("tree").text)
        first = server.get("")
        assert first.status_code == 302 and first.headers["location"].startswith(f"{PREFIX}tree")
        # A file's address, as our links have it, leads on to the page for such a file.
        new = {"type": "notebook", "format": "json"}
        made = httpx.post(
            f"{server.url}api/contents",
            headers={"Authorization": f"token {TOKEN}"},
            json=new,
            timeout=20,
        )
        led = server.get(f"tree/{made.json()['path']}")
        assert led.headers["location"].startswith(f"{PREFIX}notebooks/"), led.text


def test_an_image_without_a_python_says_so(engine: Engine) -> None:
    with engine.server("test-empty") as server:
        waiting = engine.docker("inspect", "--format={{.State.Status}}", server.container)
        assert waiting.returncode == 0
        until(lambda: '"serve"' in server.log, "its line", 30)
        assert server.said["way"] == "none"
        assert (server.said["python"], server.said["offers"]) == ("", ["/lab"])


def test_strangers_are_not_let_in(engine: Engine) -> None:
    """Also where what connects Jupyter with the hub is ours."""
    with engine.server("test-python") as server:
        server.answers()
        for headers in ({}, {"Authorization": "token wrong"}):
            found = httpx.get(f"{server.url}api/contents", headers=headers, timeout=20)
            assert found.status_code in (302, 403), found.text


def test_a_home_that_cannot_be_written_is_replaced(engine: Engine) -> None:
    with engine.server("test-python", HOME="/nowhere/home") as server:
        server.answers()
        wrote = "import pathlib; print((pathlib.Path.home() / 'x').write_text('y'))"
        assert server.runs(wrote) == "1\n"
