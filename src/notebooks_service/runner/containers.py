"""Runs the programs of jobs in containers: the other executor beside ``executor.py``, for the docker runtime.

A container is root's inside and has seven capabilities, none of them over the host; it may make user
namespaces, in which buildah builds images. It has no Docker socket and no network, see ``gates.py``.
Which of these are needed, and why: docs/decisions/0260.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import docker.errors
import docker.types
import docker.utils
import requests

from notebooks_service.runner.executor import GRACE, MARK, Cause, Outcome, Running
from notebooks_service.runner.gates import EGRESS_PORT, Gates
from notebooks_service.walls.wall import Inside

log = logging.getLogger(__name__)

INSTANCE, KIND, JOB = "notebooks.instance", "notebooks.kind", "notebooks.job"
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "SETFCAP", "SYS_CHROOT")
PATH = "/opt/notebooks/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
REGISTRIES = "etc/containers/registries.conf.d/notebooks.conf"
STORAGE = "etc/notebooks-storage.conf"
LAYERS = """[storage]
driver = "overlay"
graphroot = "/tmp/containers"
rootless_storage_path = "/tmp/containers"
runroot = "/tmp/containers-run"
"""
"""Where buildah keeps layers: in the job's own directory of the host's disk, whose size is watched. On the
container's own file system, which is an overlay, there can be no other one."""
SOCKETS = "/run/notebooks"
DENIED = (
    "acct", "add_key", "adjtimex", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module",
    "fanotify_init", "finit_module", "get_kernel_syms", "get_mempolicy", "init_module", "io_uring_enter",
    "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
    "lookup_dcookie", "mbind", "migrate_pages", "move_pages", "nfsservctl", "open_by_handle_at",
    "perf_event_open", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
    "query_module", "quotactl", "quotactl_fd", "reboot", "request_key", "set_mempolicy",
    "set_mempolicy_home_node", "settimeofday", "swapoff", "swapon", "syslog", "sysfs", "uselib",
    "userfaultfd", "ustat", "vhangup", "vm86", "vm86old", "_sysctl",
)  # fmt: skip
"""System calls that no job has. Docker's own list also denies namespaces and mounts, which a build needs
in a user namespace of its own. https://docs.docker.com/engine/security/seccomp/"""
SOCKETS_DENIED: tuple[Mapping[int, int], ...] = ({0: 40}, {0: 38}, {0: 16, 2: 12})
"""Arguments of ``socket`` that no job has: AF_VSOCK, which leads to a virtual machine's host past every
network namespace; AF_ALG; and netfilter's netlink, which root of a user namespace could ask."""
SECCOMP = json.dumps(
    {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": list(DENIED), "action": "SCMP_ACT_ERRNO"},
            *(
                {
                    "names": ["socket"],
                    "action": "SCMP_ACT_ERRNO",
                    "args": [
                        {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
                        for index, value in arguments.items()
                    ],
                }
                for arguments in SOCKETS_DENIED
            ),
        ],
    }
)


@dataclass(frozen=True)
class ContainerLimits:
    """What one job may use. ``cpu`` in processors, ``memory`` in bytes; 0 for no limit."""

    cpu: float
    memory: int
    processes: int


