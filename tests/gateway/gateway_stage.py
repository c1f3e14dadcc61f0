"""What the gateway's tests act on: a project at a forge, a server at a hub, the gateway between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway_real_hub import CLIENT, HERE, RealHub, wait_until

from notebooks_service.domain import LaunchRecord
from notebooks_service.gateway.hub import HubClient
from ports import free_port
from small_forge import running

_numbers = itertools.count(1)


@contextmanager
def running_gateway(
    hub: RealHub, forge_url: str, log: Path, **settings: str
) -> Iterator[GatewayProcess]:
    port = free_port()
    with running(
        HERE / "gateway_process.py",
        port,
        log,
        str(port),
        JUPYTERHUB_API_URL=hub.api_url,
        JUPYTERHUB_API_TOKEN=hub.service_token,
        NOTEBOOKS_FORGE_URL=forge_url,
        NOTEBOOKS_HUB_URL=f"http://127.0.0.1:{port}/",
        **settings,
    ) as process:
        yield GatewayProcess(f"http://127.0.0.1:{port}/services/notebooks/git", process.pid, log)


@dataclass
class GatewayProcess:
    url: str
    pid: int
    log: Path

    def log_lines(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if "gateway.app:git " in line]


async def launch(
    hub: RealHub, user: str, forge_token: str, project: str, project_id: int = 7
) -> tuple[str, str]:
    """Start a server of this project; returns its name and its hub token."""
    server = f"s{next(_numbers)}"
    record = LaunchRecord(
        id="0123456789ab",
        project_id=project_id,
        project_path=project,
        commit="a" * 40,
        branch="main",
        requested_at="2026-01-01T00:00:00Z",
    )
    token = hub.user(user, forge_token)
    client = HubClient(hub.api_url, hub.service_token)
    try:
        await client.start_server(token, user, server, server, {"record": record.to_dict()})
    finally:
        await client.aclose()
    return server, hub.server_token(user, server)


async def stop(hub: RealHub, user: str, forge_token: str, server: str) -> None:
    """Stop a server, and wait until the hub has done so."""
    client = HubClient(hub.api_url, hub.service_token)
    try:
        await client.stop_server(hub.user(user, forge_token), user, server)
    finally:
        await client.aclose()

    def stopped() -> bool:
        answer = CLIENT.get(
            f"{hub.api_url}/users/{user}",
            headers={"Authorization": f"token {hub.service_token}"},
        )
        return server not in answer.json()["servers"]

    wait_until(stopped)
