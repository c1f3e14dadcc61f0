"""The small languages inside a CI configuration: ``rules:if`` expressions and variables.

Pure functions, called by ``ci_rules`` and ``ci_pipelines``; patterns are run by ``ci_patterns``.
https://docs.gitlab.com/ci/jobs/job_rules/#cicd-variable-expressions
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from notebooks_service.forge.ci_patterns import Pattern, Patterns

TOKEN_LIMIT = 100
EXPANDED_LIMIT = 64 * 1024
EXPANDED_TOTAL = 1024 * 1024

_TOKENS = re.compile(
    r"""\s*(?:
      (?P<open>\() | (?P<close>\)) |
      (?P<operator>==|!=|=~|!~|&&|\|\|) |
      \$(?P<variable>\w+) |
      "(?P<double>[^"]*)" | '(?P<single>[^']*)' |
      /(?P<pattern>(?:\\.|[^/\\])+)/(?P<flags>[ismU]*) |
      (?P<null>null\b) | (?P<boolean>true\b|false\b)
    )""",
    re.VERBOSE | re.ASCII,
)


class ExpressionInvalid(ValueError):
    """The text is no expression of GitLab's language."""


@dataclass(frozen=True)
class _Token:
    kind: str
    value: Any


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKENS.match(text, position)
        if match is None:
            raise ExpressionInvalid("Unknown lexeme found!")
        if len(found) >= TOKEN_LIMIT:
            raise ExpressionInvalid("Too many tokens!")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "flags":
            found.append(_Token("value", Pattern(match["pattern"], match["flags"])))
        elif kind in ("double", "single"):
            found.append(_Token("value", match[kind]))
        elif kind == "null":
            found.append(_Token("value", None))
        elif kind == "boolean":
            found.append(_Token("value", match[kind]))
        else:
            found.append(_Token(kind, match[kind]))
    return found


class _Evaluation:
    """Recursive descent; ``==`` and its like bind closer than ``&&``, which binds closer than ``||``."""

    def __init__(
        self, tokens: list[_Token], variables: Mapping[str, str], patterns: Patterns | None
    ) -> None:
        self.patterns = patterns
        self.tokens = tokens
        self.variables = variables
        self.position = 0

    def run(self) -> bool:
        if not self.tokens:
            raise ExpressionInvalid("An empty expression")
        value = self.either()
        if self.position != len(self.tokens):
            raise ExpressionInvalid("An operator is missing")
        return _true(value)

    def peek(self, kind: str, *values: str) -> bool:
        if self.position >= len(self.tokens):
            return False
        token = self.tokens[self.position]
        return token.kind == kind and (not values or token.value in values)

    def take(self) -> _Token:
        if self.position >= len(self.tokens):
            raise ExpressionInvalid("An operand is missing")
        self.position += 1
        return self.tokens[self.position - 1]

    def either(self) -> Any:
        value = self.both()
        while self.peek("operator", "||"):
            self.take()
            other = self.both()
            value = value if _true(value) else other
        return value

    def both(self) -> Any:
        value = self.comparison()
        while self.peek("operator", "&&"):
            self.take()
            other = self.comparison()
            value = other if _true(value) else value
        return value

    def comparison(self) -> Any:
        left = self.operand()
        while self.peek("operator", "==", "!=", "=~", "!~"):
            operator = self.take().value
            right = self.operand()
            if operator in ("==", "!="):
                same = _text(left) == _text(right)
                left = same if operator == "==" else not same
            else:
                found = self.matches(left, right)
                left = found if operator == "=~" else not found
        return left

    def operand(self) -> Any:
        if self.peek("open"):
            self.take()
            value = self.either()
            if not self.peek("close"):
                raise ExpressionInvalid("A closing parenthesis is missing")
            self.take()
            return value
        token = self.take()
        if token.kind == "variable":
            return self.variables.get(token.value)
        if token.kind == "value":
            return token.value
        raise ExpressionInvalid("An operand is missing")

    def matches(self, value: Any, pattern: Any) -> bool:
        if isinstance(pattern, str):
            pattern = Pattern.from_text(pattern)
        if not isinstance(pattern, Pattern) or value is None or isinstance(value, Pattern):
            return False
        return self.patterns is not None and self.patterns.search(pattern, str(_text(value)))


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def _true(value: Any) -> bool:
    return value if isinstance(value, bool) else value is not None and value != ""


def check(text: str) -> None:
    """Raises ``ExpressionInvalid`` if ``text`` is no expression. Runs no pattern."""
    _Evaluation(_tokens(text), {}, None).run()


def evaluate(text: str, variables: Mapping[str, str], patterns: Patterns) -> bool:
    """Whether ``text`` holds for ``variables``; a text that is no expression does not hold.

    Raises ``CiConfigInvalid`` if ``patterns`` has worked enough.
    """
    try:
        return _Evaluation(_tokens(text), variables, patterns).run()
    except ExpressionInvalid:
        return False


_VARIABLE = re.compile(r"\$\$|\$(\w+)|\$\{(\w+)\}|%(\w+)%", re.ASCII)


def expand(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with ``$NAME``, ``${NAME}`` and ``%NAME%`` replaced; unknown names stay as written.

    A value that would grow over 64 KiB stays unexpanded.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name = match[1] or match[2] or match[3]
        return variables.get(name, match[0])

    if "$" not in text and "%" not in text:
        return text
    grown = sum(len(value(match)) for match in _VARIABLE.finditer(text))
    return text if grown > EXPANDED_LIMIT else _VARIABLE.sub(value, text)


def expand_all(variables: Mapping[str, str], raw: Iterable[str] = ()) -> dict[str, str]:
    """Every value expanded with the others; names in ``raw`` are left alone, and so are cycles.

    https://docs.gitlab.com/ci/variables/where_variables_can_be_used/
    """
    literal = set(raw)
    done: dict[str, str] = {}
    total = 0

    def needs(text: str) -> list[str]:
        return [
            name
            for match in _VARIABLE.finditer(text)
            if (name := match[1] or match[2] or match[3]) and name in variables
        ]

    for start in variables:
        # Depth first without recursion: a chain of thousands of variables must not end the forge.
        stack = [start]
        on_stack = {start}
        while stack:
            name = stack[-1]
            if name in done:
                on_stack.discard(stack.pop())
                continue
            text = variables[name]
            wanted = [] if name in literal else [n for n in needs(text) if n not in done]
            if any(n in on_stack for n in wanted):
                done[name] = text
                continue
            if wanted:
                stack.append(wanted[0])
                on_stack.add(wanted[0])
                continue
            grown = total > EXPANDED_TOTAL
            done[name] = text if grown or name in literal else expand(text, done)
            total += len(done[name])
    return {name: done[name] for name in variables}
