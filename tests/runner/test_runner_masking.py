"""Masking, logs and scripts as tables and properties."""

from __future__ import annotations

import itertools
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notebooks_service.runner.job_environment import cache_of, secrets
from notebooks_service.runner.masking import Masker
from notebooks_service.runner.script import bash_script
from notebooks_service.runner.trace import Trace

BUSY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Drawing is slow where the whole machine is."""


@pytest.mark.parametrize(
    ("hidden", "parts", "shown"),
    [
        ([], [b"abc"], b"abc"),
        (["secret"], [b"a secret b"], b"a [MASKED] b"),
        (["secret"], [b"a sec", b"ret b"], b"a [MASKED] b"),
        (["secret"], [b"s", b"e", b"c", b"r", b"e", b"t"], b"[MASKED]"),
        (["secret"], [b"secre"], b"secre"),
        (["secret"], [b"sec", b"sec", b"ret"], b"sec[MASKED]"),
        (["abc", "abcdef"], [b"abc", b"def"], b"[MASKED]"),
        (["abc", "abcdef"], [b"abc", b"x"], b"[MASKED]x"),
        (["abc", "abcdef"], [b"abc"], b"[MASKED]"),
        (["xab", "abc"], [b"xab"], b"[MASKED]"),
        (["xab", "abc"], [b"xa", b"b", b"c"], b"[MASKED]c"),
        (["aaa"], [b"aaaaaaa"], b"[MASKED][MASKED]a"),
        (["a.c"], [b"abc a.c"], b"abc [MASKED]"),
        (["geh€im"], ["x geh€".encode(), b"im"], b"x [MASKED]"),
    ],
)
def test_masking(hidden: list[str], parts: list[bytes], shown: bytes) -> None:
    masker = Masker(hidden)
    assert b"".join([*map(masker.feed, parts), masker.flush()]) == shown


@BUSY
@given(
    hidden=st.lists(st.text("ab", min_size=2, max_size=5), max_size=4),
    text=st.text("abc", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_cutting_changes_nothing(hidden: list[str], text: str, cuts: list[int]) -> None:
    data = text.encode()
    whole = Masker(hidden)
    expected = whole.feed(data) + whole.flush()
    masker = Masker(hidden)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    shown = b"".join(masker.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    shown += masker.flush()
    assert shown == expected
    assert not any(secret.encode() in shown for secret in hidden if secret)


SHAPES = st.binary(min_size=1, max_size=6) | st.lists(
    st.sampled_from([b"a", b"b", b"\n", b"[", b".", b"\\", b"\xff", b"\0", "é".encode()]),
    min_size=1,
).map(b"".join)


@BUSY
@given(
    hidden=st.lists(SHAPES, min_size=1, max_size=4),
    around=st.lists(st.binary(max_size=8), min_size=1, max_size=5),
    pick=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    cuts=st.lists(st.integers(0, 80), max_size=10),
)
def test_no_secret_of_any_shape_survives_any_cutting(
    hidden: list[bytes], around: list[bytes], pick: list[int], cuts: list[int]
) -> None:
    """Written into anything, cut anywhere: what is shown is free of it, but for letters of the mask."""
    parts = [
        part + hidden[number % len(hidden)] for part, number in zip(around, pick, strict=False)
    ]
    data = b"".join(parts)
    masker = Masker(hidden)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    shown = b"".join(masker.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    shown += masker.flush()
    assert not any(secret in rest for rest in shown.split(b"[MASKED]") for secret in hidden)


def test_a_secret_printed_again_and_again_is_masked_in_time() -> None:
    masker = Masker([f"secret-{number}-{'x' * 200}" for number in range(500)] + ["abcd"])
    began = time.process_time()
    shown = masker.feed(b"abcd" * 250_000) + masker.flush()
    assert shown == b"[MASKED]" * 250_000
    assert time.process_time() - began < 5


def test_a_log_has_a_limit_but_its_end_comes_through() -> None:
    trace = Trace(["secret"], limit=100)
    trace.write(b"x" * 98 + b"sec")
    trace.write(b"ret and more")
    trace.write(b"never")
    trace.error("the secret end")
    data = trace.part(0, 10_000)
    assert data.startswith(b"x" * 98 + b"[M\n")
    assert data.count(b"exceeded limit of 100 bytes") == 1 and b"never" not in data
    assert data.endswith(b"ERROR: the [MASKED] end\x1b[0m\n") and b"secret" not in data
    assert trace.part(98, 2) == b"[M" and len(trace) == len(data)


@pytest.mark.parametrize(
    ("said", "name"),
    [(True, "7-protected"), (False, "7"), (None, "7"), ("true", "7"), (1, "7")],
)
def test_builds_of_protected_refs_have_a_cache_of_their_own(said: object, name: str) -> None:
    """Whatever variables a job sets: they say nothing about where its builds find their downloads."""
    variables = [{"key": "CI_COMMIT_REF_PROTECTED", "value": "true", "public": True}]
    job = {"git_info": {"protected": said, "ref": "main"}, "variables": variables}
    assert cache_of(Path("/caches"), 7, job) == Path("/caches") / name


def test_secrets_of_a_job() -> None:
    job = {
        "token": "glcbt-token",
        "variables": [
            {"key": "A", "value": "visible", "masked": False},
            {"key": "B", "value": "hidden-one", "masked": True},
            {"key": "C", "value": "first line of it\nsecond line of it", "masked": True},
            {"key": "D", "value": "", "masked": True},
        ],
        "credentials": [{"type": "registry", "password": "registry-password"}],
    }
    assert set(secrets(job)) == {
        "glcbt-token",
        "hidden-one",
        "first line of it\nsecond line of it",
        "first line of it",
        "second line of it",
        "registry-password",
    }


@pytest.mark.parametrize(
    "command", ["echo 'a' \"b\"", "echo $((1+1)) `echo x`", "printf '%s' '\\x1b'", "echo ünï; :"]
)
def test_a_command_is_shown_as_it_was_written(command: str) -> None:
    done = subprocess.run(
        ["bash", "--noprofile", "--norc"],
        input=bash_script([command]).encode(),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().splitlines()[0] == f"\x1b[32;1m$ {command}\x1b[0m"
