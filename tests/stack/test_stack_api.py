"""The API under attack: requests made from its own description, hostile addresses, two of every click.

All of it against one running stack, and only on what belongs to people of these tests.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from forge_fixtures import make_repository, run_git
from notebooks_service.settings import Settings
from notebooks_service.web.app import make_app
from notebooks_service.web.parts import HubFacts, make_parts
from stack_fixtures import Stack, wait_for

pytestmark = pytest.mark.stack

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 10
ODD = "odd names"


class Room:
    """A person and a project of these tests; ``server`` is one of theirs whose launch was refused."""

    def __init__(self, stack: Stack, base: Path) -> None:
        self.stack = stack
        self.person = stack.add_user("schema")
        self.project = f"{self.person}/hostile"
        source = base / "hostile"
        self.shas = make_repository(
            source,
            {
                "README.md": "# Hostile\n",
                "a b/ü ö.txt": "x\n",
                "%2F.txt": "x\n",
                "deep/er/f": "x\n",
            },
            {"requirements.txt": "\n"},
        )
        (source / "out").symlink_to("../../etc/passwd")
        (source / "in").symlink_to("README.md")
        run_git("add", "--all", cwd=source)
        run_git("commit", "--quiet", "-m", "Links", cwd=source)
        self.sha = run_git("rev-parse", "HEAD", cwd=source).strip()
        # Two things of every name: a branch at the first commit, a tag at the second.
        for name in ("both", "deadbeef", "a/b@x", "ünï", "x" * 200):
            run_git("branch", name, self.shas[0], cwd=source)
            run_git("tag", name, self.shas[1], cwd=source)
        self.named_like_a_sha = hashlib.sha1(b"no commit").hexdigest()
        run_git("update-ref", f"refs/heads/{self.named_like_a_sha}", self.shas[0], cwd=source)
        administration = stack.administration()
        try:
            done = administration.import_repository(source, self.project, "private", self.person)
        finally:
            administration.close()
        self.number = done.project_id
        self.server = f"p{self.number}-{'a' * 16}"
        self.refuse(self.server)

    def refuse(self, server: str) -> None:
        """Make a server whose launch fails at once: its name is not the one of this commit."""
        options = {"project": self.project, "commit": self.sha, "branch": "main"}
        answer = self.stack.hub_api(
            "POST",
            f"users/{self.person}/servers/{server}",
            self.person,
            json={"display_name": "refused", "user_options": {"notebooks": options}},
        )
        assert answer.status_code in (201, 202), answer.text
        self.wait(server, "failed")

    def wait(self, server: str, *states: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            found: dict[str, Any] = self.get(f"servers/{server}").json()
            return found if found["status"]["state"] in states else None

        return wait_for(reached, 120, every=0.2)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.stack.api("GET", path, self.person, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.stack.api("POST", path, self.person, **more)

    def body(self, **more: Any) -> dict[str, Any]:
        namespace, _, name = self.project.rpartition("/")
        return {"namespace": namespace, "project": name, "commit_sha": self.sha, **more}

    @property
    def names(self) -> list[str]:
        """Every server of this person at the hub."""
        return list(self.get("servers").json()["servers"])


@pytest.fixture(scope="module")
def room(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Room:
    return Room(stack, tmp_path_factory.mktemp("api"))


# -- the description ---------------------------------------------------------------------------


def described() -> dict[str, Any]:
    """The description as the service makes it, without a service."""
    facts = HubFacts(api_url="http://127.0.0.1:9/hub/api", api_token="unused")
    app: Any = make_app(make_parts(Settings(database_url="sqlite://"), facts))
    made: dict[str, Any] = app._app.openapi()
    return made


schema = schemathesis.openapi.from_dict(described())


class Signed(requests.auth.AuthBase):
    """Signs each request; a project's path goes out with its slashes as they are."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.room.stack.token(self.room.person)}"
        path = quote(self.room.project, safe="")
        request.url = str(request.url).replace(f"/{path}/", f"/{self.room.project}/")
        return request


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_is_described(case: Any, room: Room) -> None:
    """Half of the requests are for what there is, the other half for anything."""
    known = {"project": room.project, "commit": room.sha, "project_id": room.number}
    known |= {"name": room.server, "ref": "main", "path": "README.md"}
    drawn = json.dumps([case.path_parameters, case.query, str(case.body)], default=str)
    if int(hashlib.sha256(drawn.encode()).hexdigest(), 16) % 2:
        case.path_parameters = {name: known[name] for name in case.path_parameters}
    if room.server not in room.names:  # a request before this one has deleted it
        room.refuse(room.server)
    answer = case.call(
        base_url=room.stack.service_url.rstrip("/"),
        auth=Signed(room),
        allow_redirects=False,
        timeout=60,
    )
    case.validate_response(answer, checks=CHECKS)


