"""The variables of pipelines and jobs, predefined ones as GitLab names them; pure.

https://docs.gitlab.com/ci/variables/predefined_variables/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from notebooks_service.forge.ci_expressions import expand_all
from notebooks_service.forge.ci_git import CommitFacts
from notebooks_service.forge.ci_models import GroupVariable, Job, Pipeline, Runner, Variable
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import iso
from notebooks_service.forge.hooks.pre_receive import matches
from notebooks_service.forge.models import Project, User
from notebooks_service.forge.routes_meta import GITLAB_VERSION

OwnVariable = Variable | GroupVariable

SERVER_NAME = "GitLab"
TEXT_LIMIT = 100_000
SERVER_VERSION = GITLAB_VERSION.partition("-")[0]


@dataclass(frozen=True)
class JobVariable:
    """One variable as a runner gets it."""

    key: str
    value: str
    public: bool = True
    masked: bool = False
    file: bool = False
    raw: bool = False

    def body(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "value": self.value,
            "public": self.public,
            "file": self.file,
            "masked": self.masked,
            "raw": self.raw,
        }


def slug(text: str) -> str:
    """``CI_COMMIT_REF_SLUG``: lower case, 63 characters, only ``0-9a-z-``."""
    return re.sub(r"[^a-z0-9]", "-", text.lower())[:63].strip("-")


def registry_image(config: ForgeConfig, project: Project) -> str:
    """Where the images of a project are, without a tag."""
    return f"{config.registry_host}/{project.full_path.lower()}"


def of_project(config: ForgeConfig, project: Project) -> dict[str, str]:
    parts = urlsplit(config.url)
    url = f"{config.url}/{project.full_path}"
    return {
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_SERVER": "yes",
        "CI_SERVER_URL": config.url,
        "CI_SERVER_HOST": parts.hostname or "",
        "CI_SERVER_FQDN": parts.netloc,
        "CI_SERVER_PORT": str(parts.port or (443 if config.secure else 80)),
        "CI_SERVER_PROTOCOL": parts.scheme,
        "CI_SERVER_NAME": SERVER_NAME,
        "CI_SERVER_VERSION": SERVER_VERSION,
        "CI_SERVER_VERSION_MAJOR": SERVER_VERSION.split(".")[0],
        "CI_SERVER_VERSION_MINOR": SERVER_VERSION.split(".")[1],
        "CI_SERVER_VERSION_PATCH": SERVER_VERSION.split(".")[2],
        "CI_API_V4_URL": f"{config.url}/api/v4",
        "CI_PROJECT_ID": str(project.id),
        "CI_PROJECT_NAME": project.path,
        "CI_PROJECT_TITLE": project.name,
        "CI_PROJECT_DESCRIPTION": project.description,
        "CI_PROJECT_PATH": project.full_path,
        "CI_PROJECT_PATH_SLUG": slug(project.full_path),
        "CI_PROJECT_NAMESPACE": project.namespace.full_path,
        "CI_PROJECT_NAMESPACE_ID": str(project.namespace_id),
        "CI_PROJECT_ROOT_NAMESPACE": project.full_path.split("/")[0],
        "CI_PROJECT_URL": url,
        "CI_PROJECT_VISIBILITY": project.visibility,
        "CI_DEFAULT_BRANCH": project.default_branch,
        "CI_CONFIG_PATH": ".gitlab-ci.yml",
        "CI_REGISTRY": config.registry_host,
        "CI_REGISTRY_IMAGE": registry_image(config, project),
    }


def visible(
    own: Iterable[OwnVariable], *, protected: bool, environment: str = ""
) -> list[OwnVariable]:
    """Of the variables of one group or project, those that a job sees, the stronger ones last.

    Protected ones are for protected refs, ones with a scope for jobs of a matching environment; of
    two with one key the narrower scope wins.
    https://docs.gitlab.com/ci/environments/#limit-the-environment-scope-of-a-cicd-variable
    """
    seen = [
        variable
        for variable in own
        if (protected or not variable.protected)
        and (
            variable.environment_scope == "*"
            or (environment and matches(variable.environment_scope, environment))
        )
    ]
    return sorted(seen, key=_narrowness)


def _narrowness(variable: OwnVariable) -> tuple[bool, int]:
    scope = variable.environment_scope
    return ("*" not in scope, len(scope))


def _cut(text: str) -> str:
    """GitLab cuts long messages too: no single variable may be longer than 128 KiB on Linux."""
    return text.encode()[:TEXT_LIMIT].decode("utf-8", "ignore")


def of_commit(
    ref: str,
    tag: bool,
    protected: bool,
    sha: str,
    before_sha: str,
    source: str,
    commit: CommitFacts | None,
) -> dict[str, str]:
    found = {
        "CI_PIPELINE_SOURCE": source,
        "CI_COMMIT_SHA": sha,
        "CI_COMMIT_SHORT_SHA": sha[:8],
        "CI_COMMIT_BEFORE_SHA": before_sha,
        "CI_COMMIT_REF_NAME": ref,
        "CI_COMMIT_REF_SLUG": slug(ref),
        "CI_COMMIT_REF_PROTECTED": "true" if protected else "false",
    }
    if tag:
        found["CI_COMMIT_TAG"] = ref
    else:
        found["CI_COMMIT_BRANCH"] = ref
    if commit is not None:
        found |= {
            "CI_COMMIT_MESSAGE": _cut(commit.message),
            "CI_COMMIT_TITLE": commit.title,
            "CI_COMMIT_DESCRIPTION": _cut(commit.description),
            "CI_COMMIT_AUTHOR": f"{commit.author_name} <{commit.author_email}>",
            "CI_COMMIT_TIMESTAMP": commit.committed_at,
        }
    return found


def of_user(user: User | None) -> dict[str, str]:
    if user is None:
        return {}
    return {
        "GITLAB_USER_ID": str(user.id),
        "GITLAB_USER_LOGIN": user.username,
        "GITLAB_USER_NAME": user.name,
        "GITLAB_USER_EMAIL": user.email,
    }


def _of_job(
    config: ForgeConfig, project: Project, pipeline: Pipeline, job: Job, runner: Runner
) -> dict[str, str]:
    url = f"{config.url}/{project.full_path}"
    return {
        "CI_PIPELINE_ID": str(pipeline.id),
        "CI_PIPELINE_IID": str(pipeline.iid),
        "CI_PIPELINE_URL": f"{url}/-/pipelines/{pipeline.id}",
        "CI_PIPELINE_CREATED_AT": iso(pipeline.created_at) or "",
        "CI_PIPELINE_NAME": pipeline.name or "",
        "CI_JOB_ID": str(job.id),
        "CI_JOB_URL": f"{url}/-/jobs/{job.id}",
        "CI_JOB_NAME": job.name,
        "CI_JOB_NAME_SLUG": slug(job.name),
        "CI_JOB_STAGE": job.stage,
        "CI_JOB_STARTED_AT": iso(job.started_at) or "",
        "CI_JOB_TIMEOUT": str(job.timeout),
        "CI_JOB_IMAGE": str((job.options.get("image") or {}).get("name", "")),
        "CI_JOB_MANUAL": "true" if job.when == "manual" else "",
        "CI_RUNNER_ID": str(runner.id),
        "CI_RUNNER_DESCRIPTION": runner.description,
        "CI_RUNNER_TAGS": str(list(runner.tags)).replace("'", '"'),
    }


def for_job(
    config: ForgeConfig,
    job: Job,
    runner: Runner,
    token: str,
    commit: CommitFacts | None,
    own: Iterable[OwnVariable],
    configured: Mapping[str, str],
    protected: bool,
    reported: Mapping[str, str],
    deploy: tuple[str, str] | None = None,
) -> list[JobVariable]:
    """Everything that ``job`` sees, expanded; a later source wins over an earlier one.

    Order: predefined, the file's global ones, the job's, those that earlier jobs ``reported``,
    groups', the project's, the pipeline's.
    https://docs.gitlab.com/ci/variables/#cicd-variable-precedence
    """
    pipeline, project = job.pipeline, job.pipeline.project
    repository = urlsplit(f"{config.url}/{project.full_path}.git")
    with_token = repository._replace(netloc=f"gitlab-ci-token:{token}@{repository.netloc}").geturl()
    found: dict[str, JobVariable] = {}

    def add(
        values: Mapping[str, str],
        *,
        public: bool = True,
        raw: Iterable[str] = (),
        all_raw: bool = False,
    ) -> None:
        literal = set(raw)
        for key, value in values.items():
            found[key] = JobVariable(key, value, public=public, raw=all_raw or key in literal)

    # Predefined values hold people's text (commit messages): never expanded.
    predefined = {
        **of_project(config, project),
        **of_commit(
            pipeline.ref,
            pipeline.tag,
            protected,
            pipeline.sha,
            pipeline.before_sha,
            pipeline.source,
            commit,
        ),
        **of_user(job.user or pipeline.user),
        **_of_job(config, project, pipeline, job, runner),
    }
    add({key: value for key, value in predefined.items() if value != ""}, all_raw=True)
    add({"CI_REGISTRY_USER": "gitlab-ci-token", "CI_DEPENDENCY_PROXY_USER": "gitlab-ci-token"})
    for key, value in {
        "CI_JOB_TOKEN": token,
        "CI_REGISTRY_PASSWORD": token,
        "CI_REPOSITORY_URL": with_token,
    }.items():
        found[key] = JobVariable(key, value, public=False, masked=True, raw=True)
    if deploy is not None:
        add({"CI_DEPLOY_USER": deploy[0]}, all_raw=True)
        found["CI_DEPLOY_PASSWORD"] = JobVariable(
            "CI_DEPLOY_PASSWORD", deploy[1], public=False, masked=True, raw=True
        )
    raw = job.options.get("raw_variables") or ()
    add(configured, raw=raw)
    add(job.variables, raw=raw)
    add(reported, public=False)
    for variable in own:
        found[variable.key] = JobVariable(
            variable.key,
            variable.value,
            public=False,
            masked=variable.masked,
            file=variable.variable_type == "file",
            raw=variable.raw,
        )
    for item in pipeline.variables:
        found[item["key"]] = JobVariable(
            item["key"], item["value"], public=False, file=item.get("variable_type") == "file"
        )
    values = expand_all(
        {key: one.value for key, one in found.items()},
        raw=[key for key, one in found.items() if one.raw or one.file],
    )
    return [
        JobVariable(one.key, values[key], one.public, one.masked, one.file, one.raw)
        for key, one in found.items()
    ]
