"""Who used how much, for administrators of the hub: ``usage``, read from the ledger that the hub keeps."""

from __future__ import annotations

import asyncio
import time

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from notebooks_service.errors import Forbidden, NotebooksError
from notebooks_service.usage.ledger import Ledger, ledger_file
from notebooks_service.usage.report import By, as_csv, by_server, read_period, table
from notebooks_service.web.parts import parts_of

router = APIRouter()


class UsageElsewhere(NotebooksError):
    code = "usage_elsewhere"
    status = 501
    message = "The hub keeps this in data that the service does not see here: run `notebooks usage` beside the hub."


@router.get("/usage", summary="Hours of processors, memory, GPUs and storage", tags=["service"])
async def show_usage(
    request: Request, since: str | None = None, until: str | None = None, by: By = "person"
) -> Response:
    """As comma-separated values, for administrators of the hub. `since` and `until` are days (UTC), the
    latter not included.
    """
    parts = parts_of(request)
    person = await parts.sign_in.person(request)
    if not person.admin:
        raise Forbidden("Only administrators of the hub may see who used how much.")
    period = read_period(since, until, time.time())

    file = ledger_file(parts.settings.data)
    if not file.parent.is_dir():
        raise UsageElsewhere()

    def read() -> str:
        ledger = Ledger(file)
        return as_csv(table(by_server(*ledger.read(period), period), by), by)

    return PlainTextResponse(await asyncio.to_thread(read), media_type="text/csv")
