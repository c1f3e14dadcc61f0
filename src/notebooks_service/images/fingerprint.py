"""Names an environment by what it depends on and nothing else: a text, and SHA-256 over it.

Called by whoever has to name a commit's environment: ``notebooks image``, the runner, the resolver.
``environment_of`` is the whole way; ``describe`` is what a commit says for ever and may be kept,
``name`` what that is called here and now. The text is versioned: another version, another
fingerprint, no confusion.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from notebooks_service.domain import Entry
from notebooks_service.images.container import container_environment
from notebooks_service.images.generated import VERSION, generate
from notebooks_service.images.inputs import Base, Found, Input
from notebooks_service.images.recipe import PythonRequest, Recipe, read_recipe
from notebooks_service.images.tree import CommitFiles, Tree

__all__ = [
    "Base", "BuildOptions", "Described", "EnvironmentText", "Input", "canonical_text",
    "describe", "environment_of", "fingerprint", "interval_at", "name",
]  # fmt: skip

TEXT_VERSION = 2
BUILDER = "local 1"
CONTAINER_BUILDER = "container 1"
GENERATED = "generated"

Kind = Literal["dockerfile", "python", "none"]


@dataclass(frozen=True)
class BuildOptions:
    """How an environment is built: what its name depends on beside the commit's files.

    ``dockerfile`` and ``context``: paths in the repository instead of those found by the rules
    (``context`` "" is the root); ``target``: the stage. ``job``: the CI job whose script may say
    these, "" to read none. ``base``: the image that the builder starts from without a Dockerfile.
    ``base_digest``: what a registry says the digest of a reference is, None if it does not tell;
    it is only asked for bases that are not pinned. ``interval``: the number of the present rebuild
    interval (``interval_at``), which counts where something moves that nobody can pin.
    ``python`` (``local`` only): the minor version that is taken for what a project asks for.
    """

    runtime: Literal["container", "local"] = "container"
    builder: str = CONTAINER_BUILDER
    platform: str = "linux/amd64"
    dockerfile: str | None = None
    context: str | None = None
    target: str = ""
    build_args: Mapping[str, str] = field(default_factory=dict)
    job: str = "image_build"
    base: str = ""
    base_digest: Callable[[str], str | None] | None = None
    interval: int = 0
    python: Callable[[PythonRequest | None], str] | None = None


@dataclass(frozen=True)
class Described:
    """What a commit's files say of its environment; plain data, the same for ever.

    ``bases`` are images it is built on; ``moving`` is what else comes from outside and may change;
    ``context`` without a Dockerfile is where the files lie; ``unsure`` is what they do not tell, or not
    to us. ``build_args`` come from options or job.
    """

    kind: Kind
    strategy: str
    inputs: tuple[Input, ...] = ()
    dockerfile: str = ""
    context: str = ""
    target: str = ""
    build_args: tuple[tuple[str, str], ...] = ()
    bases: tuple[Base, ...] = ()
    moving: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    python: tuple[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Described:
        """From ``to_dict``'s. Raises ``KeyError`` or ``TypeError`` for anything else."""
        python = data["python"]
        return cls(
            kind=data["kind"],
            strategy=str(data["strategy"]),
            inputs=tuple(Input(**row) for row in data["inputs"]),
            dockerfile=str(data["dockerfile"]),
            context=str(data["context"]),
            target=str(data["target"]),
            build_args=tuple((str(key), str(value)) for key, value in data["build_args"]),
            bases=tuple(Base(**row) for row in data["bases"]),
            moving=tuple(data["moving"]),
            unsure=tuple(data["unsure"]),
            python=(str(python[0]), str(python[1])) if python else None,
        )


@dataclass(frozen=True)
class EnvironmentText:
    """An environment's name, and all that it was made from.

    ``not_reproducible``: sentences, each about something that may give another image at the next
    build although the fingerprint is the same (within one rebuild interval). ``bases``: references
    that are not pinned, and the digests that ``base_digest`` has told.
    """

    fingerprint: str
    text: str
    kind: Kind
    dockerfile: str
    context: str
    inputs: tuple[Input, ...]
    not_reproducible: tuple[str, ...]
    bases: tuple[tuple[str, str], ...] = ()


def environment_of(files: CommitFiles, options: BuildOptions) -> EnvironmentText:
    """The environment of a commit.

    Raises ``BuildFailed`` if its files are contradictory or cannot be understood, and what
    ``files`` and ``options.base_digest`` raise.
    """
    return name(describe(files, options), options)


