"""Names an environment by what it depends on and nothing else; used by ``images/environments.py``.

First form: environments of the `local` runtime. The text is versioned: another version, another
fingerprint, no confusion.
"""

from __future__ import annotations

import hashlib
import json
import platform

from notebooks_service.images.recipe import Recipe

TEXT_VERSION = 1
BUILDER = "local 1"


def canonical_text(recipe: Recipe, python: str) -> str:
    """What the fingerprint is computed from, one fact a line. ``python``: major and minor version."""
    lines = [
        f"notebooks environment {TEXT_VERSION}",
        f"builder {BUILDER}",
        f"platform {platform.system().lower()} {platform.machine()} {platform.libc_ver()[0] or '-'}",
        f"python {python}",
        f"strategy {recipe.strategy}",
    ]
    lines += [
        f"input {entry.mode} {entry.blob} {json.dumps(entry.path)}"
        for entry in sorted(recipe.inputs, key=lambda entry: entry.path)
    ]
    return "\n".join(lines) + "\n"


def fingerprint(text: str) -> str:
    """The 64 hex digits that stand for ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()
