"""The gateway as a process of its own, mounted as the service mounts it: ``gateway_process.py PORT``.

It logs everything there is, so that the tests can look for secrets in it.
"""

from __future__ import annotations

import logging
import os
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from notebooks_service.gateway.app import gateway_routes
from notebooks_service.gateway.hub import HubClient
from notebooks_service.settings import load_settings

logging.basicConfig(level=logging.DEBUG)
hub = HubClient(os.environ["JUPYTERHUB_API_URL"], os.environ["JUPYTERHUB_API_TOKEN"])


async def granted(user: str, project_id: int) -> dict[str, bytes]:
    return {"whose": f"canary of {user} in {project_id}".encode()}


routes = gateway_routes(hub, load_settings(), granted=granted)
application = Starlette(routes=[Mount("/services/notebooks/git", routes=routes)])
uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), log_config=None, lifespan="off")
