"""Makes the addresses of large files that a server gets, and reads them again: nothing is remembered.

An address holds, encrypted, where at the forge the file is, and for whom: one server of one person,
one project, one file, one operation, for a while. The key comes from the service's own hub token, so
a restarted service goes on where the last one stopped. Called by ``lfs.py``.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import asdict

from cryptography.fernet import Fernet, InvalidToken

from notebooks_service.errors import NotebooksError, NotFound
from notebooks_service.gateway.access import Admission
from notebooks_service.gateway.lfs_messages import Action

GOOD_FOR = 4 * 3600.0
"""Seconds that an address is good, if the forge says nothing shorter of its own."""
LONGEST_TICKET = 12_000
"""Letters of an address; what stands before us takes request lines of 16 KiB."""


class TicketExpired(NotebooksError):
    code = "expired"
    status = 410
    message = "The address of this large file was good for a while only; run the command again."


class Tickets:
    """Seals actions for a server, and opens them for that server alone."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(key))

    def seal(self, action: Action, admission: Admission, good_for: float | None) -> str:
        """The ticket for ``action``, good for ``good_for`` seconds, at most four hours."""
        facts = {
            "for": [admission.user, admission.server, admission.project_id],
            "until": time.time() + min(good_for or GOOD_FOR, GOOD_FOR),
            "action": asdict(action),
        }
        ticket = self._fernet.encrypt(json.dumps(facts, separators=(",", ":")).encode()).decode()
        if len(ticket) > LONGEST_TICKET:
            raise NotFound
        return ticket

    def open(self, ticket: str, admission: Admission) -> Action:
        """The action. Raises ``NotFound`` for another server's or a made-up one, ``TicketExpired``."""
        if len(ticket) > LONGEST_TICKET:
            raise NotFound
        try:
            facts = json.loads(self._fernet.decrypt(ticket.encode()))
        except (InvalidToken, UnicodeEncodeError, ValueError):
            raise NotFound from None
        if facts["for"] != [admission.user, admission.server, admission.project_id]:
            raise NotFound
        if facts["until"] < time.time():
            raise TicketExpired
        headers = tuple((name, value) for name, value in facts["action"].pop("headers"))
        return Action(headers=headers, **facts["action"])
