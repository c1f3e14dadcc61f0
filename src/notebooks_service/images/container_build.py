"""Finds, builds, pushes and tags a commit's container image; called by ``images/container_command.py``.

A registry's tag appears when all of its image is there, so nothing half is ever seen:

1. ``env-<fingerprint>`` is there: the commit's sha is tagged, no layer moves;
2. else it is built, and, if nobody was quicker, pushed as the commit's sha;
3. ``env-<fingerprint>`` gets the same manifest, unless another build's is there by now: then the sha
   gets that one, so that two that race end as one image.

Killed between 2 and 3, the next build finds what was pushed by its label and goes on with 3.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from notebooks_service.errors import BuildFailed, Forbidden, NotebooksError
from notebooks_service.images.builders import Asked, Builder, Order, find_builder
from notebooks_service.images.clean_checkout import clean_checkout, git
from notebooks_service.images.generated import Generated, written
from notebooks_service.images.last_built import LastBuilt, say_inputs, say_packages
from notebooks_service.images.log import BuildLog
from notebooks_service.images.private_login import login_files
from notebooks_service.images.registry import Login, Manifest, RegistryClient

FINGERPRINT = "notebooks-service.fingerprint"
TEXT = "notebooks-service.environment"
PACKAGES = "notebooks-service.installed"
REVISION = "org.opencontainers.image.revision"
LONGEST_LABEL = 100_000
"""Bytes; an argument may have 128 KiB."""
LARGEST_TEXT = 4 * 2**20

COMMITS_BACK = 200
SETTLING = 5


def environment_tag(fingerprint: str) -> str:
    """The tag of an environment's image."""
    return f"env-{fingerprint}"


@dataclass(frozen=True)
class Planned:
    """What a commit's image is called and built from; paths are the repository's, "" the root.

    ``pull``: its name says which digest a base has at its registry now, so it is built on that one.
    ``generated``: what a commit without a Dockerfile is built from.
    """

    sha: str
    fingerprint: str
    text: str
    dockerfile: str
    context: str
    target: str = ""
    platform: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    not_reproducible: tuple[str, ...] = ()
    pull: bool = False
    generated: Generated | None = None


@dataclass(frozen=True)
class Place:
    """Where a project's images are: the registry, its repository and the two as one name."""

    registry: RegistryClient
    repository: str
    image: str

    @property
    def host(self) -> str:
        return self.image.partition("/")[0]


@dataclass(frozen=True)
class Tools:
    """What builds: which builder, as which login, and what it may know of this machine."""

    asked: Asked
    login: Login | None
    environ: Mapping[str, str]


def provide(
    place: Place, planned: Planned, checkout: Path, tools: Tools, log: BuildLog
) -> Manifest:
    """Makes the registry have the commit's image, and gives its manifest.

    Raises ``BuildFailed``, ``Forbidden``, ``RegistryUnavailable``, ``NoSpace``.
    """
    found = tag_only(place, planned.sha, planned.fingerprint, log)
    if found is not None:
        return found
    unfinished = place.registry.manifest(place.repository, planned.sha)
    if unfinished is not None:
        labels = place.registry.labels(place.repository, unfinished)
        if (labels.get(FINGERPRINT), labels.get(REVISION)) == (planned.fingerprint, planned.sha):
            log.line("An earlier build of this commit was pushed and not finished: finishing it")
            return _publish(place, planned, log)
    return _build(place, planned, checkout, tools, log)


def tag_only(place: Place, sha: str, fingerprint: str, log: BuildLog) -> Manifest | None:
    """Tags the commit's sha if its environment is built; None if it is not."""
    tag = environment_tag(fingerprint)
    found = place.registry.manifest(place.repository, tag)
    if found is None:
        return None
    log.line(f"This environment is built already: {found.digest}")
    if place.registry.head(place.repository, sha) != found.digest:
        place.registry.put(place.repository, sha, found)
    return found


