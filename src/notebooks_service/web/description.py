"""The OpenAPI description: FastAPI's, with the projects' addresses as people write them, and every answer.

Called by ``app``. The tests throw requests made from it at a running stack, and hold each answer to it.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from notebooks_service.web.routing import COMMIT_ROUTE, REF_ROUTE

# How the addresses of projects are written; see ``urls``.
DESCRIBED = {
    COMMIT_ROUTE: "/{project}/{commit}/{path}",
    REF_ROUTE: "/-/p/{project}/-/{ref}",
}

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TEXT_OR_NONE: Schema = {"type": ["string", "null"]}
NUMBER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
SHA: Schema = {"type": "string", "pattern": "^[0-9a-f]{40}$"}
PROJECT_PATH: Schema = {
    "type": "string",
    "description": "The full path, groups included. Its slashes are written as they are.",
    "minLength": 3,
    "maxLength": 1024,
}


def _object(properties: Schema, *, also: tuple[str, ...] = (), more: bool = False) -> Schema:
    """An object with these properties, all there but those of ``also``."""
    return {
        "type": "object",
        "required": [name for name in properties if name not in also],
        "additionalProperties": more,
        "properties": properties,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


ANY_OBJECT: Schema = {"type": "object", "additionalProperties": True}
SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": _object(
                {
                    "code": TEXT,
                    "message": {"type": "string", "minLength": 1},
                    "detail": _object({"request_id": TEXT}, more=True),
                }
            )
        }
    ),
    "Server": _object(
        {
            "name": TEXT,
            "url": TEXT,
            "started": TEXT_OR_NONE,
            "last_activity": TEXT_OR_NONE,
            "state": _object({"ready": FLAG, "pending": TEXT_OR_NONE, "stopped": FLAG}),
            "status": _object(
                {
                    "state": {"enum": ["starting", "running", "stopping", "failed", "stopped"]},
                    "message": TEXT,
                    "details": _list(
                        _object(
                            {
                                "step": TEXT,
                                "status": {"enum": ["ready", "executing", "failed", "waiting"]},
                                "message": TEXT,
                                "started": TEXT_OR_NONE,
                            }
                        )
                    ),
                }
            ),
            "image": TEXT_OR_NONE,
            "image_digest": TEXT_OR_NONE,
            "image_origin": TEXT_OR_NONE,
            "image_reason": TEXT_OR_NONE,
            "image_evidence": {"type": ["object", "null"], "additionalProperties": True},
            "launch": TEXT_OR_NONE,
            "failure": {"type": ["object", "null"], "additionalProperties": TEXT},
            "submodules": _list(
                _object({"path": TEXT, "project": TEXT_OR_NONE, "left_out": TEXT_OR_NONE})
            ),
            "notes": _list(TEXT),
            "resources": _object(
                {
                    "requests": _object(
                        {"cpu": {"type": "number"}, "memory": TEXT, "gpu": NUMBER},
                        also=("cpu", "memory", "gpu"),
                    )
                }
            ),
            "mounts": _list(TEXT),
            "default_url": TEXT,
            "served": TEXT_OR_NONE,
            "work": {"type": ["object", "null"], "additionalProperties": True},
            "annotations": {"type": "object", "additionalProperties": TEXT},
        }
    ),
    "Project": _object(
        {
            "id": NUMBER,
            "path_with_namespace": TEXT,
            "name": TEXT,
            "description": TEXT,
            "default_branch": TEXT_OR_NONE,
            "visibility": TEXT,
            "web_url": TEXT,
            "last_activity_at": TEXT,
            "empty_repo": FLAG,
            "commits_url": TEXT,
        }
    ),
    "Commit": _object(
        {
            "id": SHA,
            "short_id": TEXT,
            "title": TEXT,
            "message": TEXT,
            "author_name": TEXT,
            "authored_date": TEXT,
            "parent_ids": _list(SHA),
            "url": TEXT,
        }
    ),
    "Branch": _object(
        {
            "kind": TEXT,
            "name": TEXT,
            "sha": TEXT,
            "default": FLAG,
            "protected": FLAG,
            "can_push": FLAG,
        }
    ),
    "Image": _object({"image": TEXT, "digest": TEXT, "project_id": NUMBER}),
    "Options": {
        "type": "object",
        "additionalProperties": _object(
            {
                "displayName": TEXT,
                "order": NUMBER,
                "type": {"enum": ["enum", "boolean"]},
                "default": {"type": ["number", "string", "boolean"]},
                "options": _list({"type": ["number", "string"]}),
                "allow_any_value": FLAG,
                "value_range": ANY_OBJECT,
            },
            also=("options", "allow_any_value", "value_range"),
        ),
    },
    "Secret": _object(
        {
            "name": TEXT,
            "changed_at": TEXT,
            "projects": _list(_object({"id": NUMBER, "path": TEXT})),
        }
    ),
    "User": _object(
        {
            "name": TEXT,
            "forge": _object(
                {"url": TEXT, "id": NUMBER, "username": TEXT, "name": TEXT, "email": TEXT}
            ),
        }
    ),
    "Health": _object(
        {
            "status": {"enum": ["ok", "degraded"]},
            "hub": _object({"reachable": FLAG, "version": TEXT}, also=("version",)),
            "forge": _object({"reachable": FLAG}),
            "builds": {"enum": ["go", "wait"]},
            "version": TEXT,
        }
    ),
    "Version": _object({"name": TEXT, "version": TEXT}),
    "Reach": _object({"scheme": TEXT, "host": TEXT, "upgrade": TEXT}),
}


def _named(name: str) -> Schema:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _listed(name: str) -> Schema:
    return _json(_list({"$ref": f"#/components/schemas/{name}"}))


EVENT = _object(
    {"data": TEXT, "event": TEXT, "id": TEXT, "retry": NUMBER}, also=("event", "id", "retry")
)
STREAM: Schema = {"text/event-stream": {"schema": EVENT}}
PLAIN: Schema = {"text/plain": {"schema": TEXT}}
SERVERS = _json(
    _object(
        {
            "servers": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Server"},
            }
        }
    )
)

Answers = dict[int, Schema]
NONE: Schema = {}
START: Answers = {200: _named("Server"), 201: _named("Server")}
STARTING = (404, 409, 413, 422, 502, 507)
COMMIT, REF = DESCRIBED.values()
# What succeeds, and which refusals there are beside those of every call with a token.
OPERATIONS: dict[tuple[str, str], tuple[Answers, tuple[int, ...]]] = {
    (COMMIT, "get"): ({200: _named("Server")}, (404, 422)),
    (COMMIT, "post"): (START, (405, *STARTING)),
    (COMMIT, "delete"): ({204: NONE}, (404, 405, 409, 413, 422, 502, 507)),
    (REF, "get"): ({302: NONE}, (404, 422)),
    ("/servers", "get"): ({200: SERVERS}, (422,)),
    ("/servers", "post"): (START, STARTING),
    ("/servers/{name}", "get"): ({200: _named("Server")}, (404,)),
    ("/servers/{name}", "patch"): ({200: _named("Server")}, STARTING),
    ("/servers/{name}", "delete"): ({204: NONE}, (404, 409, 413, 502, 507)),
    ("/servers/{name}/events", "get"): ({200: STREAM}, (404,)),
    ("/logs/{name}", "get"): ({200: PLAIN, 206: PLAIN}, (404, 416, 422)),
    ("/projects", "get"): ({200: _listed("Project")}, (422,)),
    ("/projects/{project_id}", "get"): ({200: _named("Project")}, (404, 422)),
    ("/projects/{project_id}/commits", "get"): ({200: _listed("Commit")}, (404, 422)),
    ("/projects/{project_id}/branches", "get"): ({200: _listed("Branch")}, (404, 422)),
    ("/images", "get"): ({200: _named("Image")}, (404, 422)),
    ("/server_options", "get"): ({200: _named("Options")}, (404,)),
    ("/secrets", "get"): (
        {200: _json(_object({"secrets": _list({"$ref": "#/components/schemas/Secret"})}))},
        (),
    ),
    ("/secrets/{name}", "get"): ({200: _named("Secret")}, ()),
    ("/secrets/{name}", "put"): ({200: _named("Secret"), 201: _named("Secret")}, (409, 413, 422)),
    ("/secrets/{name}", "delete"): ({204: NONE}, (413,)),
    ("/user", "get"): ({200: _named("User")}, (404,)),
    ("/usage", "get"): ({200: {"text/csv": {"schema": TEXT}}}, (422,)),
}
OPEN: dict[tuple[str, str], Answers] = {
    ("/health", "get"): {200: _named("Health")},
    ("/version", "get"): {200: _named("Version")},
    ("/-/reach", "get"): {200: _named("Reach")},
    ("/-/stream", "get"): {200: STREAM},
}
WITH_A_TOKEN = (401, 403, 404, 502, 503, 507)
SAID = {
    200: "Done.",
    201: "A new one is made, or on its way.",
    204: "Done; there is nothing to say.",
    206: "The part that was asked for.",
    302: "Go on there.",
    401: "No token, one that the hub does not know, or an expired sign-in at the forge.",
    403: "Not with this token, or not with this role.",
    404: "Hidden and missing are the same answer.",
    405: "The address is none of a full commit id.",
    409: "Not in the server's present state.",
    413: "The body is too large.",
    416: "There is no such range.",
    422: "A sentence names what is wrong.",
    502: "The hub failed at it, or could not begin.",
    503: "The hub or the forge does not answer; `Retry-After` says when to try again.",
    507: "The disk is full.",
}
PARAMETERS: dict[str, Schema] = {"project": PROJECT_PATH, "commit": SHA}


def describe(app: FastAPI, prefix: str) -> Schema:
    """The description of ``app``, which is reached below ``prefix``; made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description="An interactive environment for every commit of a GitLab project.",
            routes=app.routes,
            servers=[{"url": prefix.rstrip("/")}],
        )
        schema["paths"] = {
            DESCRIBED.get(path, path): each for path, each in schema["paths"].items()
        }
        for path in DESCRIBED.values():
            names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
            for operation in schema["paths"].get(path, {}).values():
                operation.setdefault("parameters", [])[:0] = [
                    {
                        "name": name,
                        "in": "path",
                        "required": True,
                        "schema": PARAMETERS.get(name, {"type": "string", "minLength": 1}),
                    }
                    for name in names
                ]
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _answers(operation, path, method)
        schema["components"] = {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "hubToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A hub API token.",
                }
            },
        }
        schema["security"] = [{"hubToken": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _answers(operation: Schema, path: str, method: str) -> None:
    """Write what the operation answers in place of what FastAPI guesses."""
    refusals: tuple[int, ...] = ()
    if (path, method) in OPEN:
        succeeds = OPEN[path, method]
        operation["security"] = []
    else:
        succeeds, more = OPERATIONS[path, method]
        refusals = tuple(sorted({*WITH_A_TOKEN, *more}))
    said: Schema = {}
    for status, content in succeeds.items():
        said[str(status)] = {"description": SAID[status]}
        if content:
            said[str(status)]["content"] = content
    for status in refusals:
        said[str(status)] = {"description": SAID[status], "content": _named("Error")}
    operation["responses"] = said
