"""The Jupyter files of one server in the ``local`` runtime: configuration, kernelspec, environment.

JupyterLab runs from the service's own environment and kernels from the commit's, through a
layer of this server's own that takes what ``pip install`` adds. Nothing here reads or writes outside the server's directory.
https://docs.jupyter.org/en/latest/use/jupyter-directories.html
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from notebooks_service.images.environments import Environment
from notebooks_service.spawner.directories import ServerDirectory
from notebooks_service.spawner.processes import MARKER

RUNTIME = Path("/run/jupyter")
"""Behind a wall: connection files and the kernels' sockets, whose paths may have 107 bytes only."""

INHERITED = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
"""The variables of the hub's own environment that a server gets, beside a cleaned PATH."""


def search_path(first: Sequence[Path]) -> str:
    """The hub's PATH without the service's own environment, after ``first``."""
    own = Path(sys.prefix) / "bin"
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    kept = [part for part in parts if part and Path(part) != own]
    return os.pathsep.join([*map(str, first), *(kept or [os.defpath])])


def server_environment(
    directory: ServerDirectory,
    given: Mapping[str, str],
    programs: Sequence[Path] = (),
    *,
    walled: bool = False,
) -> dict[str, str]:
    """The whole environment of a server's processes; ``given`` is the hub's part and ours.

    ``programs``: the directories that go before the PATH, the server's own layer first.
    """
    jupyter = directory.jupyter
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {
        "LANG": "C.UTF-8",
        **inherited,
        "PATH": search_path(programs),
        "HOME": str(directory.home),
        "SHELL": "/bin/bash",
        "USER": given.get("JUPYTERHUB_USER", "person"),
        "GIT_CONFIG_GLOBAL": str(directory.gitconfig),
        "GIT_TERMINAL_PROMPT": "0",
        "IPYTHONDIR": str(jupyter / "ipython"),
        "JUPYTER_CONFIG_DIR": str(jupyter / "config"),
        "JUPYTER_CONFIG_PATH": str(directory.settings / "etc"),
        "JUPYTER_DATA_DIR": str(jupyter / "data"),
        "JUPYTER_PATH": str(directory.settings / "share"),
        "JUPYTER_RUNTIME_DIR": str(RUNTIME if walled else jupyter / "runtime"),
        **({"VIRTUAL_ENV": str(programs[0].parent)} if programs else {}),
        MARKER: str(directory.path),
        **given,
    }


def write_files(
    directory: ServerDirectory, environment: Environment, *, walled: bool = False
) -> None:
    """Write configuration and kernelspec; again at each start, so an update of ours takes effect."""
    etc = directory.settings / "etc"
    _write(etc / "jupyter_server_config.json", server_config(directory, walled=walled))
    _write(etc / "labconfig" / "default_setting_overrides.json", LAB_SETTINGS)
    kernels = directory.settings / "share" / "kernels" / "python3"
    _write(kernels / "kernel.json", kernelspec(environment, walled=walled))
    # The directory above lets nobody else in; what is in here the server's own user has to read.
    for path in (directory.settings, *directory.settings.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


LAB_SETTINGS: dict[str, Any] = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": False,
    }
}


def server_config(directory: ServerDirectory, *, walled: bool = False) -> dict[str, Any]:
    """JupyterLab's settings: this directory, this kernel, and no request to the outside.

    Behind a wall kernels are reached by files that only this server has. A port would be open to all
    who share the machine's network: a key signs what a kernel says there and does not hide it.
    """
    return {
        **({"ConnectionFileMixin": {"transport": "ipc"}} if walled else {}),
        "ServerApp": {
            "root_dir": str(directory.work),
            "allow_root": True,
            "open_browser": False,
            "terminals_enabled": True,
            "terminado_settings": {"shell_command": ["/bin/bash"]},
        },
        "ContentsManager": {"allow_hidden": True},
        "KernelSpecManager": {"ensure_native_kernel": False, "allowed_kernelspecs": ["python3"]},
        # It would run every language server's program that it can find, and node, at each start.
        "LanguageServerManager": {"autodetect": False},
        "LabApp": {
            "extension_manager": "readonly",
            "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "news_url": None,
        },
    }


def kernelspec(environment: Environment, *, walled: bool = False) -> dict[str, Any]:
    """The commit's kernel, the only one that this server sees.

    Its debugger listens on a port of 127.0.0.1 and asks nobody for a password, so not where others
    share that address.
    """
    return {
        "argv": list(environment.kernel_argv),
        "display_name": environment.display_name,
        "language": "python",
        "interrupt_mode": "signal",
        "metadata": {"debugger": not walled},
        "env": dict(environment.kernel_env),
    }


def _write(path: Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2))
