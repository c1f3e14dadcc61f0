"""A real hub for the gateway's tests: stock spawner and authenticator, no proxy process.

Everything comes from the environment variable ``GATEWAY_TEST_HUB``, a JSON object.
"""

# ruff: noqa: F821
import json
import os
import sys
from pathlib import Path

from jupyterhub.auth import DummyAuthenticator
from jupyterhub.proxy import Proxy
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Dict

given = json.loads(os.environ["GATEWAY_TEST_HUB"])


class NoProxy(Proxy):
    """Keeps routes in memory: the tests speak to the hub directly."""

    should_start = False
    routes = Dict()

    async def add_route(self, routespec, target, data):
        self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

    async def delete_route(self, routespec):
        self.routes.pop(routespec, None)

    async def get_all_routes(self):
        return self.routes

    async def check_running(self):
        return True


class RecordingSpawner(SimpleLocalProcessSpawner):
    """Keeps the record that the test sends as an option, as our spawner keeps its own."""

    def get_state(self):
        state = super().get_state()
        record = (self.user_options or {}).get("record")
        return {**state, "notebooks": record} if record else state

    async def start(self):
        self.environment = {
            "TEST_TOKEN_FILE": str(Path(given["tokens"]) / f"{self.user.name}-{self.name}"),
            "TEST_GATE_FILE": (self.user_options or {}).get("gate", ""),
        }
        if (self.user_options or {}).get("refuse"):
            raise RuntimeError("refused by the test")
        return await super().start()

    async def progress(self):
        yield {"progress": 10, "message": "Working", "launch": "abc", "launch_event": {"id": 1}}


c.JupyterHub.authenticator_class = DummyAuthenticator
c.Authenticator.allow_all = True
c.Authenticator.enable_auth_state = True
c.Authenticator.allowed_users = {"ada", "bob", "carol", "dora", "erin", "group.admin"}
c.CryptKeeper.keys = ["0" * 64]
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_port = given["port"]
c.JupyterHub.port = given["public_port"]
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.cookie_secret_file = str(Path(given["directory"]) / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(Path(given["directory"]) / "proxy.pid")
c.JupyterHub.allow_named_servers = True
c.JupyterHub.named_server_limit_per_user = 5
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0, "slow_stop_timeout": 0}
c.JupyterHub.spawner_class = RecordingSpawner
c.Spawner.cmd = [sys.executable, str(Path(given["directory"]) / "server.py")]
c.Spawner.args = []
c.Spawner.notebook_dir = ""
c.Spawner.http_timeout = 20
c.Spawner.poll_interval = 1
c.Spawner.server_token_scopes = lambda spawner: [
    f"users:activity!user={spawner.user.name}",
    f"custom:notebooks:git!server={spawner.user.name}/{spawner.name}",
]
c.JupyterHub.custom_scopes = {"custom:notebooks:git": {"description": "git of one server"}}
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", "custom:notebooks:git!user"]},
    {
        "name": "notebooks",
        "services": ["notebooks"],
        "scopes": [
            "admin:auth_state",
            "read:users:name",
            "read:servers",
            "admin:server_state",
        ],
    },
    {"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:auth_state", "tokens"]},
]
c.JupyterHub.services = [
    {"name": "notebooks", "api_token": given["service_token"]},
    {"name": "test", "api_token": given["test_token"]},
]
