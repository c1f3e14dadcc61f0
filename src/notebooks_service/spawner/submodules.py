"""Which submodules a server gets: those that the commit has, the person may read, and agreed to.

Called by the launch with a fresh token of the person. What the request names is only a choice among
what the forge says; the answer goes into the launch's record, where the gateway reads it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace

from notebooks_service.domain import Submodule
from notebooks_service.errors import LaunchRefused
from notebooks_service.gitlab import submodules
from notebooks_service.gitlab.forge import Forge
from notebooks_service.settings import Settings
from notebooks_service.spawner.access import Grant
from notebooks_service.spawner.options import LaunchOptions

NOT_AGREED = "you have not agreed to it. Open the commit's page to be asked."
PARENT_OUT = "the submodule that holds it is left out."


async def decide(
    forge: Forge, grant: Grant, options: LaunchOptions, *, returning: bool
) -> tuple[Submodule, ...]:
    """All submodules of the commit, those that are left out with the reason.

    Raises ``LaunchRefused`` if a project was named that is no submodule here; not for a ``returning``
    server, whose submodules may have gone away since.
    """
    found = await asyncio.to_thread(submodules.find, forge, grant.project, grant.commit.sha)
    unknown = set(options.submodules) - {each.project_id for each in found}
    if unknown and not returning:
        raise LaunchRefused(
            "This launch was refused: it names a project that is no submodule of this commit, or"
            " none that you may see. Open the commit's page and start there."
        )
    return choose(found, frozenset(options.submodules))


def choose(found: tuple[Submodule, ...], agreed: frozenset[int]) -> tuple[Submodule, ...]:
    """The same submodules, those that were not agreed to with that reason."""
    there = {""}
    chosen = []
    for each in found:
        if not each.reason and each.project_id not in agreed:
            each = replace(each, reason=NOT_AGREED)
        elif not each.reason and each.parent not in there:
            each = replace(each, reason=PARENT_OUT)
        if not each.reason:
            there.add(each.at)
        chosen.append(each)
    return tuple(chosen)


async def clone_variables(
    forge: Forge,
    grant: Grant,
    options: LaunchOptions,
    chosen: tuple[Submodule, ...],
    settings: Settings,
    *,
    returning: bool,
) -> Mapping[str, str]:
    """What ``singleuser/clone.py`` is told; the forge is asked for sizes unless nothing is cloned."""
    large = settings.lfs_auto_fetch if options.lfs_auto_fetch is None else options.lfs_auto_fetch
    kept = [each for each in chosen if not each.reason]
    given = {
        "NOTEBOOKS_LFS_AUTO_FETCH": "1" if large else "0",
        "NOTEBOOKS_PARTIAL_CLONE_FROM": str(settings.partial_clone_from),
        "NOTEBOOKS_DISK_MARGIN": str(settings.disk_margin),
        "NOTEBOOKS_CHECKOUT_FILES": str(settings.checkout_files),
    }
    if returning:
        return given
    size = await asyncio.to_thread(forge.repository_bytes, grant.project)
    if size is not None:
        given["NOTEBOOKS_REPOSITORY_BYTES"] = str(size)
    entries = [
        {
            "at": each.at,
            "parent": each.parent,
            "name": each.name,
            "project": each.project,
            "commit": each.commit,
        }
        for each in kept
    ]
    return {**given, "NOTEBOOKS_SUBMODULES": json.dumps(entries)}
