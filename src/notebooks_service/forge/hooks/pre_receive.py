"""The forge's pre-receive hook: refuses single refs of a push in GitLab's words.

git runs it, isolated (``python -I -S``), for every push over HTTP; the standard library is all it
has. ``FORGE_PUSH_RULES`` is JSON: ``protected`` (branch names, or null while the repository is
empty: then all are), ``push_protected`` and ``default_branch``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

ZERO = re.compile(r"0{40}(0{24})?\Z")
SHA_NAME = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?\Z", re.IGNORECASE)


def refusal(old: str, new: str, ref: str, rules: dict[str, object]) -> str | None:
    """Why this one update is refused, in GitLab's words; None if it is not."""
    if not ref.startswith(("refs/heads/", "refs/tags/", "refs/notes/")):
        return "You can only push branches, tags and notes."
    if not ref.startswith("refs/heads/"):
        return None
    branch = ref.removeprefix("refs/heads/")
    created, deleted = bool(ZERO.match(old)), bool(ZERO.match(new))
    if created and SHA_NAME.match(branch):
        return "You cannot create a branch with a 40-character hexadecimal branch name."
    if deleted and branch == rules["default_branch"]:
        return "The default branch of a project cannot be deleted."
    protected = rules["protected"]
    if isinstance(protected, list) and branch not in protected:
        return None
    if not rules["push_protected"]:
        return "You are not allowed to push code to protected branches on this project."
    if protected is None:
        return None
    if deleted:
        return "You are not allowed to delete protected branches from this project."
    if not created and not is_ancestor(old, new):
        return "You are not allowed to force push code to a protected branch on this project."
    return None


def is_ancestor(old: str, new: str) -> bool:
    # In the environment that receive-pack set: the quarantine of this push, our repository.
    return (
        subprocess.run(
            ["git", "merge-base", "--is-ancestor", old, new],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        ).returncode
        == 0
    )


def main() -> int:
    rules = json.loads(os.environ["FORGE_PUSH_RULES"])
    for line in sys.stdin.buffer:
        old, new, ref = line.decode("utf-8", "surrogateescape").rstrip("\n").split(" ", 2)
        why = refusal(old, new, ref, rules)
        if why:
            print(f"GitLab: {why}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
