"""Container images end to end with what is in the box: forge, runner, jobs behind walls, a real registry.

One forge that answers from one docker-registry, and one runner, for all tests of this file.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import gitlab
import httpx
import pytest
from images_container import (
    DOCKERFILE,
    PYTHON,
    RUNS,
    SMALL,
    buildah_storage,
    busybox,
    need_user_namespaces,
)

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.domain import ImageOrigin
from notebooks_service.errors import RegistryUnavailable
from notebooks_service.forge import registry_tokens
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.container_registry import ContainerRegistry, created, size
from notebooks_service.forge.models import Project
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.registry import MEDIA_TYPES, Login, Manifest, RegistryClient
from notebooks_service.images.starting_files import init
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.settings import Settings
from registry_fixtures import Registry, need_registry, push_image
from runner_fixtures import RunnerProcess, Workspace, until

PLAIN = """\
image_build:
  variables: {BUILDAH_ISOLATION: chroot, STORAGE_DRIVER: vfs}
  script:
    - printf '%s' "$CI_REGISTRY_PASSWORD" | buildah login --tls-verify=false
      --username "$CI_REGISTRY_USER" --password-stdin "$CI_REGISTRY"
    - buildah build --tag "$CI_REGISTRY_IMAGE:$CI_COMMIT_SHA" .
    - buildah push --tls-verify=false "$CI_REGISTRY_IMAGE:$CI_COMMIT_SHA"
"""

JOB_SIZE = 100 * 2**20


class House:
    """What ``notebooks up`` would be with a registry of containers."""

    def __init__(self, root: Path) -> None:
        self.forge = ForgeProcess(root / "data")
        # The registry wants to see what signs its tokens when it starts.
        registry_tokens.write_files(ForgeConfig(self.forge.data, self.forge.url))
        (root / "registry").mkdir()
        self.registry = Registry(self.forge, root / "registry")
        self.forge.arguments = ["--registry", self.registry.url]
        self.forge.start()
        self.runner = RunnerProcess(self.forge, root / "runner")
        self.start_runner()

    def start_runner(self, walls: str = "auto") -> None:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NOTEBOOKS_JOB_SIZE", str(JOB_SIZE))
            environment.setenv("NOTEBOOKS_WALLS", walls)
            self.runner.start()

    def close(self) -> None:
        self.runner.stop()
        self.registry.kill()
        self.forge.stop()
        self.forge.administration.close()

    def client(self, space: Workspace) -> RegistryClient:
        login = Login(space.username, space.token)
        return RegistryClient(self.registry.url, realms=[f"{self.forge.url}/jwt/auth"], login=login)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    need_registry()
    made = House(tmp_path_factory.mktemp("house"))
    yield made
    made.close()


@pytest.fixture
def space(house: House, tmp_path: Path) -> Workspace:
    return Workspace(house.forge, tmp_path)


def fill(directory: Path, dockerfile: str = DOCKERFILE) -> None:
    """An image that needs nothing from the network."""
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed here (Debian has it: apt-get install buildah)")
    (directory / "Dockerfile").write_text(dockerfile)
    (directory / "requirements.txt").write_text("six==1.16.0\n")
    (directory / "busybox").write_bytes(busybox())
    (directory / "python3").write_text(PYTHON)
    for name in ("busybox", "python3"):
        (directory / name).chmod(0o755)


def test_the_template_builds_once_and_then_only_tags(house: House, space: Workspace) -> None:
    """What ``notebooks init`` puts there, unchanged; only the Dockerfile is one without a network."""
    if shutil.which("git-lfs") is None:
        pytest.skip(
            "git-lfs is not installed here, and behind a wall the template cannot install it"
        )
    need_user_namespaces()
    init(space.clone, ask=None, yes=True)
    fill(space.clone)
    first = space.push()
    job = space.ended(first, "image_build", 120)
    log = space.trace(job.id)
    assert job.status == "success", log
    assert "Building with buildah" in log

    second = space.push(files={"README.md": "another line\n"})
    job = space.ended(second, "image_build", 60)
    log = space.trace(job.id)
    assert job.status == "success", log
    assert "built already" in log and "Building with" not in log

    # GitLab's API of the forge, which the service asks.
    image = f"{house.registry.name}/{space.path.lower()}"
    (repository,) = space.api.repositories.list(get_all=True, tags=True, tags_count=True)
    assert repository.location == image and repository.tags_count == 3
    assert space.api.container_registry_image_prefix == image
    names = {tag["name"] for tag in repository.attributes["tags"]}
    [environment] = names - {first, second}
    assert environment.startswith("env-") and len(environment) == 68
    details = [repository.tags.get(name) for name in (first, second, environment)]
    assert len({one.digest for one in details}) == 1
    with closing(house.client(space)) as client:
        assert client.head(space.path.lower(), first) == details[0].digest
    assert details[0].location == f"{image}:{first}" and details[0].total_size > 100_000
    assert details[0].created_at[:2] == "20" and details[0].created_at.endswith("Z")
    assert details[0].revision != details[0].digest.removeprefix("sha256:")
    with closing(Forge(house.forge.url, space.token)) as service:
        project = service.project(space.path)
        found = service.registry.tag(project, second)
        assert found is not None and found.digest == details[0].digest
        assert set(service.registry.tags(project)) == names
    # A tag that is not alone is not deleted by a registry that would take the others with it.
    with pytest.raises(gitlab.GitlabDeleteError, match="another tag") as refused:
        repository.tags.delete(first)
    assert refused.value.response_code == 400
    assert len(repository.tags.list(get_all=True)) == 3


def test_a_job_that_knows_nothing_of_us(house: House, space: Workspace) -> None:
    need_user_namespaces()
    fill(space.clone)
    sha = space.push(PLAIN)
    job = space.ended(sha, "image_build", 120)
    assert job.status == "success", space.trace(job.id)
    (repository,) = space.api.repositories.list(get_all=True)
    assert [tag.name for tag in repository.tags.list(get_all=True)] == [sha]
    # It is the only one of its image, so it can go.
    repository.tags.delete(sha)
    assert space.api.repositories.list(get_all=True) == []
    with pytest.raises(gitlab.GitlabDeleteError, match="404"):
        repository.tags.delete(sha)


JOB_FOR_BUILDS = """\
image_build:
  variables: {BUILDAH_ISOLATION: chroot, STORAGE_DRIVER: vfs}
  script: [notebooks image build --builder buildah]
