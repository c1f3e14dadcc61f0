"""``python -m notebooks_service.platform.hub_container``: the hub in a container of its own, as deploy/docker has it.

Makes the data ready for this version as ``notebooks up`` does, holds its lock, and becomes JupyterHub. The proxy
and the service are containers beside it, which have their secrets from files of the same data.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jupyterhub.app import JupyterHub

from notebooks_service import __version__
from notebooks_service.errors import NotebooksError, PlatformFailed, SettingsInvalid
from notebooks_service.platform import checks, secrets
from notebooks_service.platform.directory import DataDirectory, RunningPlatform
from notebooks_service.platform.processes import ProcessId
from notebooks_service.platform.secrets import Secrets
from notebooks_service.settings import Settings, load_settings

CONFIG = Path(__file__).with_name("jupyterhub_config.py")
SHARED = ("servers", "service")
"""What the service's container is shown of the data; the engine would make them as root."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m notebooks_service.platform.hub_container", description=__doc__
    )
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="only make directories and keys; the OAuth application's secret is read from standard input, if it is not kept yet",
    )
    given = parser.parse_args(arguments)
    try:
        settings = load_settings()
        check_forge(settings)
        directory = DataDirectory(settings.data)
        directory.make()
        with checks.lock(directory):
            directory.update(__version__)
            for name in SHARED:
                (directory.path / name).mkdir(mode=0o700, exist_ok=True)
            own = Secrets(directory.secrets)
            keep_client_secret(own, sys.stdin.readline if given.prepare else lambda: "")
            own.make()
            if given.prepare:
                return 0
            directory.set_running(said(settings))
            JupyterHub.launch_instance(["-f", str(CONFIG)])
    except NotebooksError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def check_forge(settings: Settings) -> None:
    """Raises ``SettingsInvalid`` naming what only the administrator knows."""
    for name in ("hub_url", "forge_url", "forge_client_id"):
        if name not in settings.model_fields_set or not getattr(settings, name):
            raise SettingsInvalid(f"The setting `{name}` is missing: fill it in in notebooks.toml.")


def keep_client_secret(own: Secrets, ask: Callable[[], str]) -> None:
    """Have the secret of the application in the file that the hub reads. ``ask`` gives a line with it, or none.

    Raises ``PlatformFailed`` if there is none: ``Secrets.make`` would make one that no GitLab knows.
    """
    if own.path(secrets.CLIENT_SECRET).exists():
        return
    secret = ask().strip()
    if not secret:
        raise PlatformFailed(
            f"The secret of the forge's OAuth application is missing: run deploy/docker/prepare, or write it into {own.path(secrets.CLIENT_SECRET)}."
        )
    own.write(secrets.CLIENT_SECRET, secret)


def said(settings: Settings) -> RunningPlatform:
    """What ``notebooks doctor``, ``status`` and ``token`` in this container read of the hub."""
    process = ProcessId.of(os.getpid())
    return RunningPlatform(
        pid=process.pid,
        created=process.created,
        hub_url=settings.hub_url,
        hub_api_url=f"{os.environ['NOTEBOOKS_PLATFORM_HUB_CONNECT']}/hub/api",
        forge_url=settings.forge_url,
        embedded=False,
        subdomains=settings.subdomains,
    )


if __name__ == "__main__":
    sys.exit(main())
