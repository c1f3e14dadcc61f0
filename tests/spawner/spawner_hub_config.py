"""A real hub for the spawner's tests: ``configure(c)`` as everybody calls it, no proxy process.

Everything comes from the environment variable ``SPAWNER_TEST_HUB``, a JSON object. People get
their forge token by ``auth_state`` through the hub's API instead of signing in.
"""

# ruff: noqa: F821
import json
import os
import sys
from pathlib import Path

from jupyterhub.proxy import Proxy
from jupyterhub.spawner import SimpleLocalProcessSpawner
from traitlets import Dict

from notebooks_service.images.environment import Environment
from notebooks_service.spawner import configure as configuring
from notebooks_service.spawner.local import LocalRuntime

given = json.loads(os.environ.pop("SPAWNER_TEST_HUB"))
directory = Path(given["directory"])


class NoProxy(Proxy):
    """Keeps routes in memory: the tests speak to hub and servers directly."""

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


class Theirs(SimpleLocalProcessSpawner):
    """An administrator's own spawner, for the servers that are not ours."""

    def get_state(self):
        return {**super().get_state(), "theirs": True}

    def options_from_form(self, formdata):
        return {"from": "their form"}

    async def progress(self):
        yield {"progress": 42, "message": "their own progress"}


class HereEnvironment(Environment):
    """The environment that the tests run in."""

    def overlay(self, directory):
        return self


def default(store, requirements, walls, log, gauge):
    """The default environment, which is there already."""
    return HereEnvironment(
        fingerprint="0" * 64,
        digest="sha256:" + "0" * 64,
        path=Path(sys.prefix),
        python=Path(sys.prefix) / "bin" / "python",
        kernel_argv=(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        kernel_env={},
        display_name="Tests",
    )


class NoEnvironments:
    """A store in which no commit has one."""

    def find(self, project_id, digest):
        return None


c.JupyterHub.spawner_class = Theirs
c.SimpleLocalProcessSpawner.home_dir_template = str(directory / "homes" / "{username}")
c.Spawner.cmd = [sys.executable, str(directory / "server.py")]
c.Spawner.args = []
c.Spawner.notebook_dir = ""
# The end of one of ours is noticed without: by its process, at once.
c.Spawner.poll_interval = 600
c.Spawner.http_timeout = given["http_timeout"]
c.Spawner.environment = {"THEIRS": "1"}
c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_port = given["port"]
c.JupyterHub.port = given["public_port"]
c.JupyterHub.db_url = f"sqlite:///{directory}/hub.sqlite"
c.JupyterHub.cookie_secret_file = str(directory / "cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(directory / "proxy.pid")
c.JupyterHub.services = [{"name": "test", "api_token": given["test_token"]}]
c.JupyterHub.load_roles = [
    {
        "name": "test",
        "services": ["test"],
        "scopes": ["admin:users", "admin:auth_state", "admin:servers", "tokens", "list:users"],
    }
]


# The boundary of programs: a server and a clone that do as a test says by files in their directory.
def runtime(settings, store):
    return LocalRuntime(
        settings,
        NoEnvironments(),
        command=[sys.executable, str(directory / "server.py")],
        programs=directory / "programs",
        make_default=default,
    )


configuring.configure(c, make_runtime=runtime)
