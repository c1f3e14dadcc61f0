"""A Docker engine of the tests' own, with images that ``deploy/docker/build`` makes.

The base is made by mmdebstrap (24 s of CPU), once for all in pytest's cache; the images for each file
that uses them.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import pytest

from notebooks_service.platform.doors import taken_by
from runner_fixtures import until

ROOT = Path(__file__).parents[1]
NEEDED = ("dockerd", "docker", "mmdebstrap")
ROOM = 12 * 2**30
KERNELS = "3.11"
"""The one that Debian's Python takes: a kernel for each other version is 20 MB more."""


_given: set[int] = set()


def free_range() -> str:
    """Addresses for the networks of servers that nothing on this machine has, and no other worker takes."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    for number in range(204 + worker, 252, 8):
        range_ = ipaddress.IPv4Network(f"10.{number}.0.0/16")
        if number not in _given and not taken_by(range_):
            _given.add(number)
            return str(range_)
    raise AssertionError("`ip -brief address` of this machine has all of 10.204.0.0 to 10.251.0.0")


@dataclass
class Engine:
    """A dockerd that leaves nothing behind. ``host``: its DOCKER_HOST; ``networks``: for those of servers."""

    root: Path
    process: subprocess.Popen[bytes] | None = None
    networks: str = field(default_factory=lambda: free_range())

    @property
    def host(self) -> str:
        return f"unix://{self.root}/s"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DOCKER_HOST": self.host,
            "NOTEBOOKS_KERNELS": KERNELS,
            "NOTEBOOKS_DOCKER_NETWORKS": self.networks,
        }

    def address(self, number: int) -> str:
        """An address of the network in front: the host has the first."""
        return str(ipaddress.IPv4Network(self.networks)[number])

    def start(self) -> None:
        command = ["dockerd", f"--data-root={self.root}/data", f"--exec-root={self.root}/exec"]
        command += [f"--pidfile={self.root}/pid", f"--host={self.host}", "--bridge=none"]
        # Its rules would be in the way of other engines of this machine; nothing here rests on them.
        command += ["--iptables=false", "--ip-masq=false"]
        with (self.root / "log").open("ab") as out:
            environment = {**os.environ, "PATH": f"{self._gpu_toolkit()}:{os.environ['PATH']}"}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        until(self._answers, "dockerd", 60)

    def _gpu_toolkit(self) -> Path:
        """A directory with the name by which an engine knows that it can give GPUs: it gives none, and takes the request."""
        hook = self.root / "toolkit" / "nvidia-container-runtime-hook"
        if not hook.exists():
            hook.parent.mkdir()
            hook.write_text("#!/bin/sh\nexit 0\n")
            hook.chmod(0o755)
        return hook.parent

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.root / "log").read_text()[-3000:]
        return self.run("version", check=False).returncode == 0

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(90)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The docker command."""
        return subprocess.run(
            ["docker", "--host", self.host, *command], capture_output=True, text=True, check=check
        )

    def build(self, *images: str, base: Path) -> None:
        """Make images of ours. ``base``: the file in which what they are made on is kept."""
        build = [str(ROOT / "deploy/docker/build"), "--base", "debian", *images]
        environment = {**os.environ, **self.environment, "NOTEBOOKS_BASE_TAR": str(base)}
        made = subprocess.run(build, env=environment, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.host)


@contextmanager
def engine_with(*images: str, base: Path, also: tuple[str, ...] = ()) -> Iterator[Engine]:
    """An engine that has these images. ``base``: where their base is kept; ``also``: programs needed."""
    missing = [name for name in (*NEEDED, *also) if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"servers in containers were not tested: {', '.join(missing) or 'no right to start dockerd'} "
            "(Debian: apt-get install docker.io mmdebstrap docker-registry)"
        )
    # In memory, where there is enough: an engine writes each file of an image three times.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    engine = Engine(Path(tempfile.mkdtemp(prefix="nbe", dir=memory if roomy else None)))
    try:
        engine.start()
        engine.build(*images, base=base)
        yield engine
    finally:
        if engine.process is not None:
            for each in engine.run("ps", "-aq", check=False).stdout.split():
                engine.run("rm", "-f", each, check=False)
            # A dockerd leaves the bridges of its networks behind when it ends.
            engine.run("network", "prune", "-f", check=False)
            engine.stop()
        # It leaves this behind, too.
        subprocess.run(
            ["umount", "--lazy", str(engine.root / "exec/netns/default")], capture_output=True
        )
        shutil.rmtree(engine.root, ignore_errors=True)


@pytest.fixture(scope="session")
def debian_base(request: pytest.FixtureRequest) -> Path:
    """Where the base of images is kept between files, workers and runs; Debian's updates of a week later
    are not what these tests are about, so remove ``.pytest_cache`` to have them."""
    directory: Path = request.config.cache.mkdir("debian")
    return directory / "base.tar"


@pytest.fixture(scope="module")
def docker_engine(debian_base: Path) -> Iterator[Engine]:
    images = ("init", "proxy", "singleuser", "builder")
    with engine_with(*images, base=debian_base, also=("docker-registry",)) as engine:
        yield engine
