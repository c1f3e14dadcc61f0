"""``notebooks image build``: what the built-in CI job runs to give its commit an environment.

Called by the CLI. Imports little: for a commit whose environment exists the whole job is one
fingerprint and one tag.
"""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import NoSpace, NotebooksError
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.log import BuildLog

NEEDED = ("CI_PROJECT_ID", "CI_PROJECT_DIR", "CI_COMMIT_SHA", "NOTEBOOKS_ENVIRONMENTS")


def build_from_ci(environ: Mapping[str, str], log: TextIO) -> int:
    """Builds the environment of the job's commit, or finds it built, and tags it with the sha.

    Reads GitLab's predefined variables (https://docs.gitlab.com/ci/variables/predefined_variables/)
    and ``NOTEBOOKS_ENVIRONMENTS``, the store's directory, from ``environ``. Exit code 0, or 1 after
    one sentence.
    """
    if threading.current_thread() is threading.main_thread():
        # A job that is cancelled or out of time is asked to end first: time to remove what was begun.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    lines = BuildLog(log)
    missing = [name for name in NEEDED if not environ.get(name)]
    if missing:
        lines.line(
            f"ERROR: {', '.join(missing)} not set: this command runs in a CI job of the local runtime."
        )
        return 1
    project, sha = environ["CI_PROJECT_ID"], environ["CI_COMMIT_SHA"]
    if not (project.isascii() and project.isdigit()) or not is_commit_sha(sha):
        lines.line("ERROR: CI_PROJECT_ID is no number, or CI_COMMIT_SHA is no full sha.")
        return 1
    store = EnvironmentStore(Path(environ["NOTEBOOKS_ENVIRONMENTS"]), environ=environ)
    try:
        environment = store.build(int(project), Path(environ["CI_PROJECT_DIR"]), log, commit=sha)
        store.tag(int(project), sha, environment.fingerprint)
    except NotebooksError as error:
        lines.line(f"ERROR: {error.message}")
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            lines.line(f"ERROR: {NoSpace.message}")
            return 1
        lines.line(f"ERROR: {error.strerror or error}: {error.filename or ''}")
        return 1
    lines.line(f"Tagged {sha} after {lines.seconds * 1000:.0f} ms: {environment.digest}")
    return 0
