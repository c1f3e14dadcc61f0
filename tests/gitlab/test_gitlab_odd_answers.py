"""Whatever JSON a forge answers with: our nouns, or the one error that says so. Never anything else."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from requests.adapters import BaseAdapter

from notebooks_service.domain import Project
from notebooks_service.errors import ForgeUnavailable, NotebooksError
from notebooks_service.gitlab import submodules
from notebooks_service.gitlab.forge import Forge

SHA = "1" * 40
PROJECT = Project(5, "g/p", "p", "main", "private", "")
CALLS: dict[str, Callable[[Forge], Any]] = {
    "user": lambda forge: forge.user(),
    "project": lambda forge: forge.project("g/p"),
    "projects": lambda forge: forge.projects(),
    "access": lambda forge: forge.access(PROJECT),
    "commit": lambda forge: forge.commit(PROJECT, SHA),
    "commit by ref": lambda forge: forge.commit(PROJECT, "main"),
    "commits": lambda forge: forge.commits(PROJECT, "main"),
    "search": lambda forge: forge.commits(PROJECT, "main", "1" * 8),
    "refs": lambda forge: forge.commit_refs(PROJECT, SHA),
    "branch": lambda forge: forge.branch(PROJECT, "main"),
    "branches": lambda forge: forge.branches(PROJECT),
    "tags": lambda forge: forge.tags(PROJECT),
    "path": lambda forge: forge.path_kind(PROJECT, SHA, "a/b"),
    "jobs": lambda forge: forge.ci.jobs(PROJECT, SHA, "image_build"),
    "job": lambda forge: forge.ci.job(PROJECT, 1),
    "pipeline": lambda forge: forge.ci.newest_pipeline(PROJECT, SHA),
    "config": lambda forge: forge.ci.config_error(PROJECT, SHA),
    "registry": lambda forge: forge.registry.tag(PROJECT, SHA),
    "size": lambda forge: forge.repository_bytes(PROJECT),
    "submodules": lambda forge: submodules.find(forge, PROJECT, SHA),
}
# A whole answer to anything, from which parts are taken away or made something else.
WHOLE: dict[str, Any] = {
    "id": 7,
    "name": "x",
    "username": "ada",
    "path": "g/p",
    "path_with_namespace": "g/p",
    "status": "success",
    "type": "branch",
    "mode": "120000",
    "access_level": 30,
    "location": "r/g/p:1",
    "commit": {"id": SHA, "title": "t"},
    "pipeline": {"id": 3},
    "downstream_pipeline": {"id": 4, "project_id": 5},
    "permissions": {"project_access": {"access_level": 30}, "group_access": None},
    "statistics": {"repository_size": 1},
    "parent_ids": [SHA],
    "yaml_errors": "bad",
}
ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


class Says(BaseAdapter):
    """Every request gets the same answer."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:  # type: ignore[override]
        answer = requests.Response()
        answer.status_code = 200
        answer.headers["Content-Type"] = "application/json"
        answer.raw = io.BytesIO(self.body)
        answer.request, answer.url = request, str(request.url)
        return answer

    def close(self) -> None:
        pass


def ask(call: Callable[[Forge], Any], data: Any) -> None:
    session = requests.Session()
    session.mount("http://", Says(json.dumps(data).encode()))
    try:
        call(Forge("http://forge.test", "token", session=session))
    except NotebooksError as error:
        assert error.code in ("forge_unavailable", "not_found"), error
        assert error.message.endswith(".")


@pytest.mark.parametrize("name", CALLS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_json_is_an_answer_or_none(name: str, data: st.DataObject) -> None:
    changed = data.draw(st.dictionaries(st.sampled_from(sorted(WHOLE)), ODD, max_size=3))
    answer = {**WHOLE, **changed}
    ask(CALLS[name], data.draw(st.sampled_from([answer, [answer], [answer, answer]]) | ODD))


@pytest.mark.parametrize("name", ["user", "project", "commit", "branch", "job", "registry"])
def test_an_answer_of_wrong_types_is_no_answer(name: str) -> None:
    wrong = {key: 17 if isinstance(value, str) else "x" for key, value in WHOLE.items()}
    session = requests.Session()
    session.mount("http://", Says(json.dumps(wrong).encode()))
    with pytest.raises(ForgeUnavailable):
        CALLS[name](Forge("http://forge.test", "token", session=session))