"""
OWN_JOBS: dict[str, tuple[dict[str, str], list[str]]] = {
    # An import runs nothing; the Dockerfile is where the project's own job says, and so is its stage.
    "named by the job": (
        {
            ".gitlab-ci.yml": (
                "image_build:\n  script: [make image]\n  variables:\n    NOTEBOOKS_DOCKERFILE: docker/it\n"
                '    NOTEBOOKS_TARGET: wanted\n    NOTEBOOKS_BUILD_ARGS: \'{"WHAT": "requirements.txt"}\'\n'
            ),
            "docker/it": (
                "FROM scratch AS wanted\nARG WHAT\nCOPY ${WHAT} /\n"
                "FROM scratch\nCOPY README.md /nowhere/to/be/built\n"
            ),
        },
        ["docker/it", "requirements.txt"],
    ),
    # The CI file is in the image, so it is that file's own job that makes it.
    "with the CI file in it": (
        {
            ".gitlab-ci.yml": JOB_FOR_BUILDS,
            "Dockerfile": "FROM scratch\nCOPY . /\n",
            ".dockerignore": "README.md\n",
        },
        [".dockerignore", ".gitlab-ci.yml", "Dockerfile", "requirements.txt"],
    ),
}


@pytest.mark.parametrize("kind", OWN_JOBS)
async def test_a_build_on_demand_is_found_by_the_name_that_the_hub_gave_it(
    house: House, tmp_path: Path, kind: str
) -> None:
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed here (Debian has it: apt-get install buildah)")
    files, inputs = OWN_JOBS[kind]
    shas = make_repository(
        tmp_path / "source", {**files, "requirements.txt": "six\n"}, {"README.md": "x"}
    )
    owner = house.forge.user()
    path = f"{owner}/demand"
    house.forge.project(tmp_path / "source", path, owner)
    ci = tmp_path / "ci.yml"
    ci.write_text(JOB_FOR_BUILDS)
    settings = Settings(
        data=tmp_path / "hub", forge_url=house.forge.url, on_demand_ci_file=ci, image_poll=0.2
    )
    watcher = ImageWatcher(settings, None)
    with closing(Forge(house.forge.url, house.forge.token(owner))) as forge:
        project = await asyncio.to_thread(forge.project, path)
        images = []
        for sha in shas:
            commit = await asyncio.to_thread(forge.commit, project, sha)
            found = watcher.resolve(forge, project, commit, lambda job: None)
            images.append(await asyncio.wait_for(found, 240))
        assert [one.origin for one in images] == [
            ImageOrigin.BUILT_ON_DEMAND,
            ImageOrigin.ENVIRONMENT,
        ], images
        assert images[0].digest is not None and images[0].digest == images[1].digest
        assert images[0].evidence["inputs"] == inputs
        tags = await asyncio.to_thread(forge.registry.tags, project)
        assert f"env-{images[0].evidence['fingerprint']}" in tags
        branches = await asyncio.to_thread(forge.branches, project)
        assert [one.name for one in branches] == ["main"]
    watcher.close()


def test_a_job_that_writes_too_much(house: House, space: Workspace) -> None:
    fills = f"head -c {JOB_SIZE + 2**20} /dev/zero >f; sleep 600"
    job = space.ended(space.push(f"job: {{script: ['{fills}']}}"), seconds=60)
    trace = space.trace(job.id)
    assert (job.status, job.failure_reason) == ("failed", "script_failure"), trace
    assert "written more than the 100 MiB" in trace and "`job_size`" in trace
    until(lambda: house.runner.builds == [], "the end of what it wrote")


# The forge's answers --------------------------------------------------------------------------


@pytest.fixture
def pushed(house: House, space: Workspace) -> tuple[str, RegistryClient]:
    """A project with two images, one of them a list, under many tags."""
    path = space.path.lower()
    client = house.client(space)
    image = push_image(client, path, MEDIA_TYPES[1])
    for number in range(23):
        client.put(path, f"v{number:02}", image)
    client.put(path, "listed", push_image(client, path, MEDIA_TYPES[0]))
    return path, client


def test_lists_and_details(
    house: House, space: Workspace, pushed: tuple[str, RegistryClient]
) -> None:
    path, client = pushed
    (repository,) = space.api.repositories.list(get_all=True)
    base = f"{house.forge.url}/api/v4/projects/{space.id}/registry/repositories/{repository.id}"
    headers = {"PRIVATE-TOKEN": space.token}
    pages = [httpx.get(f"{base}/tags?per_page=10&page={n}", headers=headers) for n in (1, 2, 3)]
    assert [len(page.json()) for page in pages] == [10, 10, 5]
    assert pages[0].headers["x-total"] == "25" and 'rel="next"' in pages[0].headers["link"]
    names = [row["name"] for page in pages for row in page.json()]
    assert names == sorted(client.tags(path))
    listed = repository.tags.get("listed")
    assert listed.digest == client.head(path, "listed")
    assert (listed.revision, listed.total_size, listed.created_at) == (None, None, None)
    one = repository.tags.get("v00")
    assert one.digest == client.head(path, "v00") and (one.total_size, one.created_at) == (0, None)
    for wrong in ("none", "..", "-x", "a b", "x" * 129):
        answer = httpx.get(f"{base}/tags/{wrong.replace(' ', '%20')}", headers=headers)
        assert answer.status_code in (404, 501), wrong
    # Who may not see the project learns nothing.
    stranger = {"PRIVATE-TOKEN": house.forge.token(house.forge.user())}
    assert httpx.get(f"{base}/tags", headers=stranger).status_code == 404


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("2024-05-01T10:20:30.123456789Z", "2024-05-01T10:20:30.123Z"),
        ("2024-05-01T12:20:30+02:00", "2024-05-01T10:20:30.000Z"),
        ("2024-05-01T10:20:30", "2024-05-01T10:20:30.000Z"),
        ("0001-01-01T00:00:00+14:00", ""),
        ("yesterday", ""),
        ("2" * 50, ""),
        (7, ""),
        (None, ""),
    ],
)
def test_when_an_image_says_that_it_was_made(said: object, shown: str) -> None:
    assert created(said) == shown


@pytest.mark.parametrize(
    ("content", "bytes_there"),
    [
        ('{"layers": [{"size": 3}, {"size": 4}]}', 7),
        ('{"layers": []}', 0),
        ('{"manifests": []}', None),
        ('{"layers": [{"size": -1}]}', None),
        ('{"layers": [{"size": true}]}', None),
        ('{"layers": [{"size": 1e3}]}', None),
        ('{"layers": [7]}', None),
        ("[]", None),
        ("x", None),
    ],
)
def test_the_size_of_an_image(content: str, bytes_there: int | None) -> None:
    manifest = Manifest(MEDIA_TYPES[1], content.encode(), "sha256:" + "0" * 64)
    assert size(manifest) == bytes_there


def test_a_path_that_no_registry_takes_has_no_images(tmp_path: Path) -> None:
    """Nobody is asked: nothing could have been pushed there."""
    registry = ContainerRegistry(ForgeConfig(tmp_path, "http://f", registry="http://127.0.0.1:1"))
    project = Project(full_path="Group/a.-b")
    assert registry.names(project) == [] and registry.tag(project, "x") is None
    assert registry.remove_tag(project, "x") is False
    registry.remove_all(project)
    with pytest.raises(RegistryUnavailable):
        registry.names(Project(full_path="Group/Fine"))


def test_no_image_stays_for_the_next_at_a_path(
    house: House, space: Workspace, pushed: tuple[str, RegistryClient]
) -> None:
    """Images lie where the path says: whoever has it next would get them."""
    path, client = pushed
    group = space.gitlab.groups.create({"name": space.username, "path": f"{space.username}-g"})
    for change in (
        lambda: space.gitlab.projects.update(space.id, {"path": "other"}),
        lambda: space.api.transfer(group.id),
    ):
        with pytest.raises(gitlab.GitlabError, match="container registry") as refused:
            change()
        assert refused.value.response_code == 400
    assert space.gitlab.projects.get(space.id).path_with_namespace == space.path
    # In a group, its path and its end.
    inner = space.gitlab.projects.create(
        {"name": "inner", "path": "inner", "namespace_id": group.id}
    )
    inner_path = inner.path_with_namespace.lower()
    client.put(inner_path, "one", push_image(client, inner_path, MEDIA_TYPES[1]))
    group.path = f"{space.username}-h"
    with pytest.raises(gitlab.GitlabError, match="under this group"):
        group.save()
    group.delete()
    assert client.tags(inner_path) == []
    space.api.delete()
    again = space.gitlab.projects.create({"name": "again", "path": space.path.rpartition("/")[2]})
    assert again.path_with_namespace == space.path
    assert client.tags(path) == [] and again.repositories.list(get_all=True) == []


def test_a_registry_that_is_away_or_hangs(house: House, space: Workspace) -> None:
    """503 in GitLab's words, soon; the rest of the forge goes on, and writes too."""
    base = f"{house.forge.url}/api/v4/projects/{space.id}"
    tags = f"{base}/registry/repositories/{space.id}/tags"

    def ask(method: str, url: str) -> tuple[int, str, float]:
        began = time.monotonic()
        answer = httpx.request(method, url, headers={"PRIVATE-TOKEN": space.token}, timeout=60)
        return answer.status_code, answer.text, time.monotonic() - began

    said = json.dumps({"message": "503 Service Unavailable"}, separators=(",", ":"))
    house.registry.kill()
    try:
        for method, url in (("GET", tags), ("GET", f"{tags}/x"), ("DELETE", f"{tags}/x")):
            status, text, took = ask(method, url)
            assert (status, text) == (503, said) and took < 40
        assert ask("DELETE", base)[0] == 503  # its images would stay
        assert ask("GET", base)[0] == 200
    finally:
        house.registry.start()
    house.registry.process.send_signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(60) as pool:
            hanging = [pool.submit(ask, "GET", tags) for _ in range(50)]
            hanging += [pool.submit(ask, "DELETE", f"{tags}/x") for _ in range(4)]
            changed = space.gitlab.projects.update(space.id, {"description": "still written"})
            assert changed["description"] == "still written"
            assert not all(one.done() for one in hanging)
            assert {one.result()[0] for one in hanging} == {503}
    finally:
        house.registry.process.send_signal(signal.SIGCONT)
    assert ask("GET", f"{base}/registry/repositories")[:2] == (200, "[]")


