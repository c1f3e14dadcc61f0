"""Hides secrets in a stream of bytes, also where one lies across two parts of it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = b"[MASKED]"


class Masker:
    """Give it the output part by part; what it returns may be shown.

    The end of a part that could be the beginning of a secret is held back until more is known.
    https://docs.gitlab.com/ci/variables/#mask-a-cicd-variable
    """

    def __init__(self, secrets: Iterable[str | bytes]) -> None:
        found = {s.encode(errors="surrogatepass") if isinstance(s, str) else s for s in secrets}
        self._secrets = sorted((s for s in found if s), key=len, reverse=True)
        self._longest = len(self._secrets[0]) if self._secrets else 0
        pattern = b"|".join(re.escape(s) for s in self._secrets)
        self._full = re.compile(pattern) if pattern else None
        self._held = b""
        self._beginning: dict[int, list[bytes]] = {}
        for secret in self._secrets:
            self._beginning.setdefault(secret[0], []).append(secret)

    @property
    def secrets(self) -> list[bytes]:
        return self._secrets

    def feed(self, data: bytes) -> bytes:
        """What of everything so far may be shown now and was not before."""
        if self._full is None:
            return data
        data = self._held + data
        shown: list[bytes] = []
        position = 0
        hold = self._unsure_from(data, position)
        while True:
            if position > hold:
                hold = self._unsure_from(data, position)
            match = self._full.search(data, position)
            if match is None or match.start() >= hold:
                shown.append(data[position:hold])
                self._held = data[hold:]
                return b"".join(shown)
            shown += (data[position : match.start()], MASK)
            position = match.end()

    def flush(self) -> bytes:
        """What was held back, at the end of the stream."""
        if self._full is None:
            return b""
        rest, self._held = self._held, b""
        return self._full.sub(MASK, rest)

    def _unsure_from(self, data: bytes, position: int) -> int:
        """Where the first rest of ``data`` begins that is the beginning of a longer secret."""
        start = max(position, len(data) - self._longest + 1)
        for index in range(start, len(data)):
            candidates = self._beginning.get(data[index])
            if candidates is None:
                continue
            rest = data[index:]
            if any(len(s) > len(rest) and s.startswith(rest) for s in candidates):
                return index
        return len(data)
