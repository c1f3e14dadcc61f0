"""A small GitLab behind an injected transport: the endpoints that the web room's way needs.

Data is plain; each answer follows https://docs.gitlab.com/api/. The tests change it as they go.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import requests
from requests.adapters import BaseAdapter

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
FORK = "00000000000000000000000000000000000f04c5"
SHA_NAME = "a" * 40


def commit(sha: str, title: str, message: str = "", author: str = "Ada Lovelace") -> dict[str, Any]:
    return {
        "id": sha,
        "title": title,
        "message": message or title,
        "author_name": author,
        "author_email": "ada@example.org",
        "authored_date": "2026-03-02T09:30:00.000+01:00",
        "parent_ids": [],
    }


class SmallForge:
    """People by token; projects by id, each with readers, commits, branches, tags and jobs' logs."""

    def __init__(self) -> None:
        self.people = {"forge-token-of-ada": "ada", "forge-token-of-bob": "bob"}
        self.down = False
        self.asked: list[str] = []
        self.traces: dict[int, bytes] = {}
        self.lock = threading.Lock()
        self.projects: dict[int, dict[str, Any]] = {}
        self.add(7, "group/rivers", "The flow of rivers, month by month, in two notebooks.")
        self.add(8, "group/sub/deep", "In a nested group")
        self.add(9, f"group/{SHA_NAME}", "A project whose name looks like a sha")
        self.add(10, "secret/plan", "For Ada only", readers={"ada"}, visibility="private")
        self.add(11, f"group/sub/{SHA_NAME}", "A nested project whose name looks like a sha")

    def add(self, id: int, path: str, description: str, **more: Any) -> None:
        main = [
            commit(
                SHA,
                "Plot the flow with pandas",
                "Plot the flow with pandas\n\nThe table is read once; the plot shows all twelve months.",
            ),
            commit(OTHER, "Add the data"),
        ]
        self.projects[id] = {
            "readers": None,
            "level": 30,
            "branches": {"main": SHA, "feature/slash": OTHER},
            "tags": {"v1": OTHER},
            "commits": [*main, commit(FORK, "Do something odd", author="Mallory")],
            "reachable": {SHA, OTHER},
            "files": {"notebooks/flow.ipynb"},
            "symlinks": {},
            "visibility": "public",
            **more,
            "path": path,
            "description": description,
        }

    def session(self) -> requests.Session:
        session = requests.Session()
        session.mount("http://", _Adapter(self))
        return session

    def answer(self, token: str, path: str, query: dict[str, str]) -> tuple[int, Any]:
        person = self.people.get(token)
        if person is None:
            return 401, {"message": "401 Unauthorized"}
        if path == "/user":
            id = sorted(self.people.values()).index(person) + 1
            return 200, {
                "id": id,
                "username": person,
                "name": person.title(),
                "email": f"{person}@example.org",
            }
        if path == "/projects":
            found = [
                self._project(id)
                for id, project in self.projects.items()
                if self._may(person, project) and query.get("search", "") in project["path"]
            ]
            return 200, found
        match = re.match(r"/projects/([^/]+)(/.*)?\Z", path)
        if not match:
            return 501, {"message": f"501 {path}"}
        id = self._id(unquote(match.group(1)))
        if id is None or not self._may(person, self.projects[id]):
            return 404, {"message": "404 Project Not Found"}
        return self._of_project(id, match.group(2) or "", query)

    def _of_project(self, id: int, path: str, query: dict[str, str]) -> tuple[int, Any]:
        project = self.projects[id]
        commits = {each["id"]: each for each in project["commits"]}
        if not path:
            return 200, self._project(id)
        if path.startswith("/members/all/"):
            if not project["level"]:
                return 404, {"message": "404 Not found"}
            return 200, {"access_level": project["level"]}
        if path in ("/repository/branches", "/repository/tags"):
            refs = project[path.removeprefix("/repository/")]
            return 200, [self._ref(name, commits[sha]) for name, sha in refs.items()]
        if match := re.match(r"/repository/(branches|tags)/([^/]+)\Z", path):
            name = unquote(match.group(2))
            if (sha := project[match.group(1)].get(name)) is None:
                return 404, {"message": "404 Ref Not Found"}
            return 200, self._ref(name, commits[sha])
        if path == "/repository/commits":
            return 200, [each for each in project["commits"] if each["id"] in project["reachable"]]
        if path == "/search":
            term = query["search"]
            return 200, [each for each in project["commits"] if term in each["message"]]
        if match := re.match(r"/repository/commits/([^/]+)(/refs)?\Z", path):
            found = [each for sha, each in commits.items() if sha.startswith(match.group(1))]
            if not found:
                return 404, {"message": "404 Commit Not Found"}
            if match.group(2):
                reachable = found[0]["id"] in project["reachable"]
                return 200, [{"type": "branch", "name": "main"}] if reachable else []
            return 200, found[0]
        if match := re.match(r"/repository/files/([^/]+)/raw\Z", path):
            name = unquote(match.group(1))
            content = {**project["symlinks"], **project.get("contents", {})}.get(name)
            return (404, {"message": "404 File Not Found"}) if content is None else (200, content)
        if match := re.match(r"/repository/files/([^/]+)\Z", path):
            found_file = unquote(match.group(1)) in {*project["files"], *project["symlinks"]}
            return (200, {}) if found_file else (404, {"message": "404 File Not Found"})
        if path == "/repository/tree":
            links = project.get("links", {})
            if query.get("path", "") in {link.rpartition("/")[0] for link in links}:
                return 200, [
                    {"id": sha, "type": "commit", "path": link, "mode": "160000"}
                    for link, sha in links.items()
                ]
            folder = f"{query['path']}/" if query.get("path") else ""
            entries = dict.fromkeys(project["files"], "100644")
            entries |= dict.fromkeys(project["symlinks"], "120000")
            return 200, [
                {"name": name.rpartition("/")[2], "path": name, "type": "blob", "mode": mode}
                for name, mode in entries.items()
                if name.startswith(folder)
            ]
        if match := re.match(r"/jobs/(\d+)/trace\Z", path):
            return 200, self.traces.get(int(match.group(1)), b"")
        return 501, {"message": f"501 {path}"}

    def _id(self, text: str) -> int | None:
        if text.isdigit():
            return int(text) if int(text) in self.projects else None
        return next((id for id, each in self.projects.items() if each["path"] == text), None)

    def _may(self, person: str, project: dict[str, Any]) -> bool:
        return project["readers"] is None or person in project["readers"]

    def _project(self, id: int) -> dict[str, Any]:
        project = self.projects[id]
        return {
            "id": id,
            "path_with_namespace": project["path"],
            "name": project["path"].rsplit("/", 1)[-1],
            "default_branch": project.get("default_branch", "main"),
            "visibility": project["visibility"],
            "web_url": f"http://forge.test/{project['path']}",
            "description": project["description"],
            "last_activity_at": "2026-10-20T08:00:00Z",
        }

    @staticmethod
    def _ref(name: str, commit: dict[str, Any]) -> dict[str, Any]:
        return {"name": name, "commit": commit, "default": name == "main", "target": commit["id"]}


class _Adapter(BaseAdapter):
    def __init__(self, forge: SmallForge) -> None:
        super().__init__()
        self._forge = forge

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        url = urlsplit(request.url or "")
        path = url.path.removeprefix("/api/v4")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self._forge.lock:
            self._forge.asked.append(f"{request.method} {path}")
        if self._forge.down:
            raise requests.ConnectionError("the forge is away")
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        status, body = self._forge.answer(token, path, query)
        response = requests.Response()
        response.status_code = status
        response.request = request
        response.url = request.url or ""
        if isinstance(body, bytes):
            start = int((request.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
            content = body[start:]
            if request.headers.get("Range"):
                response.status_code = 206 if content else 416
                response.headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            response.headers["Content-Type"] = "text/plain"
        else:
            content = json.dumps(body).encode()
            response.headers["Content-Type"] = "application/json"
            if isinstance(body, list):
                response.headers.update(
                    {
                        "X-Page": "1",
                        "X-Next-Page": "",
                        "X-Total": str(len(body)),
                        "X-Per-Page": "20",
                    }
                )
        response._content = content
        response.raw = __import__("io").BytesIO(content)
        return response

    def close(self) -> None:
        pass
