"""The state of a server and of its launch in our words, from the hub's model; pure.

Used by pages, the REST API and the event streams alike, so that all say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from notebooks_service import default_urls, mounts
from notebooks_service.domain import LaunchOutcome, LaunchRecord, LaunchStep
from notebooks_service.errors import InvalidRequest
from notebooks_service.gateway.hub import HubServer
from notebooks_service.resources import Resources, read
from notebooks_service.settings import Settings

State = Literal["starting", "running", "stopping", "failed", "stopped"]
StepState = Literal["done", "current", "failed", "cancelled", "waiting"]


@dataclass(frozen=True)
class Step:
    """One step of a launch, as a page shows it; ``message`` is the last thing said of it."""

    name: str
    state: StepState
    message: str = ""
    started: str | None = None


def state_of(server: HubServer) -> State:
    """The state of a server in one word (renku-notebooks' five)."""
    if server.pending == "spawn":
        return "starting"
    if server.pending:
        return "stopping"
    if server.ready:
        return "running"
    if server.record is not None and server.record.outcome is LaunchOutcome.FAILED:
        return "failed"
    return "stopped"


def message_of(server: HubServer) -> str:
    """The sentence that goes with the state."""
    record, state = server.record, state_of(server)
    if state == "failed" and record and record.failure:
        return record.failure.get("message", "")
    if state == "starting" and record and record.events:
        return record.events[-1].message
    if state == "stopped" and record and record.outcome is LaunchOutcome.CANCELLED:
        return "The launch was cancelled."
    if state == "stopped" and record and record.failure:
        return f"{record.failure.get('message', 'It ended by itself.')} The work is kept."
    return {
        "starting": "Starting.",
        "running": "Running.",
        "stopping": "Stopping.",
        "failed": "The launch failed.",
        "stopped": "Stopped; the work is kept.",
    }[state]


def steps_of(record: LaunchRecord | None) -> list[Step]:
    """All steps of a launch in their order; the present one is current, or how the launch ended."""
    if record is None:
        return [Step(step.value, "waiting") for step in LaunchStep]
    order = list(LaunchStep)
    last = {event.step: event.message for event in record.events}
    at: dict[LaunchOutcome | None, StepState] = {
        None: "current",
        LaunchOutcome.READY: "done",
        LaunchOutcome.FAILED: "failed",
        LaunchOutcome.CANCELLED: "cancelled",
    }
    steps = []
    for step in order:
        position = order.index(step) - order.index(record.step)
        if record.outcome is LaunchOutcome.READY or position < 0:
            state: StepState = "done"
        else:
            state = at[record.outcome] if position == 0 else "waiting"
        started = record.started_steps.get(step.value)
        steps.append(Step(step.value, state, last.get(step, ""), started))
    return steps


@dataclass(frozen=True)
class Unsaved:
    """What only this server has, as it was when it last stopped; each entry as a person reads it."""

    known: bool = False
    files: tuple[str, ...] = ()
    commits: tuple[str, ...] = ()
    stashes: tuple[str, ...] = ()
    more: bool = False

    @property
    def summary(self) -> str:
        """How much that is, or nothing if all is saved."""
        counts = (
            (self.files, "changed file"),
            (self.commits, "unpushed commit"),
            (self.stashes, "stash"),
        )
        said = [f"{len(each)} {_plural(word, len(each))}" for each, word in counts if each]
        text = ", ".join(said[:-1]) + (" and " if len(said) > 1 else "") + "".join(said[-1:])
        if self.more:
            return f"{text or 'unsaved work'}, or more"
        return text


def unsaved_of(record: LaunchRecord | None) -> Unsaved:
    """The unsaved work that a record tells of, as ``singleuser/unsaved.py`` found it.

    The lists come out of a repository that hostile code may have written: any other shape is nothing.
    """
    work = record.work if record else None
    if not isinstance(work, Mapping) or work.get("repository") is False:
        return Unsaved()

    def entries(key: str) -> list[Any]:
        value = work.get(key)
        return list(value) if isinstance(value, list | tuple) else []

    return Unsaved(
        known=True,
        files=tuple(
            f"{each.get('path')} ({each.get('state')})"
            for each in entries("files")
            if isinstance(each, Mapping)
        ),
        commits=tuple(
            f"{str(each.get('sha'))[:8]} {each.get('title')}"
            for each in entries("commits")
            if isinstance(each, Mapping)
        ),
        stashes=tuple(str(each) for each in entries("stashes")),
        more=work.get("more") is True,
    )


def _plural(word: str, count: int) -> str:
    if count == 1:
        return word
    return f"{word}es" if word.endswith("sh") else f"{word}s"


def notes_of(record: LaunchRecord | None) -> list[str]:
    """What the clone had to remark: large files that are not there, submodules that it left out."""
    said = record.checkout.get("notes") if record else None
    return [str(each)[:500] for each in said][:50] if isinstance(said, list | tuple) else []


def chosen_resources(server: HubServer) -> Resources:
    """The processors and memory that were asked for it; nothing where the hub holds nonsense."""
    asked = server.options.get("notebooks")
    asked = asked if isinstance(asked, Mapping) else {}
    try:
        return read(asked.get("cpu"), asked.get("memory"), asked.get("gpu"))
    except InvalidRequest:
        return Resources()


def opens_in(settings: Settings, server: HubServer) -> str:
    """What the server opens in: what was chosen for it, or the default, if its image offers that."""
    served = server.record.served if server.record else {}
    offers = served.get("offers")
    wanted = default_urls.wanted(settings, chosen_default_url(server))
    return default_urls.opens(wanted, offers if isinstance(offers, list | tuple) else ())


def chosen_default_url(server: HubServer) -> str:
    """What was asked for it to open in; nothing where the hub holds nonsense."""
    asked = server.options.get("notebooks")
    try:
        return default_urls.read(asked.get(default_urls.KEY)) if isinstance(asked, Mapping) else ""
    except InvalidRequest:
        return ""


def served_of(record: LaunchRecord | None) -> str:
    """What the image turned out to have, in a sentence; empty where nothing says so."""
    return str(record.served.get("message", ""))[:500] if record else ""


def chosen_mounts(server: HubServer) -> tuple[str, ...]:
    """The names of the data that was asked for it; nothing where the hub holds nonsense."""
    asked = server.options.get("notebooks")
    try:
        return mounts.read(asked.get(mounts.OPTION)) if isinstance(asked, Mapping) else ()
    except InvalidRequest:
        return ()


def asked_of(server: HubServer) -> tuple[str, str, str]:
    """Project, commit and branch of a server: from its record, or from what it was asked for."""
    asked = server.options.get("notebooks")
    asked = asked if isinstance(asked, Mapping) else {}
    record = server.record
    return (
        record.project_path if record else str(asked.get("project", "")),
        record.commit if record else str(asked.get("commit", "")),
        record.branch if record else str(asked.get("branch", "")),
    )
