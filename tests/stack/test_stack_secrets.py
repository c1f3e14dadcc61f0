"""Every secret of one person's whole way is remembered as it passes, then looked for where it must not be."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from test_stack_launch import shell
from test_stack_spawner import as_service

from stack_fixtures import NewStack, Stack, wait_for

pytestmark = pytest.mark.stack

CI = """
image_build:
  script:
    - env
    - 'echo "backwards $(echo "$CI_JOB_TOKEN" | rev)"'
    - notebooks image build
"""
IN_QUERIES = ("code", "state", "access_token", "private_token")
# Groups a browser's tokens for JupyterHub's sign-out and authenticates nothing; JupyterHub itself
# writes it to its log and database.
NO_SECRET = "jupyterhub-session-id"


class Witness:
    """Remembers what passes by: codes and states of redirects, cookies, tokens."""

    def __init__(self) -> None:
        self.secrets: dict[str, str] = {}

    def saw(self, response: httpx.Response) -> None:
        """An httpx event hook."""
        for address in (str(response.url), response.headers.get("location", "")):
            for name, value in parse_qsl(urlsplit(address).query):
                if name in IN_QUERIES:
                    self.keep(f"{name} at {urlsplit(address).path}", value)
        for cookie in response.cookies.jar:
            if cookie.value and cookie.name != NO_SECRET:
                self.keep(f"cookie {cookie.name}", cookie.value)

    def keep(self, what: str, value: str) -> None:
        if len(value) >= 16:
            self.secrets[f"{what} #{len(self.secrets)}"] = value


def repository(path: Path) -> Path:
    path.mkdir()
    (path / ".gitlab-ci.yml").write_text(CI)
    (path / "requirements.txt").write_text("six==1.17.0\n")
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "."],
        ["-c", "user.name=Ada", "-c", "user.email=a@example.org", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *command], cwd=path, check=True)
    return path


def places(stack: Stack) -> Iterator[tuple[str, bytes]]:
    """Where nothing may be found: files, logs, argument lists and environments of every process."""
    for path in stack.data.rglob("*"):
        inside = path.relative_to(stack.data)
        if inside.parts[0] == "secrets" or path.is_symlink() or not path.is_file():
            continue
        yield f"file {inside}", path.read_bytes()
    yield "stderr of `up`", stack.log.read_bytes()
    for process in stack.processes():
        name = " ".join(process.cmdline())[:60]
        yield f"arguments of {name}", "\0".join(process.cmdline()).encode()
        environment = dict(process.environ())
        own = environment.pop("JUPYTERHUB_API_TOKEN", "")
        environment = {key: value for key, value in environment.items() if value != own}
        yield f"environment of {name}", "\0".join(environment.values()).encode()


def test_no_secret_is_written_down(new_stack: NewStack, tmp_path: Path) -> None:
    stack = new_stack().start(repository(tmp_path / "thing"))
    witness = Witness()
    witness.keep("single-use link", stack.ready_url.rsplit("/", 1)[-1])
    html = {"Accept": "text/html"}
    with httpx.Client(
        follow_redirects=True,
        timeout=60,
        trust_env=False,
        headers=html,
        event_hooks={"response": [witness.saw]},
    ) as browser:
        pages = [browser.get(stack.ready_url).text]
        pages.append(browser.get(f"{stack.hub_url}hub/home").text)
        address = f"{stack.service_url}{stack.owner}/thing/{commit(stack)}"
        pages.append(browser.get(address).text)
        field = re.search(r'name="csrf_token" value="([^"]+)"', pages[-1])
        assert field is not None
        origin = {"Origin": stack.hub_url.rstrip("/")}
        started = browser.post(address, data={"csrf_token": field[1]}, headers=origin)
        assert started.status_code == 200, started.text
        (name,) = stack.api("GET", "servers").json()["servers"]
        witness.keep("hub token", stack.token())
        wait_for(lambda: state(stack, name) != "starting", 180, every=0.5)
        assert state(stack, name) == "running", stack.api("GET", f"servers/{name}").text
        assert shell(stack, name, "git fetch && git ls-remote origin | head -1") != ""
        pages.append(browser.get(f"{stack.service_url}servers").text)
        pages.append(browser.get(f"{stack.service_url}logs/{name}").text)
        trace = browser.get(f"{stack.service_url}logs/{name}?step=image").text
        with browser.stream("GET", f"{stack.service_url}servers/{name}/events") as stream:
            pages.append("".join(stream.iter_text()))
    # Asked in ways that end in an access log, and with what fails.
    administration = stack.administration()
    personal = administration.personal_token(stack.owner, "canary", ["api"])
    administration.close()
    witness.keep("personal token", personal)
    user = f"{stack.forge_url}/api/v4/user"
    assert httpx.get(user, params={"private_token": personal}, trust_env=False).status_code == 200
    assert (
        httpx.get(user, params={"access_token": "canary-" + "0" * 32}, trust_env=False).status_code
        == 401
    )
    witness.keep("refused token", "canary-" + "0" * 32)

    with as_service(stack) as hub:
        auth_state = hub.get(f"users/{stack.owner}").raise_for_status().json()["auth_state"]
    for kind in ("access_token", "refresh_token"):
        witness.keep(kind, auth_state[kind])
    # The launch had the environment built by our own job; this one is the project's.
    own = job_of_the_project(stack, personal)
    job_token = re.search(r"^backwards (\S+)", own, re.MULTILINE)
    assert job_token is not None, own
    witness.keep("job token", job_token[1][::-1])

    kinds = " ".join(witness.secrets)
    for expected in ("code", "state", "cookie _xsrf", "access_token", "refresh_token", "job token"):
        assert expected in kinds, f"the test saw no {expected}; it saw {sorted(witness.secrets)}"
    found = []
    traces = [("trace", trace.encode()), ("trace of the project's job", own.encode())]
    for where, content in [*places(stack), *traces]:
        found += [
            f"{what} in {where}"
            for what, value in witness.secrets.items()
            if value.encode() in content
        ]
    not_in_pages = {what: value for what, value in witness.secrets.items() if "cookie" not in what}
    found += [
        f"{what} in page {number}"
        for number, page in enumerate(pages)
        for what, value in not_in_pages.items()
        if value in page
    ]
    assert found == []


def job_of_the_project(stack: Stack, token: str) -> str:
    """What the job of the project's own configuration prints."""
    with httpx.Client(
        base_url=f"{stack.forge_url}/api/v4/projects/{stack.owner}%2Fthing",
        headers={"PRIVATE-TOKEN": token},
        trust_env=False,
        timeout=30,
    ) as api:
        made = api.post("/pipeline", params={"ref": "main"})
        assert made.status_code == 201, made.text
        (job,) = api.get(f"/pipelines/{made.json()['id']}/jobs").json()
        ended = {"success", "failed", "canceled"}
        wait_for(lambda: api.get(f"/jobs/{job['id']}").json()["status"] in ended, 120)
        return api.get(f"/jobs/{job['id']}/trace").text


def state(stack: Stack, name: str) -> str:
    return str(stack.api("GET", f"servers/{name}").json()["status"]["state"])


def commit(stack: Stack) -> str:
    return stack.commits(f"{stack.owner}/thing")[0]
