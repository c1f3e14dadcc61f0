"""What the image of a server turned out to have: read from the line with which ``singleuser/serve.py`` begins the
server's log; for the docker runtime and the launch.

That log is written inside, where anything may write: only words and numbers of ours are taken from it, no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notebooks_service.default_urls import LAB, TITLES

LOOKED_THROUGH = 64 * 1024
"""Bytes of a log that may come before the line, as from an image's own start files."""
_PYTHON = re.compile(r"[0-9]{1,2}\.[0-9]{1,3}\Z")
OWN, KERNEL, LENT, NO_KERNEL = "jupyterhub-singleuser", "jupyter", "python", "none"


@dataclass(frozen=True)
class Served:
    """``way``: the image starts its own Jupyter, has a kernel for ours, has only Python, has no kernel at all.

    ``python`` is the version of the image's Python, empty for none. ``offers`` are what can be opened.
    """

    way: str
    python: str = ""
    git: bool = True
    offers: tuple[str, ...] = (LAB,)

    def to_dict(self, default_url: str) -> dict[str, Any]:
        """As the launch's record keeps it; ``message`` is what people read of it."""
        return {
            "way": self.way,
            "python": self.python,
            "git": self.git,
            "offers": list(self.offers),
            "message": " ".join(sentences(self, default_url)),
        }


def in_log(path: Path) -> Served | None:
    """What the log at ``path`` says, if it says so by now."""
    try:
        with path.open("rb") as file:
            text = file.read(LOOKED_THROUGH).decode(errors="replace")
    except OSError:
        return None
    for line in text.splitlines(keepends=True):
        if line.startswith("{") and line.endswith("\n") and (found := read(line)) is not None:
            return found
    return None


def read(line: str) -> Served | None:
    """What one line of a log says; None if it is no such line."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, Mapping) or said.get("notebooks") != "serve":
        return None
    way, python, offers = said.get("way"), said.get("python"), said.get("offers")
    if way not in (OWN, KERNEL, LENT, NO_KERNEL):
        return None
    known = [each for each in TITLES if isinstance(offers, list) and each in offers]
    return Served(
        way,
        python if isinstance(python, str) and _PYTHON.match(python) else "",
        said.get("git") is not False,
        tuple(known) or (LAB,),
    )


def way_in_words(served: Served) -> str:
    """The way that was taken, in a sentence."""
    git = (
        ""
        if served.git
        else " It has no git, so a terminal cannot push; the work is kept all the same."
    )
    if served.way == OWN:
        return f"The image starts its own Jupyter.{git}"
    if served.way == KERNEL:
        return f"The image has no `jupyterhub-singleuser`: this service's JupyterLab runs its kernel.{git}"
    if served.way == LENT:
        return f"The image has only Python {served.python}: this service lends it JupyterLab and a kernel.{git}"
    if served.python:
        return (
            f"The image has only Python {served.python}, for which this service has no kernel to lend: there "
            f"are files and a terminal. Add `ipykernel` to it.{git}"
        )
    return f"The image has no Python: there are files and a terminal, and no kernel.{git}"


def sentences(served: Served, default_url: str) -> list[str]:
    """What a launch says: the way, and that what was chosen is not there."""
    found = [way_in_words(served)]
    if default_url not in served.offers:
        found.append(
            f"The image does not offer {TITLES[default_url]} (`{default_url}`): JupyterLab opens."
        )
    return found
