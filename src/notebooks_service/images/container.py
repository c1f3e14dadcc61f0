"""What the files of a commit say of its container image; called by ``images/fingerprint.py``.

First that applies: the Dockerfile that the caller names, the one that the project's own job builds,
the one at repo2docker's place, the files that describe a Python environment, nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace

from notebooks_service.errors import BuildFailed
from notebooks_service.images.ci_job import JobBuild, read_job
from notebooks_service.images.context import Context, inside
from notebooks_service.images.dockerfile import read_dockerfile
from notebooks_service.images.inputs import Found, Input
from notebooks_service.images.patterns import Ignore
from notebooks_service.images.python_files import python_environment
from notebooks_service.images.tree import DIRECTORY, SUBMODULE, CommitFiles, Entry, follow

BINDER = ("binder", ".binder")


def container_environment(
    files: CommitFiles,
    *,
    dockerfile: str | None,
    context: str | None,
    target: str,
    build_args: Mapping[str, str],
    platform: str,
    job: str,
    buildah: bool,
) -> Found:
    """What an image of this commit depends on. Options as in ``BuildOptions``; ``buildah``: it is
    buildah that builds. Raises ``BuildFailed``."""
    said = JobBuild() if dockerfile is not None else read_job(files, job)
    arguments = {**said.build_args, **build_args}
    named = dockerfile if dockerfile is not None else said.dockerfile
    place = None if named is not None else _place(files)
    path = named if named is not None else posixpath.join(place or "", "Dockerfile")
    root = context if context is not None else (said.context or "")
    if place is None or _file(files, path)[1] is not None:
        found = _from_dockerfile(
            files, inside(path), inside(root), target or said.target, arguments, platform, buildah
        )
    else:
        found = replace(python_environment(files, place), context=place)
    return replace(found, unsure=(*found.unsure, *said.unsure))


def _place(files: CommitFiles) -> str:
    """Where the files of an environment lie, "" for the root."""
    top = files.listing("")
    found = [name for name in BINDER if name in top and top[name].mode == DIRECTORY]
    if len(found) > 1:
        raise BuildFailed("There are `binder/` and `.binder/`; an environment is described in one.")
    return found[0] if found else ""


def _file(files: CommitFiles, path: str) -> tuple[tuple[Entry, ...], Entry | None]:
    links, entry = follow(files, path)
    return links, None if entry is None or entry.mode in (DIRECTORY, SUBMODULE) else entry


def _from_dockerfile(
    files: CommitFiles,
    path: str,
    root: str,
    target: str,
    build_args: Mapping[str, str],
    platform: str,
    buildah: bool,
) -> Found:
    links, entry = _file(files, path)
    if entry is None:
        raise BuildFailed(f"There is no Dockerfile `{path}` in this commit.")
    plan = read_dockerfile(
        files.content(entry), path, build_args=build_args, target=target, platform=platform
    )
    context = Context(files, root, _ignore(files, path, root, buildah))
    for source in dict.fromkeys(plan.sources):
        context.take(source.path, source.why, glob=source.glob, deep=source.deep)
    inputs = {each.path: each for each in context.inputs}
    # The builder reads the Dockerfile whether or not the context has it.
    inputs |= {
        each.path: Input(each.path, each.mode, each.blob, "the Dockerfile")
        for each in (*links, entry)
    }
    return Found(
        "dockerfile",
        inputs=tuple(inputs.values()),
        dockerfile=path,
        context=root,
        target=target,
        build_args=build_args,
        bases=tuple(dict.fromkeys(plan.bases)),
        moving=tuple(dict.fromkeys(plan.moving)),
        unsure=tuple(dict.fromkeys((*plan.unsure, *context.unsure))),
    )


def _ignore(files: CommitFiles, dockerfile: str, root: str, buildah: bool) -> Ignore:
    """The rules that apply: those beside the Dockerfile, else those of the context."""
    names = [f"{dockerfile}.dockerignore", posixpath.join(root, ".dockerignore")]
    if buildah:
        names = [
            f"{dockerfile}.containerignore",
            names[0],
            posixpath.join(root, ".containerignore"),
            names[1],
        ]
    for name in names:
        _, entry = _file(files, name)
        if entry is not None:
            text = files.content(entry).decode("utf-8-sig", "replace")
            return Ignore(text.split("\n"), name)
    return Ignore()