def describe(files: CommitFiles, options: BuildOptions) -> Described:
    """What the files say, with as few questions as can be. Raises as ``environment_of``.

    Of ``options``, ``base_digest``, ``interval``, ``builder`` and ``python`` play no part in it.
    """
    if options.runtime == "local":
        return _describe_local(files)
    found = container_environment(
        files,
        dockerfile=options.dockerfile,
        context=options.context,
        target=options.target,
        build_args=options.build_args,
        platform=options.platform,
        job=options.job,
        buildah=options.builder.startswith("buildah"),
    )
    if found.kind != "python" or not options.base:
        return _described(found)
    generated = generate(files, found.context, options.base, "names")
    described = _described(found)
    rows = {each.path: each for each in (*generated.inputs, *found.inputs)}
    return replace(
        described,
        strategy=f"{GENERATED} {VERSION}",
        inputs=tuple(rows.values()),
        bases=(Base(options.base, "what is built without a Dockerfile"),),
        unsure=tuple(dict.fromkeys((*described.unsure, *generated.notes))),
    )


def _described(found: Found) -> Described:
    return Described(
        kind=found.kind,
        strategy=found.kind,
        inputs=found.inputs,
        dockerfile=found.dockerfile,
        context=found.context,
        target=found.target,
        build_args=tuple(sorted(found.build_args.items())),
        bases=found.bases,
        moving=found.moving,
        unsure=found.unsure,
    )


def _describe_local(files: Tree) -> Described:
    recipe = read_recipe(files)
    python = recipe.python
    return Described(
        kind="none" if recipe.strategy == "nothing" else "python",
        strategy=recipe.strategy,
        inputs=tuple(Input(e.path, e.mode, e.blob, recipe.strategy) for e in recipe.inputs),
        unsure=recipe.notes,
        python=(python.version, python.source) if python else None,
    )


def name(described: Described, options: BuildOptions) -> EnvironmentText:
    """What a description is called here and now."""
    bases: tuple[tuple[str, str], ...] = ()
    if options.runtime == "local":
        request = PythonRequest(*described.python) if described.python else None
        minor = options.python(request) if options.python else ""
        text = _local_text(described.strategy, described.inputs, minor)
        notes = described.unsure
    else:
        text, notes, bases = _container_text(described, options)
    return EnvironmentText(
        fingerprint=fingerprint(text),
        text=text,
        kind=described.kind,
        dockerfile=described.dockerfile,
        context=described.context,
        inputs=described.inputs,
        not_reproducible=notes,
        bases=bases,
    )


def _container_text(
    described: Described, options: BuildOptions
) -> tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]:
    facts: list[tuple[str, ...]] = [
        ("builder", options.builder),
        ("platform", options.platform),
        ("kind", described.kind),
    ]
    if described.kind == "dockerfile":
        facts += [
            ("dockerfile", json.dumps(described.dockerfile)),
            ("context", json.dumps(described.context)),
            ("target", json.dumps(described.target)),
        ]
    if described.strategy.startswith(GENERATED):
        facts.append(tuple(described.strategy.split()))
    facts += [
        ("argument", json.dumps(key), json.dumps(value)) for key, value in described.build_args
    ]
    moving: list[str] = []
    told: dict[str, str] = {}
    for base in described.bases:
        digest = base.digest
        if digest is None and base.known and options.base_digest:
            digest = options.base_digest(base.reference)
            if digest is not None:
                told[base.reference] = digest
        if digest is None:
            moving.append(
                f"{base.why} takes `{base.reference}`, whose digest is not known here: its tag may move."
            )
        facts.append(("base", json.dumps(base.reference), digest or "unknown"))
    moving += described.moving
    if moving:
        facts.append(("interval", str(options.interval)))
    return _text(facts, described.inputs), (*moving, *described.unsure), tuple(told.items())


def canonical_text(recipe: Recipe, python: str) -> str:
    """The text of an environment of the ``local`` runtime. ``python``: major and minor version."""
    return _local_text(recipe.strategy, recipe.inputs, python)


def _local_text(strategy: str, inputs: Iterable[Entry | Input], python: str) -> str:
    system = f"{platform.system().lower()} {platform.machine()} {platform.libc_ver()[0] or '-'}"
    return _text(
        [("builder", BUILDER), ("platform", system), ("python", python), ("strategy", strategy)],
        inputs,
    )


def _text(facts: Sequence[tuple[str, ...]], inputs: Iterable[Entry | Input]) -> str:
    """What every fingerprint is computed from, one fact a line; inputs in the order of their bytes."""
    lines = [f"notebooks environment {TEXT_VERSION}"]
    lines += [" ".join(fact) for fact in facts]
    rows = {(json.dumps(each.path), each.mode, each.blob) for each in inputs}
    lines += [f"input {mode} {blob} {path}" for path, mode, blob in sorted(rows)]
    return "\n".join(lines) + "\n"


def fingerprint(text: str) -> str:
    """The 64 hex digits that stand for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()


def interval_at(now: float, rebuild_after: float) -> int:
    """The number of the rebuild interval at ``now`` (seconds since 1970); 0 if it never ends."""
    return int(now // rebuild_after) if rebuild_after > 0 else 0
