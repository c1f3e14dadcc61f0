"""Which environments the jobs of one runner build, so that two do not build the same; used by ``job``."""

from __future__ import annotations

import threading

from notebooks_service.images.environments import Place


class Building:
    """One for a runner; asked from the threads of its jobs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[tuple[Place, str]] = set()

    def begin(self, project_id: Place, fingerprint: str) -> bool:
        """Whether nobody else builds it; then it is ours until ``end``."""
        with self._lock:
            if (project_id, fingerprint) in self._held:
                return False
            self._held.add((project_id, fingerprint))
            return True

    def end(self, project_id: Place, fingerprint: str) -> None:
        with self._lock:
            self._held.discard((project_id, fingerprint))
