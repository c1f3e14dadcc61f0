"""A server reads the submodules that were agreed to at its launch, and nothing else, and pushes to none."""

from __future__ import annotations

import dataclasses

import pytest

from notebooks_service.domain import LaunchRecord, Submodule
from notebooks_service.errors import Forbidden, NotFound
from notebooks_service.gateway.access import Admission, _project


def submodule(id: int | None, project: str | None, reason: str = "") -> Submodule:
    return Submodule("libs/x", "", "x", "../x", "b" * 40, id, project, reason)


RECORD = LaunchRecord(
    id="0123456789ab",
    project_id=7,
    project_path="group/app",
    commit="a" * 40,
    branch="main",
    requested_at="2026-01-01T00:00:00Z",
    submodules=(
        submodule(8, "group/library"),
        submodule(9, "group/declined", "you have not agreed to it."),
        submodule(None, None, "there is no such project."),
    ),
)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("group/app", (7, False)),
        ("group/library", (8, True)),
        ("group/declined", None),
        ("group/other", None),
        ("group/Library", None),
        ("None", None),
        ("", None),
    ],
)
def test_which_projects_a_server_reaches(path: str, found: tuple[int, bool] | None) -> None:
    record = LaunchRecord.from_dict(RECORD.to_dict())
    if found is None:
        with pytest.raises(NotFound):
            _project(record, path)
    else:
        assert _project(record, path) == found


def test_a_record_from_before_there_were_submodules_has_none() -> None:
    data = RECORD.to_dict()
    del data["submodules"]
    assert LaunchRecord.from_dict(data).submodules == ()


def test_a_submodule_is_for_reading() -> None:
    own = Admission("ada", "s1", 7, "group/app", "token")
    own.need_write()
    with pytest.raises(Forbidden, match="may read it, not push"):
        dataclasses.replace(own, read_only=True).need_write()
