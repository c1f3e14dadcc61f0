"""A real hub for the web room's tests: stock authenticator, no proxy, a spawner that follows a script.

Everything comes from the environment variable ``WEB_TEST_HUB``, a JSON object.
"""

# ruff: noqa: F821
import asyncio
import json
import os
import sys
from pathlib import Path

from jupyterhub.auth import DummyAuthenticator
from jupyterhub.proxy import Proxy
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Dict

given = json.loads(os.environ["WEB_TEST_HUB"])
CONTROL = Path(given["control"])


class NoProxy(Proxy):
    """Keeps routes in memory: the tests speak to the hub and the service directly."""

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


class ScriptedSpawner(SimpleLocalProcessSpawner):
    """Keeps the record that the test's file for this server holds, as our spawner keeps its own.

    The file: ``{"record": {…}, "then": "wait" | "ready" | "fail"}``; without a file: ready at once.
    """

    record = None
    own_start = False

    @property
    def script(self):
        return CONTROL / f"{self.user.name}-{self.name}.json"

    @property
    def ready(self):
        """As in ``spawner/launch.py``: only a launch that says so is ready."""
        if self.own_start or (self.record and self.record.get("outcome") != "ready"):
            return False
        return super().ready

    def load_state(self, state):
        super().load_state(state)
        self.record = state.get("notebooks")

    def get_state(self):
        state = super().get_state()
        return {**state, "notebooks": self.record} if self.record else state

    async def start(self):
        asked = (self.user_options or {}).get("notebooks", {})
        self.record = {
            "id": os.urandom(6).hex(),
            "project_id": 7,
            "project_path": asked.get("project", ""),
            "commit": asked.get("commit", ""),
            "branch": asked.get("branch", ""),
            "requested_at": "2026-11-22T10:00:00Z",
            "step": "access",
        }
        first = dict(self.record)
        self.own_start = True
        try:
            while self.script.exists():
                script = json.loads(self.script.read_text())
                self.record = {**first, **script.get("record", {})}
                if script["then"] == "fail":
                    raise RuntimeError("the test says so")
                if script["then"] == "ready":
                    break
                await asyncio.sleep(0.02)
            address = await super().start()
        except asyncio.CancelledError:
            self.record = {**self.record, "outcome": "cancelled"}
            raise
        except RuntimeError:
            raise
        finally:
            self.own_start = False
        self.record = {**self.record, "outcome": "ready", "step": "ready"}
        return address

    async def progress(self):
        seen = None
        while self.record is None or "outcome" not in self.record:
            if self.record != seen:
                seen = self.record
                yield {"progress": 10, "message": "Working"}
            await asyncio.sleep(0.02)


class ForgeAuthenticator(DummyAuthenticator):
    """Who signs in brings a forge token along, as with the forge's OAuth."""

    async def authenticate(self, handler, data):
        name = await super().authenticate(handler, data)
        return {"name": name, "auth_state": {"access_token": f"forge-token-of-{name}"}}


c.JupyterHub.authenticator_class = ForgeAuthenticator
c.Authenticator.allow_all = True
c.Authenticator.enable_auth_state = True
c.Authenticator.allowed_users = {"ada", "bob"}
c.Authenticator.admin_users = {"grace"}
c.CryptKeeper.keys = ["0" * 64]
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_port = given["port"]
c.JupyterHub.port = given["public_port"]
c.JupyterHub.db_url = f"sqlite:///{given['directory']}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(Path(given["directory"]) / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(Path(given["directory"]) / "proxy.pid")
c.JupyterHub.cleanup_servers = False
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0}
c.JupyterHub.concurrent_spawn_limit = 0
c.Spawner.consecutive_failure_limit = 0
c.JupyterHub.spawner_class = ScriptedSpawner
c.Spawner.cmd = [sys.executable, str(Path(given["directory"]) / "server.py")]
c.Spawner.args = []
c.Spawner.notebook_dir = ""
c.Spawner.http_timeout = 20
c.JupyterHub.load_roles = [
    {"name": "user", "scopes": ["self", "access:services!service=notebooks"]},
    {
        "name": "notebooks",
        "services": ["notebooks"],
        "scopes": ["admin:auth_state", "read:users:name", "read:servers", "admin:server_state"],
    },
    {
        "name": "test",
        "services": ["test"],
        "scopes": ["admin:users", "admin:auth_state", "tokens", "admin:servers"],
    },
]
c.JupyterHub.services = [
    {
        "name": "notebooks",
        "url": f"http://127.0.0.1:{given['service_port']}",
        "api_token": given["service_token"],
        "oauth_no_confirm": True,
        "oauth_redirect_uri": "/services/notebooks/oauth_callback",
        "oauth_client_allowed_scopes": [
            "servers!user",
            "read:servers!user",
            "read:users:name!user",
        ],
    },
    {"name": "test", "api_token": given["test_token"]},
]
