"""A hostile image in somebody's browser: what its page gets of hub, service, forge and their other servers.

The tests run in ``test_stack_docker``, on its platform.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import BrowserContext, expect
from test_stack_launch import execute

from browser_fixtures import browser_running
from forge_fixtures import make_repository
from notebooks_service.platform.signin import sign_in_url
from stack_fixtures import wait_for

PAGE = Path(__file__).with_name("stack_docker_hostile_page.py")
DOCKERFILE = """\
FROM notebooks-init
USER 0
COPY hostile.py /hostile.py
RUN printf '#!/bin/sh\\nexec /usr/bin/python3 /hostile.py\\n' > /usr/local/bin/python3 && chmod 755 /usr/local/bin/python3
"""


def hostile_server(scene: Any, place: Path) -> str:
    """A running server of a commit whose image is the hostile one; its name."""
    stack, project = scene.stack, f"{scene.stack.owner}/hostile"
    [sha] = make_repository(place / "hostile", {"README.md": "# Come and see\n"})
    done = stack.command("forge", "import", str(place / "hostile"), "--as", project)
    assert done.returncode == 0, done.stderr
    image = place / "image"
    image.mkdir()
    (image / "hostile.py").write_text(PAGE.read_text())
    (image / "Dockerfile").write_text(DOCKERFILE)
    name = f"{scene.registry}/{project}:{sha}"
    scene.engine.run("build", "--quiet", "--network=none", "--tag", name, str(image))
    scene.docker("push", "--quiet", name)
    body = {"namespace": stack.owner, "project": "hostile", "commit_sha": sha}
    server = stack.api("POST", "servers", json=body).json()["name"]
    settled = scene.settled(server)
    assert (settled["status"]["state"], settled["image"]) == ("running", name), settled
    return str(server)


@pytest.mark.browser
def test_a_hostile_images_page_acts_on_nothing(scene: Any, tmp_path: Path) -> None:
    with browser_running() as browser:
        attacked(scene, browser.new_context(), tmp_path)


def attacked(scene: Any, context: BrowserContext, tmp_path: Path) -> None:
    stack = scene.stack
    context.set_default_timeout(60_000)
    sibling = scene.launch(scene.shas[0])["name"]
    hostile = hostile_server(scene, tmp_path)
    page = context.new_page()
    administration = stack.administration()
    try:
        page.goto(sign_in_url(administration, stack.running, stack.owner))
    finally:
        administration.close()
    expect(page).to_have_title("Projects · Notebooks")
    service = page.url.split("/services/")[0] + "/services/notebooks/"
    assert urlsplit(service).hostname == "notebooks--service.notebooks.localhost"
    # The person has all of it open: the browser holds every cookie that there is.
    address, other = stack.server_url(sibling), stack.server_url(hostile)
    page.goto(f"{address}lab")
    page.locator(".jp-LauncherCard").first.wait_for()
    page.goto(f"{stack.running.hub_url}hub/token")
    token_form = page.locator("#request-token-form")
    expect(token_form).to_be_attached()
    kept = {cookie["name"] for cookie in context.cookies()}
    assert {"jupyterhub-hub-login", "service-notebooks-session", "_xsrf"} <= kept

    hub = stack.running.hub_url
    before = stack.api("GET", "servers").json()["servers"].keys()
    asked = {
        "read": {
            "hub": f"{hub}hub/api/user",
            "hub page": f"{hub}hub/home",
            "service": f"{service}projects",
            "service below the hub": f"{hub}services/notebooks/projects",
            "service page": f"{service}servers",
            "forge": f"{stack.forge_url}/api/v4/user",
            "forge page": f"{stack.forge_url}/",
            "sibling": f"{address}api/contents",
            # The same origin's address of it, which JupyterHub without our hosts would serve.
            "sibling here": urlsplit(address).path + "api/contents",
            "sibling at the person's host": f"{hub.replace('://', f'://{stack.owner}.')}{urlsplit(address).path[1:]}api/contents",
        },
        "send": {
            "hub": f"{hub}hub/api/users/{stack.owner}/tokens",
            "hub stop": f"{hub}hub/api/users/{stack.owner}/servers/{sibling}",
            "service": f"{service}servers/{sibling}",
            "service start": f"{service}servers",
            "forge": f"{stack.forge_url}/api/v4/projects",
            "sibling": f"{address}api/kernels",
        },
        "frame": {"hub": f"{hub}hub/home", "service": f"{service}servers", "sibling": f"{address}lab"},
        "socket": {"sibling": f"{address}api/events/subscribe"},
    }  # fmt: skip
    page.goto(f"{other}lab#{quote(json.dumps(asked))}")
    page.wait_for_function("document.title === 'done'", timeout=180_000)
    found = json.loads(page.locator("pre").inner_text())
    assert found.pop("own").startswith("200")
    assert found.pop("cookies") == ""
    # What leads to no answer of theirs is the hub's word that there is nothing here.
    blind = {name for name in found if name.startswith("blind ")}
    got = {name: said for name, said in found.items() if name not in blind and said != "refused"}
    assert got == {}
    # Nothing was done blindly either.
    assert stack.api("GET", "servers").json()["servers"].keys() == before
    assert scene.state(sibling)["state"] == "running"
    assert execute(stack, sibling, "print(6 * 7)", "parts") == "42"
    page.goto(f"{hub}hub/token")
    expect(page.get_by_text("made by `notebooks token`").first).to_be_visible()
    assert "Requested via" not in page.content()
    page.goto(f"{service}servers")
    expect(page).to_have_title("Your servers · Notebooks")
    stopped = stack.api("PATCH", f"servers/{hostile}", json={"state": "hibernated"})
    assert stopped.status_code < 300
    wait_for(lambda: scene.state(hostile)["state"] == "stopped")


def test_old_addresses_of_a_server_lead_to_its_own(scene: Any) -> None:
    """The hub's own links name the person's host; an address at the hub is found too."""
    stack, client = scene.stack, scene.stack.client()
    name = scene.launch(scene.shas[0])["name"]
    path = f"user/{stack.owner}/{name}/lab"
    for host in (stack.running.hub_url, stack.running.hub_url.replace("://", f"://{stack.owner}.")):
        answer = client.get(f"{host}{path}")
        assert answer.status_code == 200
        assert str(answer.url).startswith(stack.server_url(name)), answer.url
    # And from the hub's address of the service to the service's own host.
    answer = client.get(f"{stack.running.hub_url}services/notebooks/servers")
    assert answer.url.host == "notebooks--service.notebooks.localhost"
