"""Tables of CI configurations: what they become, and which sentence refuses them."""

from __future__ import annotations

import time
from importlib.resources import files

import pytest

from notebooks_service.forge.ci_config import parse
from notebooks_service.forge.ci_expressions import evaluate, expand_all
from notebooks_service.forge.ci_jobs import CiConfig, duration
from notebooks_service.forge.ci_patterns import Patterns
from notebooks_service.forge.ci_rules import NoPipeline, Occasion, Plan, plan
from notebooks_service.forge.ci_status import composite, next_status
from notebooks_service.forge.ci_yaml import TOO_BIG, CiConfigInvalid

PUSH = {
    "CI_PIPELINE_SOURCE": "push",
    "CI_COMMIT_BRANCH": "main",
    "CI_COMMIT_REF_NAME": "main",
    "CI_DEFAULT_BRANCH": "main",
    "CI_PROJECT_PATH": "group/thing",
}


FILES = ["Dockerfile", "src/a.py"]


def push(ref: str = "main", changed: set[str] | None = None, **more: str) -> Occasion:
    variables = {**PUSH, "CI_COMMIT_BRANCH": ref, "CI_COMMIT_REF_NAME": ref, **more}
    return Occasion(ref, False, "push", variables, "group/thing", lambda: changed, lambda: FILES)


def tag(ref: str) -> Occasion:
    return Occasion(ref, True, "push", {"CI_COMMIT_TAG": ref, "CI_COMMIT_REF_NAME": ref})


def api() -> Occasion:
    return Occasion("main", False, "api", {**PUSH, "CI_PIPELINE_SOURCE": "api"})


def names(text: str, occasion: Occasion) -> list[str]:
    return [job.name for job in plan(parse(text), occasion).jobs]


def one(text: str) -> CiConfig:
    config = parse(text)
    assert len(config.jobs) == 1
    return config


def test_default_configuration_is_one_job() -> None:
    text = files("notebooks_service.forge").joinpath("default_ci.yml").read_text()
    job = one(text).jobs[0]
    assert (job.name, job.stage, job.script) == ("image_build", "test", ("notebooks image build",))


def test_script_has_before_script_in_front_and_nests() -> None:
    job = one(
        """
default: {before_script: [echo before], tags: [shell], timeout: 1h 30m}
a:
  script: [one, [two, [three]]]
  after_script: echo after
  image: python:3.12
  variables: {A: 1, B: true, C: {value: $A, expand: false}}
"""
    ).jobs[0]
    assert job.script == ("echo before", "one", "two", "three")
    assert job.after_script == ("echo after",)
    assert (job.timeout, job.tags, job.image) == (5400, ("shell",), {"name": "python:3.12"})
    assert job.variables == {"A": "1", "B": "true", "C": "$A"}
    assert job.raw_variables == {"C"}


def test_extends_merges_hashes_deeply_and_hidden_jobs_do_not_run() -> None:
    config = parse(
        """
.base: {script: [base], variables: {A: a, B: b}, tags: [x, y]}
.more: {extends: .base, variables: {B: bb}}
job: {extends: [.more], variables: {C: c}, tags: [z]}
"""
    )
    assert [job.name for job in config.jobs] == ["job"]
    job = config.jobs[0]
    assert job.variables == {"A": "a", "B": "bb", "C": "c"}
    assert (job.tags, job.script) == (("z",), ("base",))


def test_reference_tags() -> None:
    job = one(
        """
.setup: {script: [echo setup, !reference [.deep, script]]}
.deep: {script: [echo deep]}
.vars: {variables: {URL: u}}
job:
  script: [!reference [.setup, script], echo own]
  variables: {URL: !reference [.vars, variables, URL]}
"""
    ).jobs[0]
    assert job.script == ("echo setup", "echo deep", "echo own")
    assert job.variables == {"URL": "u"}