# -- addresses ---------------------------------------------------------------------------------

LONG = "x" * 4096


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("README.md", 404),  # is there; the person has no server, which is said
        ("missing.txt", 404),
        ("deep/er", 404),
        ("in", 404),
        ("out", 404),
        ("a%20b/%C3%BC%20%C3%B6.txt", 404),
        ("%252F.txt", 404),
        ("a%2Fb", 404),
        ("..", 404),
        ("%2e%2e/%2e%2e/etc/passwd", 404),
        ("a//b", 404),
        ("a%5Cb", 404),
        ("a%00b", 404),
        ("a%0D%0ASet-Cookie:%20x=y", 404),
        ("\u202e%E2%80%AE", 404),
        (LONG, 404),
        ("/".join("x" * 1000), 404),
        ("%F0%9F%92%A9" * 100, 404),
    ],
    ids=lambda value: str(value)[:30],
)
def test_paths_of_every_kind(room: Room, path: str, status: int) -> None:
    """Never a 500, for a script or on a page; what is no address shows nothing but that."""
    url = f"{room.stack.service_url}{room.project}/{room.sha}/{path}"
    headers = {"Authorization": f"Bearer {room.stack.token(room.person)}"}
    answer = raw_get(room, url, headers)
    assert answer.status_code == status, answer.text[:500]
    assert answer.json()["error"]["code"] in ("not_found", "no_server")
    page = raw_get(room, url, {"Accept": "text/html"})
    assert page.status_code in (200, 404), page.text[:500]
    assert "Set-Cookie" not in page.headers or "x=y" not in page.headers["Set-Cookie"]
    if page.status_code == 404:
        one_sentence(page.text)


def raw_get(room: Room, url: str, headers: dict[str, str]) -> requests.Response:
    """As it is: neither normalised nor encoded once more. Without a token: as this person's browser."""
    session = requests.Session()
    session.trust_env = False
    if "Authorization" not in headers:
        session.cookies.update(room.stack.client(room.person).cookies.jar)
    request = requests.Request("GET", room.stack.service_url, headers=headers)
    prepared = session.prepare_request(request)
    prepared.url = url if url.isascii() else quote(url, safe=":/%")
    return session.send(prepared, timeout=60, allow_redirects=False)


def one_sentence(page: str) -> None:
    """What an error page says: one lead that tells what to do, and a way on."""
    leads = re.findall(r'<p class="lead">(.*?)</p>', page, re.S)
    assert len(leads) == 1, page[:2000]
    said = unescape(re.sub("<[^>]*>", "", leads[0])).strip()
    assert said.endswith(".") and len(said) > 20, said
    assert 'class="button' in page


