"""The same wall by bubblewrap, for machines that let nobody else make a user namespace.

Ubuntu is one: AppArmor allows it to programs it knows. https://github.com/containers/bubblewrap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from notebooks_service.walls.view import Mount


def bubblewrap(
    mounts: Sequence[Mount], environment: Mapping[str, str], directory: Path
) -> list[str]:
    """The arguments, to be given by ``--args``: the environment may hold a secret."""
    arguments = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--die-with-parent"]
    arguments += ["--new-session", "--cap-drop", "ALL", "--clearenv"]
    for name, value in environment.items():
        arguments += ["--setenv", name, value]
    arguments += ["--dev", "/dev", "--proc", "/proc"]
    for mount in mounts:
        if mount.kind == "link":
            arguments += ["--symlink", mount.source, mount.at]
        elif mount.kind == "tmpfs":
            arguments += ["--perms", mount.mode, "--tmpfs", mount.at]
        else:
            flag = "--ro-bind" if mount.kind == "read" else "--bind"
            arguments += [flag, mount.source, mount.at]
    return [*arguments, "--remount-ro", "/", "--chdir", str(directory)]