# Kills ----------------------------------------------------------------------------------------


class Gate:
    """A step of a build that waits for us: its ``nc`` ends when the connection does."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(60)
        self.port = self._socket.getsockname()[1]
        self.step = f'RUN ["/bin/sh", "-c", "nc 127.0.0.1 {self.port} </dev/null; true"]\n'

    def wait(self) -> socket.socket:
        """The connection of a build that has come this far."""
        return self._socket.accept()[0]

    def open(self) -> None:
        """Whoever comes from now on does not wait."""

        def let_through() -> None:
            while True:
                try:
                    self._socket.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=let_through, daemon=True).start()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.close()


@pytest.fixture(scope="module")
def unwalled(house: House) -> Iterator[str]:
    """The runner without a wall around its jobs, for steps that run: they need more than one user number.

    Gives the CI file of a build there; images lie where a test may leave them.
    """
    with buildah_storage() as variables:
        house.runner.stop()
        house.start_runner("none")
        given = "".join(f"    {name}: '{value}'\n" for name, value in variables.items())
        yield (
            f"image_build:\n  variables:\n{given}"
            "  script: [notebooks image build --builder buildah]\n"
        )
        house.runner.stop()


def finished(space: Workspace, sha: str) -> None:
    """The commit's job, tried again if it failed, ends well."""
    job = space.ended(sha, "image_build", 120)
    if job.status != "success":
        retried = job.retry()
        job = space.reached(retried["id"], "success", "failed", seconds=120)
    assert job.status == "success", space.trace(job.id)


