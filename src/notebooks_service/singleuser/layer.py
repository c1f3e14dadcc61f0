"""Makes a server's own layer over its commit's environment, then becomes the command that follows.

Run before a server, as whom the server runs: ``python layer.py LAYER PYTHON LIBRARY -- COMMAND…``.
The layer is a virtual environment of six small files that looks into ``LIBRARY`` (the environment's
``site-packages``) after itself; one that is there keeps its packages. ``PYTHON`` is the environment's
interpreter. Standard library only.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def make_layer(layer: Path, python: Path, library: Path) -> None:
    environment = python.parent.parent
    own_library = layer / library.relative_to(environment)
    own_library.mkdir(parents=True, exist_ok=True)
    programs = layer / "bin"
    programs.mkdir(exist_ok=True)
    base = python.resolve()
    for name in ("python", "python3", base.name):
        link = programs / name
        if not (link.is_symlink() and link.resolve() == base):
            if link.is_symlink() or link.exists():
                link.unlink()
            link.symlink_to(base)
    (layer / "pyvenv.cfg").write_text((environment / "pyvenv.cfg").read_text())
    (own_library / "_environment.pth").write_text(
        f"import site; site.addsitedir({str(library)!r})\n"
    )
    for name in ("pip", "pip3"):
        script = programs / name
        script.write_text('#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n')
        script.chmod(0o755)


def main() -> None:
    end = sys.argv.index("--")
    layer, python, library = (Path(argument) for argument in sys.argv[1:end])
    make_layer(layer, python, library)
    command = sys.argv[end + 1 :]
    if command:
        os.execv(command[0], command)  # noqa: S606 - the command is the hub's own


if __name__ == "__main__":
    main()
