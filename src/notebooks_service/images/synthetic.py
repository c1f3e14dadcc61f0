"""The one commit that a build on demand is of: an environment's files and a CI file, nothing else.

Used by ``images/facts.py`` and ``images/on_demand.py``. Pure: the same environment gives the same
commit, whoever asks and however often, so a build of it is found again by its id alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from notebooks_service.gitlab.pack import Objects, TreeFile, commit, tree
from notebooks_service.images.tree import Entry

CI_FILE = ".gitlab-ci.yml"
AUTHOR = "Notebooks <notebooks@localhost>"
SECONDS = 1_700_000_000  # any moment, always the same


@dataclass(frozen=True)
class Synthetic:
    """A commit that may not be at the forge yet, and what has to be pushed for it to be."""

    sha: str
    branch: str
    pack: bytes = field(repr=False)


def built_in_ci(job_name: str, fingerprint: str) -> str:
    """The CI file of a build where the settings name no other."""
    return (
        "# Builds one environment for whoever opens a commit that has it. Its files are beside this.\n"
        f"{json.dumps(job_name)}:\n"
        f"  resource_group: env-{fingerprint}\n"
        "  variables:\n"
        '    GIT_LFS_SKIP_SMUDGE: "1"\n'
        "  script:\n"
        "    - notebooks image build\n"
    )


def synthetic_commit(fingerprint: str, inputs: Sequence[Entry], ci: str) -> Synthetic | None:
    """The commit; None if the environment has a CI file among its own files, or paths that are none."""
    if any(entry.path == CI_FILE for entry in inputs):
        return None
    objects = Objects()
    files = [TreeFile(entry.path, entry.mode, entry.blob) for entry in inputs]
    files.append(TreeFile(CI_FILE, "100644", objects.add("blob", ci.encode())))
    try:
        root = tree(objects, files)
    except ValueError:
        return None
    message = (
        f"Environment {fingerprint[:12]}\n\nMade to build the image of this environment on demand."
    )
    sha = commit(objects, root, AUTHOR, SECONDS, message)
    return Synthetic(sha, f"notebooks/env-{fingerprint}", objects.pack())
