"""A JupyterHub whose people sign in at the forge of a test: stock authenticators, no server, no proxy.

Everything comes from the environment variable ``LOGIN_TEST_HUB``, a JSON object.
"""

# ruff: noqa: F821
import json
import os
from pathlib import Path

from jupyterhub.proxy import Proxy
from traitlets import Dict

given = json.loads(os.environ.pop("LOGIN_TEST_HUB"))
forge = given["forge"]
directory = Path(given["directory"])


class NoProxy(Proxy):
    """Keeps routes in memory: the test speaks to the hub directly."""

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


c = get_config()
c.JupyterHub.bind_url = f"http://127.0.0.1:{given['port']}/"
c.JupyterHub.hub_bind_url = f"http://127.0.0.1:{given['port']}"
c.JupyterHub.proxy_class = NoProxy
c.ConfigurableHTTPProxy.auth_token = "unused"
c.JupyterHub.db_url = f"sqlite:///{directory / 'hub.sqlite'}"
c.JupyterHub.cookie_secret_file = str(directory / "cookie_secret")
c.JupyterHub.authenticator_class = given["kind"]
c.OAuthenticator.client_id = given["client_id"]
c.OAuthenticator.client_secret = given["secret"]
c.OAuthenticator.oauth_callback_url = f"http://127.0.0.1:{given['port']}/hub/oauth_callback"
c.Authenticator.allow_all = given["kind"] == "generic-oauth"
if given["kind"] == "generic-oauth":
    c.GenericOAuthenticator.authorize_url = f"{forge}/oauth/authorize"
    c.GenericOAuthenticator.token_url = f"{forge}/oauth/token"
    c.GenericOAuthenticator.userdata_url = f"{forge}/oauth/userinfo"
    c.GenericOAuthenticator.username_claim = "preferred_username"
    c.GenericOAuthenticator.scope = ["openid", "profile", "email"]
    c.GenericOAuthenticator.admin_groups = {"labs"}
    c.GenericOAuthenticator.manage_groups = True
    c.GenericOAuthenticator.auth_state_groups_key = "oauth_user.groups"
    c.Authenticator.enable_auth_state = True
else:
    c.GitLabOAuthenticator.gitlab_url = forge
    c.GitLabOAuthenticator.allowed_gitlab_groups = {"labs"}
    c.GitLabOAuthenticator.scope = ["read_user", "read_api"]
