"""One hierarchy of errors: a code, an HTTP status, a sentence that tells a person what to do.

Raised where they are known; turned into HTTP in ``web/errors.py`` (and ``forge/errors.py`` for the
forge's own API), into a launch's refusal in ``spawner/launch.py``, into CLI text in ``cli.py``.
"""

from __future__ import annotations

from typing import Any


class NotebooksError(Exception):
    """What went wrong, for a person (``message``), for a program (``code``) and for HTTP (``status``).

    ``detail`` is shown too and must never hold a secret.
    """

    code = "internal"
    status = 500
    message = "Something went wrong in the notebooks service; the log of this launch says more."

    def __init__(self, message: str | None = None, **detail: Any) -> None:
        self.message = message or type(self).message
        self.detail = detail
        super().__init__(self.message)


class NotFound(NotebooksError):
    """Hidden and missing are the same answer, whoever asks."""

    code = "not_found"
    status = 404
    message = "There is nothing here, or nothing that you may see. Check the address, or sign in as somebody who may."


class NotSignedIn(NotebooksError):
    code = "not_signed_in"
    status = 401
    message = "Sign in first: open the notebooks page in a browser, or send a hub token."


class SignInExpired(NotSignedIn):
    """The forge no longer accepts this person's token, and it cannot be refreshed."""

    code = "sign_in_expired"
    message = "Your sign-in at the forge has expired or was revoked. Sign out of the hub and in again, then retry."


class Forbidden(NotebooksError):
    code = "forbidden"
    status = 403
    message = "You may see this, but not do it."


class InvalidRequest(NotebooksError):
    code = "invalid_request"
    status = 422
    message = "The request is not one that we understand."


class Conflict(NotebooksError):
    code = "conflict"
    status = 409
    message = "That cannot be done in the server's present state; reload and try again."


class ForgeUnavailable(NotebooksError):
    code = "forge_unavailable"
    status = 503
    message = "The forge does not answer at the moment. Nothing is lost; try again in a minute."


class HubUnavailable(NotebooksError):
    code = "hub_unavailable"
    status = 503
    message = "The hub does not answer at the moment. Nothing is lost; try again in a minute."


class RegistryUnavailable(NotebooksError):
    code = "registry_unavailable"
    status = 503
    message = "The registry of images does not answer at the moment. Nothing is lost; try again in a minute."


class ImageUnavailable(NotebooksError):
    code = "image_unavailable"
    status = 422
    message = "The image asked for does not exist or you may not read it."


class RegistryLoginRefused(NotebooksError):
    """The forge's token service did not take the login that the settings say."""

    code = "registry_login_refused"
    status = 502
    message = (
        "The forge's registry did not take the login with which this image would be pulled. Sign out and "
        "in again; if it stays so, whoever runs this service has to look at the setting `registry_login`."
    )


class BuildFailed(NotebooksError):
    code = "build_failed"
    status = 422
    message = "The environment could not be built; its log says why."


class CloneFailed(NotebooksError):
    code = "clone_failed"
    status = 502
    message = "The repository could not be cloned; nothing of yours was changed."


class StartFailed(NotebooksError):
    code = "start_failed"
    status = 502
    message = "The server's process ended before it answered; its log says why."


class EngineUnavailable(NotebooksError):
    code = "engine_unavailable"
    status = 503
    message = "The Docker engine does not answer, so no server can be started or looked at. Try again in a minute; if it stays so, tell whoever runs this service."


class EngineRefused(NotebooksError):
    code = "engine_refused"
    status = 502
    message = "The Docker engine refused what was asked of it; the hub's log has its words. Tell whoever runs this service."


class LaunchRefused(NotebooksError):
    """The spawner says no: the request is not one that the service would have made."""

    code = "launch_refused"
    status = 403
    message = "This launch was refused."


class Cancelled(NotebooksError):
    code = "cancelled"
    status = 409
    message = "The launch was cancelled."


class NoSpace(NotebooksError):
    code = "no_space"
    status = 507
    message = "The disk is full. Free some space, then try again; nothing that was saved is lost."


class NoMemory(NotebooksError):
    code = "no_memory"
    status = 503
    message = (
        "This machine has no memory left for another server. Stop one that you do not need, or try again "
        "when less runs here; nothing is lost."
    )


class NoGpu(NotebooksError):
    code = "no_gpu"
    status = 503
    message = "All GPUs of this machine are in use. Try again when another server has stopped."


class BuildsWait(NotebooksError):
    """No build begins at present; the sentence says why."""

    code = "builds_wait"
    status = 503


class SettingsInvalid(NotebooksError):
    """The message names the key that is wrong."""

    code = "settings_invalid"
    status = 500


class PlatformFailed(NotebooksError):
    """``notebooks up`` and its sisters cannot go on; the sentence says what to do."""

    code = "platform_failed"
    status = 500
