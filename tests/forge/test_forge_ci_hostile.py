"""Hostile ``.gitlab-ci.yml`` files: each is a configuration or a sentence, soon and in little memory."""

from __future__ import annotations

import random
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge_fixtures import run_git
from notebooks_service.forge import ci_git
from notebooks_service.forge.ci_config import parse
from notebooks_service.forge.ci_rules import NoPipeline, Occasion, Plan, plan
from notebooks_service.forge.ci_yaml import CiConfigInvalid
from notebooks_service.forge.config import ForgeConfig
from runner_fixtures import RawRunner, Workspace, until

TOO_BIG = "The parsed YAML is too big"


def many(count: int, entry: str) -> str:
    return "\n".join(f"j{number}: {{{entry}}}" for number in range(count))


def layers(first: str, layer: str, last: str) -> str:
    """Nine layers, each of which holds the one before ten times."""
    lines = [first]
    for number in range(1, 10):
        before = number - 1
        lines.append(layer.replace("NEW", f"m{number}").replace("OLD", f"m{before}"))
    return "\n".join([*lines, last])


WRONG = {
    "no yaml": ("a: [1, 2", "(<unknown>)"),
    "a tab": ("a:\n\tscript: x", "cannot start any token"),
    "binary": ("\x00\x01\x02", "(<unknown>)"),
    "only text": ("just words", "Invalid configuration format"),
    "a list": ("- a\n- b", "Invalid configuration format"),
    "nothing": ("   \n", "Please provide content of .gitlab-ci.yml"),
    "an object of python": ("a: !!python/object/apply:os.system [id]", "(<unknown>)"),
    "a tag with a wrong text": ("a: !!timestamp soon", "(<unknown>)"),
    "an empty number": ("a: !!int ''", "(<unknown>)"),
    "no boolean": ("a: !!bool x", "(<unknown>)"),
    "half a character": ('a: {script: "\\ud800"}', "(<unknown>)"),
    "a zero byte in a name": ('"a\\0b": {script: x}', "control characters are not allowed"),
    "a zero byte in a script": ('a: {script: "x\\0y"}', "control characters are not allowed"),
    "a zero byte in disguise": ("a: {script: !!binary AAAA}", "control characters are not allowed"),
    "needs in a circle": ("a: {script: x, needs: [b]}\nb: {script: x, needs: [a]}", "circular"),
    "needs itself": ("a: {script: x, needs: [a]}", "circular"),
    "extends in a circle": ("a: {script: x, extends: b}\nb: {extends: a}", "circular dependency"),
    "references in a circle": (
        "a: {script: !reference [b, script]}\nb: {script: !reference [a, script]}",
        "circular chain",
    ),
    "references in a long row": (
        "\n".join(f".m{n}: {{s: !reference [.m{n + 1}, s]}}" for n in range(12))
        + "\n.m12: {s: x}\na: {script: !reference [.m0, s]}",
        "nested too deeply",
    ),
    "a number that cannot be written": (
        f"a: {{script: x, variables: {{N: 0x{'f' * 5000}}}}}",
        "a number is out of range",
    ),
    "an alias of itself": ("a: &a [*a]", TOO_BIG),
    "a merge of itself": ("a: &a\n  <<: *a\n  script: x", TOO_BIG),
    "billion laughs": (
        layers("m0: &m0 [x, x]", f"NEW: &NEW [{','.join(['*OLD'] * 10)}]", "j: {script: *m9}"),
        TOO_BIG,
    ),
    "billion merges": (
        layers("m0: &m0 {k: 1}", f"NEW: &NEW {{<<: [{','.join(['*OLD'] * 10)}]}}", "j: *m9"),
        TOO_BIG,
    ),
    "billion references": (
        layers(
            ".m0: {s: [x]}",
            f".NEW: {{s: [{','.join(['!reference [.OLD, s]'] * 10)}]}}",
            "j: {script: !reference [.m9, s]}",
        ),
        TOO_BIG,
    ),
    "too deep in brackets": ("a: " + "[" * 100_000, TOO_BIG),
    "too deep in blocks": ("\n".join(" " * depth + "a:" for depth in range(500)), TOO_BIG),
    "too large": (f"a: {{script: '{'x' * (1024 * 1024)}'}}", TOO_BIG),
    "10,000 jobs": (many(10_000, "script: x"), "exceeded the limit of 1000"),
    "many by one matrix": (
        "a: {script: x, parallel: {matrix: [{"
        + ",".join(f"v{n}: [1,2,3,4,5,6,7,8,9]" for n in range(50))
        + "}]}}",
        "too many jobs",
    ),
    "includes itself": ("include: .gitlab-ci.yml\na: {script: x}", "`include` is not supported"),
    "includes the inside of a cloud": (
        "include: {remote: 'http://169.254.169.254/'}\na: {script: x}",
        "`include` is not supported",
    ),
    "a job is a number": ("a: 1", "jobs:a config should be a hash"),
    "a script is a number": ("a: {script: 5}", "script config should be"),
    "inherit is anything": (
        "default: {timeout: 1h}\na: {script: x, inherit: {default: [[b]]}}",
        "inherit:default config should be",
    ),
    "a program is not a number": (
        "a: {script: x, image: {name: x, entrypoint: [.nan]}}",
        "entrypoint config should be an array of strings",
    ),
    "a timeout of a universe": (
        "a: {script: x, timeout: 999999999 years}",
        "timeout config should not exceed the limit",
    ),
    "a start after all": (
        "a: {script: x, when: delayed, start_in: 9 weeks}",
        "should not exceed the limit",
    ),
    "a key is a list": ("? [a, b]\n: {script: x}", "(<unknown>)"),
    "a pattern that costs an hour": (
        f"a: {{script: x, rules: [{{if: '$LONG =~ /(a|b)*a(a|b){{900}}c{'(d|e)' * 9000}/'}}]}}",
        "take too long",
    ),
    "many patterns that cost an hour together": (
        "a: {script: x, rules: ["
        + ",".join(f"{{if: '$LONG =~ /(a|b)*a(a|b){{{n + 100}}}c/'}}" for n in range(800))
        + "]}",
        "take too long",
    ),
    "many globs over many files": (
        "\n".join(
            f"j{job}: {{script: x, rules: [{{exists: [{','.join(repr(f'**/*{job}x{n}*') for n in range(40))}]}}]}}"
            for job in range(900)
        ),
        "take too long",
    ),
    "more globs than GitLab takes": (
        f"a: {{script: x, rules: [{{changes: [{','.join(f'f{n}' for n in range(51))}]}}]}}",
        "has too many entries (maximum 50)",
    ),
    "a name of 100,000 characters": (f"a: {{script: x, needs: [{'n' * 100_000}]}}", "undefined"),
}

