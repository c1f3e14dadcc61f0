"""Container images from a commit to the registry: real builders, a real registry, kills and races."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from images_container import (
    DOCKERFILE,
    RUNS,
    SMALL,
    USER,
    buildah_storage,
    docker_daemon,
    project,
    somebody_else,
)
from images_repository import commit, git

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.images import container_command
from notebooks_service.images.builders import Asked
from notebooks_service.images.clean_checkout import clean_checkout
from notebooks_service.images.container_build import (
    TEXT,
    Place,
    environment_tag,
    packed,
    unpacked,
)
from notebooks_service.images.container_command import Wishes
from notebooks_service.images.log import BuildLog
from notebooks_service.images.private_login import PREFIX, login_files
from notebooks_service.images.registry import Login, RegistryClient, registry_of
from registry_fixtures import Registry
from runner_fixtures import until


@dataclass
class Space:
    """A project of one test with its registry, as a CI job of it sees them."""

    forge: ForgeProcess
    registry: Registry
    path: str
    login: Login
    tools: dict[str, str]

    @property
    def image(self) -> str:
        return f"127.0.0.1:{self.registry.port}/{self.path}"

    def environ(self, login: Login | None = None, **more: str) -> dict[str, str]:
        login = login or self.login
        return {
            **os.environ,
            **self.tools,
            "CI_REGISTRY": f"127.0.0.1:{self.registry.port}",
            "CI_REGISTRY_IMAGE": self.image,
            "CI_REGISTRY_USER": login.user,
            "CI_REGISTRY_PASSWORD": login.password,
            "CI_SERVER_URL": self.forge.url,
            **more,
        }

    def client(
        self, login: Login | None = None, http: httpx.Client | None = None
    ) -> RegistryClient:
        url, _ = registry_of(self.image)
        realm = f"{self.forge.url}/jwt/auth"
        return RegistryClient(url, realms=[realm], login=login or self.login, http=http)

    def build(
        self, repository: Path, builder: Asked = "auto", login: Login | None = None, **more: str
    ) -> tuple[int, str]:
        log = io.StringIO()
        wishes = Wishes(checkout=repository, builder=builder)
        return container_command.build(wishes, self.environ(login, **more), log), log.getvalue()

    def tags(self) -> dict[str, str]:
        place = Place(self.client(), self.path, self.image)
        return container_command.listed(place)

    def check_all_is_whole(self) -> None:
        """Every tag leads to an image of which each part is there."""
        client = self.client()
        for name in client.tags(self.path):
            manifest = client.manifest(self.path, name)
            assert manifest is not None
            digests = re.findall(rb"sha256:[0-9a-f]{64}", manifest.content)
            assert digests
            for digest in digests:
                url = f"{client.url}/v2/{self.path}/blobs/{digest.decode()}"
                answer = client.connection.ask("HEAD", url, f"repository:{self.path}:pull")
                assert answer.status_code == 200, digest


@pytest.fixture(scope="module")
def buildah() -> Iterator[dict[str, str]]:
    with buildah_storage() as variables:
        yield variables


@pytest.fixture
def space(
    ci_forge: ForgeProcess, registry: Registry, buildah: dict[str, str], tmp_path: Path
) -> Space:
    return make_space(ci_forge, registry, buildah, tmp_path)


def make_space(
    forge: ForgeProcess, registry: Registry, tools: dict[str, str], directory: Path
) -> Space:
    owner = forge.user()
    make_repository(directory / "at-the-forge")
    path = f"{owner}/images"
    forge.project(directory / "at-the-forge", path, owner)
    return Space(forge, registry, path, Login(owner, forge.token(owner)), tools)


def build_and_tag(space: Space, repository: Path, builder: Asked, **more: str) -> str:
    """The way of two commits: built, only tagged. The first build's log."""
    first = project(repository, Dockerfile=RUNS)
    code, log = space.build(repository, builder, **more)
    assert code == 0, log
    environment = container_command.plan(Wishes(repository), first, {}, 0).fingerprint
    tags = space.tags()
    [digest] = set(tags.values())
    assert first in tags and len(tags) == 2 and digest in log.splitlines()[-1]
    assert re.search(r"Pushed in [\d.]+ s", log) and re.search(r"Built in [\d.]+ s", log)
    assert re.search(r"\]  +[\d.]+ s  (RUN|COPY|FROM) ", log), log  # the slowest steps
    assert "1 Python packages are installed" in log and "six==1.16.0" in log
    assert space.login.password not in log

    second = commit(repository, {"README.md": "a changed line"})
    code, tagged = space.build(repository, builder, **more)
    assert code == 0, tagged
    assert "built already" in tagged and "Building" not in tagged
    last = tagged.strip().splitlines()[-1]
    found = re.search(rf"Tagged {second} after (\d+) ms: {digest}", last)
    assert found and int(found[1]) < 2000, last
    assert space.tags()[second] == digest

    assert environment_tag(environment) in tags
    return log


