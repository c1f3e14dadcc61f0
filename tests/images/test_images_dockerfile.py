"""Our reading of Dockerfiles against BuildKit's own parser, and against those who would hold us up."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooks_service.errors import BuildFailed
from notebooks_service.images.dockerfile import Plan, parsed, paths_of, read_dockerfile
from notebooks_service.images.patterns import Ignore, Pattern

go = pytest.importorskip("dockerfile", reason="BuildKit's parser has a wheel for x86_64 only")

WORDS = st.sampled_from(
    ["a", "b.txt", "'q r'", '"d"', "$X", "${Y:-z}", "\\", "\\ ", "--flag=v", "--from=a", "#", "=",
     "[", '["a", "b"]', "<<E", "<<-E", "<<'E'", "3<<E", "é", "a\\", "`", "A=1", "C=d e"]
)  # fmt: skip
HEADS = st.sampled_from(
    ["FROM", "COPY", "copy", "ADD", "RUN", "ARG", "ENV", "#", "# escape=`", "# syntax=x", "E", "\tE",
     "", "  ", "LABEL", "WORKDIR", "USER", "CMD", "EXPOSE", "VOLUME"]
)  # fmt: skip
LINES = st.builds(
    lambda head, words, end: " ".join([head, *words]) + end,
    HEADS,
    st.lists(WORDS, max_size=4),
    st.sampled_from(["", "", "", " \\", " \\  ", " `", "\r"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=6))
def test_instructions_are_those_of_buildkit(lines: list[str]) -> None:
    text = "\n".join(lines)
    try:
        theirs = go.parse_string(text)
    except go.GoParseError:
        return  # What no builder takes we may read as we like.
    try:
        ours, _ = parsed(text, "Dockerfile")
    except BuildFailed as error:
        # BuildKit, too, refuses the first, one step later; we refuse an array before a heredoc.
        known = ["unknown instruction"]
        known += ["unterminated heredoc", "an array and a heredoc"] if "] " in text else []
        assert any(word in error.message for word in known), error.message
        return
    assert [each.name for each in ours] == [each.cmd.upper() for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.start_line == other.start_line
        assert tuple(mine.flags) == other.flags
        if not other.json:
            assert [h.content for h in mine.heredocs] == [h.content for h in other.heredocs]
        if mine.name in ("COPY", "ADD"):
            words, is_json = paths_of(mine)
            # An escape at the very end escapes nothing: BuildKit drops it one step later.
            mine_words, other_words = (
                [stripped for word in each if (stripped := word.rstrip("\\`"))]
                for each in (words, other.value)
            )
            assert mine_words == other_words
            assert is_json == other.json
        elif mine.name in ("FROM", "ARG"):
            assert tuple(mine.args) == other.value


def plan(text: str) -> Plan:
    return read_dockerfile(
        text.encode(), "Dockerfile", build_args={}, target="", platform="linux/amd64"
    )


@pytest.mark.parametrize(
    "text",
    [
        "# escape=" + " " * 200_000 + "x\nFROM x",
        "FROM x\n" + "RUN a \\\n" * 20_000 + " b",
        "FROM x\nCOPY " + "[" * 100_000 + " /x",
        "FROM x\nARG A=" + "a" * 3000 + "".join(f"\nARG A=$A$A{n}" for n in range(50)),
        "FROM x\nARG A=" + "a" * 3000 + "\nCOPY ${A#" + "*a" * 500 + "b} /x",
        "FROM x\nARG S=" + "*a" * 500 + "\nARG A=" + "a" * 3000 + "\nCOPY ${A//${S}b/c} /x",
        "FROM x\nCOPY " + "${A:-" * 20_000 + " /x",
        "FROM x AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\nRUN a\n" for n in range(3000)),
        "FROM x\n" + "COPY --from=0 a b\n" * 10_000,
        "FROM x\nRUN " + "<<" * 50_000,
        "FROM x\nCOPY " + "$A" * 100_000 + " /x",
    ],
)  # fmt: skip
def test_a_hostile_file_is_read_or_refused_in_time(text: str) -> None:
    start = time.process_time()
    try:
        plan(text)
    except BuildFailed as error:
        assert len(error.message) < 500
    assert time.process_time() - start < 10


def test_hostile_patterns_take_no_time() -> None:
    start = time.process_time()
    ignore = Ignore(["**/" + "*a" * 300 + "/**/" + "*b" * 100])
    for _ in range(20):
        assert not ignore.verdict("a" * 4000 + "/" + "b" * 4000 + "c")[1]
    assert time.process_time() - start < 5
    with pytest.raises(BuildFailed):
        Ignore(["*" * 5000])
    with pytest.raises(BuildFailed):
        Ignore(["x"] * 5000)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("*", "a", True), ("*", "a/b", False), ("a*c", "abc", True), ("a?c", "a/c", False),
        ("[a-c]", "b", True), ("[^a-c]", "b", False), ("[a-c]", "d", False), ("[\\]]", "]", True),
        ("\\*", "*", True), ("\\*", "a", False), ("a.c", "abc", False), ("a+", "a+", True),
        ("(a)", "(a)", True), ("é?", "éü", True), ("[b-a]", "a", False),
    ],
)  # fmt: skip
def test_patterns_of_go(pattern: str, path: str, matches: bool) -> None:
    assert Pattern(pattern, deep=False).matches(path) is matches


@pytest.mark.parametrize("pattern", ["[", "[]", "[a", "[a-", "[-a]", "a\\", "[a-]", "[^]"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="it"):
        Pattern(pattern, deep=True)


@pytest.mark.parametrize(
    ("rules", "path", "out"),
    [
        (["a"], "a/b/c", True), (["a/"], "a/b", True), (["/a"], "a", True), (["./a"], "a", True),
        (["b"], "a/b", False), (["**/b"], "a/b", True), (["**/b"], "b", True), (["**"], "a/b", True),
        (["a/**"], "a/b", True), (["a/**"], "a", False), (["a/**/c"], "a/c", True),
        (["a/**/c"], "a/b/b/c", True), (["*", "!a"], "a/b", False), (["**", "!a"], "a", False),
        (["*", "!a/b"], "a/b", False), (["!a", "a"], "a", True), (["a", "!a/b", "a/b/c"], "a/b/c", True),
        (["a*/x"], "ab/x/y", True), (["#a", "", " b "], "b", True), (["#a"], "#a", False),
        (["a\r"], "a", True), ([".."], "a", False),
    ],
)  # fmt: skip
def test_rules(rules: list[str], path: str, out: bool) -> None:
    assert Ignore(rules).verdict(path)[1] is out
