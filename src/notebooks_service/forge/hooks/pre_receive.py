"""The forge's pre-receive hook: refuses single refs of a push in GitLab's words.

git runs it, isolated (``python -I -S``), for every push over HTTP; the standard library is all it
has. ``FORGE_PUSH_RULES`` names a file of JSON, a ``Rules``. The API asks the same functions (``protection``).
https://docs.gitlab.com/user/project/repository/branches/protected/ · …/protected_tags/
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import TypedDict

ZERO = re.compile(r"0{40}(0{24})?\Z")
SHA_BRANCH = re.compile(r"[0-9a-f]{40}(-/|/|\Z)", re.IGNORECASE)
SHA_TAG = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?", re.IGNORECASE)

OTHER_REF = "You can only push branches, tags and notes."
HEX_BRANCH = "You cannot create a branch with a 40-character hexadecimal branch name."
DELETE_DEFAULT = "The default branch of a project cannot be deleted."
FORCE_PUSH = "You are not allowed to force push code to a protected branch on this project."
PUSH = "You are not allowed to push code to protected branches on this project."
CREATE = "You are not allowed to create protected branches on this project."
CREATE_FROM = (
    "You can only use an existing protected branch ref as the basis of a new protected branch."
)
CREATE_WEB = "You can only create protected branches using the web interface and API."
DELETE = (
    "You are not allowed to delete protected branches from this project. "
    "Only a project maintainer or owner can delete a protected branch."
)
DELETE_WEB = "You can only delete protected branches using the web interface."
TAG_UPDATE = "Protected tags cannot be updated."
TAG_DELETE = (
    "You are not allowed to delete protected tags from this project. "
    "Only a project maintainer or owner can delete a protected tag."
)
TAG_DELETE_WEB = "You can only delete protected tags using the web interface."
TAG_CREATE = "You are not allowed to create this tag as it is protected."
TAG_DEFAULT = "You cannot use default branch name to create a tag"
TAG_SHA = "You cannot create a tag with a SHA-1 or SHA-256 tag name."
# Bodies of "git push" to an empty project end with where its members are.
EMPTY = (
    "A default branch (e.g. main) does not yet exist for {project}\n"
    "Ask a project Owner or Maintainer to create a default branch:\n\n  {members}\n"
)


class BranchRule(TypedDict):
    """One protected name, and what this person may do with the branches that it matches."""

    name: str
    push: bool
    merge: bool
    force: bool


class TagRule(TypedDict):
    name: str
    create: bool


class Rules(TypedDict):
    """What one person may do with the refs of one project.

    ``empty``: there is no branch yet, then all are protected. ``web``: this is no ``git push``.
    """

    project: str
    members: str
    default_branch: str
    empty: bool
    maintainer: bool
    web: bool
    branches: list[BranchRule]
    tags: list[TagRule]


def matches(pattern: str, name: str) -> bool:
    """Whether a protected name covers ``name``; ``*`` stands for any text, slashes too.

    In linear time, whatever the pattern: people write them.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return pattern == name
    last = rest.pop()
    if len(first) + len(last) > len(name) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in rest:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def branch_rule(rules: Rules, branch: str) -> BranchRule | None:
    """What holds for this branch; None if it is not protected. Of several rules, the kindest."""
    found = [rule for rule in rules["branches"] if matches(rule["name"], branch)]
    if not found:
        return None
    return {
        "name": branch,
        "push": any(rule["push"] for rule in found),
        "merge": any(rule["merge"] for rule in found),
        "force": any(rule["force"] for rule in found),
    }


def refusal(
    old: str,
    new: str,
    ref: str,
    rules: Rules,
    is_ancestor: Callable[[str, str], bool],
    branches_with: Callable[[str], Iterable[str]],
) -> str | None:
    """Why this one update is refused, in GitLab's words; None if it is not.

    ``branches_with`` gives the branches that contain a commit.
    """
    if ref.startswith("refs/heads/"):
        return _branch(old, new, ref.removeprefix("refs/heads/"), rules, is_ancestor, branches_with)
    if ref.startswith("refs/tags/"):
        return _tag(old, new, ref.removeprefix("refs/tags/"), rules)
    return None if ref.startswith("refs/notes/") else OTHER_REF


def _branch(
    old: str,
    new: str,
    branch: str,
    rules: Rules,
    is_ancestor: Callable[[str, str], bool],
    branches_with: Callable[[str], Iterable[str]],
) -> str | None:
    created, deleted = bool(ZERO.match(old)), bool(ZERO.match(new))
    if deleted and branch == rules["default_branch"]:
        return DELETE_DEFAULT
    if not deleted and SHA_BRANCH.match(branch):
        return HEX_BRANCH
    if rules["empty"]:
        rule = branch_rule(rules, branch)
        allowed = rule["push"] if rule else rules["maintainer"]
        return None if allowed else EMPTY.format(**rules)
    rule = branch_rule(rules, branch)
    if rule is None:
        return None
    if not created and not deleted and not rule["force"] and not is_ancestor(old, new):
        return FORCE_PUSH
    if created:
        if rule["push"]:
            return None
        if not rule["merge"]:
            return CREATE
        if not any(branch_rule(rules, name) for name in branches_with(new)):
            return CREATE_FROM
        return None if rules["web"] else CREATE_WEB
    if deleted:
        if not rules["maintainer"]:
            return DELETE
        return None if rules["web"] else DELETE_WEB
    return None if rule["push"] else PUSH


def _tag(old: str, new: str, tag: str, rules: Rules) -> str | None:
    created, deleted = bool(ZERO.match(old)), bool(ZERO.match(new))
    if created and tag == rules["default_branch"]:
        return TAG_DEFAULT
    if not deleted and SHA_TAG.match(tag):
        return TAG_SHA
    found = [rule for rule in rules["tags"] if matches(rule["name"], tag)]
    if not found:
        return None
    if not created and not deleted:
        return TAG_UPDATE
    if deleted and not rules["maintainer"]:
        return TAG_DELETE
    if deleted and not rules["web"]:
        return TAG_DELETE_WEB
    return None if any(rule["create"] for rule in found) else TAG_CREATE


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    # In the environment that receive-pack set: the quarantine of this push, our repository.
    return subprocess.run(
        ["git", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )


def _is_ancestor(old: str, new: str) -> bool:
    return _git("merge-base", "--is-ancestor", old, new).returncode == 0


def _branches_with(sha: str) -> list[str]:
    out = _git("for-each-ref", f"--contains={sha}", "--format=%(refname)", "refs/heads/").stdout
    names = out.decode("utf-8", "surrogateescape").splitlines()
    return [name.removeprefix("refs/heads/") for name in names]


def main() -> int:
    with open(os.environ["FORGE_PUSH_RULES"], encoding="utf-8") as file:  # noqa: PTH123
        rules: Rules = json.load(file)
    updates: list[tuple[str, str, str]] = []
    for line in sys.stdin.buffer:
        old, new, ref = line.decode("utf-8", "surrogateescape").rstrip("\n").split(" ", 2)
        updates.append((old, new, ref))
        why = refusal(old, new, ref, rules, _is_ancestor, _branches_with)
        if why:
            print(f"GitLab: {why}", file=sys.stderr)
            return 1
    # Isolated as it is, python does not look beside this file by itself.
    sys.path.insert(0, os.path.dirname(__file__))  # noqa: PTH120
    import large_files  # type: ignore[import-not-found]

    if why := large_files.push_refusal(updates):
        print(f"GitLab: {why}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
