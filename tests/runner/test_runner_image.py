"""The built-in ``image_build`` from push to registry: real uv, real environment, the service's own eyes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import gitlab
import pytest

from forge_fixtures import StartForge
from notebooks_service.gitlab.forge import Forge
from runner_fixtures import StartRunner, Workspace


def test_a_push_builds_the_environment_of_its_commit(
    start_forge: StartForge, start_runner: StartRunner, tmp_path: Path
) -> None:
    forge = start_forge()
    workspace = Workspace(forge, tmp_path)
    environments = forge.data / "environments"
    start_runner(forge, "--environments", str(environments))
    first = workspace.push(files={"requirements.txt": "iniconfig==2.0.0\n"})
    job = workspace.ended(first, "image_build", 240)
    trace = workspace.trace(job.id)
    assert job.status == "success", trace
    second = workspace.push(files={"notes.md": "nothing of the environment\n"})
    again = workspace.ended(second, "image_build")
    assert again.status == "success" and "built already" in workspace.trace(again.id)

    (repository,) = workspace.api.repositories.list(get_all=True, tags=True, tags_count=True)
    assert (repository.id, repository.path) == (workspace.id, workspace.path)
    assert repository.tags_count == 3
    names = {tag["name"] for tag in repository.attributes["tags"]}
    (environment,) = names - {first, second}
    assert re.fullmatch(r"env-[0-9a-f]{64}", environment)
    host = forge.url.removeprefix("http://")
    assert repository.location == f"{host}/{workspace.path}"
    listed = repository.tags.list(get_all=True)
    assert sorted(tag.name for tag in listed) == sorted((first, second, environment))
    details = [repository.tags.get(sha) for sha in (first, second)]
    assert details[0].digest == details[1].digest and details[0].digest.startswith("sha256:")
    assert details[0].location == f"{host}/{workspace.path}:{first}"
    assert details[0].revision == details[0].digest.removeprefix("sha256:")
    assert details[0].short_revision == details[0].revision[:9] and details[0].created_at

    service = Forge(forge.url, forge.token(workspace.username, "read_api"))
    project = service.project(workspace.path)
    found = service.registry.tag(project, first)
    assert found is not None and found.digest == details[0].digest
    assert [one.status for one in service.ci.jobs(project, first, "image_build")] == ["success"]
    assert service.ci.trace(project, job.id).decode() == trace
    assert service.ci.trace(project, job.id, 10).decode() == trace[10:]

    reader = gitlab.Gitlab(forge.url, private_token=forge.token(workspace.username, "read_api"))
    (read_only,) = reader.projects.get(workspace.id).repositories.list(get_all=True)
    with pytest.raises(gitlab.GitlabDeleteError):
        read_only.tags.delete(first)
    repository.tags.delete(first)
    assert service.registry.tag(project, first) is None
    assert service.registry.tag(project, second) is not None
    with pytest.raises(gitlab.GitlabHttpError):
        gitlab.Gitlab(forge.url, private_token=forge.token(forge.user())).http_get(
            f"/projects/{workspace.id}/registry/repositories"
        )
    python = next(environments.glob(f"{workspace.id}/*/bin/python"), None) or next(
        environments.glob(f"{workspace.id}/*/*/bin/python")
    )
    shown = subprocess.run(
        [python, "-c", "import iniconfig, importlib.metadata as m; print(m.version('iniconfig'))"],
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == "2.0.0"
