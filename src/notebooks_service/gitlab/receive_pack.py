"""Makes and removes a branch by git's own protocol; used by ``gitlab/forge.py``.

GitLab's API would want a token of scope ``api`` for this, which may do everything; a push only wants
``write_repository``. For a commit that the forge has nothing is uploaded: its pack is empty.
https://git-scm.com/docs/gitprotocol-pack#_reference_update_request_and_packfile_transfer
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

NO_SHA = "0" * 40
CONTENT_TYPE = "application/x-git-receive-pack-request"

_EMPTY_PACK_HEAD = b"PACK" + (2).to_bytes(4, "big") + (0).to_bytes(4, "big")
EMPTY_PACK = _EMPTY_PACK_HEAD + hashlib.sha1(_EMPTY_PACK_HEAD, usedforsecurity=False).digest()


def request_body(ref: str, old: str, new: str, pack: bytes = EMPTY_PACK) -> bytes:
    """The body of a push that moves ``ref`` from ``old`` to ``new``; ``NO_SHA`` stands for no ref.

    ``pack``: what the repository has not of ``new``.
    """
    command = f"{old} {new} {ref}\0 report-status agent=notebooks-service".encode()
    body = f"{len(command) + 4:04x}".encode() + command + b"0000"
    return body if new == NO_SHA else body + pack


def refusal(answer: bytes, ref: str) -> str | None:
    """Why the ref did not move, None if it did. ``answer`` is the body of a ``report-status``."""
    lines = [line.decode(errors="replace").rstrip("\n") for line in _lines(answer)]
    if f"ok {ref}" in lines:
        return None
    refused = next((line for line in lines if line.startswith(f"ng {ref} ")), "")
    return refused.removeprefix(f"ng {ref} ") or "the forge gave no reason"


def _lines(answer: bytes) -> Iterator[bytes]:
    """The payloads of the pkt-lines in ``answer``, up to the first flush or anything malformed."""
    at = 0
    while at + 4 <= len(answer):
        try:
            length = int(answer[at : at + 4], 16)
        except ValueError:
            return
        if length < 4:
            return
        yield answer[at + 4 : at + length]
        at += length