def _build(place: Place, planned: Planned, checkout: Path, tools: Tools, log: BuildLog) -> Manifest:
    place.registry.check_may_push(place.repository)
    log.line(f"Building environment {planned.fingerprint[:12]}")
    for sentence in planned.not_reproducible:
        log.line(f"Note: {sentence}")
    last = _last_built(place, planned.sha, checkout)
    say_inputs(log, last, planned.text, checkout)
    plain = place.host if place.registry.url.startswith("http://") else ""
    image = f"{place.image}:{planned.sha}"
    with (
        login_files(place.host, tools.login, tools.environ) as files,
        _sources(planned, checkout, log) as (context, dockerfile),
    ):
        builder = find_builder(tools.asked, tools.environ, files, plain)
        log.line(f"Building with {builder.name}")
        began = log.seconds
        order = Order(
            image,
            context=context,
            dockerfile=dockerfile,
            target=planned.target,
            platform=planned.platform,
            arguments=planned.arguments,
            labels=_labels(planned),
            pull=planned.pull,
        )
        builder.build(order, log)
        log.steps.close(log.seconds)
        log.line(f"Built in {log.seconds - began:.1f} s")
        for name, seconds in log.steps.slowest():
            log.line(f"  {seconds:7.1f} s  {name[:120]}")
        _say_what_is_installed(builder, image, last, log)
        other = tag_only(place, planned.sha, planned.fingerprint, log)
        if other is not None:
            log.line("Another build was quicker: its image is taken, and this one is not pushed")
            return other
        began = log.seconds
        builder.push(image, log)
        log.line(f"Pushed in {log.seconds - began:.1f} s")
    return _publish(place, planned, log)


def _publish(place: Place, planned: Planned, log: BuildLog) -> Manifest:
    """The sha's image becomes the environment's, or the other way round if that one was there first."""
    registry, repository = place.registry, place.repository
    tag = environment_tag(planned.fingerprint)
    mine = registry.manifest(repository, planned.sha)
    if mine is None:
        raise BuildFailed("The image was pushed, but the registry does not show it; try again.")
    if registry.head(repository, tag) is None:
        registry.put(repository, tag, mine)
    for _ in range(SETTLING):
        # Two may have put theirs at the same time: whichever stayed is everybody's.
        found = registry.manifest(repository, tag)
        if found is None:
            registry.put(repository, tag, mine)
            continue
        if registry.head(repository, planned.sha) == found.digest:
            return found
        log.line(f"Another build of this environment is there: {found.digest}")
        try:
            registry.put(repository, planned.sha, found)
        except Forbidden:
            log.line("The commit's tag may not be moved, so it keeps its own image.")
            return mine
    return mine


@contextmanager
def _sources(planned: Planned, checkout: Path, log: BuildLog) -> Iterator[tuple[Path, Path]]:
    """The context and the Dockerfile."""
    if planned.generated is not None:
        with written(planned.generated) as both:
            yield both
        return
    with clean_checkout(checkout, planned.sha, log) as clean:
        yield _inside(clean, planned.context), _inside(clean, planned.dockerfile)


def _inside(root: Path, path: str) -> Path:
    """A path of the repository, on this disk; never outside, also through a symbolic link."""
    found = root / path
    if not found.resolve().is_relative_to(root.resolve()):
        raise BuildFailed(f"`{path}` lies outside the repository, so nothing is built from it.")
    return found


# What is written into an image, and read from the last one


def _labels(planned: Planned) -> dict[str, str]:
    labels = {FINGERPRINT: planned.fingerprint, REVISION: planned.sha}
    text = packed(planned.text)
    return {**labels, TEXT: text} if len(text) <= LONGEST_LABEL else labels


def packed(text: str) -> str:
    """A text as a label has it."""
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(label: str) -> str:
    """The text of a label; empty if it is none of ours. A label may claim to be endless."""
    try:
        inflater = zlib.decompressobj()
        return inflater.decompress(base64.b64decode(label, validate=True), LARGEST_TEXT).decode()
    except (ValueError, zlib.error):
        return ""


def _last_built(place: Place, sha: str, checkout: Path) -> LastBuilt | None:
    """The nearest commit before this one that has an image with our labels, of its own history."""
    try:
        tags = frozenset(place.registry.tags(place.repository))
        rows = git(checkout, "rev-list", f"--max-count={COMMITS_BACK}", sha).split()
        near = next((row for row in rows if row in tags and row != sha), None)
        manifest = place.registry.manifest(place.repository, near) if near else None
        if near is None or manifest is None:
            return None
        labels = place.registry.labels(place.repository, manifest)
    except NotebooksError:
        return None  # it is only for the log
    text = unpacked(labels.get(TEXT, ""))
    packages = tuple(unpacked(labels.get(PACKAGES, "")).splitlines())
    return LastBuilt(f"the environment of {near[:12]}", text, packages) if text else None


def _say_what_is_installed(
    builder: Builder, image: str, last: LastBuilt | None, log: BuildLog
) -> None:
    try:
        packages = builder.installed(image)
    except BuildFailed as error:
        log.line(f"No Python of the image answers, so its packages are not listed: {error.message}")
        return
    say_packages(log, last, packages)
    label = packed("\n".join(packages))
    if len(label) <= LONGEST_LABEL:
        builder.label(image, {PACKAGES: label}, log)
