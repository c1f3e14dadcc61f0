"""What a webhook may say: it names a project, and nothing else of it counts."""

from __future__ import annotations

import json

import pytest

from notebooks_service.spawner.forge_events import project_of


@pytest.mark.parametrize(
    ("event", "project"),
    [
        ({"object_kind": "build", "project_id": 7, "build_status": "success"}, 7),
        ({"object_kind": "pipeline", "project": {"id": 8}, "object_attributes": {"id": 1}}, 8),
        ({"object_kind": "push", "project_id": 7, "project": {"id": 7}}, 7),
        ({"project_id": "7"}, None),
        ({"project_id": True}, None),
        ({"project": [7]}, None),
        ({}, None),
        ([7], None),
        ("7", None),
    ],
)
def test_the_project_of_an_event(event: object, project: int | None) -> None:
    assert project_of(json.dumps(event).encode()) == project


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_event_names_none(body: bytes) -> None:
    assert project_of(body) is None