ODD_BUT_RIGHT = {
    "the last of two wins": ("a: {script: one}\na: {script: two}", ["a"]),
    "names of every kind": (
        '"\\u202e\\uFEFF\\u2028 é 😀 \\x1b[31m": {script: x}\n1.5: {script: x}\n.nan: {script: x}\n'
        "2024-01-01: {script: x}\ntrue: {script: x}",
        ["\u202e\ufeff\u2028 é 😀 \x1b[31m", "1.5", "nan", "2024-01-01", "true"],
    ),
    "a byte order mark": ("\ufeffa:\r\n  script: x\r\n", ["a"]),
    "1000 jobs that need 40 each": (
        "\n".join(
            f"j{n}: {{script: x, needs: [{','.join(f'j{k}' for k in range(max(0, n - 40), n))}]}}"
            for n in range(1000)
        ),
        [f"j{n}" for n in range(1000)],
    ),
    "a pattern of 300 groups": (
        f"a: {{script: x, rules: [{{if: '$LONG =~ /^{'(a+)*(b+)*' * 150}.*$/'}}]}}",
        ["a"],
    ),
    "variables that grow without end": (
        "variables: {"
        + ", ".join(f"V{n}: '$V{n + 1}$V{n + 1}'" for n in range(3000))
        + "}\na: {script: x, rules: [{if: $V0}]}",
        ["a"],
    ),
}
RANDOM = random.Random(5)
OCCASION = {"CI": "true", "LONG": "".join(RANDOM.choice("ab") for _ in range(50_000))}
FILES = tuple(f"directory{n % 100}/file{n}" for n in range(20_000))


