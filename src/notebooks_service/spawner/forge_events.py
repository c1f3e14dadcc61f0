"""Where the forge's webhook tells the hub that something happened in a project's CI.

Put into the hub by ``configure`` if there is a secret for it. What it is told is not believed: it
only makes the hub look at the forge a little earlier, so a delivery that is replayed does no harm.
https://docs.gitlab.com/user/project/integrations/webhooks/
"""

from __future__ import annotations

import hmac
import json
import logging
from typing import Any, ClassVar

from tornado.web import HTTPError, RequestHandler

from notebooks_service.images.watch import ImageWatcher

log = logging.getLogger(__name__)

PATH = "/notebooks/forge-events"
"""Below the hub's own address, ``<hub_url>hub``."""

LARGEST = 4 * 1024 * 1024


class ForgeEvents(RequestHandler):
    """Takes job and pipeline events; 401 without the secret, 204 with it, whatever the event is."""

    watcher: ClassVar[ImageWatcher]
    secret: ClassVar[str]

    @classmethod
    def made_for(cls, watcher: ImageWatcher, secret: str) -> type[ForgeEvents]:
        """The handler's class: a hub's configuration copies all that is in it, but no classes."""
        return type("ForgeEvents", (cls,), {"watcher": watcher, "secret": secret})

    def check_xsrf_cookie(self) -> None:
        """A forge has no cookie; the secret is what says who it is."""

    def post(self) -> None:
        given = self.request.headers.get("X-Gitlab-Token", "").encode("utf-8", "replace")
        if not self.secret or not hmac.compare_digest(given, self.secret.encode()):
            raise HTTPError(401)
        if len(self.request.body) > LARGEST:
            raise HTTPError(413)
        project = project_of(self.request.body)
        if project is not None:
            woken = self.watcher.forge_says(project)
            log.debug("The forge told of project %s; %s builds are looked at", project, woken)
        self.set_status(204)


def project_of(body: bytes) -> int | None:
    """The id of the project that an event is of; None if it names none.

    https://docs.gitlab.com/user/project/integrations/webhook_events/
    """
    try:
        event: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    inner = event.get("project")
    found = event.get("project_id") or (inner.get("id") if isinstance(inner, dict) else None)
    return found if isinstance(found, int) and not isinstance(found, bool) else None
