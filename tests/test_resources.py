"""What may be chosen for a server, as tables; and how a wrong setting is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notebooks_service.errors import InvalidRequest, SettingsInvalid
from notebooks_service.resources import (
    Resources,
    check,
    cpu_choices,
    granted,
    in_words,
    memory_choices,
    offered,
    read,
)
from notebooks_service.settings import Settings, load_settings

GIB = 2**30


def settings(**more: Any) -> Settings:
    given_here = {"server_cpu": 2, "server_memory": 4 * GIB, "runtime": "docker", **more}
    return Settings(data=Path("/nowhere"), **given_here)


GENEROUS = settings(server_cpu_most=8, server_memory_most=12 * GIB)


@pytest.mark.parametrize(
    ("cpu", "memory", "found"),
    [
        (None, None, Resources()),
        ("", "", Resources()),
        (2, "2Gi", Resources(2, 2 * GIB)),
        ("0.5", "512Mi", Resources(0.5, GIB // 2)),
        (1.5, 1_000_000_000, Resources(1.5, 10**9)),
        (None, "1.5G", Resources(0, 1_500_000_000)),
        (None, "1073741824", Resources(0, GIB)),
    ],
)
def test_read(cpu: object, memory: object, found: Resources) -> None:
    assert read(cpu, memory) == found


@pytest.mark.parametrize(
    ("cpu", "memory", "named"),
    [
        (True, None, "cpu_request"), ("two", None, "cpu_request"), (0, None, "cpu_request"),
        (-1, None, "cpu_request"), ("nan", None, "cpu_request"), ("inf", None, "cpu_request"),
        (10**400, None, "cpu_request"), ([1], None, "cpu_request"), ({}, None, "cpu_request"),
        (None, True, "mem_request"), (None, 0, "mem_request"), (None, -5, "mem_request"),
        (None, "2 Gi", "mem_request"), (None, "2gi", "mem_request"), (None, "2Gi\n", "mem_request"),
        (None, 2.5, "mem_request"), (None, "0", "mem_request"), (None, "999999999999999Ti", "mem_request"),
        (None, 2**63, "mem_request"), (None, "1" * 5000, "mem_request"),
    ],
)  # fmt: skip
def test_what_is_no_amount(cpu: object, memory: object, named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"`{named}`"):
        read(cpu, memory)


@pytest.mark.parametrize(
    ("where", "chosen", "says"),
    [
        (settings(), Resources(cpu=1), "cannot be chosen"),
        (settings(), Resources(memory=GIB), "cannot be chosen"),
        (settings(server_cpu_most=4), Resources(memory=GIB), "memory cannot be chosen"),
        (GENEROUS, Resources(cpu=8.1), "0.1 to 8 processors, not 8.1"),
        (GENEROUS, Resources(cpu=0.05), "0.1 to 8 processors"),
        (GENEROUS, Resources(memory=12 * GIB + 1), "256Mi to 12Gi of memory"),
        (GENEROUS, Resources(memory=1), "256Mi to 12Gi of memory, not 1"),
        # Processes of `local` have no limits: nothing is promised there.
        (settings(runtime="local", server_cpu_most=4), Resources(cpu=1), "cannot be chosen"),
    ],
)
def test_what_is_refused(where: Settings, chosen: Resources, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check(where, chosen)


@pytest.mark.parametrize("chosen", [Resources(), Resources(8, 12 * GIB), Resources(0.1, GIB // 4)])
def test_what_is_taken(chosen: Resources) -> None:
    check(GENEROUS, chosen)
    check(settings(), Resources())


def test_what_a_server_gets() -> None:
    assert granted(GENEROUS, Resources()) == Resources(2, 4 * GIB)
    assert granted(GENEROUS, Resources(memory=GIB)) == Resources(2, GIB)
    assert granted(settings(server_memory=0), Resources()) == Resources(2, 0)


def test_what_is_offered() -> None:
    assert cpu_choices(GENEROUS) == [0.5, 1, 2, 4, 8]
    assert [in_words(each) for each in memory_choices(GENEROUS)] == ["1Gi", "2Gi", "4Gi", "8Gi", "12Gi"]  # fmt: skip
    found = offered(GENEROUS)
    assert found["cpu_request"]["value_range"] == {"type": "float", "min": 0.1, "max": 8}
    assert found["mem_request"]["default"] == "4Gi"
    assert list(offered(settings())) == ["lfs_auto_fetch"]
    assert cpu_choices(settings()) == memory_choices(settings()) == []


@given(st.integers(1, 2**62))
def test_an_amount_in_words_is_read_as_itself(amount: int) -> None:
    text = in_words(amount)
    # More digits than an amount may have are only in what no machine has.
    if len(text.rstrip("TGMKi")) <= 15:
        assert read(None, text).memory == amount


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("server_cpu_most", {"server_cpu_most": 1}),
        ("server_cpu_most", {"server_cpu": 0, "server_cpu_most": 4}),
        ("server_cpu_most", {"server_cpu": 0.01, "server_cpu_most": 0.05}),
        ("server_memory_most", {"server_memory_most": GIB}),
        ("server_memory_most", {"server_memory": 0, "server_memory_most": GIB}),
    ],
)
def test_a_setting_that_cannot_be_meant_is_named(key: str, more: dict[str, Any]) -> None:
    with pytest.raises(SettingsInvalid, match=f"`{key}`"):
        load_settings(**{"server_cpu": 2, "server_memory": 4 * GIB, **more})


@pytest.mark.parametrize(
    ("asked", "found"), [(None, 0), ("", 0), ("0", 0), (2, 2), ("1", 1), (99, 99)]
)
def test_a_number_of_gpus(asked: object, found: int) -> None:
    assert read(None, None, asked) == Resources(gpu=found)


@pytest.mark.parametrize("wrong", [-1, "-1", "1.0", 1.0, True, "one", "٢", "01", 100, [1], "1\n"])
def test_what_is_no_number_of_gpus(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match="gpu_request"):
        read(None, None, wrong)


def test_gpus_are_offered_where_there_are_some() -> None:
    generous = settings(gpus=["0", "1"], server_gpu_most=4)
    assert offered(generous)["gpu_request"]["options"] == [0, 1, 2]
    assert "gpu_request" not in offered(settings(gpus=["0"]))
    assert "gpu_request" not in offered(settings(server_gpu_most=1))
    local = settings(runtime="local", gpus=["0"], server_gpu_most=1)
    with pytest.raises(InvalidRequest, match="GPUs cannot be chosen here"):
        check(local, Resources(gpu=1))


@pytest.mark.parametrize("wrong", [["0", "0"], ["0,1"], [""], "0"])
def test_gpus_are_named_one_by_one(wrong: object) -> None:
    with pytest.raises(ValueError, match="gpus"):
        settings(gpus=wrong)
