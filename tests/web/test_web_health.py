"""How often ``health`` asks hub and forge, and over which connections."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from notebooks_service.settings import Settings
from notebooks_service.web.app import make_app
from notebooks_service.web.health_cache import SECONDS, HealthCache
from notebooks_service.web.parts import HubFacts, make_parts


async def test_many_who_ask_are_one_question() -> None:
    asked = 0
    moment = 100.0

    async def ask() -> tuple[dict[str, bool], dict[str, bool]]:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return {"reachable": True}, {"reachable": False}

    cache = HealthCache(lambda: moment)
    answers = await asyncio.gather(*(cache.look(ask) for _ in range(20)))
    assert asked == 1 and all(hub["reachable"] for hub, _ in answers)
    moment += SECONDS
    await cache.look(ask)
    assert asked == 2


async def test_a_forge_that_closes_idle_connections_is_not_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Uvicorn does after five seconds: a question that comes at that moment gets no answer."""
    moment = 0.0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"version": "6.1.0"}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        # Kept open until somebody asks once more over it, and closed then.
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    parts = make_parts(Settings(data=tmp_path, forge_url=url), HubFacts(f"{url}/hub/api", "t"))
    parts = replace(parts, health=HealthCache(lambda: moment))
    service = httpx.ASGITransport(make_app(parts))
    async with httpx.AsyncClient(transport=service, base_url="http://service") as client:

        async def status() -> str:
            answer = await client.get(f"{parts.prefix}health")
            return str(answer.json()["status"])

        assert await status() == "ok"
        moment += SECONDS
        assert await status() == "ok", caplog.text
        server.close()
        await server.wait_closed()
        moment += SECONDS
        assert await status() == "degraded"
    assert "The forge does not answer: ConnectError" in caplog.text
    await parts.aclose()
