"""Single files: read, and write as commits. https://docs.gitlab.com/api/repository_files/"""

from __future__ import annotations

import base64
import binascii
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session

from notebooks_service.forge import branch_changes, errors, history, repositories
from notebooks_service.forge.access import ProjectAccess, find_project
from notebooks_service.forge.authentication import Asker, Asks, AsksForFiles
from notebooks_service.forge.changes import Change, Person, Remove, Write, is_file_path
from notebooks_service.forge.ci_parameters import LargeParameters, Parameters, flag, text
from notebooks_service.forge.database import SessionDep
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.repositories import TreeEntry
from notebooks_service.forge.routes_repository import MOST_BLOB, raw_headers, repository_of

router = APIRouter(prefix="/api/v4/projects/{project_id:segment}/repository/files")


def _found(
    session: Session, asker: Asker, project_id: str, request: Request, path: str, ref: str
) -> tuple[ProjectAccess, str, TreeEntry]:
    found = find_project(session, asker, project_id, Can.READ_CODE)
    repository = repository_of(request, found)
    if not ref:
        raise errors.ForgeError(400, {"error": "ref is missing"})
    commit = repositories.resolve(repository, ref)
    if commit is None:
        raise errors.not_found("Commit")
    entry = repositories.entry(repository, commit, path)
    if entry is None or entry.kind != "blob":
        raise errors.not_found("File")
    return found, commit, entry


def _facts(
    request: Request, found: ProjectAccess, commit: str, entry: TreeEntry, ref: str
) -> dict[str, Any]:
    repository = repository_of(request, found)
    return {
        "file_name": entry.path.rsplit("/", 1)[-1],
        "file_path": entry.path,
        "size": entry.size,
        "encoding": "base64",
        "content_sha256": repositories.blob_sha256(repository, entry.sha),
        "ref": ref,
        "blob_id": entry.sha,
        "commit_id": commit,
        "last_commit_id": history.last_commit_of(repository, commit, entry.path) or commit,
        "execute_filemode": entry.mode == "100755",
    }


def _headers(facts: dict[str, Any]) -> dict[str, str]:
    """https://docs.gitlab.com/api/repository_files/#get-file-metadata-only"""
    names = {key: "X-Gitlab-" + key.title().replace("_", "-") for key in facts}
    names["content_sha256"] = "X-Gitlab-Content-Sha256"
    return {
        names[key]: ("true" if value else "false")
        if isinstance(value, bool)
        else quote(str(value), safe="/ .-_")
        for key, value in facts.items()
    }


@router.get("/{path:segment}")
def get_file(
    project_id: str,
    path: str,
    asker: AsksForFiles,
    session: SessionDep,
    request: Request,
    response: Response,
    ref: str = "",
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/repository_files/#retrieve-a-file-from-a-repository"""
    found, commit, entry = _found(session, asker, project_id, request, path, ref)
    if (entry.size or 0) > MOST_BLOB:
        raise errors.ForgeError(413, {"message": "The file is too large; take its raw content"})
    content = repositories.blob(repository_of(request, found), entry.sha)
    facts = _facts(request, found, commit, entry, ref)
    response.headers.update(_headers(facts))
    return {**facts, "content": base64.b64encode(content).decode()}


@router.head("/{path:segment}")
def head_file(
    project_id: str,
    path: str,
    asker: AsksForFiles,
    session: SessionDep,
    request: Request,
    ref: str = "",
) -> Response:
    """https://docs.gitlab.com/api/repository_files/#get-file-metadata-only"""
    found, commit, entry = _found(session, asker, project_id, request, path, ref)
    return Response(headers=_headers(_facts(request, found, commit, entry, ref)))


@router.get("/{path:segment}/raw")
def raw_file(
    project_id: str,
    path: str,
    asker: AsksForFiles,
    session: SessionDep,
    request: Request,
    ref: str = "HEAD",
) -> Response:
    """https://docs.gitlab.com/api/repository_files/#retrieve-a-raw-file-from-a-repository"""
    found, _, entry = _found(session, asker, project_id, request, path, ref or "HEAD")
    chunks = repositories.blob_chunks(repository_of(request, found), entry.sha)
    return StreamingResponse(chunks, headers=raw_headers(entry.size or 0))


def _content(parameters: dict[str, Any]) -> bytes:
    value = text(parameters, "content", limit=MOST_BLOB * 2)
    if value is None:
        raise errors.ForgeError(400, {"error": "content is missing"})
    if parameters.get("encoding") == "base64":
        try:
            return base64.b64decode(value)
        except binascii.Error:
            raise errors.ForgeError(400, {"error": "content is invalid"}) from None
    return value.encode()


def _commit(
    session: Session,
    asker: Asker,
    project_id: str,
    request: Request,
    parameters: dict[str, Any],
    path: str,
    change: Change,
) -> dict[str, Any]:
    user = asker.need_user()
    found = find_project(session, asker, project_id)
    branch, message = text(parameters, "branch"), text(parameters, "commit_message")
    if not branch or not message:
        missing = "commit_message" if branch else "branch"
        raise errors.ForgeError(400, {"error": f"{missing} is missing"})
    if not is_file_path(path):
        raise errors.bad_request("file_path should be a valid file path")
    _check_last_commit(request, found, branch, path, text(parameters, "last_commit_id"))
    branch_changes.commit(
        session,
        request.app.state.database,
        request.app.state.config,
        found,
        user,
        branch,
        text(parameters, "start_branch"),
        [change],
        message,
        Person(
            text(parameters, "author_name") or user.name,
            text(parameters, "author_email") or user.email,
        ),
    )
    return {"file_path": path, "branch": branch}


def _check_last_commit(
    request: Request, found: ProjectAccess, branch: str, path: str, expected: str | None
) -> None:
    if not expected:
        return
    repository = repository_of(request, found)
    tip = repositories.one_ref(repository, "heads", branch)
    if tip is None or history.last_commit_of(repository, tip.commit, path) != expected:
        raise errors.bad_request(
            "You are attempting to update a file that has changed since you started editing it."
        )


@router.post("/{path:segment}", status_code=201)
def create_file(
    project_id: str,
    path: str,
    asker: Asks,
    session: SessionDep,
    parameters: LargeParameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/repository_files/#create-a-file-in-a-repository"""
    executable = flag(parameters, "execute_filemode", None)
    change = Write(path, _content(parameters), must_exist=False, executable=executable)
    return _commit(session, asker, project_id, request, parameters, path, change)


@router.put("/{path:segment}")
def update_file(
    project_id: str,
    path: str,
    asker: Asks,
    session: SessionDep,
    parameters: LargeParameters,
    request: Request,
) -> dict[str, Any]:
    """https://docs.gitlab.com/api/repository_files/#update-a-file-in-a-repository"""
    executable = flag(parameters, "execute_filemode", None)
    change = Write(path, _content(parameters), must_exist=True, executable=executable)
    return _commit(session, asker, project_id, request, parameters, path, change)


@router.delete("/{path:segment}", status_code=204)
def delete_file(
    project_id: str,
    path: str,
    asker: Asks,
    session: SessionDep,
    parameters: Parameters,
    request: Request,
) -> Response:
    """https://docs.gitlab.com/api/repository_files/#delete-a-file-in-a-repository"""
    _commit(session, asker, project_id, request, parameters, path, Remove(path))
    return Response(status_code=204)
