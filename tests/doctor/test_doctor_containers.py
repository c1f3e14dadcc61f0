"""What the doctor says of a Docker engine, as a table; and of one that is not there, really asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from notebooks_service.doctor.containers import EngineFacts, judge_engine, look_at_engine
from notebooks_service.settings import Settings

MANY = [f"v{number}" for number in range(9)]


@pytest.mark.parametrize(
    ("facts", "codes"),
    [
        (EngineFacts(problem="It is away."), ["engine.away"]),
        (EngineFacts(version="20.10.24+dfsg1"), ["engine.answers"]),
        (EngineFacts(version="28.2.2"), ["engine.answers"]),
        (EngineFacts(version="19.03.1"), ["engine.old"]),
        (EngineFacts(version="unknown"), ["engine.answers"]),
        (EngineFacts(version="24.0", missing=["a", "b"]), ["engine.answers", "engine.images"]),
        (EngineFacts(version="24.0", volumes=["v"], kept=["v"]), ["engine.answers"]),
        (EngineFacts(version="24.0", volumes=["v"]), ["engine.answers", "engine.volumes-left"]),
        (EngineFacts(version="24.0", kept=["v"]), ["engine.answers", "engine.volumes-gone"]),
        (
            EngineFacts(version="24.0", stopped={"c": "exited"}),
            ["engine.answers", "engine.containers-left"],
        ),
    ],
)
def test_judgements(facts: EngineFacts, codes: list[str]) -> None:
    assert [each.code for each in judge_engine(facts)] == codes


def test_some_names_are_enough() -> None:
    said = judge_engine(EngineFacts(version="24.0", volumes=MANY))[1].sentence
    assert said.startswith("9 volumes") and said.endswith("v4 and 4 more.")


def test_an_engine_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = f"unix://{tmp_path}/no.sock"
    monkeypatch.setenv("DOCKER_HOST", nobody)
    found = look_at_engine(Settings(data=tmp_path, runtime="docker"), embedded=True)
    assert nobody in found.problem
    assert not (tmp_path / "docker").exists()
