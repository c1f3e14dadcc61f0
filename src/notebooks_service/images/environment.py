"""A built environment of the ``local`` runtime as the spawner and the forge's registry see it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

RECORD_VERSION = 1
RECORD_NAME = "image.json"


@dataclass(frozen=True)
class Environment:
    """Immutable once built. ``kernel_argv`` starts its kernel (``{connection_file}`` is Jupyter's).

    ``path`` is its directory, ``python`` its interpreter. ``kernel`` tells where ipykernel comes
    from: ``project`` (its own pins), ``added`` (beside them, changing none), ``beside`` (a
    directory that only the kernel sees). ``notes`` are sentences about what is not as asked.
    """

    fingerprint: str
    digest: str
    path: Path
    python: Path
    kernel_argv: tuple[str, ...]
    kernel_env: Mapping[str, str]
    display_name: str
    kernel: str = "added"
    notes: tuple[str, ...] = ()
    created_at: str = ""
    inputs: str = ""

    @property
    def bin(self) -> Path:
        """Its programs' directory, for the PATH of a server."""
        return self.python.parent

    def overlay(self, directory: Path) -> Environment:
        """This environment with a writable layer of one server's own in ``directory``.

        The layer is a virtual environment that looks into this one after itself: ``%pip install``
        and ``pip install`` put packages into it and find those of the environment already there,
        and nobody else's server sees them. ``singleuser/layer.py`` makes it, inside the server.
        """
        layer = Path(os.path.abspath(directory))  # noqa: PTH100 - links stay as they are
        python = layer / "bin" / "python"
        return replace(
            self,
            python=python,
            kernel_argv=(str(python), *self.kernel_argv[1:]),
            kernel_env={**self.kernel_env, "VIRTUAL_ENV": str(layer)},
        )

    @property
    def library(self) -> Path:
        """Its ``site-packages``."""
        root = self.path / "lib"
        return next(root.glob("python*/site-packages"))

    def to_record(self) -> str:
        """The text of ``image.json``."""
        data: dict[str, Any] = {"version": RECORD_VERSION, **asdict(self)}
        data |= {"path": str(self.path), "python": str(self.python)}
        data["kernel_env"] = dict(self.kernel_env)
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_record(cls, path: Path) -> Environment | None:
        """The environment in ``path``, or None if what lies there is not whole."""
        try:
            data = json.loads((path / RECORD_NAME).read_text())
            if data.pop("version") != RECORD_VERSION or data["path"] != str(path):
                return None
            return cls(
                **{
                    **data,
                    "path": Path(data["path"]),
                    "python": Path(data["python"]),
                    "kernel_argv": tuple(data["kernel_argv"]),
                    "notes": tuple(data["notes"]),
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
