"""Names and directories of jobs, which are not to be trusted."""

from __future__ import annotations

import contextlib
import logging
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def safe_folder(name: str) -> str:
    """``name`` as one harmless path segment."""
    kept = "".join(char if char.isalnum() or char in "-_." else "_" for char in name)[:100]
    return kept if kept.strip(".") else "project"


def remove_tree(path: Path) -> None:
    """Removes a directory that a job had its way with: read-only parts are made writable first."""

    def again(function: Callable[..., Any], name: str, error: object) -> None:
        with contextlib.suppress(OSError):
            target = Path(name)
            target.parent.chmod(stat.S_IRWXU)
            if not target.is_symlink():
                target.chmod(stat.S_IRWXU)
            function(name)

    for _ in range(3):
        shutil.rmtree(path, onerror=again)
        if not path.exists():
            return
        time.sleep(0.05)
    log.warning("the directory %s of a job could not be removed", path.name)
