"""Builds a container image with what is there, docker (BuildKit where it has it) or buildah, and
pushes it; used by ``images/container_build.py``.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from uuid import uuid4

from notebooks_service.errors import BuildFailed, NoSpace
from notebooks_service.images import steps
from notebooks_service.images.log import BuildLog, first_failure
from notebooks_service.images.private_login import LoginFiles

PASSED_ON = re.compile(
    r"(PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|XDG_\w+|SSL_CERT_(FILE|DIR)|SSH_AUTH_SOCK|"
    r"DOCKER_(HOST|CONTEXT|CERT_PATH|TLS_VERIFY|API_VERSION|BUILDKIT|DEFAULT_PLATFORM)|"
    r"BUILDX_\w+|BUILDKIT_\w+|BUILDAH_\w+|STORAGE_\w+|CONTAINERS_\w+|REGISTRIES_\w+|_CONTAINERS_\w+|"
    r"(http|https|no|all)_proxy|(HTTP|HTTPS|NO|ALL)_PROXY)\Z"
)
TOO_FEW_NUMBERS = re.compile(
    r"insufficient UIDs or GIDs|lchown .*: invalid argument|setting supplemental groups list: operation not"
)
MORE_NUMBERS = (
    "Without root, `RUN` and files of other owners need user numbers set aside for this user: a line in "
    "/etc/subuid and /etc/subgid, and newuidmap, which has to be allowed to gain rights."
)
LONGEST_QUESTION = 300.0
"""Seconds that a look into an image may take. Some storage copies all of an image for it."""

INSTALLED = (
    "import importlib.metadata as m;"
    "print('\\n'.join(sorted({f\"{d.metadata['Name']}=={d.version}\" for d in m.distributions()})))"
)
MOST_PACKAGES = 5000

Asked = Literal["auto", "docker", "buildah"]


@dataclass(frozen=True)
class Order:
    """What is to be built: ``image`` with its tag, from ``dockerfile`` and ``context`` on this disk.

    ``pull``: from its bases as their registries have them, not as this machine has kept them.
    """

    image: str
    context: Path
    dockerfile: Path
    target: str = ""
    platform: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    pull: bool = False

    def options(self) -> list[str]:
        """What docker and buildah have in common. Values that begin with ``-`` stay values."""
        named = [f"--tag={self.image}", f"--file={self.dockerfile}"]
        named += [f"--target={self.target}"] if self.target else []
        named += [f"--platform={self.platform}"] if self.platform else []
        named += ["--pull"] if self.pull else []
        named += [f"--build-arg={name}={value}" for name, value in self.arguments.items()]
        return named + [f"--label={name}={value}" for name, value in self.labels.items()]


class Builder(ABC):
    """A program that builds images, with what it may know of this machine and its logins."""

    name = ""

    def __init__(
        self,
        environ: Mapping[str, str],
        login: LoginFiles,
        *,
        patience: float = LONGEST_QUESTION,
    ) -> None:
        self._patience = patience
        self._environ = {name: text for name, text in environ.items() if PASSED_ON.match(name)}
        self._login = login

    @abstractmethod
    def build(self, order: Order, log: BuildLog) -> None:
        """Builds and names the image here; nobody else sees it. Raises ``BuildFailed``, ``NoSpace``."""

    @abstractmethod
    def push(self, image: str, log: BuildLog) -> None:
        """Sends the image; its tag appears there last, when all of it is there."""

    @abstractmethod
    def installed(self, image: str) -> list[str]:
        """``name==version`` of the Python packages in an image. Raises ``BuildFailed`` if none answers.

        Code of the image runs for that, behind the same wall as its build, without a network.
        """

    def label(self, image: str, labels: Mapping[str, str], log: BuildLog) -> bool:
        """Writes labels into an image that is here; no layer changes. Whether it could."""
        with tempfile.TemporaryDirectory(prefix="notebooks-label-") as scratch:
            (Path(scratch) / "Dockerfile").write_text(f"FROM {image}\n")
            order = Order(image, Path(scratch), Path(scratch) / "Dockerfile", labels=labels)
            quiet = BuildLog(io.StringIO())
            try:
                self.build(order, quiet)
            except BuildFailed as error:
                log.line(f"The packages are not written down in the image: {error.message}")
                return False
        return True

    def _step(self, log: BuildLog, what: str, command: Sequence[str], cwd: Path) -> None:
        code, lines = steps.attempt(log, cwd, command, self._environ)
        if code:
            raise _failure(what, lines, code)

    def _ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            process = subprocess.Popen(
                command,
                env=self._environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                # A group of its own: what an image's program has started ends with it.
                start_new_session=True,
            )
        except OSError as error:
            return subprocess.CompletedProcess(command, 125, "", str(error))
        try:
            said, complained = process.communicate(timeout=self._patience)
            return subprocess.CompletedProcess(command, process.returncode, said, complained)
        except subprocess.TimeoutExpired:
            late = f"no answer in {self._patience:g} seconds"
            return subprocess.CompletedProcess(command, 124, "", late)
        finally:
            steps.end_group(process)


class Docker(Builder):
    """The docker of this machine, or the one that ``DOCKER_HOST`` names."""

    name = "docker"

    def __init__(self, environ: Mapping[str, str], login: LoginFiles) -> None:
        super().__init__(environ, login)
        self._docker = ["docker", "--config", str(login.docker)]

    def answers(self) -> bool:
        """Whether its daemon does."""
        found = self._ask(*self._docker, "version", "--format", "{{.Client.Version}}")
        self._version = found.stdout.strip()
        return found.returncode == 0

    def build(self, order: Order, log: BuildLog) -> None:
        command = [*self._docker, *self._kind(log), *order.options(), "--", str(order.context)]
        self._step(log, "The image could not be built", command, order.context)

    def _kind(self, log: BuildLog) -> list[str]:
        if self._ask(*self._docker, "buildx", "version").returncode == 0:
            # Attestations would make the image a list, with a date in it.
            return ["buildx", "build", "--progress=plain", "--load", "--provenance=false"]
        major = self._version.partition(".")[0]
        if major.isdigit() and int(major) < 23 and self._environ.get("DOCKER_BUILDKIT") != "0":
            self._environ["DOCKER_BUILDKIT"] = "1"
            return ["build", "--progress=plain"]
        log.line("docker has no buildx here, so its old builder does it, without `RUN --mount`")
        self._environ["DOCKER_BUILDKIT"] = "0"
        return ["build"]

    def push(self, image: str, log: BuildLog) -> None:
        what = "The image could not be pushed"
        self._step(log, what, [*self._docker, "push", "--", image], Path("/"))

    def installed(self, image: str) -> list[str]:
        name = f"notebooks-look-{uuid4().hex[:12]}"
        found = self._ask(
            *self._docker, "run", "--rm", f"--name={name}", "--network=none", "--pull=never",
            "--entrypoint=python3", image, "-c", INSTALLED,
        )  # fmt: skip
        if found.returncode:
            self._ask(*self._docker, "rm", "--force", name)
        return _packages(found)


class Buildah(Builder):
    """buildah: without a daemon, without root, and in containers too."""

    name = "buildah"

    def __init__(
        self,
        environ: Mapping[str, str],
        login: LoginFiles,
        plain: str = "",
        *,
        patience: float = LONGEST_QUESTION,
    ) -> None:
        """``plain``: the registry (``host[:port]``) that is spoken to without TLS, if one is.
        ``patience``: seconds that a look into an image may take."""
        super().__init__(environ, login, patience=patience)
        self._plain = plain
        self._isolation: list[str] = []
        if "BUILDAH_ISOLATION" not in environ and _in_container():
            # There is mostly no right to make namespaces in one.
            self._isolation = ["--isolation=chroot"]

    def answers(self) -> bool:
        return self._ask("buildah", "--version").returncode == 0

    def build(self, order: Order, log: BuildLog) -> None:
        # OCI's format has no SHELL and no HEALTHCHECK: buildah would leave them out, with a warning.
        command = [
            "buildah", "build", "--format=docker", f"--authfile={self._login.containers}",
            # Keeps what each step made for the next build; BUILDAH_LAYERS may say otherwise.
            *([] if "BUILDAH_LAYERS" in self._environ else ["--layers"]),
            *self._isolation, *order.options(), str(order.context),
        ]  # fmt: skip
        self._step(log, "The image could not be built", command, order.context)

    def push(self, image: str, log: BuildLog) -> None:
        command = [
            "buildah", "push", f"--authfile={self._login.containers}", *self._tls(image),
            image, f"docker://{image}",
        ]  # fmt: skip
        self._step(log, "The image could not be pushed", command, Path("/"))

    def _tls(self, image: str) -> list[str]:
        # For this registry only: a build may take its base from any other.
        return ["--tls-verify=false"] if self._plain and image.startswith(f"{self._plain}/") else []

    def installed(self, image: str) -> list[str]:
        name = f"notebooks-look-{uuid4().hex[:12]}"
        made = self._ask("buildah", "from", "--pull-never", f"--name={name}", image)
        if made.returncode:
            return _packages(made)
        try:
            command = ["buildah", "run", *self._isolation, name, "--", "python3", "-c", INSTALLED]
            return _packages(self._ask(*command))
        finally:
            self._ask("buildah", "rm", name)


def find_builder(
    asked: Asked, environ: Mapping[str, str], login: LoginFiles, plain: str = ""
) -> Builder:
    """The builder asked for, or the first that answers. Raises ``BuildFailed`` if none does."""
    wanted: Iterable[Docker | Buildah] = (
        Docker(environ, login),
        Buildah(environ, login, plain),
    )
    found = [one for one in wanted if asked in ("auto", one.name)]
    for builder in found:
        if shutil.which(builder.name, path=environ.get("PATH")) and builder.answers():
            return builder
    names = " nor ".join(one.name for one in found)
    raise BuildFailed(
        f"The image was not built: neither {names} answers here. Install buildah, or let DOCKER_HOST "
        "name a docker that may be used."
        if len(found) > 1
        else f"The image was not built: {names} does not answer here."
    )


def _packages(found: subprocess.CompletedProcess[str]) -> list[str]:
    if found.returncode:
        raise BuildFailed(first_failure(found.stderr) or f"exit code {found.returncode}")
    rows = [row.strip() for row in found.stdout.splitlines()[:MOST_PACKAGES]]
    rows = [row for row in rows if re.fullmatch(r"[\w.-]{1,100}==[\w.!+-]{1,100}", row)]
    if not rows:
        raise BuildFailed("it names none")
    return rows


def _failure(what: str, lines: Sequence[str], code: int) -> BuildFailed | NoSpace:
    text = "\n".join(lines)
    if "No space left on device" in text or "no space left on device" in text:
        return NoSpace(
            "The disk became full while the image was built; free some space, then retry."
        )
    said = first_failure(text) or f"exit code {code}"
    if TOO_FEW_NUMBERS.search(text):
        said = f"{said.rstrip('.')}. {MORE_NUMBERS}"
    return BuildFailed(f"{what}: {said}")


def _in_container() -> bool:
    return any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
