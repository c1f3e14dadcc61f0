"""All keys are replaced between two starts, and whoever was signed in stays so: browsers and scripts."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from forge_fixtures import make_repository
from notebooks_service.platform import secrets
from notebooks_service.platform.secrets import MADE_HERE, Secrets
from notebooks_service.platform.signin import signed_in
from stack_fixtures import NewStack, Stack

pytestmark = pytest.mark.stack


def rotate(stack: Stack) -> None:
    assert stack.stop() == 0
    done = stack.command("keys", "rotate")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "All keys and secrets are new; 2 people's sign-ins were kept.\n"
    stack.start()


def sign_in(stack: Stack, name: str) -> httpx.Client:
    administration = stack.administration()
    try:
        return signed_in(administration, stack.running, name)
    finally:
        administration.close()


def write(stack: Stack, browser: httpx.Client, csrf_token: str) -> httpx.Response:
    """A write that changes nothing, as a page of ours makes it."""
    headers = {"Origin": stack.hub_url.rstrip("/"), "X-CSRF-Token": csrf_token}
    return browser.delete(f"{stack.service_url}servers/no-such-server", headers=headers)


def test_keys_rotate_without_signing_anybody_out(new_stack: NewStack, tmp_path: Path) -> None:
    make_repository(tmp_path / "plain", {"README.md": "# Plain\n"})
    stack = new_stack().start(tmp_path / "plain")
    owner, grace = sign_in(stack, stack.owner), sign_in(stack, stack.add_user("grace"))
    token = stack.token()
    page = owner.get(stack.service_url).text
    found = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', page)
    assert found, page
    assert write(stack, owner, found[1]).status_code == 404
    assert write(stack, owner, "another").status_code == 403
    own = Secrets(stack.directory.secrets)
    before = {name: own.read(name) for name in MADE_HERE}
    cookies = dict(owner.cookies)

    running = stack.command("keys", "rotate")
    assert (running.returncode, running.stdout) == (1, "")
    assert running.stderr.startswith("Another `notebooks up` is running")
    assert own.read(secrets.CRYPT_KEY) == before[secrets.CRYPT_KEY]

    rotate(stack)
    assert not [name for name in MADE_HERE if own.read(name) == before[name]]
    for browser in (owner, grace):
        for address in (stack.service_url, f"{stack.hub_url}hub/token"):
            answer = browser.get(address, follow_redirects=False)
            assert answer.status_code == 200, (address, answer.headers)
    # The page that was open meanwhile may go on writing.
    assert write(stack, owner, found[1]).status_code == 404
    # By a script's token, with what the hub kept encrypted: the forge is asked as this person.
    asked = httpx.get(
        f"{stack.service_url}projects",
        headers={"Authorization": f"Bearer {token}"},
        trust_env=False,
    )
    assert (asked.status_code, "plain" in asked.text) == (200, True)
    # What was stolen before opens nothing any more.
    for name in (secrets.SERVICE_TOKEN, secrets.PLATFORM_TOKEN):
        for value, status in ((before[name], 403), (own.read(name), 200)):
            headers = {"Authorization": f"token {value}"}
            answer = httpx.get(f"{stack.running.hub_api_url}/user", headers=headers)
            assert answer.status_code == status, (name, answer.text)

    # Once more: cookies of before the first time are not believed, which costs a redirect, no click.
    rotate(stack)
    hub = f"{stack.hub_url}hub/token"
    assert grace.get(hub, follow_redirects=False).status_code == 302
    assert (grace.get(hub).status_code, str(grace.get(hub).url)) == (200, hub)
    again = owner.get(stack.service_url)
    assert (again.status_code, str(again.url)) == (200, stack.service_url)
    assert dict(owner.cookies) != cookies