def read(text: str) -> Plan:
    return plan(parse(text), Occasion("main", False, "push", OCCASION, files=lambda: FILES))


@pytest.mark.parametrize("name", WRONG)
def test_a_hostile_configuration_is_a_sentence(name: str) -> None:
    text, words = WRONG[name]
    began = time.process_time()
    with pytest.raises(CiConfigInvalid) as caught:
        read(text)
    assert words in caught.value.message
    assert len(caught.value.message) < 1100
    assert time.process_time() - began < 10


@pytest.mark.parametrize("name", ["billion laughs", "billion merges", "too large", "10,000 jobs"])
def test_a_bomb_takes_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CiConfigInvalid):
            read(WRONG[name][0])
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ODD_BUT_RIGHT)
def test_an_odd_configuration_is_read(name: str) -> None:
    text, names = ODD_BUT_RIGHT[name]
    began = time.process_time()
    assert [job.name for job in read(text).jobs] == names
    assert time.process_time() - began < 5


# Any YAML at all

KEYS = [
    "script", "stage", "rules", "needs", "extends", "default", "inherit", "variables", "when", "if",
    "changes", "exists", "paths", "only", "except", "refs", "parallel", "matrix", "trigger",
    "include", "local", "retry", "max", "allow_failure", "exit_codes", "timeout", "start_in", "image",
    "name", "entrypoint", "services", "tags", "workflow", "stages", "job", "optional", "a", "b", ".c",
    "before_script", "after_script", "expand", "value", "cache", "artifacts", "pages",
]  # fmt: skip
WORDS = [
    "x",
    "a",
    "b",
    ".c",
    "test",
    "delayed",
    "$CI =~ /a/",
    "1h",
    "/x/",
    "branches",
    "",
    "\0",
    "\u202e",
]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.sampled_from(WORDS),
    st.text(max_size=5), st.just(10**50), st.dates(),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
JOBS = st.dictionaries(st.sampled_from(KEYS), TREES, max_size=4).map(
    lambda job: {"script": "x", **job}
)
DOCUMENTS = st.dictionaries(
    st.one_of(st.sampled_from(KEYS), st.text(max_size=3)), st.one_of(TREES, JOBS), max_size=5
)
PIECES = [
    "a: ", "- ", "&x ", "*x", "<<: ", "!!binary ", "!reference ", "[", "]", "{", "}", "\n", "  ",
    "script: x\n", "? ", ": ", "|\n", '"\\0"', '"\\ud800"', "!!set ", "!!timestamp ", "2024-13-45",
    "1e999", "0x", "!!int ", "!!float ", "!!bool ", "---\n", "%YAML 9.9\n", "!!omap ", "!!pairs ",
    "job: {script: x}\n", "extends: *x\n", "=", "!!null ", "\ufeff", "#", "'", '"', "\t", "190:20:30",
]  # fmt: skip
ANY_TEXT = st.one_of(
    st.text(max_size=60),
    st.binary(max_size=60).map(lambda data: data.decode("utf-8", "replace")),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
)
MODEST = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)


def a_pipeline_or_a_sentence(text: str) -> None:
    try:
        planned = read(text)
    except NoPipeline:
        return
    except CiConfigInvalid as error:
        error.message.encode()
        return
    for job in planned.jobs:
        everything = [job.name, job.stage, *job.script, *job.variables, *job.variables.values()]
        assert all("\0" not in text for text in everything)
        "".join(everything).encode()


