"""Secrets for a server that starts: by its own token, of its person and project, while it starts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from gateway_real_hub import CLIENT, RealHub
from gateway_stage import GatewayProcess, running_gateway

from notebooks_service.domain import LaunchRecord
from notebooks_service.gateway.hub import HubClient
from small_forge import wait_until

RECORD = LaunchRecord(
    id="0123456789ab",
    project_id=42,
    project_path="group/analysis",
    commit="a" * 40,
    branch="main",
    requested_at="2026-01-01T00:00:00Z",
)


@pytest.fixture(scope="module")
def gateway(
    real_hub: RealHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    log = tmp_path_factory.mktemp("gateway") / "gateway.log"
    with running_gateway(real_hub, "http://127.0.0.1:9", log) as process:
        yield process


def ask(gateway: GatewayProcess, token: str | None) -> httpx.Response:
    headers = {"Authorization": f"token {token}"} if token else {}
    return CLIENT.get(f"{gateway.url}/-/secrets", headers=headers)


async def begin(hub: RealHub, user: str, server: str, gate: Path, record: bool = True) -> str:
    """Start a server that answers when there is ``gate``; its own token."""
    client = HubClient(hub.api_url, hub.service_token)
    options = {"gate": str(gate), **({"record": RECORD.to_dict()} if record else {})}
    try:
        await client.start_server(hub.user(user, f"token-of-{user}"), user, server, server, options)
    finally:
        await client.aclose()
    return hub.server_token(user, server)


def is_ready(hub: RealHub, user: str, server: str) -> bool:
    headers = {"Authorization": f"token {hub.service_token}"}
    found = CLIENT.get(f"{hub.api_url}/users/{user}", headers=headers).json()["servers"]
    return bool(found.get(server, {}).get("ready"))


async def test_while_it_starts_and_no_longer(
    real_hub: RealHub, gateway: GatewayProcess, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    token = await begin(real_hub, "erin", "starting", gate)
    answer = ask(gateway, token)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    [secret] = answer.json()["secrets"]
    assert secret["name"] == "whose"
    assert base64.b64decode(secret["value"]) == b"canary of erin in 42"
    gate.touch()
    wait_until(lambda: is_ready(real_hub, "erin", "starting"))
    late = ask(gateway, token)
    assert (late.status_code, late.json()["error"]["code"]) == (403, "forbidden")
    assert "while it starts" in late.json()["error"]["message"]
    log = gateway.log.read_text()
    assert "given=whose" in log
    assert "canary" not in log
    assert base64.b64encode(b"canary of erin in 42").decode() not in log


async def test_other_tokens(real_hub: RealHub, gateway: GatewayProcess, tmp_path: Path) -> None:
    assert ask(gateway, None).status_code == 401
    assert ask(gateway, "0" * 32).status_code == 401
    assert ask(gateway, real_hub.user("dora", "token-of-dora")).status_code == 403
    assert ask(gateway, real_hub.service_token).status_code == 403
    # A server that is none of this service's.
    gate = tmp_path / "gate"
    token = await begin(real_hub, "carol", "foreign", gate, record=False)
    assert ask(gateway, token).status_code == 403
    gate.touch()
