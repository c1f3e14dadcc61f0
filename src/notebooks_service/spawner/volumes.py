"""What is kept of a server in the ``docker`` runtime: its volume, named in its directory; ``docker.py`` calls this.

The directory (as ``directories.py`` has it) holds logs, marks and the volume's name, and no work.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from notebooks_service.spawner.directories import ServerDirectory

NAME = "volume"


class VolumeDirectory(ServerDirectory):
    """The directory of one server whose work is in a volume of the engine's."""

    def make(self) -> None:
        for directory in (self.path.parent.parent, self.path.parent, self.path):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def volume(self) -> str | None:
        """The volume's name; None if there never was one."""
        return volume_of(self.path)

    def keep_volume(self, name: str) -> None:
        """Note the volume before it is made, so that it is never without an owner."""
        whole = self.path / f"{NAME}.tmp"
        whole.write_text(name)
        whole.replace(self.path / NAME)

    def read_cloned(self) -> dict[str, Any] | None:
        try:
            data = json.loads(self.cloned.read_text())
        except (OSError, ValueError):
            return None
        return data if isinstance(data, dict) and self.volume else None


def volume_of(path: Path) -> str | None:
    """The volume that a server's directory names, also one in the trash."""
    try:
        return (path / NAME).read_text().strip() or None
    except OSError:
        return None