def check_whole(house: House, space: Workspace, sha: str) -> None:
    path = space.path.lower()
    with closing(house.client(space)) as client:
        names = client.tags(path)
        assert sha in names and len(names) == 2
        assert len({client.head(path, name) for name in names}) == 1


def test_a_runner_killed_in_a_build(
    house: House, space: Workspace, gate: Gate, unwalled: str
) -> None:
    fill(space.clone, RUNS + gate.step)
    sha = space.push(unwalled)
    with gate.wait() as held:
        house.runner.stop(signal.SIGKILL)
        # Nothing of the build outlives it: the other end goes away.
        held.settimeout(60)
        assert held.recv(1) == b""
    with closing(house.client(space)) as client:
        assert client.tags(space.path.lower()) == []
    gate.open()
    house.start_runner("none")
    assert space.ended(sha, "image_build", 60).status == "failed"
    until(lambda: house.runner.builds == [], "the end of what it left")
    finished(space, sha)
    check_whole(house, space, sha)


def test_a_forge_killed_between_build_and_push(
    house: House, space: Workspace, gate: Gate, unwalled: str
) -> None:
    """It is the token service too: without it nobody may push."""
    fill(space.clone, RUNS + gate.step)
    sha = space.push(unwalled)
    with gate.wait():
        house.forge.stop(signal.SIGKILL)
        gate.open()
    house.forge.start()
    finished(space, sha)
    check_whole(house, space, sha)


