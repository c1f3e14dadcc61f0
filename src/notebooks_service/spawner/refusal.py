"""Our errors as JupyterHub shows them: a failed spawn whose message is our sentence.

JupyterHub 6 has ``SpawnException`` for refusals; 5.4 has only ``HTTPError`` with two attributes
that its pages look for. Called by the launch mixin, at the end of a launch that failed.
"""

from __future__ import annotations

from typing import Any

from tornado import web

from notebooks_service.errors import NotebooksError

try:
    from jupyterhub.spawner import SpawnException
except ImportError:  # JupyterHub 5.4
    SpawnException = None


def refusal(error: NotebooksError) -> web.HTTPError:
    """The exception to raise from ``start()`` so that page, API and progress show ``error``."""
    refused: Any
    if SpawnException is None:
        refused = web.HTTPError(error.status, error.message)
    else:
        refused = SpawnException(error.message, reason=error.code, status_code=error.status)
    refused.jupyterhub_message = error.message
    return refused  # type: ignore[no-any-return]