@pytest.mark.parametrize(
    ("ref", "wanted"),
    [
        ("main", "tip"),
        ("both", 0),  # a branch before a tag of that name, as on GitLab's pages
        ("deadbeef", 0),
        ("a/b@x", 0),
        ("ünï", 0),
        ("x" * 200, 0),
        ("like a sha", None),  # forty hex digits are a commit, whatever a branch is called
        ("nothing", None),
        ("-main", None),
        ("--upload-pack=id", None),
        ("main@{0}", None),
        ("main~1", None),
        ("main^{tree}", None),
        ("main:README.md", None),
        ("refs/heads/..", None),
        ("x" * 255, None),
        ("x" * 1000, None),
        ("HEAD\n", None),
        ("\u202emain", None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_refs_of_every_kind(room: Room, ref: str, wanted: str | int | None) -> None:
    if ref == "like a sha":
        ref = room.named_like_a_sha
    answer = room.get(f"-/p/{room.project}/-/{quote(ref, safe='')}")
    if wanted is None:
        assert answer.status_code == 404, answer.headers
        assert answer.json()["error"]["code"] == "not_found"
    else:
        sha = room.sha if wanted == "tip" else room.shas[int(wanted)]
        assert answer.status_code == 302
        assert f"/{room.project}/{sha}" in answer.headers["location"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"namespace": "schema/../other"}, 422),
        ({"project": "hostile.git"}, 422),
        ({"project": "ho%2Fstile"}, 422),
        ({"project": "x" * 300}, 422),
        ({"project": "hostile\n"}, 422),
        ({"project": ""}, 422),
        ({"project": "h\u0000"}, 422),
        ({"project": "пример"}, 422),
        ({"project": "a" * 40}, 404),
        ({"commit_sha": "a" * 40}, 404),
        ({"commit_sha": "A" * 40}, 422),
        ({"commit_sha": "main"}, 422),
        ({"commit_sha": 7}, 422),
        ({"branch": "-x"}, 422),
        ({"branch": "x" * 256}, 422),
        ({"branch": "a..b"}, 422),
        ({"branch": "main@{0}"}, 422),
        ({"branch": "a\u0000b"}, 422),
        ({"branch": ["main"]}, 422),
        ({"notebook": "../x"}, 422),
        ({"notebook": "a\u0007"}, 422),
        ({"notebook": "x" * 5000}, 422),
        ({"image": ["evil/image"]}, 422),
        ({"image": "evil\u0007"}, 422),
        ({"image": "x" * 501}, 422),
        ({"environment_variables": {"LD_PRELOAD": "x"}}, 422),
    ],
    ids=str,
)
def test_bodies_of_every_kind(room: Room, change: dict[str, Any], status: int) -> None:
    before = room.names
    answer = room.post("servers", json=room.body(**change))
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"].endswith(".")
    assert room.names == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"a":' * 5000,
        b"null",
        b"1e999",
        b"NaN",
    ],
    ids=lambda value: str(value[:10]),
)
def test_bodies_that_are_none(room: Room, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    assert room.post("servers", content=content, headers=headers).status_code == 422
    large = room.post("servers", content=content + b" " * 70_000, headers=headers)
    assert large.status_code == 413


# -- two of every click --------------------------------------------------------------------------


def together(*calls: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """All of them at once."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def test_two_of_every_click(room: Room) -> None:
    stack, person = room.stack, room.person

    def start() -> httpx.Response:
        return room.post("servers", json=room.body())

    # Started twice: one new server, and the same one.
    answers = together(start, start, start)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 201], [
        answer.text for answer in answers
    ]
    (name,) = {answer.json()["name"] for answer in answers}

    def stop() -> httpx.Response:
        return stack.api("PATCH", f"servers/{name}", person, json={"state": "hibernated"})

    def resume() -> httpx.Response:
        return stack.api("PATCH", f"servers/{name}", person, json={"state": "running"})

    def delete() -> httpx.Response:
        return stack.api("DELETE", f"servers/{name}", person)

    # Cancelled twice, before there is anything: it is stopped, and was never ready.
    answers = together(stop, stop)
    assert [answer.status_code for answer in answers] == [200, 200], [a.text for a in answers]
    found = room.wait(name, "stopped")
    assert found["status"]["message"] == "The launch was cancelled."
    assert found["state"] == {"ready": False, "pending": None, "stopped": True}

    # Launched while it stops: the launch waits, and it is the same server.
    assert start().status_code in (200, 201)
    room.wait(name, "running", "failed")
    told = room.get(f"servers/{name}").json()
    assert told["status"]["state"] == "running", told
    launch = told["launch"]
    answers = together(stop, start, resume)
    assert all(answer.status_code in (200, 201) for answer in answers), [a.text for a in answers]
    found = room.wait(name, "running", "stopped")
    if found["status"]["state"] == "stopped":  # the stop was the last to be heard
        assert resume().status_code == 200
        found = room.wait(name, "running", "failed")
    assert found["status"]["state"] == "running", found

    # Resumed while it runs: nothing changes.
    now = room.get(f"servers/{name}").json()["launch"]
    assert [answer.status_code for answer in together(resume, start)] == [200, 200]
    assert room.get(f"servers/{name}").json()["launch"] == now
    assert re.fullmatch("[0-9a-f]+", launch)

    # Stopped twice: true both times, and the work is there.
    answers = together(stop, stop)
    assert [answer.status_code for answer in answers] == [200, 200], [a.text for a in answers]
    room.wait(name, "stopped")
    assert (stack.data / "servers" / person / name / "work" / "hostile" / "README.md").is_file()

    # Deleted while it starts, twice: gone, or gone already. One goes to the trash.
    assert start().status_code in (200, 201)
    answers = together(delete, delete)
    assert {answer.status_code for answer in answers} <= {204, 404}, [a.text for a in answers]
    assert 204 in {answer.status_code for answer in answers}
    assert delete().status_code == 404
    assert name not in room.names
    wait_for(lambda: not (stack.data / "servers" / person / name).exists(), 30)
    trashed = [each for each in (stack.data / "trash").iterdir() if each.name.endswith(name)]
    assert len(trashed) == 1
    assert (trashed[0] / "work" / "hostile" / "README.md").is_file()
    homes = [process.environ().get("HOME", "") for process in stack.processes()]
    assert not [home for home in homes if f"/{name}/" in home]


def test_two_tabs(room: Room) -> None:
    """Two tabs of one browser send the form of one launch page; a third one deletes."""
    stack = room.stack
    browser = stack.client(room.person)
    url = f"{stack.service_url}{room.project}/{room.shas[1]}?branch=main"
    page = browser.get(url)
    assert page.status_code == 200
    token = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert token is not None
    form = {"csrf_token": token.group(1)}
    headers = {"Origin": stack.hub_url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}

    def click(path: str = "") -> httpx.Response:
        where = f"{stack.service_url}{path}" if path else url
        return browser.post(where, data=form, headers=headers, follow_redirects=False)

    answers = together(click, click)
    assert [answer.status_code for answer in answers] == [303, 303], [a.text for a in answers]
    (name,) = set(room.names) - {room.server}
    answers = together(
        lambda: click(f"servers/{name}/stop"),
        lambda: click(f"servers/{name}/delete"),
        lambda: click(f"servers/{name}/delete"),
    )
    assert {answer.status_code for answer in answers} <= {303, 404}, [a.text for a in answers]
    assert wait_for(lambda: name not in room.names, 60)


# -- a Python that is not on this host ---------------------------------------------------------


def test_a_python_that_is_not_here_is_named(room: Room, tmp_path: Path) -> None:
    """Nothing is downloaded: the server has the default image; record and page say why."""
    newer = '[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.99"\n'
    shas = make_repository(
        tmp_path / "x",
        {"pyproject.toml": newer, "requirements.txt": "six\n"},
        {"requirements.txt": "six\n", "runtime.txt": "python-3.5\n"},
    )
    asks = (
        "requires-python in pyproject.toml asks for Python >=3.99",
        "runtime.txt asks for Python 3.5",
    )
    administration = room.stack.administration()
    try:
        administration.import_repository(
            tmp_path / "x", f"{room.person}/python", "private", room.person
        )
    finally:
        administration.close()
    names = []
    for sha in shas:
        answer = room.post("servers", json=room.body(project="python", commit_sha=sha))
        assert answer.status_code in (200, 201), answer.text
        names.append(answer.json()["name"])
    for name, asked in zip(names, asks, strict=True):
        server = room.wait(name, "running", "failed")
        assert server["status"]["state"] == "running", f"{server}\n{room.stack.said()}"
        assert server["image_origin"] == "default"
        assert server["image_evidence"]["cause"] == "no environment"
        reason = server["image_reason"]
        said = (
            f"Nothing can be built for this commit: {asked}, which is not on this host. Here are: "
        )
        assert reason.startswith(said)
        # What is there is named too, this very Python among it.
        assert platform.python_version() in reason
        assert reason.endswith("Install it, or change the version.")
        page = room.stack.client(room.person).get(f"{room.stack.service_url}servers")
        shown = " ".join(unescape(re.sub(r"</?code>", "`", page.text)).split())
        assert (page.status_code, reason in shown) == (200, True), page.text
    for name in names:
        assert (
            room.stack.api("DELETE", f"servers/{name}?forced=true", room.person).status_code == 204
        )
