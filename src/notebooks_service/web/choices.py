"""What a person chooses for a launch beside commit and branch: submodules, large files, amounts, data, what it opens in.

None of it changes which server it is. A page asks and remembers; a call with a token is the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from notebooks_service import default_urls, mounts, resources
from notebooks_service.domain import AccessLevel, Commit, Project, Submodule
from notebooks_service.errors import InvalidRequest
from notebooks_service.gateway.hub import HubServer
from notebooks_service.gitlab import submodules
from notebooks_service.mounts import Mount
from notebooks_service.resources import NOTHING_CHOSEN, Resources
from notebooks_service.settings import Settings
from notebooks_service.web.states import chosen_default_url, chosen_resources
from notebooks_service.web.visits import Visit

ATTRIBUTES_BYTES = 64 * 1024
FIELD = "submodule-"
DATA_FIELD = "mount-"
ASKED = "choices"
LFS = "lfs_auto_fetch"
NEW_IMAGE = "new_image"
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Choice:
    """``submodules`` are ids of projects; ``lfs_auto_fetch`` is None for what the settings say.

    ``image`` is a pinned one, empty for the commit's; ``new_image`` gives up what the server ran in;
    ``resources``, ``mounts`` and ``default_url`` are checked against what is offered.
    """

    submodules: tuple[int, ...] = ()
    lfs_auto_fetch: bool | None = None
    image: str = ""
    new_image: bool = False
    resources: Resources = NOTHING_CHOSEN
    mounts: tuple[str, ...] = ()
    default_url: str = ""

    @property
    def options(self) -> dict[str, object]:
        """The keys beside project, commit and branch in the hub's options; only what was chosen."""
        chosen: dict[str, object] = {}
        if self.submodules:
            chosen["submodules"] = list(self.submodules)
        if self.lfs_auto_fetch is not None:
            chosen[LFS] = self.lfs_auto_fetch
        if self.image:
            chosen["image"] = self.image
        if self.new_image:
            chosen[NEW_IMAGE] = True
        if self.mounts:
            chosen[mounts.OPTION] = list(self.mounts)
        if self.default_url:
            chosen[default_urls.KEY] = self.default_url
        return {**chosen, **self.resources.options}


@dataclass(frozen=True)
class Question:
    """What a launch page asks: the submodules that can be had, those that cannot, large files.

    ``large_files`` is what the box says at first, None where the project has no such files.
    """

    found: tuple[Submodule, ...]
    agreed: frozenset[int]
    large_files: bool | None

    @property
    def offered(self) -> tuple[Submodule, ...]:
        """One of each project that can be had, in the order of the tree."""
        by_id = {each.project_id: each for each in reversed(self.found) if not each.reason}
        return tuple(each for each in self.found if by_id.get(each.project_id) is each)

    @property
    def left_out(self) -> tuple[Submodule, ...]:
        return tuple(each for each in self.found if each.reason)

    @property
    def open(self) -> bool:
        """Whether there is a submodule that this person was not asked about, or did not agree to."""
        return any(each.project_id not in self.agreed for each in self.offered)


def word(text: str | None) -> bool | None:
    """The value of a parameter or a field; None for one that says neither yes nor no."""
    return WORDS.get((text or "").lower())


async def question(visited: Visit, project: Project, commit: Commit, asked: str | None) -> Question:
    """What to ask. ``asked`` is the link's own ``lfs_auto_fetch``, if it has one."""
    forge, trust = visited.forge, visited.parts.trust
    found, agreed, attributes = await asyncio.gather(
        visited.ask(submodules.find, forge, project, commit.sha),
        trust.agreed_submodules(visited.person.name, project.id),
        visited.ask(forge.file, project, commit.sha, ".gitattributes", ATTRIBUTES_BYTES),
    )
    large_files = None
    if b"filter=lfs" in (attributes or b""):
        wanted = word(asked)
        large_files = visited.parts.settings.lfs_auto_fetch if wanted is None else wanted
    return Question(found, agreed, large_files)


