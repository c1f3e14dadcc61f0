"""``python -m notebooks_service.forge``: runs the embedded forge until it is told to stop."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import uvicorn

from notebooks_service.errors import NotebooksError
from notebooks_service.forge.app import create_app
from notebooks_service.forge.config import (
    DEFAULT_JOB_SILENCE,
    DEFAULT_TOKEN_LIFETIME,
    DEFAULT_WEBHOOK_RETRY,
    ForgeConfig,
    rate_limits,
    store_options,
)
from notebooks_service.settings import load_settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks_service.forge", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="data directory of the service")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--url", required=True, help="address as browsers and git open it")
    parser.add_argument(
        "--oauth-token-lifetime",
        type=int,
        default=DEFAULT_TOKEN_LIFETIME,
        metavar="SECONDS",
        help="how long an access token lives (GitLab: %(default)s)",
    )
    parser.add_argument(
        "--pipelines-of",
        metavar="USER",
        help="make pipelines only for what this person pushes or starts",
    )
    parser.add_argument(
        "--job-silence",
        type=float,
        default=DEFAULT_JOB_SILENCE,
        metavar="SECONDS",
        help="a running job whose runner is silent for longer has failed (%(default)s)",
    )
    parser.add_argument(
        "--webhook-allow",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="an address that webhooks may reach although it is not public (setting webhook_allowed_addresses)",
    )
    parser.add_argument(
        "--webhook-retry",
        type=float,
        default=DEFAULT_WEBHOOK_RETRY,
        metavar="SECONDS",
        help="before a webhook that failed is tried a second time (%(default)s)",
    )
    parser.add_argument(
        "--registry",
        default="",
        metavar="URL",
        help="a registry of containers that believes this forge's tokens, as the forge reaches it",
    )
    parser.add_argument(
        "--registry-name",
        default="",
        metavar="HOST[:PORT]",
        help="what names of images there begin with (default: the host of --registry)",
    )
    arguments = parser.parse_args()
    if arguments.pipelines_of is not None and not arguments.pipelines_of.strip():
        # Nobody's name must not come to mean everybody.
        parser.error("--pipelines-of needs the name of a user")
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # oauthlib's debug lines hold codes and tokens.
    logging.getLogger("oauthlib").setLevel(logging.WARNING)
    try:
        settings = load_settings(data=arguments.data)
        config = ForgeConfig(
            arguments.data,
            arguments.url,
            arguments.oauth_token_lifetime,
            arguments.pipelines_of or "",
            arguments.job_silence,
            store_options(settings),
            webhook_allowed=(*settings.webhook_allowed_addresses, *arguments.webhook_allow),
            webhook_timeout=settings.webhook_timeout,
            webhook_retry_seconds=arguments.webhook_retry,
            rate_limits=rate_limits(settings),
            artifacts_largest=settings.artifacts_largest,
            registry=arguments.registry,
            registry_name=arguments.registry_name,
        )
        app = create_app(config)
    except NotebooksError as error:
        print(error.message, file=sys.stderr)
        return 1
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
