"""The nouns of the service as frozen dataclasses, used by every room; imports nothing of ours.

One word per thing: what each of them means is written in ``docs/architecture.md``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

SHA_PATTERN = re.compile(r"[0-9a-f]{40}\Z")


def is_commit_sha(text: str) -> bool:
    """Whether ``text`` is a full, lower-case, 40-digit commit id; anything shorter is a ref."""
    return SHA_PATTERN.match(text) is not None


class AccessLevel(StrEnum):
    """How much a person may do in a project, in GitLab's names.

    ``NONE`` is a person who is no member but may still read a public or internal project.
    https://docs.gitlab.com/api/members/
    """

    NONE = "none"
    GUEST = "guest"
    REPORTER = "reporter"
    DEVELOPER = "developer"
    MAINTAINER = "maintainer"
    OWNER = "owner"

    @property
    def number(self) -> int:
        """GitLab's number for this level (0, 10, 20, 30, 40, 50)."""
        return list(AccessLevel).index(self) * 10

    @classmethod
    def from_number(cls, number: int) -> AccessLevel:
        """The highest level that is not above ``number`` (GitLab also has 5, 15 and more)."""
        return list(cls)[min(max(number, 0) // 10, len(cls) - 1)]


@dataclass(frozen=True)
class ForgeUser:
    """A person as the forge knows them."""

    id: int
    username: str
    name: str
    email: str


@dataclass(frozen=True)
class Project:
    """A GitLab project; ``path`` is its full path, groups nested to any depth.

    ``registry``: what its images' names begin with (``host/path``), empty if the forge does not say.
    """

    id: int
    path: str
    name: str
    default_branch: str | None
    visibility: str
    web_url: str
    description: str = ""
    empty: bool = False
    last_activity_at: str = ""
    registry: str = ""

    @property
    def folder(self) -> str:
        """The name of the folder that a server clones this project into."""
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Commit:
    """One commit of a project; ``sha`` is always the full 40 hex digits."""

    sha: str
    title: str
    message: str
    author_name: str
    author_email: str
    authored_at: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A file or directory of a commit. ``mode`` is git's, six digits; ``blob`` is its object's id.

    A directory's id stands for everything below it, a submodule's is the commit that it is pinned to.
    """

    path: str
    mode: str
    blob: str


@dataclass(frozen=True)
class Ref:
    """A branch or a tag, with the commit it points at now."""

    kind: str
    name: str
    sha: str
    default: bool = False
    protected: bool = False
    can_push: bool = False


@dataclass(frozen=True)
class Job:
    """One try of a CI job. ``status`` is GitLab's: https://docs.gitlab.com/api/jobs/"""

    id: int
    name: str
    status: str
    pipeline_id: int
    web_url: str
    created_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    failure_reason: str | None = None


class ImageOrigin(StrEnum):
    """Why a server runs in the image it runs in; always shown with a reason and evidence."""

    COMMIT = "commit"
    ENVIRONMENT = "environment"
    BUILT_ON_DEMAND = "built on demand"
    PINNED = "pinned"
    DEFAULT = "default"


@dataclass(frozen=True)
class Image:
    """What a server runs in. ``digest`` identifies it; a tag may move, a digest cannot."""

    reference: str
    digest: str | None
    origin: ImageOrigin
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "origin": self.origin.value, "evidence": dict(self.evidence)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Image:
        return cls(
            reference=data["reference"],
            digest=data.get("digest"),
            origin=ImageOrigin(data["origin"]),
            reason=data["reason"],
            evidence=dict(data.get("evidence", {})),
        )


def image_name(project_path: str, commit: str) -> str:
    """The tag under which a commit's image is looked for, without the registry's host."""
    return f"{project_path.lower()}:{commit}"


def server_name(project_id: int, commit: str, branch: str) -> str:
    """The hub's name for the server of this project, commit and branch: the same one for ever.

    The project's *id* is in it and its path is not: a renamed project keeps its servers, and a new
    project under an old path does not inherit them.
    JupyterHub 6 allows 1 to 30 of ``[a-z0-9-]``, a letter first, no ``--``, alphanumeric last.
    """
    digest = hashlib.sha256(f"{project_id}\0{commit}\0{branch}".encode()).digest()
    suffix = base64.b32encode(digest)[:16].decode().lower()
    return f"p{str(project_id)[:12]}-{suffix}"


def new_launch_id() -> str:
    """A launch's id: the same in every log line about it."""
    return secrets.token_hex(6)


class LaunchStep(StrEnum):
    """The steps of a launch, in their order."""

    ACCESS = "access"
    IMAGE = "image"
    CLONE = "clone"
    STARTING = "starting"
    READY = "ready"


class LaunchOutcome(StrEnum):
    """How a launch ended; a launch under way has none."""

    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class LaunchEvent:
    """One thing that a watcher of a launch is told. ``id`` counts up from 1 within a launch."""

    id: int
    at: str
    step: LaunchStep
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Submodule:
    """A submodule of a commit. ``at`` is its place in the whole tree, ``parent`` the place of the
    submodule that holds it, ``url`` what the repository says, ``commit`` what it is pinned to.

    ``project_id`` and ``project`` (its path now) are set where the person may read it; ``reason``
    says why it is left out, and is empty where a server has it.
    """

    at: str
    parent: str
    name: str
    url: str
    commit: str
    project_id: int | None = None
    project: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class LaunchRecord:
    """What is known of one launch; lives in the spawner's state and outlives the launch.

    Written by the spawner, read by the service through the hub's API. ``runtime`` is what the
    runtime needs to find the server again after a restart of the hub (a pid and its start time, a
    container's id). ``work`` is what was unsaved when the server last stopped. The server may read
    the projects of ``submodules`` that have no ``reason`` to be left out. ``had`` is the image that the
    server ran in before this launch. ``served`` is what its image turned out to have (``spawner/served.py``).
    """

    id: str
    project_id: int
    project_path: str
    commit: str
    branch: str
    requested_at: str
    step: LaunchStep = LaunchStep.ACCESS
    outcome: LaunchOutcome | None = None
    image: Image | None = None
    job: Mapping[str, Any] | None = None
    checkout: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[LaunchEvent, ...] = ()
    failure: Mapping[str, str] | None = None
    runtime: Mapping[str, Any] = field(default_factory=dict)
    work: Mapping[str, Any] | None = None
    started_steps: Mapping[str, str] = field(default_factory=dict)
    submodules: tuple[Submodule, ...] = ()
    had: Image | None = None
    served: Mapping[str, Any] = field(default_factory=dict)

    VERSION = 1
    EVENTS_KEPT = 200

    def with_event(self, at: str, step: LaunchStep, message: str, **detail: Any) -> LaunchRecord:
        """This record with one more event; the oldest of over 200 go, their ids stay used."""
        last = self.events[-1].id if self.events else 0
        event = LaunchEvent(last + 1, at, step, message[:1000], detail)
        started = dict(self.started_steps)
        started.setdefault(step.value, at)
        return replace(
            self,
            step=step,
            started_steps=started,
            events=(*self.events, event)[-self.EVENTS_KEPT :],
        )

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        data["version"] = self.VERSION
        data["image"] = self.image.to_dict() if self.image else None
        data["had"] = self.had.to_dict() if self.had else None
        data["events"] = [asdict(event) for event in self.events]
        data["submodules"] = [asdict(each) for each in self.submodules]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LaunchRecord:
        known = {key: value for key, value in data.items() if key in cls.__dataclass_fields__}
        known["step"] = LaunchStep(data["step"])
        known["outcome"] = LaunchOutcome(data["outcome"]) if data.get("outcome") else None
        known["image"] = Image.from_dict(data["image"]) if data.get("image") else None
        known["had"] = Image.from_dict(data["had"]) if data.get("had") else None
        known["events"] = tuple(
            LaunchEvent(**{**event, "step": LaunchStep(event["step"])})
            for event in data.get("events", ())
        )
        known["submodules"] = tuple(Submodule(**each) for each in data.get("submodules", ()))
        return cls(**known)
