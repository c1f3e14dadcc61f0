"""Each sentence by which the runbook is searched at three in the morning is one that the code says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GAP = "\0"
"""What is filled in: `…` in the runbook, an expression or `%s` in the code."""


def text_of(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return re.sub(r"%[srd]", GAP, node.value) if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or GAP for part in node.values)
    return None


def said() -> Iterator[str]:
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr) and (text := text_of(node)):
                yield text


def sentences() -> list[str]:
    """The headings of the runbook's entries."""
    lines = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("### ") for line in lines if line.startswith("### ")]


def plain(text: str) -> str:
    """Without the end of a sentence, and with one gap where there may be several words."""
    return re.sub(f"{GAP}+", GAP, text.replace("…", GAP)).strip().rstrip(".").strip()


def says(heading: str, texts: list[str]) -> bool:
    """Whether some text of the code is this sentence; what is filled in may be anything, of any length."""
    wanted = plain(heading)
    pattern = ".*?".join(map(re.escape, wanted.split(GAP)))
    return any(re.fullmatch(pattern + r"[.\s]*", plain(text), re.DOTALL) for text in texts)


ALL = list(said())


@pytest.mark.parametrize("heading", sentences())
def test_the_code_says_it(heading: str) -> None:
    assert says(heading, ALL)


def test_a_sentence_that_nobody_says_is_found() -> None:
    assert not says("The proxy ran away with the … and will not come back.", ALL)
    assert not says("The disk is full", [])


def test_every_entry_says_what_it_means_or_what_to_do() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    for entry in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        body = re.split(r"^## ", entry, flags=re.MULTILINE)[0].partition("\n")[2]
        assert "*Do*" in body or "*Look*" in body or len(body.split()) > 15, entry[:80]
