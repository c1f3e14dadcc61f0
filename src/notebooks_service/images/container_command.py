"""``notebooks image build|tag|list|prune`` for images in a container registry: for CI jobs and people.

Called by ``cli_image.py``. Reads GitLab's predefined variables; what a person gives goes before them.
https://docs.gitlab.com/user/packages/container_registry/build_and_push_images/
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import httpx

from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import BuildFailed, InvalidRequest, NotebooksError
from notebooks_service.images import prune
from notebooks_service.images.base_digests import BaseDigests
from notebooks_service.images.base_digests import listed as list_in
from notebooks_service.images.builders import Asked
from notebooks_service.images.clean_checkout import git
from notebooks_service.images.container_build import (
    Place,
    Planned,
    Tools,
    provide,
    tag_only,
)
from notebooks_service.images.fingerprint import BuildOptions, describe, interval_at, name
from notebooks_service.images.generated import generate
from notebooks_service.images.log import BuildLog
from notebooks_service.images.prune import InUse, Unneeded
from notebooks_service.images.registry import Login, RegistryClient, registry_of
from notebooks_service.images.tree import CheckoutTree

REBUILD_AFTER = 7 * 24 * 3600.0
"""Seconds after which an image is built anew whose base or download may have changed."""
MOST_TAGS = 20_000
ONE_RUN = 24 * 3600.0


@dataclass(frozen=True)
class Wishes:
    """What the command line says; empty where it says nothing, then the job's variables count."""

    checkout: Path = Path()
    commit: str = ""
    image: str = ""
    forge: str = ""
    builder: Asked = "auto"
    dockerfile: str | None = None
    context: str | None = None
    target: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)


def image_of(wishes: Wishes, environ: Mapping[str, str]) -> str:
    """Where the project's images are (``host/path``); empty if nobody says."""
    return wishes.image or environ.get("CI_REGISTRY_IMAGE", "")


def place_of(
    wishes: Wishes, environ: Mapping[str, str], http: httpx.Client | None = None
) -> tuple[Place, Login | None]:
    """The project's registry and how to log in there. Raises ``InvalidRequest``.

    A job's own password goes to the job's own registry and to no other that a person names.
    """
    image = image_of(wishes, environ)
    if not image:
        raise InvalidRequest(
            "It is not said where the project's images are: give --image such as "
            "registry.example.org/group/project, or run this in a CI job of a project with a registry."
        )
    url, repository = registry_of(image)
    host = image.partition("/")[0]
    user, password = (
        environ.get(f"NOTEBOOKS_REGISTRY_{word}", "") for word in ("USER", "PASSWORD")
    )
    if not password and host == environ.get("CI_REGISTRY", ""):
        user = environ.get("CI_REGISTRY_USER", "")
        password = environ.get("CI_REGISTRY_PASSWORD", "")
    login = Login(user, password) if user and password else None
    forge = wishes.forge or environ.get("CI_SERVER_URL", "")
    realms = [f"{forge.rstrip('/')}/jwt/auth"] if forge else []
    if realm := environ.get("NOTEBOOKS_REGISTRY_REALM"):
        realms.append(realm)
    client = RegistryClient(url, realms=realms, login=login, http=http)
    return Place(client, repository, image), login


def commit_of(wishes: Wishes, environ: Mapping[str, str]) -> str:
    """The full sha that this is about: what is said, the job's, else the checkout's."""
    said = wishes.commit or environ.get("CI_COMMIT_SHA", "") or "HEAD"
    if is_commit_sha(said):
        return said
    if said.startswith("-"):
        raise InvalidRequest("That names no commit.")
    return git(wishes.checkout, "rev-parse", "--verify", f"{said}^{{commit}}").strip()


def digests_of(wishes: Wishes, environ: Mapping[str, str]) -> BaseDigests:
    """Who is asked what a base image is at present: those whom the service asks too. One answer each."""
    said = list_in(environ.get("NOTEBOOKS_BASE_REGISTRIES", ""))
    forge = wishes.forge or environ.get("CI_SERVER_URL", "")
    return BaseDigests(said, forge, keep=ONE_RUN)


def options_of(
    wishes: Wishes, environ: Mapping[str, str], now: float, digests: BaseDigests | None = None
) -> BuildOptions:
    """How the commit's image is to be built. ``now``: seconds since 1970.

    ``digests``: those of this run, if more than one commit is named in it.
    """
    own = image_of(wishes, environ).partition("/")[0]
    return BuildOptions(
        job=_job(environ),
        base=environ.get("NOTEBOOKS_BASE_IMAGE", ""),
        base_digest=(digests or digests_of(wishes, environ)).asking(own),
        dockerfile=wishes.dockerfile,
        context=wishes.context,
        target=wishes.target,
        build_args=wishes.arguments,
        interval=interval_at(now, _rebuild_after(environ)),
    )


def _job(environ: Mapping[str, str]) -> str:
    """The job whose script and variables say where the Dockerfile is: this one, unless it is said.

    GitLab writes the number of a parallel job behind its name.
    """
    running = re.sub(r"(: \[.*\]| \d+/\d+)\Z", "", environ.get("CI_JOB_NAME", ""))
    return environ.get("NOTEBOOKS_IMAGE_JOB", "") or running or BuildOptions().job


