"""What a server opens in: JupyterLab, or another page that its image offers. Pure.

The service offers it and checks the choice for whoever asks, the launch checks it again for whoever asks the hub
itself. Whether the image has it is known when the server runs; JupyterLab is always there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from notebooks_service.errors import InvalidRequest
from notebooks_service.settings import Settings

OPTION = "defaultUrl"
"""Its name in ``serverOptions``, which is that of renku-notebooks."""
KEY = "default_url"
"""Its name in the hub's options and in a form."""
LAB = "/lab"
TITLES = {LAB: "JupyterLab", "/tree": "Notebook", "/rstudio": "RStudio"}


def choices(settings: Settings) -> tuple[str, ...]:
    """What may be chosen, the default first. Servers of `local` have our JupyterLab and nothing else."""
    return settings.default_urls if settings.runtime == "docker" else (LAB,)


def read(asked: object) -> str:
    """What was asked for, from JSON or a form; None and "" for nothing. Raises ``InvalidRequest``."""
    if asked is None or asked == "":
        return ""
    if not isinstance(asked, str) or asked not in TITLES:
        raise InvalidRequest(f"`{OPTION}` must be one of {', '.join(TITLES)}.")
    return asked


def check(settings: Settings, chosen: str) -> None:
    """Raises ``InvalidRequest`` for what is not offered here."""
    if chosen and chosen not in choices(settings):
        raise InvalidRequest(f"Servers here do not open in `{chosen}`.")


def wanted(settings: Settings, chosen: str) -> str:
    """What was chosen, or the default if it was nothing or is not offered any more."""
    every = choices(settings)
    return chosen if chosen in every else every[0]


def opens(wanted: str, offers: Iterable[str]) -> str:
    """What a server opens in whose image offers these."""
    return wanted if wanted in set(offers) else LAB


def offered(settings: Settings) -> dict[str, Any]:
    """Its entry in the answer of ``GET server_options``; none where there is nothing to choose."""
    every: Sequence[str] = choices(settings)
    if len(every) < 2:
        return {}
    return {
        OPTION: {
            "displayName": "Opens in",
            "order": 5,
            "type": "enum",
            "default": every[0],
            "options": list(every),
        }
    }
