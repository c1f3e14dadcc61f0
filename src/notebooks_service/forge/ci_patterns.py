"""Patterns that people write into a CI configuration, run within a limit of work; used by ``ci_rules``.

They run in RE2, as they do in GitLab, so that none takes exponential time. A large one over a long
text can still take minutes, and there may be thousands: so each runs once for each text, one that
could take seconds is refused, and all of a pipeline's together have a limit.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import re2  # type: ignore[import-untyped]

from notebooks_service.forge.ci_yaml import CiConfigInvalid

SECONDS = 3.0
"""Processor time for all patterns of one pipeline."""
STEPS = 50_000_000
"""For one search: RE2's worst case is a step for each instruction and byte, of about 40 ns."""
PART = 16_384
"""Characters of paths that are looked through at once."""

_QUIET = re2.Options()
_QUIET.log_errors = False
_QUIET.max_mem = 1 << 20
_QUIET.never_capture = True

TOO_SLOW = "The rules of this configuration take too long to evaluate"


@dataclass(frozen=True)
class Pattern:
    """A regular expression between slashes, with its flags (``i``, ``s``, ``m``, ``U``)."""

    source: str
    flags: str = ""

    @classmethod
    def from_text(cls, text: str) -> Pattern | None:
        """The pattern that ``/source/flags`` stands for, or None if the text has another form."""
        match = re.fullmatch(r"/(.+)/([ismU]*)", text, re.DOTALL)
        return cls(match[1], match[2]) if match else None

    @property
    def expression(self) -> str:
        """As RE2 reads it."""
        source = self.source.replace("\\/", "/")
        flags = "".join(sorted(set(self.flags) & set("ismU")))
        return f"(?{flags}){source}" if flags else source


class Patterns:
    """Runs the patterns of one pipeline. Raises ``CiConfigInvalid`` once they took too long."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._left = seconds
        self._compiled: dict[str, Any] = {}
        self._found: dict[tuple[str, str], bool] = {}
        self._parts: dict[int, list[str]] = {}
        self._met: dict[tuple[str, int], bool] = {}

    def search(self, pattern: Pattern, text: str) -> bool:
        """Whether the pattern occurs in ``text``; an unreadable pattern never does."""
        key = (pattern.expression, text)
        if key not in self._found:
            self._found[key] = self._search(pattern.expression, (text,))
        return self._found[key]

    def any_path(self, globs: Iterable[str], paths: Collection[str]) -> bool:
        """Whether any of ``paths`` matches any of ``globs``, as ``rules:changes`` compares them.

        ``paths`` is the same object in every call that means the same paths.
        """
        if id(paths) not in self._parts:
            self._parts[id(paths)] = _joined(paths)
        return any(self._any_path(glob, id(paths)) for glob in globs)

    def _any_path(self, glob: str, paths: int) -> bool:
        key = (glob, paths)
        if key not in self._met:
            self._met[key] = self._search(_glob_source(glob), self._parts[paths])
        return self._met[key]

    def _search(self, expression: str, texts: Iterable[str]) -> bool:
        began = time.thread_time()
        compiled = self._compile(expression)
        for text in texts if compiled is not None else ():
            if compiled.programsize * len(text) > STEPS or time.thread_time() - began > self._left:
                raise CiConfigInvalid(TOO_SLOW)
            if compiled.search(text) is not None:
                found = True
                break
        else:
            found = False
        self._left -= time.thread_time() - began
        return found

    def _compile(self, expression: str) -> Any:
        if expression not in self._compiled:
            try:
                self._compiled[expression] = re2.compile(expression, _QUIET)
            except re2.error:
                self._compiled[expression] = None
        return self._compiled[expression]


def _joined(paths: Iterable[str]) -> list[str]:
    """The paths, each between two zero bytes, in texts of about ``PART`` characters."""
    parts: list[str] = []
    waiting: list[str] = []
    size = 0
    for path in paths:
        waiting.append(path)
        size += len(path) + 1
        if size > PART:
            parts.append("\0" + "\0".join(waiting) + "\0")
            waiting, size = [], 0
    if waiting:
        parts.append("\0" + "\0".join(waiting) + "\0")
    return parts


def _glob_source(glob: str) -> str:
    """Ruby's ``File.fnmatch`` with FNM_PATHNAME, FNM_DOTMATCH and FNM_EXTGLOB as a regular expression.

    It finds a path between two zero bytes, which no path and no glob holds.
    """
    source: list[str] = []
    depth = 0
    i = 0
    while i < len(glob):
        char = glob[i]
        at_segment = i == 0 or glob[i - 1] == "/"
        if glob.startswith("**/", i) and at_segment:
            source.append(r"(?:[^/\x00]+/)*")
            i += 3
            continue
        if glob.startswith("**", i) and at_segment and i + 2 == len(glob):
            source.append(r"[^\x00]*")
            i += 2
            continue
        if char == "*":
            source.append(r"[^/\x00]*")
        elif char == "?":
            source.append(r"[^/\x00]")
        elif char == "[" and (end := glob.find("]", i + 2)) > 0:
            inside = glob[i + 1 : end]
            negated = inside[0] in "!^"
            body = re.sub(r"([\\\]\[^&~|])", r"\\\1", inside[1:] if negated else inside)
            source.append((r"[^/\x00" if negated else "[") + body + "]")
            i = end
        elif char == "{":
            depth += 1
            source.append("(?:")
        elif char == "}" and depth:
            depth -= 1
            source.append(")")
        elif char == "," and depth:
            source.append("|")
        elif char == "\\" and i + 1 < len(glob):
            i += 1
            source.append(re.escape(glob[i]))
        else:
            source.append(re.escape(char))
        i += 1
    return r"\x00(?:" + ("".join(source) if not depth else re.escape(glob)) + r")\x00"