def plan(
    wishes: Wishes,
    sha: str,
    environ: Mapping[str, str],
    now: float,
    digests: BaseDigests | None = None,
) -> Planned:
    """What the commit's image is called and built from.

    Raises ``BuildFailed``, also for a commit that says nothing of its environment, and
    ``RegistryUnavailable`` if a registry that should tell the digest of a base does not answer.
    """
    options = options_of(wishes, environ, now, digests)
    tree = CheckoutTree(wishes.checkout, sha)
    described = describe(tree, options)
    if described.kind == "none":
        raise BuildFailed(
            "No file of this commit says what its image is built from; `notebooks init` puts a Dockerfile "
            "into the repository."
        )
    if described.kind == "python" and not options.base:
        raise BuildFailed(
            "This commit has no Dockerfile, and NOTEBOOKS_BASE_IMAGE (the setting `base_image`) names no "
            "image that its Python environment could be built on; `notebooks init` puts a Dockerfile into "
            "the repository."
        )
    named = name(described, options)
    return Planned(
        sha=sha,
        fingerprint=named.fingerprint,
        text=named.text,
        dockerfile=named.dockerfile,
        context=named.context,
        target=described.target,
        arguments=dict(described.build_args),
        not_reproducible=named.not_reproducible,
        pull=bool(named.bases),
        generated=generate(tree, described.context, options.base)
        if described.kind == "python"
        else None,
    )


def _rebuild_after(environ: Mapping[str, str]) -> float:
    said = environ.get("NOTEBOOKS_REBUILD_AFTER", "")
    try:
        return float(said) if said else REBUILD_AFTER
    except ValueError:
        raise InvalidRequest("NOTEBOOKS_REBUILD_AFTER is no number of seconds.") from None


def build(
    wishes: Wishes, environ: Mapping[str, str], out: TextIO, http: httpx.Client | None = None
) -> int:
    """Makes the registry have the commit's image; exit code 0, or 1 after one sentence in the log."""
    if threading.current_thread() is threading.main_thread():
        # A job that is cancelled is asked to end first: time to end the build and remove the login.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    log = BuildLog(out)
    try:
        place, login = place_of(wishes, environ, http)
        with closing(place.registry):
            sha = commit_of(wishes, environ)
            planned = plan(wishes, sha, environ, time.time())
            log.line(f"Environment {planned.fingerprint}")
            tools = Tools(wishes.builder, login, environ)
            manifest = provide(place, planned, wishes.checkout, tools, log)
    except NotebooksError as error:
        log.line(f"ERROR: {error.message}")
        return 1
    except OSError as error:
        log.line(f"ERROR: {error.strerror or error}: {error.filename or ''}")
        return 1
    log.line(f"Tagged {sha} after {log.seconds * 1000:.0f} ms: {manifest.digest}")
    return 0


def tag(wishes: Wishes, environ: Mapping[str, str], out: TextIO) -> dict[str, str]:
    """Tags a commit's sha if its environment is built; builds nothing. Raises ``BuildFailed`` if not."""
    log = BuildLog(out)
    place, _ = place_of(wishes, environ)
    with closing(place.registry):
        sha = commit_of(wishes, environ)
        planned = plan(wishes, sha, environ, time.time())
        found = tag_only(place, sha, planned.fingerprint, log)
    if found is None:
        raise BuildFailed(
            f"Nobody has built the environment of {sha[:12]} yet (or you may not see it); "
            "`notebooks image build` builds it."
        )
    return {
        "image": f"{place.image}:{sha}",
        "digest": found.digest,
        "fingerprint": planned.fingerprint,
    }


def listed(place: Place) -> dict[str, str]:
    """Tag to digest, for everything in the project's repository."""
    names = sorted(place.registry.tags(place.repository))
    if len(names) > MOST_TAGS:
        raise InvalidRequest(
            f"There are {len(names)} tags; that is more than this command handles."
        )
    found = ((each, place.registry.head(place.repository, each)) for each in names)
    return {each: digest for each, digest in found if digest}


def prunable(
    wishes: Wishes,
    environ: Mapping[str, str],
    place: Place,
    in_use: InUse,
    remote: str,
) -> tuple[list[Unneeded], dict[str, str]]:
    """What can go, and all that is there. The tags are read before the branches: what is pushed in
    between has a branch by then."""
    tags = listed(place)
    known = prune.history(wishes.checkout, remote)
    now, digests = time.time(), digests_of(wishes, environ)
    wanted = prune.fingerprints(
        known.tips, lambda sha: plan(wishes, sha, environ, now, digests).fingerprint
    )
    return prune.unneeded(tags, known.reachable, in_use, wanted), tags


def by_image(tags: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Digest to its tags, environments first, then commits, then others' tags."""
    found: dict[str, list[str]] = {}
    for tag_name, digest in sorted(tags.items(), key=lambda row: (_rank(row[0]), row[0])):
        found.setdefault(digest, []).append(tag_name)
    return list(found.items())


def _rank(tag_name: str) -> int:
    if prune.ENVIRONMENT.match(tag_name):
        return 0
    return 1 if is_commit_sha(tag_name) else 2


__all__ = [
    "Wishes", "build", "by_image", "image_of", "listed", "place_of", "prunable",
    "tag",
]  # fmt: skip
