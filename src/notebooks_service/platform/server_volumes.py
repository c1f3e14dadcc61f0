"""The volumes of servers in the runtime ``docker``, for backups: read out of the engine, and put back.

Called by ``cli_backup.py``. Nothing of an image is run for it: a container that is never started has the
volume, and the engine reads and writes there.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, cast

import docker
import docker.errors
import requests

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.doors import engine
from notebooks_service.settings import Settings
from notebooks_service.spawner.containers import PLACE, Ours

PATIENCE = 3600.0
"""Seconds that the engine may be silent while it reads or writes one volume."""


class ServerVolumes:
    """The volumes of one service on its engine."""

    def __init__(self, settings: Settings, ours: Ours) -> None:
        self._image = settings.init_image
        self._ours = ours

    def listed(self) -> list[dict[str, Any]]:
        """Name and labels of each, running servers' too."""
        with engine() as client, _said():
            found = client.volumes.list(filters=self._ours.filters("volume"))
            return [{"name": each.name, "labels": each.attrs["Labels"] or {}} for each in found]

    @contextmanager
    def read(self, name: str) -> Iterator[IO[bytes]]:
        """The content of a volume as a tar archive, in a file without a name."""
        with engine(PATIENCE) as client, _said(), tempfile.TemporaryFile() as file:
            with self._holding(client, name, "ro") as container:
                for chunk in container.get_archive(PLACE)[0]:
                    file.write(chunk)
            file.seek(0)
            yield cast(IO[bytes], file)

    def put_back(self, name: str, labels: Mapping[str, str], content: IO[bytes]) -> None:
        """Make a volume with this content. Raises ``PlatformFailed`` if there is one of that name."""
        with engine(PATIENCE) as client, _said():
            with contextlib.suppress(docker.errors.NotFound):
                client.volumes.get(name)
                raise PlatformFailed(
                    f"The volume {name} is on this engine already, with somebody's work in it; a backup is "
                    "restored beside nothing of its own. Remove it, or restore to another engine."
                )
            client.volumes.create(name, labels=dict(labels))
            try:
                with self._holding(client, name, "rw") as container:
                    container.put_archive("/", content)
            except BaseException:
                self.remove(name)
                raise

    def remove(self, name: str) -> None:
        with engine() as client, _said(), contextlib.suppress(docker.errors.NotFound):
            client.volumes.get(name).remove()

    @contextmanager
    def _holding(self, client: docker.DockerClient, name: str, mode: str) -> Iterator[Any]:
        try:
            container = client.containers.create(
                self._image,
                ["/bin/true"],
                name=self._ours.fresh(),
                labels=self._ours.labels("look"),
                network_mode="none",
                volumes={name: {"bind": PLACE, "mode": mode}},
            )
        except docker.errors.ImageNotFound:
            raise PlatformFailed(
                f"The image {self._image} is not on this machine; make it with `deploy/docker/build init`."
            ) from None
        try:
            yield container
        finally:
            container.remove(force=True)


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except (docker.errors.DockerException, requests.RequestException) as error:
        said = getattr(error, "explanation", None) or type(error).__name__
        raise PlatformFailed(f"The Docker engine did not do what a backup needs: {said}.") from None
