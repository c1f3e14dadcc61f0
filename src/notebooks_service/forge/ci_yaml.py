"""Reads the text of a ``.gitlab-ci.yml`` into plain data, within limits; called by ``ci_config``.

The text is hostile: size, depth and the number of nodes *after* aliases are counted on the stream
of YAML events, before anything is built, so that neither an alias bomb nor a deep nest costs more
than reading it once.
"""

from __future__ import annotations

import datetime
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from notebooks_service.errors import NotebooksError

TEXT_LIMIT = 1024 * 1024
NODE_LIMIT = 50_000
DEPTH_LIMIT = 100
REFERENCE_DEPTH = 10
SENTENCE_LIMIT = 1000

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CiConfigInvalid(NotebooksError):
    """A CI configuration is wrong; the message is the sentence that GitLab shows for it.

    ``detail["errors"]`` holds all sentences.
    """

    code = "ci_config_invalid"
    status = 422

    def __init__(self, *sentences: str) -> None:
        # What they quote is as long as somebody made it.
        cut = [
            text if len(text) <= SENTENCE_LIMIT else f"{text[:SENTENCE_LIMIT]}…"
            for text in sentences
        ]
        super().__init__(cut[0], errors=cut)

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(self.detail["errors"])


TOO_BIG = "The parsed YAML is too big"


class Budget:
    """How much work one configuration may still cause; shared by every step that can multiply."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def spend(self, steps: int = 1) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise CiConfigInvalid(TOO_BIG)


@dataclass(frozen=True)
class Reference:
    """``!reference [job, key, …]``: https://docs.gitlab.com/ci/yaml/yaml_optimization/#reference-tags"""

    path: tuple[str, ...]

    def __str__(self) -> str:
        return "!reference [" + ", ".join(f'"{part}"' for part in self.path) + "]"


class _CiLoader(_Loader):  # type: ignore[misc]
    pass


def _construct_reference(loader: Any, node: yaml.Node) -> Reference:
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise CiConfigInvalid("!reference tag is invalid: a list of keys is needed")
    return Reference(tuple(str(loader.construct_object(part)) for part in node.value))


_CiLoader.add_constructor("!reference", _construct_reference)


def read(text: str) -> dict[str, Any]:
    """The top-level mapping of ``text`` with string keys; ``Reference`` objects stay in place.

    Raises ``CiConfigInvalid`` with the sentence of GitLab (``lib/gitlab/ci/config/loader.rb``).
    """
    if len(text) > TEXT_LIMIT:
        raise CiConfigInvalid(TOO_BIG)
    if not text.strip():
        raise CiConfigInvalid("Please provide content of .gitlab-ci.yml")
    try:
        _count(text)
        data = yaml.load(text, Loader=_CiLoader)  # noqa: S506 (a subclass of the safe loader)
    except yaml.MarkedYAMLError as error:
        raise CiConfigInvalid(_sentence(error)) from None
    except yaml.YAMLError as error:
        raise CiConfigInvalid(f"(<unknown>): {error}") from None
    except CiConfigInvalid:
        raise
    except Exception as error:
        # Dates and numbers that are none, such as 2024-13-45 or `!!int x`: the library's constructors
        # let through whatever then goes wrong in them.
        raise CiConfigInvalid(f"(<unknown>): {error or type(error).__name__}") from None
    if not isinstance(data, dict):
        raise CiConfigInvalid("Invalid configuration format")
    plain: dict[str, Any] = _plain(data)
    return plain


def _sentence(error: yaml.MarkedYAMLError) -> str:
    parts = " ".join(part for part in (error.problem, error.context) if part)
    mark = error.problem_mark or error.context_mark
    where = f" at line {mark.line + 1} column {mark.column + 1}" if mark else ""
    return f"(<unknown>): {parts}{where}"


def _count(text: str) -> None:
    """Spends one step for each node that ``text`` stands for, aliases written out."""
    sizes: dict[str, int | None] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            known = sizes.get(str(event.anchor), 0)
            if known is None:
                raise CiConfigInvalid(TOO_BIG)
            size = known
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            if len(open_nodes) >= DEPTH_LIMIT:
                raise CiConfigInvalid(TOO_BIG)
            if event.anchor:
                sizes[event.anchor] = None
            open_nodes.append((event.anchor, total))
            size = 1
        total += size
        if total > NODE_LIMIT:
            raise CiConfigInvalid(TOO_BIG)
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        if "\0" in value:
            # No database, environment or file of commands can hold it.
            raise CiConfigInvalid("(<unknown>): control characters are not allowed")
        return value
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return dict.fromkeys(sorted(_key(item) for item in value))
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    if isinstance(value, bytes):
        return _plain(value.decode("utf-8", "replace"))
    if isinstance(value, int) and value.bit_length() > 128:
        # Such a number cannot be written out again (Python's limit on digits).
        raise CiConfigInvalid("(<unknown>): a number is out of range")
    return value


def _key(key: Hashable) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return "" if key is None else str(_plain(key))


def resolve_references(root: Mapping[str, Any], budget: Budget) -> dict[str, Any]:
    """``root`` with every ``!reference`` replaced by what it points at, ten deep at most."""

    def resolve(value: Any, chain: tuple[Reference, ...]) -> Any:
        budget.spend()
        if isinstance(value, dict):
            return {key: resolve(item, chain) for key, item in value.items()}
        if isinstance(value, list):
            return [resolve(item, chain) for item in value]
        if not isinstance(value, Reference):
            return value
        if value in chain:
            raise CiConfigInvalid(f"{value} is part of a circular chain")
        if len(chain) >= REFERENCE_DEPTH:
            raise CiConfigInvalid(f"{value} is nested too deeply")
        target: Any = root
        for part in value.path:
            if isinstance(target, Reference):
                target = resolve(target, (*chain, value))
            if not isinstance(target, Mapping) or part not in target:
                raise CiConfigInvalid(f"{value} could not be found")
            target = target[part]
        return resolve(target, (*chain, value))

    return {key: resolve(value, ()) for key, value in root.items()}
