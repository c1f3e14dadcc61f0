"""Personal secrets: what a name, a value and a list of projects may be, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from notebooks_service.errors import InvalidRequest
from notebooks_service.personal_secrets import (
    LARGEST,
    MOST_PROJECTS,
    check_name,
    read_form_paths,
    read_form_value,
    read_paths,
    read_value,
)


@pytest.mark.parametrize("name", ["kaggle.json", "a", "_", "-a", "A.B-C_9", "a" * 64, "a..b"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".netrc", "a/b", "a b", "a" * 65, "é", "a\n", "a\0", "a\\b", "a%2Fb"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match="name is that of its file"):
        check_name(name)


@pytest.mark.parametrize(
    ("text", "encoded", "value"),
    [
        (None, None, None),
        ("käse\r\n", None, "käse\r\n".encode()),
        ("a" * LARGEST, None, b"a" * LARGEST),
        (None, "AP8K", b"\x00\xff\n"),
    ],
)
def test_values(text: Any, encoded: Any, value: bytes | None) -> None:
    assert read_value(text, encoded) == value


@pytest.mark.parametrize(
    ("text", "encoded", "says"),
    [
        ("", None, "is empty"),
        (None, "", "is empty"),
        ("a" * (LARGEST + 1), None, "larger than 64 KiB"),
        ("é" * LARGEST, None, "larger than 64 KiB"),
        ("a", "YQ==", "not both"),
        (7, None, "must be text"),
        ("\ud800", None, "must be text"),
        (None, 7, "must be a string"),
        (None, "a", "no base64"),
        (None, "YQ==\n", "no base64"),
        (None, "é", "no base64"),
    ],
)
def test_what_is_no_value(text: Any, encoded: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read_value(text, encoded)


def test_a_forms_line_ends_are_those_that_were_pasted() -> None:
    assert read_form_value("-----BEGIN\r\nabc\r\n") == b"-----BEGIN\nabc\n"
    assert read_form_value("") is None


def test_projects() -> None:
    assert read_form_paths(" group/a \r\n\r\n/group/b/\ngroup/a") == ("group/a", "group/b")
    assert read_paths(["group/a"]) == ("group/a",)
    for wrong in ("group/a", [7], None, {}):
        with pytest.raises(InvalidRequest, match="list of projects"):
            read_paths(wrong)
    with pytest.raises(InvalidRequest, match="at most"):
        read_paths([f"group/{number}" for number in range(MOST_PROJECTS + 1)])
