"""Signs people in without a browser, and makes hub tokens for their scripts.

Called by ``notebooks login``, ``notebooks token`` and the whole-stack tests. The way is the real
one: a single-use link, the forge's session, the hub's OAuth, so the hub holds the person's forge
token afterwards.
"""

from __future__ import annotations

from urllib.parse import quote

import httpx

from notebooks_service.errors import HubUnavailable, InvalidRequest, PlatformFailed
from notebooks_service.forge.administration import Administration
from notebooks_service.platform import loopback, secrets
from notebooks_service.platform.directory import DataDirectory, RunningPlatform
from notebooks_service.platform.secrets import Secrets

SERVICE = "/services/notebooks/"

TOKEN_SCOPES = (
    # Call the service and its gateway as this person.
    "access:services!service=notebooks",
    # Start, see and stop this person's servers, and open them.
    "servers!user",
    "access:servers!user",
    # Say whose token it is.
    "read:users:name!user",
)


def sign_in_url(administration: Administration, running: RunningPlatform, username: str) -> str:
    """An address that signs ``username`` in at forge and hub, once, within five minutes."""
    # The hub's own page for starting the way to the forge; after it, the person is at `next`.
    hub = f"{running.hub_url}hub/oauth_login?next={quote(SERVICE, safe='')}"
    return administration.sign_in_url(running.forge_url, username, hub)


def signed_in(
    administration: Administration, running: RunningPlatform, username: str
) -> httpx.Client:
    """A client that holds the cookies of ``username`` at forge, hub and service."""
    client = httpx.Client(
        follow_redirects=True,
        timeout=30,
        trust_env=False,
        mounts=loopback.mounts(),
        # As browsers do: the service sends those to the hub, and scripts a 401.
        headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"},
    )
    try:
        response = client.get(sign_in_url(administration, running, username))
        if not response.is_success:
            raise PlatformFailed(
                f"{username} could not be signed in: {response.url.copy_with(query=None)} answered {response.status_code}."
            )
    except httpx.HTTPError as error:
        client.close()
        raise HubUnavailable(
            f"The hub or the forge does not answer ({type(error).__name__}); is `notebooks up` still starting?"
        ) from None
    except BaseException:
        client.close()
        raise
    return client


def hub_token(directory: DataDirectory, running: RunningPlatform, username: str) -> str:
    """A new hub token for scripts of ``username``, good until it is revoked on the hub's token page.

    With the embedded forge the person is signed in first, so that the hub holds their forge token.
    """
    if running.embedded:
        administration = Administration(directory.path)
        try:
            signed_in(administration, running, username).close()
        finally:
            administration.close()
    own = Secrets(directory.secrets).read(secrets.PLATFORM_TOKEN)
    tokens = f"{running.hub_api_url}/users/{quote(username, safe='')}/tokens"
    never_here = InvalidRequest(
        f"The hub has no sign-in of {username} yet; sign in at {running.hub_url} in a browser first."
    )
    headers = {"Authorization": f"token {own}"}
    try:
        with httpx.Client(headers=headers, timeout=30, trust_env=False) as hub:
            answer = hub.post(
                tokens, json={"note": "made by `notebooks token`", "scopes": list(TOKEN_SCOPES)}
            )
            if answer.status_code in (403, 404):
                raise never_here
            if not answer.is_success:
                raise HubUnavailable(
                    f"The hub answered {answer.status_code} to a request for a token."
                )
            made = answer.json()
            # The hub makes its administrators' accounts before they ever signed in.
            if not running.embedded and not _holds_forge_token(running, made["token"]):
                hub.delete(f"{tokens}/{made['id']}")
                raise never_here
    except httpx.HTTPError:
        raise HubUnavailable() from None
    token: str = made["token"]
    return token


def _holds_forge_token(running: RunningPlatform, token: str) -> bool:
    """Whether the service can ask the forge for the person of this hub token."""
    with httpx.Client(timeout=30, trust_env=False, mounts=loopback.mounts()) as client:
        answer = client.get(
            f"{running.hub_url}{SERVICE[1:]}projects", headers={"Authorization": f"Bearer {token}"}
        )
    return answer.status_code != 401
