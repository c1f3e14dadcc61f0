"""What all our servers of one hub process share; made once by ``configure`` and put on the class."""

from __future__ import annotations

from dataclasses import dataclass

from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.watch import ImageWatcher
from notebooks_service.settings import Settings
from notebooks_service.spawner.admissions import Admissions
from notebooks_service.spawner.cleanup import Cleanups
from notebooks_service.spawner.launch_queue import LaunchQueue
from notebooks_service.spawner.meter import Meter
from notebooks_service.spawner.refresh import TokenRefresher
from notebooks_service.spawner.runtime import Runtime


@dataclass(frozen=True)
class Shared:
    """``queue`` bounds how many servers clone or start at once; waiting for a build takes no place in it."""

    settings: Settings
    refresher: TokenRefresher
    watcher: ImageWatcher
    runtime: Runtime
    cleanups: Cleanups
    queue: LaunchQueue
    admissions: Admissions
    meter: Meter

    def forge(self, token: str) -> Forge:
        """The forge as the person sees it whose OAuth token this is."""
        return Forge(
            self.settings.forge_url,
            token,
            timeout=self.settings.forge_timeout,
            ca_file=self.settings.forge_ca_file,
        )