class Containers:
    """The engine as the runner uses it, for all jobs. ``image`` has bash, git, Python and buildah."""

    def __init__(self, instance: str, image: str, gates: Gates, limits: ContainerLimits) -> None:
        self._instance = instance
        self._image = image
        self._limits = limits
        self.gates = gates
        self._lock = threading.Lock()
        self._open: dict[str, str] = {}

    def client(self) -> docker.APIClient:
        """A client of its own for each thread."""
        return docker.APIClient(version="auto", timeout=60, **docker.utils.kwargs_from_env())

    def clear(self) -> None:
        """Remove what a runner that was killed has left."""
        with contextlib.closing(self.client()) as client:
            filters = {"label": [f"{INSTANCE}={self._instance}", f"{KIND}=job"]}
            for each in client.containers(all=True, filters=filters):
                _remove(client, each["Id"])

    def end_job(self, mark: str) -> None:
        """Remove every container of a job: its gate, and what may be left of its programs."""
        with self._lock:
            self._open.pop(mark, None)
        with contextlib.closing(self.client()) as client:
            filters = {"label": [f"{INSTANCE}={self._instance}", f"{JOB}={mark}"]}
            for each in client.containers(all=True, filters=filters):
                _remove(client, each["Id"])

    def gate(self, client: docker.APIClient, mark: str) -> str:
        """The container whose loopback the job's programs share; made at the first of them."""
        with self._lock:
            if mark in self._open:
                return self._open[mark]
        host = client.create_host_config(
            network_mode="none",
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            binds=[f"{self.gates.directory}:{SOCKETS}:ro"],
            init=True,
            pids_limit=100,
            mem_limit=256 * 2**20,
            # Each of its connections is two of the runner's files, whose limit all jobs share.
            ulimits=[docker.types.Ulimit(name="nofile", soft=256, hard=256)],
            log_config=docker.types.LogConfig(type="json-file", config={"max-size": "1m"}),
        )
        made = client.create_container(
            self._image,
            ["-I", "-S", "/gate_inside.py", SOCKETS, *self.gates.inside],
            entrypoint=["python3"],
            user="65534:65534",
            labels=self._labels(mark),
            host_config=host,
        )["Id"]
        program = Path(__file__).with_name("gate_inside.py").read_bytes()
        client.put_archive(made, "/", _archive("gate_inside.py", program))
        client.start(made)
        for line in client.logs(made, stream=True, follow=True):
            if line.strip() == b"open":
                break
        else:
            raise OSError(5, "The gate of this job could not be opened")
        with self._lock:
            self._open[mark] = made
        return str(made)

    def create(
        self,
        client: docker.APIClient,
        mark: str,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        inside: Inside,
    ) -> str:
        """A container for one program of a job; it does not run yet."""
        limits = self._limits
        binds = [
            f"{mount.source}:{mount.at}" + ("" if mount.kind == "write" else ":ro")
            for mount in inside.mounts
            if mount.kind in ("read", "write")
        ]
        if inside.temporary is not None:
            binds.append(f"{inside.temporary}:/tmp")
        more: dict[str, Any] = {}
        if limits.cpu:
            more["nano_cpus"] = int(limits.cpu * 1_000_000_000)
        if limits.memory:
            more |= {"mem_limit": limits.memory, "memswap_limit": limits.memory}
        if limits.processes:
            more["pids_limit"] = limits.processes
        host = client.create_host_config(
            network_mode=f"container:{self.gate(client, mark)}",
            binds=binds,
            cap_drop=["ALL"],
            cap_add=list(CAPABILITIES),
            security_opt=["no-new-privileges", f"seccomp={SECCOMP}"],
            # What it prints is read by the runner and limited there; the engine's copy would have no limit.
            log_config=docker.types.LogConfig(type="none"),
            init=True,
            **more,
        )
        proxy = f"http://127.0.0.1:{EGRESS_PORT}"
        around = {
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy),
            **dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1,localhost"),
        }
        known = {**around, **environment, "PATH": PATH}
        # What the image says of buildah holds, whatever a project's variables say.
        known |= {
            "BUILDAH_ISOLATION": "chroot",
            "STORAGE_DRIVER": "overlay",
            "CONTAINERS_STORAGE_CONF": f"/{STORAGE}",
        }
        made = client.create_container(
            self._image,
            [Path(command[0]).name, *command[1:]],
            entrypoint=[],
            user="0:0",
            working_dir=str(directory),
            environment=known,
            labels=self._labels(mark),
            host_config=host,
        )
        client.put_archive(made["Id"], "/", _archive(STORAGE, LAYERS.encode()))
        if plain := self.gates.plain_registry:
            # buildah asks by TLS unless it is told; this registry is on the machine's own loopback.
            told = f'[[registry]]\nlocation = "{plain}"\ninsecure = true\n'
            client.put_archive(made["Id"], "/", _archive(REGISTRIES, told.encode()))
        return str(made["Id"])

    def _labels(self, mark: str) -> dict[str, str]:
        return {INSTANCE: self._instance, KIND: "job", JOB: mark}


