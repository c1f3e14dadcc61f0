"""`notebooks up --forge`: a GitLab elsewhere instead of the embedded forge, played by a forge process."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.platform.signin import signed_in
from stack_fixtures import NewStack, free_ports

pytestmark = pytest.mark.stack

SCOPES = ["read_user", "read_api", "read_repository", "write_repository", "read_registry"]


def test_external_forge(new_stack: NewStack, forge: ForgeProcess, tmp_path: Path) -> None:
    owner = forge.user()
    make_repository(tmp_path / "elsewhere")
    forge.project(tmp_path / "elsewhere", f"{owner}/elsewhere", owner)
    port = free_ports()
    callback = f"http://127.0.0.1:{port}/hub/oauth_callback"
    secret = "the-external-secret"
    forge.administration.ensure_application("Hub", callback, SCOPES, "the-id", secret, True)
    environment = {
        "NOTEBOOKS_FORGE_CLIENT_ID": "the-id",
        "NOTEBOOKS_FORGE_CLIENT_SECRET": secret,
        "NOTEBOOKS_OWNER": owner,
    }
    stack = new_stack(port=port, arguments=("--forge", forge.url), environment=environment).start()

    assert stack.ready_url == stack.service_url
    names = sorted(path.stem for path in (stack.data / "run").glob("*.json"))
    assert names == ["hub", "proxy", "service", "up"]
    assert not (stack.data / "forge").exists()

    # Nobody can sign in for a person at a forge that is not ours.
    early = stack.command("token")
    assert (early.returncode, early.stdout) == (1, "")
    assert early.stderr == (
        f"The hub has no sign-in of {owner} yet; sign in at {stack.hub_url} in a browser first.\n"
    )
    login = stack.command("login")
    assert login.stdout.strip() == stack.service_url

    with closing(signed_in(forge.administration, stack.running, owner)) as browser:
        page = browser.get(stack.service_url)
        assert (page.status_code, "elsewhere" in page.text) == (200, True)
    token = stack.command("token")
    assert token.returncode == 0, token.stderr
    projects = stack.api("GET", "projects?membership=true")  # the forge has other tests' too
    assert [one["path_with_namespace"] for one in projects.json()] == [f"{owner}/elsewhere"]

    # The client's secret is the hub's alone.
    assert secret in stack.part("hub").environ().values()
    for name in ("proxy", "service"):
        assert secret not in stack.part(name).environ().values()
