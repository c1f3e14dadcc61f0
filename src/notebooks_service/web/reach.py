"""How requests reach the service: asked by ``notebooks doctor`` through whatever is before the hub.

Both answers tell a caller nothing but what came of their own request on its way here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

router = APIRouter(tags=["service"])

PIECES = 3
PAUSE = 0.3
"""Seconds between the pieces of the test stream."""


@router.get("/-/reach", summary="How this request came: scheme, host, wish for a websocket")
async def reach(request: Request) -> Response:
    """`scheme` and `host` as the last proxy told them, `upgrade` as it was asked for."""
    headers = request.headers
    scheme = headers.get("x-forwarded-proto", request.url.scheme).split(",")[0].strip()
    body = {
        "scheme": scheme[:20],
        "host": headers.get("host", "")[:300],
        "upgrade": headers.get("upgrade", "")[:20].lower(),
    }
    return JSONResponse(body)


@router.get("/-/stream", summary="A short event stream, to see whether streams come through")
async def stream(request: Request) -> Response:
    """Three events, 0.3 seconds apart, as `text/event-stream`."""
    return StreamingResponse(
        _pieces(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _pieces() -> AsyncIterator[str]:
    for number in range(PIECES):
        if number:
            await asyncio.sleep(PAUSE)
        yield f"event: piece\ndata: {number}\n\n"
