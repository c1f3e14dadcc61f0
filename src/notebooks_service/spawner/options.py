"""What a request for one of our servers must look like; called by the launch, trusts nobody.

People can call the hub's API directly, so every key, type and character is checked here. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from notebooks_service import default_urls, mounts
from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import InvalidRequest, LaunchRefused
from notebooks_service.resources import NOTHING_CHOSEN, Resources, read

OPTIONS_KEY = "notebooks"
KEYS = frozenset({"project", "commit", "branch"})
MORE_KEYS = frozenset(
    {
        "cpu",
        "default_url",
        "gpu",
        "image",
        "lfs_auto_fetch",
        "memory",
        "mounts",
        "new_image",
        "submodules",
    }
)
LONGEST_IMAGE = 500
MOST_SUBMODULES = 50
LONGEST_PATH = 1024
LONGEST_BRANCH = 255

# https://docs.gitlab.com/user/reserved_names/#limitations-on-usernames-project-and-group-names
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}\Z")
# https://git-scm.com/docs/git-check-ref-format
_BAD_IN_BRANCH = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")
OUR_NAME = re.compile(r"p[0-9]{1,12}-[a-z2-7]{16}\Z")


@dataclass(frozen=True)
class LaunchOptions:
    """What is asked for: a project's full path, a full commit id, a branch's name.

    These three are the server's identity. The others are not: ``lfs_auto_fetch`` is None where
    nothing was said, ``submodules`` are the ids of the projects that the person agreed to. ``image``,
    if not empty, must be had and no other; ``new_image``: not the one that this server ran in before.
    ``resources`` are as they were asked for; whether that may be had, ``resources.check`` says; ``mounts`` are names, ``mounts.check`` says the same of them,
    ``default_urls.check`` of ``default_url``, which is empty for the default.
    """

    project: str
    commit: str
    branch: str
    lfs_auto_fetch: bool | None = None
    submodules: tuple[int, ...] = ()
    image: str = ""
    new_image: bool = False
    resources: Resources = NOTHING_CHOSEN
    mounts: tuple[str, ...] = ()
    default_url: str = ""


def is_ours(user_options: object) -> bool:
    """Whether these hub options ask for one of our servers, well-formed or not."""
    return isinstance(user_options, Mapping) and OPTIONS_KEY in user_options


def may_be_ours(server_name: str) -> bool:
    """Whether a hub server's name has the form that ``domain.server_name`` gives."""
    return OUR_NAME.match(server_name) is not None


def is_project_path(text: str) -> bool:
    """Whether ``text`` can be a project's full path: two segments or more, none of them special."""
    segments = text.split("/")
    return (
        len(text) <= LONGEST_PATH
        and len(segments) >= 2
        and all(_SEGMENT.match(s) and not s.endswith((".", ".git", ".atom")) for s in segments)
    )


def is_branch_name(text: str) -> bool:
    """Whether git would take ``text`` as a branch's name (``git check-ref-format --branch``)."""
    return (
        0 < len(text) <= LONGEST_BRANCH
        and _BAD_IN_BRANCH.search(text) is None
        and not text.startswith(("-", "/"))
        and not text.endswith(("/", "."))
        and text not in ("@", "HEAD")
        and all(not s.startswith(".") and not s.endswith(".lock") for s in text.split("/"))
    )


def read_options(user_options: Mapping[str, Any]) -> LaunchOptions:
    """The request in a hub server's ``user_options``.

    Raises ``LaunchRefused`` naming what is wrong: another key beside ours, a key too many or too
    few, a wrong type, a commit that is not 40 hex digits, an impossible path or branch.
    """
    beside = sorted(str(key) for key in user_options if key != OPTIONS_KEY)
    if beside:
        raise _refused(f"options beside `{OPTIONS_KEY}` are not taken: {_names(beside)}")
    asked = user_options[OPTIONS_KEY]
    if not isinstance(asked, Mapping):
        raise _refused(f"`{OPTIONS_KEY}` must be an object")
    extra = sorted(str(key) for key in asked if key not in KEYS | MORE_KEYS)
    if extra:
        raise _refused(f"unknown options: {_names(extra)}")
    missing = sorted(KEYS - asked.keys())
    if missing:
        raise _refused(f"missing options: {_names(missing)}")
    for key in sorted(KEYS):
        if not isinstance(asked[key], str):
            raise _refused(f"`{key}` must be a string")
    if not is_project_path(asked["project"]):
        raise _refused("`project` must be a project's full path")
    if not is_commit_sha(asked["commit"]):
        raise _refused("`commit` must be a full commit id, 40 lower-case hex digits")
    if not is_branch_name(asked["branch"]):
        raise _refused("`branch` must be a branch's name")
    if not isinstance(asked.get("lfs_auto_fetch"), bool | None):
        raise _refused("`lfs_auto_fetch` must be true or false")
    image = asked.get("image", "")
    if not isinstance(image, str) or len(image) > LONGEST_IMAGE or not image.isprintable():
        raise _refused("`image` must be an image's name")
    if not isinstance(asked.get("new_image", False), bool):
        raise _refused("`new_image` must be true or false")
    try:
        resources = read(asked.get("cpu"), asked.get("memory"), asked.get("gpu"))
        chosen = mounts.read(asked.get(mounts.OPTION))
        default_url = default_urls.read(asked.get(default_urls.KEY))
    except InvalidRequest as error:
        raise _refused(error.message.rstrip(".")) from None
    return LaunchOptions(
        asked["project"],
        asked["commit"],
        asked["branch"],
        asked.get("lfs_auto_fetch"),
        _project_ids(asked.get("submodules", [])),
        image,
        asked.get("new_image", False),
        resources,
        chosen,
        default_url,
    )


def _project_ids(asked: object) -> tuple[int, ...]:
    """The ids of different projects, at most ``MOST_SUBMODULES``."""
    if not isinstance(asked, list) or len(asked) > MOST_SUBMODULES:
        raise _refused(f"`submodules` must be a list of at most {MOST_SUBMODULES} project ids")
    # ``bool`` is an ``int`` to Python, and 2.0 equals 2.
    if any(type(each) is not int or not 0 < each < 2**63 for each in asked):
        raise _refused("`submodules` must be a list of project ids")
    if len(set(asked)) != len(asked):
        raise _refused("`submodules` names a project twice")
    return tuple(asked)


def _names(names: list[str]) -> str:
    return ", ".join(repr(name[:40]) for name in names[:5])


def _refused(why: str) -> LaunchRefused:
    return LaunchRefused(f"This launch was refused: {why}. Open the commit's page and start there.")
