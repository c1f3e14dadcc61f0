"""``python -m notebooks_service.web``: the service as a process, started by the platform.

It may start before the hub: it makes no call of its own.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from notebooks_service.errors import NotebooksError
from notebooks_service.settings import load_settings
from notebooks_service.web.app import make_app
from notebooks_service.web.parts import HubFacts, make_parts

# Event streams would hold up a stop for ever; browsers connect again by themselves.
SHUTDOWN_SECONDS = 2


class WithoutQuery(logging.Filter):
    """Takes the query out of uvicorn's access lines: it may hold an OAuth code."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, version, status = record.args
            record.args = (client, method, str(path).partition("?")[0], version, status)
        return True


def log_config() -> dict[str, Any]:
    """uvicorn's logging, with our own lines beside its, and no queries."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["filters"] = {"without_query": {"()": WithoutQuery}}
    config["handlers"]["access"]["filters"] = ["without_query"]
    config["loggers"]["notebooks_service"] = {"handlers": ["default"], "level": "INFO"}
    return config


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks_service.web", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    given = parser.parse_args(arguments)
    try:
        parts = make_parts(load_settings(), HubFacts.from_environment())
    except NotebooksError as error:
        print(error.message, file=sys.stderr)
        return 2
    uvicorn.run(
        make_app(parts),
        host=given.host,
        port=given.port,
        log_config=log_config(),
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
        proxy_headers=False,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
