"""Patterns of Dockerfiles and ``.dockerignore``, by Go's rules, in RE2; used by ``images/context.py``.

A repository's patterns are anybody's, and RE2 takes time in proportion to what it reads.
https://pkg.go.dev/path/filepath#Match, https://docs.docker.com/build/concepts/context/#dockerignore-files
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import re2  # type: ignore[import-untyped]

from notebooks_service.errors import BuildFailed

WILD = frozenset("*?[\\")
LONGEST = 1000
MOST = 1000


class Pattern:
    """One pattern over paths that are separated by slashes."""

    def __init__(self, text: str, *, deep: bool) -> None:
        """``deep``: two stars stand for any number of directories. Raises ``ValueError``."""
        if len(text) > LONGEST:
            raise ValueError("it is too long")
        self.text = text
        self.parts = text.split("/")
        try:
            self._whole = _compiled(text, deep)
            self._parts = [None if deep and "**" in p else _compiled(p, False) for p in self.parts]
        except re2.error:
            raise ValueError("it is not understood") from None

    @property
    def is_deep(self) -> bool:
        """Whether it may match at any depth."""
        return None in self._parts

    def matches(self, path: str) -> bool:
        return self._whole.fullmatch(_bytes(path)) is not None

    def may_match_below(self, directory: str) -> bool:
        """Whether it could match anything below ``directory`` ("" is the root), itself not counted."""
        names = directory.split("/") if directory else []
        for number, name in enumerate(names):
            if number >= len(self.parts):
                return False
            part = self._parts[number]
            if part is None:
                return True
            if part.fullmatch(_bytes(name)) is None:
                return False
        return len(self.parts) > len(names)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _compiled(text: str, deep: bool) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.dot_nl = True
    return re2.compile(_bytes(_regex(text, deep)), options=options)


def _regex(text: str, deep: bool) -> str:
    """The expression of a pattern. Raises ``ValueError`` for what Go calls a syntax error."""
    out = ""
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "*":
            if deep and text[at : at + 1] == "*":
                at += 1
                if text[at : at + 1] == "/":
                    at += 1
                out += ".*" if at >= len(text) else "(?:.*/)?"
            else:
                out += "[^/]*"
        elif character == "?":
            out += "[^/]"
        elif character == "[":
            expression, at = _class(text, at)
            out += expression
        else:
            if character == "\\":
                if at >= len(text):
                    raise ValueError("it ends in a backslash")
                character = text[at]
                at += 1
            out += re2.escape(character)
    return out


def _class(text: str, at: int) -> tuple[str, int]:
    """The bracket expression that begins before ``at``, and where it ends."""
    negated = text[at : at + 1] == "^"
    at += negated
    ranges = ""
    while True:
        if ranges and text[at : at + 1] == "]":
            # As Go has it, a class can match a slash only where one is named.
            return f"[{'^' if negated else ''}{ranges}]", at + 1
        low, at = _class_character(text, at)
        high = low
        if text[at : at + 1] == "-":
            high, at = _class_character(text, at + 1)
        if low > high:
            # Go takes such a range for one that holds nothing.
            low, high = "\0", "\0"
        ranges += f"{_in_class(low)}-{_in_class(high)}"


def _class_character(text: str, at: int) -> tuple[str, int]:
    character = text[at : at + 1]
    if not character or character in "-]":
        raise ValueError("its brackets are not those of a pattern")
    at += 1
    if character == "\\":
        character = text[at : at + 1]
        at += 1
    if not character or at >= len(text):
        raise ValueError("its brackets do not end")
    return character, at


def _in_class(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"


def is_glob(path: str) -> bool:
    """Whether Go would look for ``path`` among names instead of taking it as one."""
    at = 0
    while at < len(path):
        if path[at] == "\\":
            at += 1
        elif path[at] in "*?[":
            return True
        at += 1
    return False


State = tuple[bool, ...]


@dataclass(frozen=True)
class _Rule:
    pattern: Pattern
    keeps: bool


class Ignore:
    """The rules of a ``.dockerignore``; the last that matches a path or a directory above it counts.

    What matched above is carried down as a ``State``, one mark for each rule.
    """

    def __init__(self, lines: Iterable[str] = (), name: str = ".dockerignore") -> None:
        """Raises ``BuildFailed`` for a rule that a build would refuse."""
        self._rules: list[_Rule] = []
        for line in lines:
            text = line.strip()
            if line.startswith("#") or not text:
                continue
            keeps = text.startswith("!")
            text = text[1:].strip() if keeps else text
            try:
                if not text or len(self._rules) >= MOST:
                    raise ValueError("it names nothing" if not text else "there are too many")
                cleaned = posixpath.normpath(text.replace("//", "/"))
                cleaned = cleaned.lstrip("/") or "."
                self._rules.append(_Rule(Pattern(cleaned, deep=True), keeps))
            except ValueError as error:
                raise BuildFailed(f"The rule `{line[:80]}` in `{name}` is none: {error}.") from None

    @property
    def is_deep(self) -> bool:
        """Whether a rule may match at any depth."""
        return any(rule.pattern.is_deep for rule in self._rules)

    @property
    def weight(self) -> int:
        """How long one path takes, in rules of usual length."""
        return sum(1 + len(rule.pattern.text) // 20 for rule in self._rules)

    @property
    def top(self) -> State:
        """The state of the root: nothing has matched."""
        return (False,) * len(self._rules)

    def step(self, above: State, path: str) -> tuple[State, bool]:
        """The state of ``path`` below a directory with the state ``above``; whether it is left out."""
        marks: list[bool] = []
        out = False
        for rule, inherited in zip(self._rules, above, strict=True):
            # A rule that could not change the verdict is not asked, and leaves no mark.
            matched = inherited or (rule.keeps == out and rule.pattern.matches(path))
            marks.append(matched)
            if matched:
                out = not rule.keeps
        return tuple(marks), out

    def verdict(self, path: str) -> tuple[State, bool]:
        """The same for a path of which nothing is known."""
        state, out = self.top, False
        names = path.split("/") if path else []
        for depth in range(1, len(names) + 1):
            state, out = self.step(state, "/".join(names[:depth]))
        return state, out

    def may_change_below(self, directory: str, out: bool) -> bool:
        """Whether something below a directory may have another verdict than the directory has."""
        return any(
            rule.keeps == out and rule.pattern.may_match_below(directory) for rule in self._rules
        )