def pushed_so_far(house: House, space: Workspace, what: str) -> Iterator[Path]:
    """What of a project's image lies in the registry: ``what`` is a pattern in its repository."""
    place = house.registry.directory / "images/docker/registry/v2/repositories" / space.path.lower()
    return place.glob(what)


def stop_registry_once(house: House, space: Workspace, what: str) -> None:
    """Holds the registry, and by it whoever pushes there, at the moment when ``what`` is there."""
    deadline = time.monotonic() + 60
    while not any(pushed_so_far(house, space, what)):
        assert time.monotonic() < deadline, f"{what} never came"
        time.sleep(0.001)
    house.registry.process.send_signal(signal.SIGSTOP)


@pytest.mark.parametrize("who", ["runner", "forge"])
@pytest.mark.parametrize(
    ("step", "seen", "not_yet"),
    [
        ("push", "_uploads/*/data", "_manifests/tags/*"),
        ("tag", "_manifests/tags/*/current/link", "_manifests/tags/env-*"),
    ],
    ids=["push", "tag"],
)
def test_killed_while_an_image_is_pushed_or_tagged(
    house: House, space: Workspace, unwalled: str, who: str, step: str, seen: str, not_yet: str
) -> None:
    fill(space.clone, SMALL)
    sha = space.push(unwalled)
    stop_registry_once(house, space, seen)
    try:
        assert not any(pushed_so_far(house, space, not_yet)), f"too late for the {step}"
        (house.runner if who == "runner" else house.forge).stop(signal.SIGKILL)
    finally:
        house.registry.process.send_signal(signal.SIGCONT)
    if who == "runner":
        house.start_runner("none")
        assert space.ended(sha, "image_build", 60).status == "failed"
    else:
        house.forge.start()
    finished(space, sha)
    check_whole(house, space, sha)


def test_a_registry_killed_in_a_build(
    house: House, space: Workspace, gate: Gate, unwalled: str
) -> None:
    fill(space.clone, RUNS + gate.step)
    sha = space.push(unwalled)
    with gate.wait():
        house.registry.kill()
        gate.open()
    try:
        job = space.ended(sha, "image_build", 120)
        assert job.status == "failed"
        assert "does not answer" in space.trace(job.id)
    finally:
        house.registry.start()
    finished(space, sha)
    check_whole(house, space, sha)
