"""How often ``health`` asks hub and forge."""

import asyncio

from notebooks_service.web.health_cache import SECONDS, HealthCache


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
