#!/bin/sh
# Starts the service with its token in its own process's environment, not in the container's description.
set -eu
JUPYTERHUB_API_TOKEN="$(cat /run/secrets/service_token)"
export JUPYTERHUB_API_TOKEN
exec python3 -m notebooks_service.web --host 0.0.0.0 --port 9000