async def admitted_mounts(
    visited: Visit, project: Project, level: AccessLevel | None = None
) -> tuple[Mount, ...]:
    """The data that this person's servers of the project may have. ``level``: their role, if it is known."""
    every = visited.parts.settings.mounts
    if visited.parts.settings.runtime != "docker" or not every:
        return ()
    if level is None:
        level = await visited.ask(visited.forge.access, project)
    person = await visited.ask(visited.forge.user)
    return mounts.admitted(every, project.path, person.username, level)


async def check_mounts(visited: Visit, project: Project, names: tuple[str, ...]) -> None:
    """Raises ``InvalidRequest`` for data that this person may not have here."""
    if names:
        mounts.check(await admitted_mounts(visited, project), names)


async def chosen(
    visited: Visit, project: Project, commit: Commit, form: Mapping[str, str], lfs: bool | None
) -> Choice:
    """The choice of this request: a form's, a token's (all that can be had), or what was agreed to.

    Nothing is taken that the forge does not name for this commit.
    """
    found = await visited.ask(submodules.find, visited.forge, project, commit.sha)
    there = [each.project_id for each in Question(found, frozenset(), None).offered]
    ids = [each for each in there if each is not None]
    if visited.person.by_bearer:
        return Choice(tuple(ids), lfs)
    if ASKED in form:
        picked = tuple(each for each in ids if f"{FIELD}{each}" in form)
        if picked:
            await visited.parts.trust.agree_submodules(visited.person.name, project.id, picked)
        if form[ASKED] == "large-files":
            lfs = word(form.get(LFS)) is True
        asked = resources.read(form.get("cpu"), form.get("memory"), form.get("gpu"))
        resources.check(visited.settings_in(project), asked)
        opens = default_urls.read(form.get(default_urls.KEY))
        default_urls.check(visited.parts.settings, opens)
        every = [each.name for each in visited.parts.settings.mounts]
        data = tuple(each for each in every if f"{DATA_FIELD}{each}" in form)
        await check_mounts(visited, project, data)
        return Choice(
            picked,
            lfs,
            new_image=word(form.get(NEW_IMAGE)) is True,
            resources=asked,
            mounts=data,
            default_url=opens,
        )
    agreed = await visited.parts.trust.agreed_submodules(visited.person.name, project.id)
    return Choice(tuple(each for each in ids if each in agreed), lfs)


def amounts_offered(
    settings: Settings, server: HubServer | None
) -> dict[str, list[dict[str, Any]]]:
    """What the page lets a person choose of each resource; at first what their server had, if that may
    still be had."""
    had = chosen_resources(server) if server else resources.Resources()
    try:
        resources.check(settings, had)
    except InvalidRequest:
        had = resources.Resources()
    now = resources.granted(settings, had)

    def rows(choices: Sequence[float], chosen: float, text: Callable[[Any], str]) -> Any:
        both = sorted({*choices, chosen}) if choices else []
        return [{"value": each, "text": text(each), "chosen": each == chosen} for each in both]

    return {
        "cpu": rows(resources.cpu_choices(settings), now.cpu, lambda each: f"{each:g}"),
        "memory": rows(
            resources.memory_choices(settings), now.memory, lambda each: f"{each / 2**30:.3g} GiB"
        ),
        "gpu": rows(resources.gpu_choices(settings), now.gpu, str),
    }


def pages_offered(settings: Settings, server: HubServer | None) -> list[dict[str, Any]]:
    """What the page lets a person choose to open the server in; nothing where there is no choice."""
    every = default_urls.choices(settings)
    chosen = default_urls.wanted(settings, chosen_default_url(server) if server else "")
    return [
        {"value": each, "text": default_urls.TITLES[each], "chosen": each == chosen}
        for each in (every if len(every) > 1 else ())
    ]
