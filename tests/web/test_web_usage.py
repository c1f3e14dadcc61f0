"""``GET usage``: for administrators of the hub, and for nobody else."""

from __future__ import annotations

from web_stage import Stage

from notebooks_service.usage.ledger import Ledger, ledger_file
from notebooks_service.usage.records import Run

JUNE = 1780272000  # 2026-06-01, 00:00 UTC
RUN = Run(
    "one", "ada", "s", 7, "group/rivers", "docker", 2, 2**30, 0, JUNE, JUNE + 7200, ended=True
)


async def test_administrators_see_who_used_how_much(stage: Stage) -> None:
    Ledger(ledger_file(stage.settings.data)).write([RUN])
    asked = "usage?since=2026-06-01&until=2026-06-02"
    async with stage.api("grace") as api:
        answer = await api.get(f"{asked}&by=group")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/csv")
        assert answer.text.splitlines()[1:] == ["group,1,2.000,4.000,2.000,0.000,0.000"]
        for wrong in ("by=all", "since=soon", "until=2020-01-01"):
            assert (await api.get(f"usage?{wrong}")).status_code == 422
    async with stage.api("ada") as api:
        answer = await api.get(asked)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "forbidden"
