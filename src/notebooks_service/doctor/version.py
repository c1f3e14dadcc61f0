"""Which GitLab it is, and whether this service was made for it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from notebooks_service.doctor.findings import Finding, note, ok, plain, problem, unchecked, warning
from notebooks_service.doctor.reach import Reach

OLDEST = (15, 2)
"""The first with the metadata API. https://docs.gitlab.com/api/metadata/"""
ONLY_API_SCOPE_BEFORE = (15, 0)
"""Git over HTTP took an OAuth token only with the scope ``api`` (GitLab's lib/gitlab/auth.rb up to
14.5 at least; in 14.7 the repository scopes are enough: gitlab-org/gitlab#349461)."""
NEWEST = 19
"""The last major version whose documentation was read."""


def read_version(text: object) -> tuple[int, int] | None:
    """``17.8.0-ee`` → (17, 8)."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})(?!\d)", text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else None


def judge_version(facts: Reach, scopes: Sequence[str]) -> list[Finding]:
    """``scopes``: what ``forge_scopes`` asks for."""
    if facts.api.status != 200:
        return [
            unchecked(
                "version.unknown", "The forge tells its version only to people who are signed in."
            )
        ]
    said = facts.api.mapping().get("version")
    version = read_version(said)
    if version is None:
        return [
            warning(
                "version.unreadable",
                f"The forge's version cannot be read: {plain(said, 40)}.",
                "Compare it by hand with the supported versions in docs/doctor.md.",
            )
        ]
    name = plain(said, 40)
    if "-notebooks" in str(said):
        return [ok("version.embedded", f"It is the embedded forge, following GitLab {name}.")]
    if version < ONLY_API_SCOPE_BEFORE and "api" not in scopes:
        return [
            problem(
                "version.needs-api-scope",
                f"GitLab {name} lets an OAuth token reach git only with the scope `api`, and `forge_scopes` does not ask for it.",
                'Update GitLab to 15.2 or newer, or set `forge_scopes = ["api"]` and give the application that scope.',
            )
        ]
    if version < OLDEST:
        return [
            warning(
                "version.old",
                f"GitLab {name} is older than 15.2, the oldest that this service supports.",
                "Update GitLab; it gives security fixes to its last few versions only.",
            )
        ]
    if version[0] > NEWEST:
        return [
            note(
                "version.new",
                f"GitLab {name} is newer than {NEWEST}, the last version that this service knows of.",
                "Look for a newer version of this service if something does not work.",
            )
        ]
    return [
        ok("version.supported", f"GitLab {name} is supported (by its documentation, not tried).")
    ]