def test_buildah(space: Space, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    log = build_and_tag(space, repository, "buildah")
    assert "Building with buildah" in log and "it ran" in log
    last = git(repository, "rev-parse", "HEAD")
    [digest] = set(space.tags().values())
    # The third commit changes the environment, and its job names a stage and an argument.
    stages = (
        "FROM scratch AS wanted\nARG NAME=other\nLABEL name=$NAME\n" + DOCKERFILE.partition("\n")[2]
    )
    stages += "FROM wanted\nCOPY gone /\n"
    variables = {"NOTEBOOKS_TARGET": "wanted", "NOTEBOOKS_BUILD_ARGS": '{"NAME": "Ada \\"é\\""}'}
    ci = json.dumps({"image_build": {"variables": variables, "script": "notebooks image build"}})
    files = {"requirements.txt": "six==1.17.0\n", "Dockerfile": stages, ".gitlab-ci.yml": ci}
    third = commit(repository, files)
    code, anew = space.build(repository, "buildah")
    assert code == 0, anew
    assert f"Since the environment of {last[:12]}" in anew
    # In the files, and in what is installed.
    for row in ("-six==1.16.0", "- six==1.16.0", "+six==1.17.0", "+ six==1.17.0"):
        assert anew.count(row) == 1, f"{row}\n{log}\n{anew}"
    tags = space.tags()
    manifest = space.client().manifest(space.path, third)
    assert manifest and space.client().labels(space.path, manifest)["name"] == 'Ada "é"'
    assert tags[third] != digest and len(tags) == 5 and len(set(tags.values())) == 2
    assert len([tag for tag in tags if tag.startswith("env-")]) == 2
    space.check_all_is_whole()


def test_docker(ci_forge: ForgeProcess, registry: Registry, tmp_path: Path) -> None:
    with docker_daemon() as host:
        space = make_space(ci_forge, registry, {"DOCKER_HOST": host}, tmp_path)
        old = {"DOCKER_BUILDKIT": "0"}
        log = build_and_tag(space, tmp_path / "r", "docker", **old)
        assert "Building with docker" in log and "it ran" in log
        # BuildKit, which Debian's client has in it; its steps would want a network here.
        sha = project(tmp_path / "r", Dockerfile=DOCKERFILE)
        code, log = space.build(tmp_path / "r", "docker", PATH="/usr/bin:/usr/sbin:/bin")
        assert code == 0 and "#1 DONE" in log and sha in space.tags(), log
        assert "Since the environment of" in log
        space.check_all_is_whole()
        # A job that knows nothing of us goes on as it did: its own tag, its own image.
        sha = "c" * 40
        image = f"{space.image}:{sha}"
        with login_files(space.image.partition("/")[0], space.login, space.environ()) as files:
            command = ["docker", "--host", host, "--config", str(files.docker)]
            for words in (["build", "--quiet", f"--tag={image}", "."], ["push", "--quiet", image]):
                done = subprocess.run(
                    [*command, *words], cwd=tmp_path / "r", capture_output=True, text=True
                )
                assert done.returncode == 0, done.stderr
        assert sha in space.tags()


def test_a_failed_build_says_the_line_that_failed_first(space: Space, tmp_path: Path) -> None:
    broken = DOCKERFILE + 'RUN ["/bin/sh", "-c", "echo fatal: the mill is out of order; false"]\n'
    project(tmp_path / "r", Dockerfile=broken)
    code, log = space.build(tmp_path / "r")
    assert code == 1
    last = log.strip().splitlines()[-1]
    assert last.endswith("ERROR: The image could not be built: fatal: the mill is out of order")
    assert space.tags() == {}


def test_without_a_dockerfile_or_a_builder(space: Space, tmp_path: Path) -> None:
    commit(tmp_path / "plain", {"requirements.txt": "six\n"})
    code, log = space.build(tmp_path / "plain")
    assert code == 1 and "`notebooks init`" in log and "`base_image`" in log
    project(tmp_path / "r")
    (tmp_path / "bin").mkdir()
    git_there = shutil.which("git")
    assert git_there
    code, log = space.build(tmp_path / "r", PATH=str(tmp_path / "bin"))
    assert code == 1 and "Install buildah" in log
    # With a base it is built on that, and what the project runs is run by a plain user.
    base = project(tmp_path / "base", Dockerfile="FROM scratch\nCOPY busybox /bin/sh\n")
    code, log = space.build(tmp_path / "base", "buildah")
    assert code == 0, log
    post_build = '#!/bin/sh\necho "here is $(id -u) in $HOME"\n'
    sha = commit(tmp_path / "rest", {"apt.txt": "# none\n", "postBuild": post_build})
    more = {"NOTEBOOKS_BASE_IMAGE": f"{space.image}:{base}"}
    code, log = space.build(tmp_path / "rest", "buildah", **more)
    assert code == 0 and "here is 1000 in " in log, log
    assert sha in space.tags() and "`postBuild` may read" in log
    manifest = space.client().manifest(space.path, sha)
    assert manifest and "generated 1" in unpacked(space.client().labels(space.path, manifest)[TEXT])


def test_only_the_commits_files_are_built(space: Space, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    dockerfile = "FROM scratch\nCOPY . /all\n"
    sha = commit(repository, {"Dockerfile": dockerfile, "a": "1", ".gitignore": "secret\n"})
    (repository / "secret").write_text("a password")
    (repository / "a").write_text("2")
    with clean_checkout(repository, sha, BuildLog(io.StringIO())) as clean:
        assert sorted(path.name for path in clean.iterdir()) == [".gitignore", "Dockerfile", "a"]
        assert (clean / "a").read_text() == "1"
    git(repository, "checkout", "-q", "a")
    (repository / "secret").unlink()
    with clean_checkout(repository, sha, BuildLog(io.StringIO())) as clean:
        assert clean == repository
    assert git(repository, "status", "--porcelain") == ""


def test_a_dockerfile_cannot_lead_outside(space: Space, tmp_path: Path) -> None:
    repository = tmp_path / "r"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    (tmp_path / "outside").write_text("FROM scratch\n")
    (repository / "Dockerfile").symlink_to("../outside")
    commit(repository, {"a": "1"})
    code, log = space.build(repository)
    assert code == 1 and "outside" in log
    assert space.tags() == {}


def test_who_may_not_push_learns_nothing(
    space: Space, ci_forge: ForgeProcess, tmp_path: Path
) -> None:
    project(tmp_path / "r", Dockerfile=SMALL)
    code, log = space.build(tmp_path / "r", "buildah")
    assert code == 0, log
    before = space.tags()
    name = ci_forge.user()
    stranger = Login(name, ci_forge.token(name))
    commit(tmp_path / "r", {"README.md": "x"})
    said = []
    for path in (space.path, f"{space.path}-none"):
        image = f"127.0.0.1:{space.registry.port}/{path}"
        with pytest.raises(Exception) as error:
            container_command.tag(
                Wishes(tmp_path / "r", image=image), space.environ(stranger), io.StringIO()
            )
        said.append(str(error.value))
        place, _ = container_command.place_of(Wishes(image=image), space.environ(stranger))
        assert container_command.listed(place) == {}
    assert said[0] == said[1] and "Nobody has built" in said[0]
    code, log = space.build(tmp_path / "r", "buildah", stranger)
    assert code == 1 and "does not let this login push" in log.splitlines()[-1]
    assert "Building with" not in log  # known before an hour of building, not after
    assert space.tags() == before


# Races ---------------------------------------------------------------------------------------


def test_two_builds_at_once_end_as_one_image(space: Space, tmp_path: Path) -> None:
    """Both are past the first look before either has pushed; the last look is what counts."""
    first = project(tmp_path / "one", Dockerfile=SMALL)
    shutil.copytree(tmp_path / "one", tmp_path / "two", symlinks=True)
    second = commit(tmp_path / "two", {"README.md": "other"})
    both = threading.Barrier(2)
    logs: dict[str, str] = {}

    class Together(httpx.HTTPTransport):
        """Holds each build's first look until the other's."""

        def __init__(self) -> None:
            super().__init__()
            self.met = False

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = super().handle_request(request)
            if answer.status_code == 404 and not self.met:
                self.met = True
                both.wait(60)
            return answer

    def run(name: str) -> None:
        log = io.StringIO()
        with httpx.Client(transport=Together()) as http:
            wishes = Wishes(tmp_path / name, builder="buildah")
            code = container_command.build(wishes, space.environ(), log, http)
        logs[name] = f"{code}\n{log.getvalue()}"

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert all(log.startswith("0\n") for log in logs.values()), logs
    tags = space.tags()
    assert set(tags) >= {first, second} and len(tags) == 3
    assert len(set(tags.values())) == 1, logs
    space.check_all_is_whole()


@pytest.mark.parametrize("moment", ["built", "pushed", "tagged"])
def test_whoever_is_overtaken_takes_the_others_image(
    space: Space, tmp_path: Path, moment: str
) -> None:
    """The other's whole build happens while ours is built, while it is pushed, or in the smallest gap:
    after the last look at the environment's tag and before our PUT."""
    sha = project(tmp_path / "one", Dockerfile=SMALL)
    shutil.copytree(tmp_path / "one", tmp_path / "two", symlinks=True)
    other = commit(tmp_path / "two", {"README.md": "other"})
    asked: list[str] = []

    class Overtaken(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(f"{request.method} {request.url.path.rsplit('/', 1)[-1][:12]}")
            now = {
                "built": ["POST "],
                "pushed": [f"GET {sha[:12]}"] * 2,  # one look before the build, one after the push
                "tagged": [asked[-1]] if asked[-1].startswith("PUT env-") else ["none"],
            }[moment]
            if asked[-1] == now[0] and asked.count(now[0]) == len(now):
                code, log = space.build(tmp_path / "two", "buildah")
                assert code == 0, log
            return super().handle_request(request)

    with httpx.Client(transport=Overtaken()) as http:
        out = io.StringIO()
        wishes = Wishes(tmp_path / "one", builder="buildah")
        assert container_command.build(wishes, space.environ(), out, http) == 0, out.getvalue()
    log = out.getvalue()
    assert ("this one is not pushed" in log) is (moment == "built") is ("Pushed in" not in log), log
    if moment == "tagged":
        # The later PUT won; the other commit's next job sees that and follows.
        assert space.build(tmp_path / "two", "buildah")[0] == 0
    tags = space.tags()
    assert other in tags and tags[sha] == tags[other] and len(set(tags.values())) == 1, (asked, log)


# Kills ----------------------------------------------------------------------------------------

NEXT = {"Building with": "build", "Built in": "push", "Pushed in": "tag"}


@pytest.mark.parametrize("mark", list(NEXT), ids=list(NEXT.values()))
def test_killed_the_next_build_starts_clean(
    space: Space, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sha = project(tmp_path / "r", Dockerfile=SMALL)
    environ = space.environ(TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1")
    command = [sys.executable, "-m", "notebooks_service", "image", "build"]
    command += ["--builder", "buildah", "--checkout", str(tmp_path / "r")]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if mark in line:
                process.kill()
                break
        else:
            raise AssertionError("".join(said))
        # What a build has started may hold the pipe for a moment more.
    assert process.returncode == -signal.SIGKILL
    space.check_all_is_whole()
    assert set(space.tags()) <= {sha}
    code, again = space.build(tmp_path / "r", "buildah", TMPDIR=str(tmp_path))
    assert code == 0, again
    tags = space.tags()
    assert sha in tags and len(tags) == 2 and len(set(tags.values())) == 1
    if mark == "Pushed in":
        assert "not finished" in again and "Building" not in again
    space.check_all_is_whole()
    assert list(tmp_path.glob(f"{PREFIX}*")) == [] or mark == "Pushed in"


def test_a_registry_that_dies_under_a_push(space: Space, tmp_path: Path) -> None:
    """It is gone when the image's tag is written; the next build finishes the work."""
    sha = project(tmp_path / "r", Dockerfile=SMALL)

    class Dies(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "PUT":
                raise httpx.ConnectError("gone")
            return super().handle_request(request)

    with httpx.Client(transport=Dies()) as http:
        log = io.StringIO()
        wishes = Wishes(tmp_path / "r", builder="buildah")
        assert container_command.build(wishes, space.environ(), log, http) == 1
    assert "does not answer" in log.getvalue().splitlines()[-1]
    assert set(space.tags()) == {sha}
    code, again = space.build(tmp_path / "r")
    assert code == 0 and "not finished" in again and "Building with" not in again
    assert len(space.tags()) == 2


def test_a_registry_killed_while_layers_are_sent(space: Space, tmp_path: Path) -> None:
    """Killed when the first part of a layer is there, and started again with what it has."""
    repository = tmp_path / "r"
    project(repository, Dockerfile=SMALL + "COPY large /\n")
    (repository / "large").write_bytes(os.urandom(12_000_000))
    sha = commit(repository, {})
    store = space.registry.directory / "images/docker/registry/v2/repositories" / space.path
    killed = threading.Event()

    def kill() -> None:
        until(
            lambda: any(one.stat().st_size for one in store.glob("_uploads/*/data")), "a part", 60
        )
        space.registry.kill()
        killed.set()
        space.registry.start()

    thread = threading.Thread(target=kill)
    thread.start()
    code, log = space.build(repository, "buildah")
    thread.join()
    assert killed.is_set()
    space.check_all_is_whole()
    if code:
        assert "The image could not be pushed" in log.splitlines()[-1], log
        code, log = space.build(repository, "buildah")
    assert code == 0, log
    tags = space.tags()
    assert sha in tags and len(tags) == 2 and len(set(tags.values())) == 1
    space.check_all_is_whole()


# Users ----------------------------------------------------------------------------------------

OWNED = RUNS + "COPY --chown=7:7 requirements.txt /owned\n"


@pytest.mark.parametrize("ranges", [False, True], ids=["one number", "ranges"])
def test_without_root(space: Space, tmp_path: Path, ranges: bool) -> None:
    """As a user of their own number, with and without others set aside for them (/etc/subuid)."""
    with somebody_else(ranges=ranges) as (home, prefix):
        repository = home / "r"
        sha = project(repository, Dockerfile=OWNED if ranges else SMALL)
        environ = {
            **{name: text for name, text in space.environ().items() if name.startswith("CI_")},
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TMPDIR": str(home),
            "STORAGE_DRIVER": "vfs",
            "BUILDAH_ISOLATION": "chroot",
            "BUILDAH_LAYERS": "false",
        }

        def give(number: int) -> None:
            for path in (repository, *repository.rglob("*")):
                os.chown(path, number, number, follow_symlinks=False)

        def build() -> subprocess.CompletedProcess[str]:
            give(USER)
            command = [sys.executable, "-m", "notebooks_service", "image", "build"]
            command += ["--builder", "buildah", "--checkout", str(repository)]
            return subprocess.run(
                [*prefix, *command],
                env=environ,
                cwd="/",
                capture_output=True,
                text=True,
                timeout=120,
            )

        done = build()
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("it ran" in done.stdout) is ranges and sha in space.tags()
        space.check_all_is_whole()
        # With one number no step runs, and no file has another owner; it is said what would help.
        for dockerfile in () if ranges else (RUNS, SMALL + "COPY --chown=7:7 busybox /\n"):
            give(0)
            commit(repository, {"Dockerfile": dockerfile})
            done = build()
            assert done.returncode == 1 and "/etc/subuid" in done.stdout.splitlines()[-1], done
        assert list(home.glob(f"{PREFIX}*")) == []


# Passwords -------------------------------------------------------------------------------------


def test_a_password_is_in_no_argument_and_no_variable_of_a_builder(
    space: Space, tmp_path: Path
) -> None:
    """Looked at from outside while a real build runs."""
    hold = 'RUN ["/bin/sh", "-c", "until [ -e /dev/shm/%s ]; do /bin/sh -c :; done"]\n'
    name = f"nb-{os.getpid()}-{tmp_path.name}"
    mark = Path("/dev/shm") / name
    mark.unlink(missing_ok=True)
    project(tmp_path / "r", Dockerfile=DOCKERFILE + hold % name)
    secret = space.login.password
    done: list[tuple[int, str]] = []
    old, tempfile.tempdir = tempfile.tempdir, str(tmp_path)
    try:
        thread = threading.Thread(
            target=lambda: done.append(space.build(tmp_path / "r", "buildah"))
        )
        thread.start()

        def held() -> list[Path]:
            return [
                entry
                for entry in Path("/proc").glob("[0-9]*")
                if name.encode() in _bytes(entry / "cmdline")
            ]

        waiting = until(held, "the step that waits", 60)
        for entry in waiting:
            assert secret.encode() not in _bytes(entry / "cmdline")
            assert secret.encode() not in _bytes(entry / "environ")
        for entry in Path("/proc").glob("[0-9]*"):
            assert secret.encode() not in _bytes(entry / "cmdline")
        [directory] = tmp_path.glob(f"{PREFIX}*")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for file in (directory / "auth.json", directory / "docker" / "config.json"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        mark.write_text("")
        thread.join(60)
        mark.unlink()
        tempfile.tempdir = old
    assert done[0][0] == 0, done
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_jobs_password_goes_to_the_jobs_registry_only(space: Space) -> None:
    for image in ("registry.example.net/a/b", f"127.0.0.1:{space.registry.port + 1}/a/b"):
        place, login = container_command.place_of(Wishes(image=image), space.environ())
        assert login is None
        place.registry.close()
    place, login = container_command.place_of(Wishes(), space.environ())
    assert login == space.login


def test_a_killed_builds_login_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from notebooks_service.images.private_login import login_files\n"
        "from notebooks_service.images.registry import Login\n"
        "with login_files('r.example.org', Login('me', 'secret'), {}): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    [left] = tmp_path.glob(f"{PREFIX}*")
    with login_files("r.example.org", Login("me", "other"), {}) as outer:
        assert not left.exists()
        with login_files("r.example.org", None, {}) as inner:
            assert outer.docker.exists()  # it is in use
            assert "other" not in inner.containers.read_text()
    assert list(tmp_path.iterdir()) == []


def test_what_docker_knows_already_stays_known(tmp_path: Path) -> None:
    own = tmp_path / ".docker"
    (own / "contexts").mkdir(parents=True)
    (own / "config.json").write_text(
        '{"auths": {"base.example.org": {"auth": "eA=="}}, "credsStore": "desktop", "proxies": {}}'
    )
    with login_files("r.example.org", Login("me", "x"), {"HOME": str(tmp_path)}) as files:
        text = (files.docker / "config.json").read_text()
        assert "base.example.org" in text and '"credHelpers": {"r.example.org": ""}' in text
        assert "base.example.org" in files.containers.read_text()
        assert (files.docker / "contexts").is_dir()


def test_labels_hold_texts() -> None:
    text = "notebooks environment 2\ninput 100644 " + "0" * 40 + ' "a"\n'
    assert unpacked(packed(text)) == text
    bomb = packed("0" * 50_000_000)
    assert len(unpacked(bomb)) == 4 * 2**20
    for label in ("", "x", "eA==", "é"):
        assert unpacked(label) == ""