def test_stages_order_jobs_and_keep_pre_and_post() -> None:
    text = """
stages: [two, one]
a: {stage: one, script: x}
b: {stage: two, script: x}
c: {stage: .post, script: x}
d: {stage: .pre, script: x}
"""
    assert names(text, push()) == ["d", "b", "a", "c"]


def test_parallel_and_matrix() -> None:
    text = """
a: {script: x, parallel: 2}
b: {script: x, parallel: {matrix: [{OS: [linux, mac], PY: '3'}]}}
c: {script: x, needs: [a]}
"""
    jobs = plan(parse(text), push()).jobs
    assert [job.name for job in jobs] == ["a 1/2", "a 2/2", "b: [linux, 3]", "b: [mac, 3]", "c"]
    assert jobs[0].variables == {"CI_NODE_INDEX": "1", "CI_NODE_TOTAL": "2"}
    assert [need.job for need in jobs[4].needs or ()] == ["a 1/2", "a 2/2"]


INVALID = [
    ("", "Please provide content of .gitlab-ci.yml"),
    ("- a\n- b", "Invalid configuration format"),
    ("text", "Invalid configuration format"),
    ("a: [1", "(<unknown>): did not find expected ',' or ']' while parsing a flow sequence"),
    ("a: b: c", "(<unknown>): mapping values are not allowed in this context at line 1 column 5"),
    ("a: &x [*x]", TOO_BIG),
    ("a: *nope", "(<unknown>): found undefined alias"),
    ("a: !!python/object/apply:os.system [id]", "(<unknown>): could not determine a constructor"),
    ("a: 2024-13-45", "(<unknown>): month must be in 1..12"),
    ("a: {script: x, timeout: 0x" + "f" * 400 + "}", "(<unknown>): a number is out of range"),
    ("---\na: {script: x}\n---\nb: {script: y}", "(<unknown>): but found another document"),
    (".hidden: {script: x}", "jobs config should contain at least one visible job"),
    ("include: other.yml\na: {script: x}", "`include` is not supported by the embedded forge"),
    ("a: {}", "jobs:a config should implement the script:, run:, or trigger: keyword"),
    ("a: x", "jobs:a config should be a hash"),
    ("a: {script: x, wrong: 1}", "jobs:a config contains unknown keys: wrong"),
    ("a: {script: 1}", "jobs:a:script config should be a string or a nested array"),
    ("a: {script: [{b: c}]}", "jobs:a:script config should be a string or a nested array"),
    ("a: {script: " + "[" * 12 + "x" + "]" * 12 + "}", "jobs:a:script config should be a string"),
    (
        "a: {stage: nope, script: x}",
        "a job: chosen stage nope does not exist; available stages are .pre, build, test, deploy, .post",
    ),
    ("a: {script: x, when: sometimes}", "jobs:a when should be one of: on_success"),
    ("a: {script: x, when: delayed}", "jobs:a start in should be a duration"),
    ("a: {script: x, timeout: soon}", "jobs:a:timeout config should be a duration"),
    ("a: {script: x, retry: 3}", "jobs:a:retry config must be less than or equal to 2"),
    ("a: {script: x, needs: [b]}", "a job: undefined need: b"),
    ("a: {script: x, needs: [a]}", "The pipeline has circular dependencies"),
    (
        "a: {script: x, needs: [b]}\nb: {script: x, needs: [c]}\nc: {script: x, needs: [a]}",
        "The pipeline has circular dependencies: topological sort failed",
    ),
    (
        "a: {stage: build, script: x, needs: [b]}\nb: {stage: test, script: x}",
        "a job: need b is not defined in current or prior stages",
    ),
    ("a: {extends: .b}", "a: unknown keys in `extends` (.b)"),
    (".a: {extends: .b}\n.b: {extends: .a}\nc: {extends: .a}", "circular dependency detected"),
    ("a: {script: !reference [.x, script]}", '!reference [".x", "script"] could not be found'),
    (".a: !reference [.b]\n.b: !reference [.a]\nc: {script: x}", "is part of a circular chain"),
    ("a: {script: x, rules: [{if: $A ==}]}", "jobs:a:rules:rule if invalid expression syntax"),
    ("a: {script: x, rules: {if: $A}}", "jobs:a:rules config should be an array"),
    ("a: {script: x, rules: [{if: $A}], only: [main]}", "config key may not be used with `rules`"),
    ("a: {script: x, parallel: 201}", "jobs:a:parallel config must be between 1 and 200"),
    ("a: {trigger: other/project}", "jobs:a:trigger config is not supported"),
    ("stages: build\na: {script: x}", "stages config should be an array of strings"),
    ("variables: [a]\na: {script: x}", "variables config should be a hash"),
    ("a: {script: x, variables: {B: [1]}}", "jobs:a:variables config should be a hash of key"),
]


