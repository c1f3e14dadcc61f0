"""`notebooks up` as a person meets it: ready, sign-in, crashes, refusals, the end, the next start."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from notebooks_service.images.environment import RECORD_NAME, Environment
from notebooks_service.images.environments import EnvironmentStore
from stack_fixtures import BROWSER, NewStack, Stack, wait_for

pytestmark = pytest.mark.stack


def git(directory: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def new_browser() -> httpx.Client:
    """A browser that was never here."""
    return httpx.Client(follow_redirects=True, timeout=30, trust_env=False, headers=BROWSER)


def make_repository(path: Path, content: str = "one") -> Path:
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "file.txt").write_text(content)
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", content)
    return path


@pytest.fixture
def thing(tmp_path: Path) -> Path:
    """A small repository to start with."""
    return make_repository(tmp_path / "my things" / "thing")


def test_ready_link_signs_the_owner_in_once(new_stack: NewStack, thing: Path) -> None:
    stack = new_stack("data with spaces").start(thing)
    with new_browser() as browser:
        page = browser.get(stack.ready_url)
        assert page.status_code == 200
        assert str(page.url) == stack.service_url
        assert re.search(r"\bthing\b", page.text)
        again = browser.get(stack.service_url)
        assert (again.status_code, again.history) == (200, [])
    with new_browser() as other:
        assert other.get(stack.ready_url).status_code == 403
        assert str(other.get(stack.service_url).url).startswith(f"{stack.forge_url}/users/sign_in")
    # Exactly one line on stdout, and nothing after it.
    assert stack.process is not None
    assert stack.process.stdout is not None
    stack.process.send_signal(signal.SIGINT)
    assert stack.process.stdout.read() == ""


def test_login_prints_another_link(stack: Stack) -> None:
    done = stack.command("login", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["user"] == stack.owner
    with new_browser() as browser:
        page = browser.get(facts["url"])
    assert (page.status_code, str(page.url)) == (200, stack.service_url)


def test_token_works_for_somebody_who_never_opened_a_browser(stack: Stack) -> None:
    stack.add_user("never-here")
    done = stack.command("token", "--user", "never-here")
    assert done.returncode == 0, done.stderr
    token = done.stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{stack.service_url}projects", headers=headers, trust_env=False)
    assert answer.status_code == 200
    assert answer.json() is not None
    # The token is for servers of its person and the service, not for the hub's administration.
    users = httpx.get(f"{stack.hub_url}hub/api/users", headers=headers, trust_env=False)
    assert users.status_code == 403


def test_owner_token_administers_nothing(stack: Stack) -> None:
    assert stack.hub_api("GET", "users").status_code == 403
    assert stack.hub_api("POST", "shutdown", json={}).status_code == 403


def test_token_of_nobody_is_refused_in_a_sentence(stack: Stack) -> None:
    done = stack.command("token", "--user", "nobody-here")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "There is no user nobody-here on this forge.\n"


def test_forge_commands(stack: Stack, tmp_path: Path) -> None:
    source = make_repository(tmp_path / "thing")
    before = git(source, "for-each-ref")
    done = stack.command("forge", "import", str(source), "--as", "lab/sub/thing", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["path"] == "lab/sub/thing"
    assert git(source, "for-each-ref") == before
    added = stack.command("forge", "user", "add", "grace")
    assert added.returncode == 0, added.stderr
    assert len(added.stdout.strip()) >= 20
    twice = stack.command("forge", "user", "add", "grace")
    assert (twice.returncode, twice.stdout) == (1, "")
    hidden = stack.api("GET", "projects/lab%2Fsub%2Fthing/commits", "grace")
    assert hidden.status_code == 404
    joined = stack.command("forge", "member", "add", "lab/sub/thing", "grace", "developer")
    assert joined.returncode == 0, joined.stderr
    shown = stack.api("GET", "projects?search=thing", "grace")
    assert "lab/sub/thing" in shown.text
    wrong = stack.command("forge", "member", "add", "lab/nothing", "grace", "developer")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1)


def test_repositories_are_imported_and_fetched_again(new_stack: NewStack, thing: Path) -> None:
    source = thing
    stack = new_stack().start(source)
    first = git(source, "rev-parse", "HEAD")
    assert stack.commits(f"{stack.owner}/thing") == [first]
    # Named repositories come instead of the sample.
    assert "nile" not in stack.client().get(stack.service_url).text
    assert stack.stop() == 0
    (source / "file.txt").write_text("two")
    git(source, "commit", "--quiet", "-am", "two")
    stack.start(source)
    assert stack.commits(f"{stack.owner}/thing") == [git(source, "rev-parse", "HEAD"), first]


@pytest.mark.parametrize("name", ["proxy", "forge", "service", "hub", "runner"])
def test_crashed_part_comes_back(stack: Stack, name: str) -> None:
    stack.client()
    said = stack.said().count(f"The {name} answers again.")
    before = stack.part(name)
    before.kill()
    wait_for(lambda: stack.said().count(f"The {name} answers again.") > said, 60)
    assert f"The {name} ended (killed by SIGKILL); starting it again in" in stack.said()
    assert stack.part(name) != before
    # The same session goes on: cookies, tokens and routes outlive each part.
    page = stack.client().get(stack.service_url)
    assert (page.status_code, str(page.url)) == (200, stack.service_url)
    assert stack.api("GET", "servers").status_code == 200


def test_interrupt_leaves_no_process_and_no_others_end(new_stack: NewStack, thing: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        stack = new_stack().start(thing)
        assert len(stack.parts()) == 5
        assert len(stack.processes()) >= 6
        assert stack.stop() == 0
        assert stack.processes() == []
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_second_start_on_the_same_data_is_refused(stack: Stack) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "notebooks_service", "up", "--data", str(stack.data)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert stack.process is not None
    assert done.stderr == (
        f"Another `notebooks up` is running on {stack.data} (process {stack.process.pid}, "
        f"{stack.hub_url}); stop it first, or use another --data.\n"
    )
    assert stack.client().get(stack.service_url).status_code == 200


@pytest.mark.parametrize(("offset", "option"), [(0, "--port"), (1, "--forge-port")])
def test_taken_port_is_named(new_stack: NewStack, offset: int, option: str) -> None:
    stack = new_stack()
    with socket.create_server(("127.0.0.1", stack.port + offset)):
        done = stack.command("up", "--no-browser", "--port", str(stack.port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Port {stack.port + offset} is taken by another program; choose another with {option}.\n"
    )
    assert stack.processes() == []


def test_next_start_finds_everything(new_stack: NewStack, thing: Path) -> None:
    stack = new_stack().start(thing)
    stack.add_user("ada")
    token = stack.token()
    cookies = stack.client().cookies.jar
    commits = stack.commits(f"{stack.owner}/thing")
    assert stack.stop() == 0
    stack.start()
    assert stack.commits(f"{stack.owner}/thing") == commits
    # The token and the browser's cookies of before are still good.
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{stack.service_url}servers", headers=headers, trust_env=False)
    assert answer.status_code == 200
    with httpx.Client(cookies=cookies, headers=BROWSER, trust_env=False) as browser:
        assert browser.get(stack.service_url).status_code == 200
    assert stack.client("ada").get(stack.service_url).status_code == 200
    assert "imported" not in stack.log.read_text().split("Stopping.")[1]


def test_killed_up_leaves_no_parts(new_stack: NewStack, thing: Path) -> None:
    stack = new_stack().start(thing)
    parts = stack.parts()
    assert len(parts) == 5
    stack.stop(signal.SIGKILL)
    psutil.wait_procs(parts, timeout=20)
    assert stack.processes() == []
    stack.start()
    assert stack.client().get(stack.service_url).status_code == 200


def test_secrets_are_in_no_command_line_and_no_foreign_file(stack: Stack) -> None:
    files = [path for path in (stack.data / "secrets").rglob("*") if path.is_file()]
    for path in files:
        assert path.stat().st_mode & 0o077 == 0, path
    secrets = [text for path in files if (text := path.read_text().strip())]
    assert len(secrets) >= 6
    for process in stack.processes():
        line = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in line], line
    logs = "".join(path.read_text() for path in (stack.data / "logs").rglob("*.log*"))
    assert not [secret for secret in secrets if secret in logs]
    code = stack.ready_url.rsplit("/", 1)[-1]
    assert code not in logs
    assert code not in stack.log.read_text()


def test_images_that_nobody_needs(stack: Stack, tmp_path: Path) -> None:
    """The environments of a project of this machine, as `image list` and `image prune` see them."""
    source = make_repository(tmp_path / "old")
    imported = stack.command("forge", "import", str(source), "--as", "lab/old", "--json")
    assert imported.returncode == 0, imported.stderr
    project = json.loads(imported.stdout)["project_id"]
    store = EnvironmentStore(stack.data / "environments")
    head, lost = git(source, "rev-parse", "HEAD"), "f" * 40
    for sha, name in ((head, "d" * 64), (lost, "e" * 64)):
        path = store.root / str(project) / name
        path.mkdir(parents=True)
        made = Environment(name, f"sha256:{name}", path, path / "python", (), {}, "Python")
        (path / RECORD_NAME).write_text(made.to_record())
        store.tag(project, sha, name)
    (store.root / str(project) / ".locks").mkdir()

    def tags() -> set[str]:
        done = stack.command("image", "list", "--project", "lab/old", "--json")
        assert done.returncode == 0, done.stderr
        return {tag for image in json.loads(done.stdout)["images"] for tag in image["tags"]}

    assert tags() == {head, lost, f"env-{'d' * 64}", f"env-{'e' * 64}"}
    asked = stack.command("image", "prune", "--project", "lab/old")
    assert asked.returncode == 1 and lost in asked.stdout and "--yes" in asked.stdout
    assert head not in asked.stdout and len(tags()) == 4
    done = stack.command("image", "prune", "--project", "lab/old", "--yes")
    assert done.returncode == 0 and "2 tags were removed" in done.stdout, done.stderr
    assert tags() == {head, f"env-{'d' * 64}"}
    missing = stack.command("image", "list", "--project", "lab/none")
    assert (missing.returncode, len(missing.stderr.splitlines())) == (1, 1)
