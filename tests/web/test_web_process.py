"""``python -m notebooks_service.web`` as a process: before any hub, its log, its end. And its database."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text
from web_small_forge import SHA
from web_stage import PREFIX, Stage, until

from notebooks_service.domain import server_name
from notebooks_service.errors import SettingsInvalid
from notebooks_service.settings import Settings
from notebooks_service.web.app import make_app
from notebooks_service.web.consent import TrustStore
from notebooks_service.web.database import database_url
from notebooks_service.web.parts import HubFacts, make_parts
from ports import free_port

RIVERS = server_name(7, SHA, "main")


def start(data: Path, port: int, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "notebooks_service.web", "--port", str(port)],
            env={**kept, "NOTEBOOKS_DATA": str(data), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("health")).status_code == 200
    except httpx.TransportError:
        return False


async def test_it_starts_before_the_hub_and_logs_no_secret(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    log = tmp_path / "log"
    process = start(
        tmp_path / "data",
        port,
        log,
        JUPYTERHUB_API_URL=f"http://127.0.0.1:{nobody}/hub/api",
        JUPYTERHUB_API_TOKEN="canary-service-token",
        NOTEBOOKS_FORGE_URL=f"http://127.0.0.1:{nobody}",
    )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}{PREFIX}", trust_env=False
        ) as client:
            await until(lambda: answers(client))
            health = (await client.get("health")).json()
            assert health["status"] == "degraded" and health["hub"] == {"reachable": False}
            headers = {"Authorization": "Bearer canary-hub-token", "Cookie": "x=canary-cookie"}
            answer = await client.get("user", headers=headers)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "hub_unavailable"
            await client.get("oauth_callback?code=canary-code&state=canary-state")
            page = await client.get("servers", headers={"Accept": "text/html"})
            assert page.status_code == 302
    finally:
        process.terminate()
        process.wait(60)
    said = log.read_text()
    assert "GET /services/notebooks/oauth_callback HTTP" in said
    assert "canary" not in said


async def test_it_stops_while_somebody_watches(stage: Stage, tmp_path: Path) -> None:
    stage.hub.script("ada", RIVERS, "wait")
    port = free_port()
    process = start(
        tmp_path / "data",
        port,
        tmp_path / "log",
        JUPYTERHUB_API_URL=stage.hub.api_url,
        JUPYTERHUB_API_TOKEN=stage.hub.service_token,
    )
    try:
        async with stage.api("ada") as api:
            await api.post(f"group/rivers/{SHA}")
            headers = api.headers
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}{PREFIX}", headers=headers, trust_env=False
        ) as client:
            await until(lambda: answers(client))
            async with client.stream("GET", f"servers/{RIVERS}/events") as stream:
                assert stream.status_code == 200
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 60) in (0, -signal.SIGTERM)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    process = start(tmp_path, free_port(), tmp_path / "log", JUPYTERHUB_API_URL="http://x")
    assert process.wait(60) == 2
    said = (tmp_path / "log").read_text()
    assert "JUPYTERHUB_API_TOKEN is not set" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("environment", "prefix", "client"),
    [
        ({}, "/services/notebooks/", "service-notebooks"),
        ({"JUPYTERHUB_BASE_URL": "/hub-1"}, "/hub-1/services/notebooks/", "service-notebooks"),
        (
            {"JUPYTERHUB_SERVICE_PREFIX": "/services/nb", "JUPYTERHUB_CLIENT_ID": "x"},
            "/services/nb/",
            "x",
        ),
    ],
)
def test_what_the_hub_says(environment: dict[str, str], prefix: str, client: str) -> None:
    given = {"JUPYTERHUB_API_URL": "http://h/hub/api", "JUPYTERHUB_API_TOKEN": "t", **environment}
    facts = HubFacts.from_environment(given)
    assert (facts.prefix, facts.client_id) == (prefix, client)


async def test_agreements_are_per_person_and_project_and_outlive_the_process(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    stores = [TrustStore(url) for _ in range(4)]
    await asyncio.gather(*(store.agree("ada", 7) for store in stores for _ in range(3)))
    again = TrustStore(url)
    assert await again.trusts("ada", 7)
    assert not await again.trusts("ada", 8)
    assert not await again.trusts("bob", 7)
    await again.forget("ada", 7)
    assert not await stores[0].trusts("ada", 7)
    assert (tmp_path / "service.sqlite").stat().st_mode & 0o077 == 0


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'service.sqlite'}"
    await TrustStore(url).agree("ada", 7)
    with create_engine(url).begin() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    with pytest.raises(SettingsInvalid, match="version 99"):
        await TrustStore(url).trusts("ada", 7)


def test_where_the_database_lies(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    assert database_url(settings) == f"sqlite:///{tmp_path / 'data/service/service.sqlite'}"
    assert (tmp_path / "data/service").is_dir()
    assert database_url(Settings(data=tmp_path, database_url="sqlite://")) == "sqlite://"


async def test_behind_https_cookies_are_secure(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, hub_url="https://hub.example")
    facts = HubFacts(api_url="http://127.0.0.1:1/hub/api", api_token="t")
    parts = make_parts(settings, facts)
    transport = httpx.ASGITransport(make_app(parts))
    async with httpx.AsyncClient(transport=transport, base_url="https://hub.example") as client:
        answer = await client.get(f"{PREFIX}servers", headers={"Accept": "text/html"})
    await parts.aclose()
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Secure-service-notebooks-state-")
    assert {"Secure", "HttpOnly", "SameSite=lax", f"Path={PREFIX}"} <= set(cookie.split("; "))