@pytest.mark.parametrize(("text", "sentence"), INVALID)
def test_invalid_configuration_says_why(text: str, sentence: str) -> None:
    with pytest.raises(CiConfigInvalid) as caught:
        parse(text)
    assert sentence in caught.value.message


def _nested_aliases(levels: int, width: int, form: str) -> str:
    lines = ["x0: &x0 {script: a}" if form == "merge" else "x0: &x0 [lol, lol]"]
    for level in range(1, levels):
        refs = ", ".join([f"*x{level - 1}"] * width)
        lines.append(
            f"x{level}: &x{level} {{<<: [{refs}]}}"
            if form == "merge"
            else f"x{level}: &x{level} [{refs}]"
        )
    return "\n".join(lines)


def _references(levels: int, width: int) -> str:
    lines = [".r0: {script: [a]}"]
    for level in range(1, levels):
        refs = ", ".join([f"!reference [.r{level - 1}, script]"] * width)
        lines.append(f".r{level}: {{script: [{refs}]}}")
    lines.append(f"job: {{script: [!reference [.r{levels - 1}, script]]}}")
    return "\n".join(lines)


BOMBS = {
    "aliases": _nested_aliases(12, 10, "list"),
    "merges": _nested_aliases(12, 10, "merge"),
    "depth": "a: " + "[" * 5000,
    "block depth": "\n".join(" " * i + "a:" for i in range(900)),
    "references": _references(9, 12),
    "long": "# " + "x" * (2 * 1024 * 1024),
    "many": "\n".join(f"j{i}: {{script: x}}" for i in range(20_000)),
    "script aliases": "s: &s {script: ["
    + "x, " * 20_000
    + "]}\n"
    + "\n".join(f"j{i}: *s" for i in range(900)),
    "extends": ".s: {script: ["
    + "x, " * 20_000
    + "]}\n"
    + "\n".join(f"j{i}: {{extends: .s}}" for i in range(900)),
    "matrix": "a: {script: x, parallel: {matrix: ["
    + ", ".join(["{" + ", ".join(f"V{i}: [1,2,3]" for i in range(4)) + "}"] * 500)
    + "]}}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_quickly(name: str) -> None:
    began = time.process_time()
    with pytest.raises(CiConfigInvalid):
        parse(BOMBS[name])
    assert time.process_time() - began < 5


RULES = [
    ("rules: [{if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH}]", push(), True),
    ("rules: [{if: $CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH}]", push("dev"), False),
    ("rules: [{if: $CI_COMMIT_TAG}]", push(), False),
    ("rules: [{if: $CI_COMMIT_TAG}]", tag("v1"), True),
    ("rules: [{if: $CI_COMMIT_TAG, when: never}, {when: on_success}]", tag("v1"), False),
    ("rules: [{if: $CI_COMMIT_TAG, when: never}, {when: on_success}]", push(), True),
    ("rules: [{if: $CI_PIPELINE_SOURCE == 'api'}]", api(), True),
    ("rules: [{if: '$CI_COMMIT_BRANCH =~ /^feature-/'}]", push("feature-1"), True),
    ("rules: [{if: '$CI_COMMIT_BRANCH =~ /^feature-/'}]", push(), False),
    ("rules: [{changes: [docs/**/*]}]", push(changed={"docs/a/b.md"}), True),
    ("rules: [{changes: [docs/**/*]}]", push(changed={"src/a.py"}), False),
    ("rules: [{changes: [docs/**/*]}]", push(changed=None), True),
    ("rules: [{changes: {paths: ['*.md']}}]", push(changed={"a/b.md"}), False),
    ("rules: [{exists: [Dockerfile]}]", push(), True),
    ("rules: [{exists: ['**/*.rb']}]", push(), False),
    ("rules: [{when: never}]", push(), False),
    ("only: [main]", push(), True),
    ("only: [main]", push("dev"), False),
    ("only: [tags]", push(), False),
    ("only: [tags]", tag("v1"), True),
    ("only: [/^feat/]", push("feature"), True),
    ("only: {refs: [branches], changes: [a.txt]}", push(changed={"b.txt"}), False),
    ("only: {variables: ['$CI_COMMIT_BRANCH == \"main\"']}", push(), True),
    ("only: [api]", push(), False),
    ("only: [api]", api(), True),
    ("only: ['main@group/thing']", push(), True),
    ("only: ['main@other/thing']", push(), False),
    ("except: [main]", push(), False),
    ("except: [tags]", push(), True),
    ("except: {variables: [$SKIP]}", push(SKIP="1"), False),
    ("when: never", push(), False),
    ("when: manual", push(), True),
]


@pytest.mark.parametrize(("text", "occasion", "runs"), RULES)
def test_which_jobs_run(text: str, occasion: Occasion, runs: bool) -> None:
    config = f"job:\n  script: x\n  {text}\nalways: {{script: x, only: [/./]}}"
    assert ("job" in names(config, occasion)) is runs


def _planned(text: str, occasion: Occasion | None = None) -> Plan:
    return plan(parse(text), occasion or push())


def test_manual_blocks_in_rules_only() -> None:
    jobs = _planned(
        "a: {script: x, when: manual}\nb: {script: x, rules: [{when: manual}]}\n"
        "c: {script: x, rules: [{when: manual, allow_failure: true}]}"
    ).jobs
    assert [(job.when, job.allow_failure) for job in jobs] == [
        ("manual", True),
        ("manual", False),
        ("manual", True),
    ]


def test_rules_give_variables() -> None:
    job = _planned("a: {script: x, rules: [{if: $CI_COMMIT_BRANCH, variables: {D: y}}]}").jobs[0]
    assert job.variables == {"D": "y"}


@pytest.mark.parametrize(
    "text",
    [
        "workflow: {rules: [{if: $CI_COMMIT_TAG}]}\na: {script: x}",
        "workflow: {rules: [{when: never}]}\na: {script: x}",
        "a: {script: x, rules: [{when: never}]}",
        "a: {script: x, stage: .pre}",
    ],
)
def test_no_pipeline(text: str) -> None:
    with pytest.raises(NoPipeline):
        _planned(text)


def test_need_that_rules_leave_out() -> None:
    text = "a: {script: x, rules: [{when: never}]}\nb: {script: x, needs: [%s]}"
    with pytest.raises(CiConfigInvalid, match="'b' job needs 'a' job"):
        _planned(text % "a")
    assert _planned(text % "{job: a, optional: true}").jobs[0].needs == ()


EXPRESSIONS = [
    ("$A", {"A": "x"}, True),
    ("$A", {"A": ""}, False),
    ("$A", {}, False),
    ("$A == null", {}, True),
    ("$A != null", {"A": ""}, True),
    ('$A == ""', {"A": ""}, True),
    ("$A == 'x' && $B == 'y'", {"A": "x", "B": "y"}, True),
    ("$A || $B && $C", {"A": "1"}, True),
    ("($A || $B) && $C", {"A": "1"}, False),
    ("$A =~ /^RELEASE/i", {"A": "release-1"}, True),
    ("$A !~ /x/", {"A": "abc"}, True),
    ("$A =~ $P", {"A": "abc", "P": "/b/"}, True),
    ("$A =~ $P", {"A": "abc", "P": "b"}, False),
    ("$A =~ /a\\/b/", {"A": "a/b"}, True),
    ("$A =~ /(unclosed/", {"A": "a"}, False),
    ("$A =~", {"A": "a"}, False),
    ("$A == $B)", {}, False),
    ("ls; rm", {}, False),
    ("(" * 99 + "$A", {"A": "1"}, False),
]


@pytest.mark.parametrize(("text", "variables", "expected"), EXPRESSIONS)
def test_expressions(text: str, variables: dict[str, str], expected: bool) -> None:
    assert evaluate(text, variables, Patterns()) is expected


def test_patterns_take_linear_time() -> None:
    began = time.process_time()
    assert not evaluate("$A =~ /^(a+)+$/", {"A": "a" * 50_000 + "b"}, Patterns())
    assert not Patterns().any_path(["*a" * 30 + "b"], ["a" * 5000])
    assert time.process_time() - began < 2


def test_variables_expand_within_limits() -> None:
    found = expand_all(
        {"A": "$B-${B}", "B": "b%C%", "C": "c", "R": "$A", "D": "$$A $NO"}, raw=["R"]
    )
    assert found == {"A": "bc-bc", "B": "bc", "C": "c", "R": "$A", "D": "$A $NO"}
    bomb = {f"V{i}": f"$V{i + 1}$V{i + 1}" for i in range(100)} | {"V100": "x" * 100}
    assert sum(len(value) for value in expand_all(bomb).values()) < 4_000_000
    assert set(expand_all({"A": "$B", "B": "$A"})) == {"A", "B"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h 30m", 5400),
        ("90 minutes", 5400),
        ("2 hours and 5 seconds", 7205),
        ("3600", 3600),
        ("1 week", 604800),
        ("0.5h", 1800),
        ("3 parsecs", None),
        ("", None),
        ("h", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("jobs", "status"),
    [
        ([], None),
        ([("success", False), ("success", False)], "success"),
        ([("success", False), ("failed", False)], "failed"),
        ([("success", False), ("failed", True)], "success"),
        ([("failed", False), ("running", False)], "running"),
        ([("created", False), ("pending", False)], "pending"),
        ([("success", False), ("created", False)], "running"),
        ([("success", False), ("manual", True)], "success"),
        ([("success", False), ("manual", False)], "manual"),
        ([("manual", True)], "skipped"),
        ([("canceled", False), ("success", False)], "canceled"),
        ([("canceled", False), ("failed", False)], "failed"),
        ([("skipped", False), ("failed", False)], "failed"),
        ([("created", False)], "created"),
        ([("success", False), ("scheduled", False)], "scheduled"),
    ],
)
def test_status_of_a_pipeline(jobs: list[tuple[str, bool]], status: str | None) -> None:
    assert composite(jobs) == status


@pytest.mark.parametrize(
    ("when", "prior", "dag", "status"),
    [
        ("on_success", None, False, "pending"),
        ("on_success", "success", False, "pending"),
        ("on_success", "skipped", False, "pending"),
        ("on_success", "skipped", True, "skipped"),
        ("on_success", "failed", False, "skipped"),
        ("on_success", "running", False, None),
        ("on_success", "manual", False, None),
        ("on_failure", "failed", False, "pending"),
        ("on_failure", "success", False, "skipped"),
        ("always", "failed", False, "pending"),
        ("manual", "success", False, "manual"),
        ("on_success", "canceled", False, "skipped"),
    ],
)
def test_what_a_job_becomes(when: str, prior: str | None, dag: bool, status: str | None) -> None:
    assert next_status(when, prior, dag=dag, delayed=False) == status