@MODEST
@given(DOCUMENTS)
def test_any_document_gives_a_pipeline_or_a_sentence(document: Any) -> None:
    try:
        text = yaml.safe_dump(document, allow_unicode=True)
    except UnicodeEncodeError:
        return
    a_pipeline_or_a_sentence(text)


@MODEST
@given(ANY_TEXT)
def test_any_text_gives_a_pipeline_or_a_sentence(text: str) -> None:
    a_pipeline_or_a_sentence(text)


# At the forge

AT_THE_FORGE = [
    "no yaml", "a zero byte in a name", "needs in a circle", "billion laughs", "10,000 jobs",
    "includes itself", "an empty number", "a job is a number",
]  # fmt: skip


def test_the_forge_says_it_and_goes_on(workspace: Workspace) -> None:
    """Each push stands, each has a failed pipeline with the sentence, and the next one runs."""
    for name in AT_THE_FORGE:
        text, words = WRONG[name]
        sha = workspace.push(text, message=name)
        (listed,) = workspace.pipelines(sha=sha)
        made = workspace.api.pipelines.get(listed.id)
        assert made.status == "failed" and words in str(made.yaml_errors), name
        assert made.jobs.list() == []
    sha = workspace.push("job: {script: x}")
    raw = RawRunner(workspace.forge)
    job = raw.take()
    assert job["git_info"]["sha"] == sha
    assert raw.put(job, "success").status_code == 200
    assert workspace.pipeline(sha).status == "success"


def test_a_thousand_jobs_in_as_many_stages_do_not_stop_the_forge(workspace: Workspace) -> None:
    stages = ", ".join(f"s{number}" for number in range(900))
    began = time.monotonic()
    jobs = "\n".join(f"j{number}: {{script: x, stage: s{number}}}" for number in range(900))
    sha = workspace.push(f"stages: [{stages}]\n{jobs}")
    pipeline = workspace.pipeline(sha)
    assert len(pipeline.jobs.list(get_all=True)) == 900
    raw = RawRunner(workspace.forge)
    for number in range(3):
        job = raw.take()
        assert job["job_info"]["name"] == f"j{number}"
        assert raw.put(job, "success").status_code == 200
    pipeline.cancel()
    until(lambda: workspace.api.pipelines.get(pipeline.id).status == "canceled", "the end")
    assert time.monotonic() - began < 90


def test_a_tree_of_countless_files_is_not_read(tmp_path: Path) -> None:
    """A few small objects whose names stand for ten thousand million paths."""
    config = ForgeConfig(tmp_path, "http://127.0.0.1:1")
    repository = config.repository(1)
    run_git("init", "--quiet", "--bare", str(repository))

    def hash_object(kind: str, text: str) -> str:
        source = tmp_path / "object"
        source.write_text(text)
        command = ["mktree"] if kind == "tree" else ["hash-object", "-w", "--stdin"]
        done = run_git("-C", str(repository), *command, stdin=source)
        return done.strip()

    blob = hash_object("blob", "x")
    inner = hash_object("tree", "".join(f"100644 blob {blob}\tf{n}\n" for n in range(10)))
    for _ in range(9):
        inner = hash_object("tree", "".join(f"040000 tree {inner}\td{n}\n" for n in range(10)))
    sha = run_git("-C", str(repository), "commit-tree", "-m", "bomb", inner).strip()
    before = run_git(
        "-C", str(repository), "commit-tree", "-m", "before", hash_object("tree", "")
    ).strip()
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.extend(
            [ci_git.paths_at(config, 1, sha), ci_git.changed_paths(config, 1, before, sha)]
        ),
        daemon=True,
    )
    thread.start()
    thread.join(90)
    assert found == [None, None]
