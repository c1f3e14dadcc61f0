"""deploy/docker beside a forge behind TLS of a private authority: each step of docs/deploy-docker.md, for real.

They run in ``test_stack_docker``, on its engine; the containers go before the other tests' come.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Error, Page, expect
from stack_compose_deployment import (
    CLIENT_SECRET,
    COMPOSE,
    HUB,
    OTHER,
    PERSON,
    Deployment,
)
from stack_docker_scene import ATTACK

from browser_fixtures import browser_running
from docker_fixtures import Engine
from forge_fixtures import make_repository
from notebooks_service import origins
from stack_fixtures import wait_for

IMAGES = ("hub", "service", "tls")
"""Beside those of every engine."""


@dataclass
class Site:
    """The deployment, somebody's project there, and their right."""

    deployment: Deployment
    sha: str
    token: str

    @property
    def project(self) -> str:
        return f"{PERSON}/parts"

    def api(self, method: str, path: str, token: str = "", **more: Any) -> httpx.Response:
        with self.deployment.client() as client:
            headers = {"Authorization": f"Bearer {token or self.token}"}
            return client.request(method, f"{self.deployment.service_url}{path}", headers=headers, **more)  # fmt: skip

    def state(self, name: str) -> str:
        answer = self.api("GET", f"servers/{name}")
        # The hub may be on its way.
        return str(answer.json()["status"]["state"]) if answer.is_success else ""

    def settled(self, name: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            server: dict[str, Any] = self.api("GET", f"servers/{name}").json()
            return server if server["status"]["state"] in ("running", "failed", "stopped") else None

        return wait_for(ended, 120, every=0.3)

    def launch(self) -> str:
        body = {"namespace": PERSON, "project": "parts", "commit_sha": self.sha}
        answer = self.api("POST", "servers", json=body)
        assert answer.status_code in (200, 201), answer.text
        name = str(answer.json()["name"])
        found = self.settled(name)
        assert found["status"]["state"] == "running", f"{found}\n{self.deployment.logs()}"
        return name

    def container(self, name: str) -> str:
        engine = self.deployment.engine
        found = engine.run("ps", "-q", "--filter=label=notebooks.instance=compose", "--filter=label=notebooks.kind=server", f"--filter=label=notebooks.server={name}").stdout.split()  # fmt: skip
        assert len(found) == 1, found
        return found[0]

    def inside(self, name: str, *command: str) -> str:
        done = self.deployment.engine.run("exec", "--workdir", "/work/work/parts", self.container(name), *command, check=False)  # fmt: skip
        return done.stdout + done.stderr


def imported(at: Deployment, name: str) -> str:
    """A private project of the person's at the forge, with one commit; its sha."""
    [sha] = make_repository(at.place / name, {"README.md": f"# {name}\n"})
    administration = at.administration()
    try:
        administration.import_repository(at.place / name, f"{PERSON}/{name}", "private", PERSON)
    finally:
        administration.close()
    return sha


@pytest.fixture(scope="class")
def site(
    tmp_path_factory: pytest.TempPathFactory, docker_engine: Engine, debian_base: Path
) -> Iterator[Site]:
    missing = [name for name in (COMPOSE[0], "openssl") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"deploy/docker was not tested: {', '.join(missing)} (Debian: docker-compose)")
    docker_engine.build(*IMAGES, base=debian_base)
    deployment = Deployment(tmp_path_factory.mktemp("compose"), docker_engine)
    try:
        deployment.start_forge()
        sha = imported(deployment, "parts")
        deployment.write_files()
        refused = deployment.prepare("")
        assert refused.returncode == 1
        assert "secret of the forge's OAuth application is missing" in refused.stderr
        done = deployment.prepare(f"{CLIENT_SECRET}\n")
        assert done.returncode == 0, done.stderr
        assert f"{deployment.hub_url}hub/oauth_callback" in done.stderr
        # A second time nothing is asked for.
        again = deployment.prepare()
        assert again.returncode == 0, again.stderr
        deployment.up()
        yield Site(deployment, sha, deployment.token(PERSON))
    finally:
        deployment.stop()


def gone_to(page: Page, url: str) -> bool:
    """Whether the page came; a container that has just come or gone changes this machine's network."""
    try:
        page.goto(url)
    except Error as error:
        if "ERR_NETWORK_CHANGED" not in str(error):
            raise
        return False
    return True


class TestCompose:
    @pytest.mark.browser
    def test_from_the_link_to_jupyterlab(self, site: Site, screenshots: Path) -> None:
        at = site.deployment
        sha = imported(at, "first")
        link = f"{at.hub_url}services/notebooks/{PERSON}/first/{sha}"
        with browser_running(at.browser_names) as browser:
            context = browser.new_context(ignore_https_errors=True)
            context.set_default_timeout(60_000)
            page = context.new_page()
            assert wait_for(lambda: gone_to(page, at.sign_in_url(PERSON)), 30)
            expect(page).to_have_title("Projects · Notebooks")
            assert page.url.startswith(at.service_url), page.url
            assert wait_for(lambda: gone_to(page, link), 30)
            assert page.url.startswith(at.service_url), page.url
            page.screenshot(path=screenshots / "compose-launch.png")
            if page.get_by_role("button", name="Start").count():
                page.get_by_role("button", name="Start").first.click()
            page.locator(".jp-LauncherCard, .jp-MarkdownViewer, .jp-Notebook").first.wait_for()
            page.screenshot(path=screenshots / "compose-lab.png")
            kept = {each["name"]: each for each in context.cookies() if HUB in str(each["domain"])}
            # A page of one host can put none in the place of another's; what is left signs nobody in.
            left = {
                name
                for name, each in kept.items()
                if not (name.startswith("__Host-") and each["secure"])
            }
            assert left == {"_xsrf", "jupyterhub-session-id"}
            assert len(kept) == len(left) + 3, kept.keys()
            context.close()

    def test_work_goes_to_the_forge_and_stays(self, site: Site) -> None:
        name = site.launch()
        said = site.inside(
            name, "sh", "-c",
            "echo kept > kept.txt && echo new > new.txt && git add new.txt && git commit -qm New && git push -q && git rev-parse HEAD",
        )  # fmt: skip
        head = said.strip().splitlines()[-1]
        administration = site.deployment.administration()
        try:
            token = administration.personal_token(PERSON, "look", ["read_api"])
        finally:
            administration.close()
        with site.deployment.client(headers={"PRIVATE-TOKEN": token}) as client:
            found = client.get(
                f"{site.deployment.forge_url}/api/v4/projects/{PERSON}%2Fparts/repository/commits/{head}"
            )
        assert found.is_success, said
        assert site.api("PATCH", f"servers/{name}", json={"state": "hibernated"}).is_success
        wait_for(lambda: site.state(name) == "stopped")
        assert site.launch() == name
        assert site.inside(name, "cat", "kept.txt") == "kept\n"

    def test_somebody_else_sees_nothing_of_it(self, site: Site) -> None:
        theirs = site.deployment.token(OTHER)
        body = {"namespace": PERSON, "project": "parts", "commit_sha": site.sha}
        assert site.api("POST", "servers", theirs, json=body).status_code == 404
        missing = site.api("GET", f"{PERSON}/nothing/{site.sha}", theirs)
        hidden = site.api("GET", f"{site.project}/{site.sha}", theirs)
        assert (hidden.status_code, missing.status_code) == (404, 404)

    def test_a_server_reaches_none_of_the_containers(self, site: Site) -> None:
        name = site.launch()
        address = site.deployment.address
        targets = {
            "connect": [
                [address(2), 8000], [address(2), 8001], [address(3), 8000], [address(3), 3128],
                [address(4), 8081], [address(5), 9000], [address(6), 8443],
                [address(1), site.deployment.forge_port], ["169.254.169.254", 80], ["notebooks.internal", 8001],
            ],
            "resolve": ["hub"],
            "see": ["/var/run/docker.sock", "/run/secrets/service_token", "/data"],
            "fetch": ["http://notebooks.internal:8000/hub/login", "http://notebooks.internal:8000/services/notebooks/projects"],
            "proxy": ["debian.org:443", f"{address(4)}:8081"],
        }  # fmt: skip
        found = json.loads(
            site.inside(name, "python3", "-c", ATTACK, json.dumps(targets)).strip().splitlines()[-1]
        )
        assert (found["connects"], found["resolves"], found["sees"]) == ([], [], [])
        assert set(found["status"].values()) <= {404}
        assert all(code not in range(200, 300) for code in found["by_proxy"].values()), found
        assert not (found["mounts"] or found["raw"] or found["root"])

    def test_containers_made_anew_under_a_running_server(self, site: Site) -> None:
        name = site.launch()
        before = site.container(name)
        at = site.deployment
        base = origins.server_url(at.hub_url, PERSON, name, subdomains=True)
        for again in (
            ("restart", "hub"),
            ("restart", "service"),
            ("restart", "proxy", "inside"),
            ("down",),
        ):
            at.compose(*again)
            at.up()
            assert wait_for(lambda: site.state(name) == "running", 60)
            assert site.container(name) == before

            def answers() -> bool:
                with at.client(headers={"Authorization": f"token {site.token}"}) as client:
                    return client.get(f"{base}api/status").is_success

            assert wait_for(answers, 60)
            # Its git has a way to the forge again.
            assert wait_for(lambda: "main" in site.inside(name, "git", "ls-remote", "--heads", "origin"), 60)  # fmt: skip

    def test_secrets_are_in_files_of_their_reader_alone(self, site: Site) -> None:
        at = site.deployment
        kept = {each.name: each for each in (at.data / "secrets").iterdir()}
        assert kept["forge_client_secret"].read_text() == CLIENT_SECRET
        for each in kept.values():
            assert stat.S_IMODE(each.stat().st_mode) == 0o600
        canaries = [each.read_text().strip() for each in kept.values()]
        ids = at.engine.run("ps", "-aq", "--filter=label=notebooks.instance=compose").stdout.split()
        ids += at.compose("ps", "-q").decode().split()
        for said in (at.engine.run("inspect", *ids).stdout, at.logs()):
            assert [name for name, each in kept.items() if each.read_text().strip() in said] == []
        for container in ("service", "egress", "inside"):
            listed = at.compose("exec", "-T", container, "sh", "-c", "env; cat /proc/1/environ; true").decode()  # fmt: skip
            assert [each for each in canaries if each in listed] == []

    def test_a_backup_is_brought_back_and_keys_are_made_anew(self, site: Site) -> None:
        at, engine = site.deployment, site.deployment.engine
        name = site.launch()
        site.inside(name, "sh", "-c", "echo precious > precious.txt")
        backup = at.compose("exec", "-T", "hub", "notebooks", "backup", "-")
        # The machine is lost: data, containers and volumes.
        at.compose("down")
        for each in engine.run(
            "ps", "-aq", "--filter=label=notebooks.instance=compose"
        ).stdout.split():
            engine.run("rm", "-f", each)
        for each in engine.run(
            "network", "ls", "-q", "--filter=label=notebooks.instance"
        ).stdout.split():
            engine.run("network", "rm", each)
        for each in engine.run(
            "volume", "ls", "-q", "--filter=label=notebooks.instance"
        ).stdout.split():
            engine.run("volume", "rm", each)
        shutil.rmtree(at.data)
        at.data.mkdir(mode=0o700)
        os.chown(at.data, 1000, 1000)
        once = ("run", "--rm", "--no-deps", "-T", "hub", "notebooks")
        at.compose(*once, "restore", "-", given=backup)
        before = (at.data / "secrets/service_token").read_text()
        said = at.compose(*once, "keys", "rotate").decode()
        assert re.search(r"; [1-9] people's sign-ins were kept", said), said
        assert (at.data / "secrets/service_token").read_text() != before
        # That one is the forge's to change.
        assert (at.data / "secrets/forge_client_secret").read_text() == CLIENT_SECRET
        at.up()
        assert site.launch() == name
        assert site.inside(name, "cat", "precious.txt") == "precious\n"