class ContainerExecutor:
    """Jobs in containers, for a worker."""

    staged = False

    def __init__(self, containers: Containers) -> None:
        self._containers = containers

    def execution(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None],
        timeout: float,
        inside: Inside,
        lack: Callable[[], str | None] = lambda: None,
    ) -> Running:
        return ContainerExecution(
            self._containers,
            command,
            directory=directory,
            environment=environment,
            output=output,
            timeout=timeout,
            inside=inside,
            lack=lack,
        )

    def own(self, path: Path, who: str) -> None:
        """The job is root in its container; it sees nothing but what it is given."""

    def end(self, mark: str) -> None:
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            self._containers.end_job(mark)

    def clear(self) -> None:
        self._containers.clear()

    def close(self) -> None:
        self._containers.gates.close()


class ContainerExecution:
    """One running program, as ``executor.Execution`` is one: ``stop`` may be called from any thread."""

    def __init__(
        self,
        containers: Containers,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        output: Callable[[bytes], None],
        timeout: float,
        inside: Inside,
        lack: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._containers = containers
        self._command = list(command)
        self._directory = directory
        self._mark = environment.get(MARK, "")
        # Images are containers here, so `notebooks image build` is to build one.
        without = (MARK, "NOTEBOOKS_ENVIRONMENTS")
        self._environment = {k: v for k, v in environment.items() if k not in without}
        self._output = output
        self._inside = inside
        self._lack = lack
        self._deadline = time.monotonic() + timeout
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Ends the program and everything it started; ``run`` returns soon after."""
        self._stopped.set()

    def run(self) -> Outcome:
        """Starts the program and waits for its end. Raises ``OSError`` if it cannot be started."""
        if self._stopped.is_set():
            return Outcome(143, "stopped")
        with contextlib.closing(self._containers.client()) as client, _engine():
            made = self._containers.create(
                client, self._mark, self._command, self._directory, self._environment, self._inside
            )
            try:
                return self._run(client, made)
            finally:
                _remove(client, made)

    def _run(self, client: docker.APIClient, made: str) -> Outcome:
        stream = client.attach(made, stdout=True, stderr=True, stream=True, logs=False)
        reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        reader.start()
        client.start(made)
        cause: Cause = "ended"
        while (state := client.inspect_container(made)["State"])["Running"]:
            if self._stopped.is_set():
                cause = "stopped"
            elif time.monotonic() > self._deadline:
                cause = "timeout"
            elif self._lack() is not None:
                cause = "disk"
            if cause != "ended":
                with contextlib.suppress(docker.errors.APIError):
                    client.stop(made, timeout=int(GRACE))
                state = client.inspect_container(made)["State"]
                break
            # The engine tells when it ends; until then, twice a second, what may end it is looked at.
            with contextlib.suppress(requests.exceptions.RequestException):
                client.wait(made, timeout=0.5)
        reader.join(timeout=10)
        code = int(state.get("ExitCode") or 0)
        if state.get("OOMKilled"):
            self._output(b"\nThe job used more memory than it may have, and was ended.\n")
            code = code or 137
        return Outcome(code, cause)

    def _read(self, stream: Iterator[bytes]) -> None:
        with contextlib.suppress(OSError, requests.RequestException, ValueError):
            for data in stream:
                self._output(data)


@contextmanager
def _engine() -> Iterator[None]:
    """What the engine does not do is an error of the system's, as a program that cannot be started is."""
    try:
        yield
    except docker.errors.ImageNotFound as error:
        log.error("%s", error.explanation)
        raise OSError(
            2, "The image for jobs is not on this machine: make it with `deploy/docker/build`"
        ) from None
    except (docker.errors.DockerException, requests.RequestException) as error:
        log.error("The Docker engine: %s", error)
        raise OSError(5, "The Docker engine did not do what the job needs") from None


def _remove(client: docker.APIClient, name: str) -> None:
    with contextlib.suppress(docker.errors.NotFound):
        try:
            client.remove_container(name, force=True, v=True)
        except docker.errors.APIError as error:
            if error.status_code != 409:
                log.warning("A container of a job is left behind: %s", error.explanation)


def _archive(name: str, content: bytes) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644
        tar.addfile(entry, io.BytesIO(content))
    return data.getvalue()
