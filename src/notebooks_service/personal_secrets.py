"""Personal secrets: what one may be called and hold, and where servers find it; pure.

The service keeps them (``web/secret_store.py``) and gives them to servers that start (``gateway/secret_files.py``).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from notebooks_service.errors import InvalidRequest, NotebooksError

PLACE = "/run/secrets"
"""Where a server has them, unless nothing walls it off from this machine."""
VARIABLE = "NOTEBOOKS_SECRETS_DIR"
"""Names the directory to whatever runs in a server; never a value."""
NO_SECRETS = 81
"""The exit code of a server that did not start because they could not be fetched."""
LARGEST = 64 * 1024
"""Bytes of one value."""
MOST = 50
"""Secrets of one person."""
MOST_PROJECTS = 50
"""Projects that one secret is granted to."""
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z")


class TooManySecrets(NotebooksError):
    code = "too_many_secrets"
    status = 409
    message = (
        f"You have {MOST} secrets, as many as you may have. Delete one that you no longer need."
    )


def check_name(name: str) -> str:
    """The name. Raises ``InvalidRequest`` for what is no name of a file here."""
    if not _NAME.match(name):
        raise InvalidRequest(
            "A secret's name is that of its file: 1 to 64 of the letters a to z and A to Z, digits, `.`, `_`"
            " and `-`, without a dot at the beginning."
        )
    return name


def check_value(value: bytes) -> bytes:
    """The value. Raises ``InvalidRequest`` for an empty or too large one."""
    if not value:
        raise InvalidRequest("The value is empty. Write the secret into it, or delete the secret.")
    if len(value) > LARGEST:
        raise InvalidRequest(f"The value is larger than {LARGEST // 1024} KiB.")
    return value


def read_value(text: object, encoded: object) -> bytes | None:
    """The value in JSON, as text or in base64; None if there is neither. Raises ``InvalidRequest``."""
    if text is not None and encoded is not None:
        raise InvalidRequest("Give `value` or `value_base64`, not both.")
    if encoded is not None:
        if not isinstance(encoded, str):
            raise InvalidRequest("`value_base64` must be a string.")
        try:
            return check_value(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise InvalidRequest("`value_base64` is no base64.") from None
    if text is None:
        return None
    try:
        return check_value(text.encode()) if isinstance(text, str) else _no_text()
    except UnicodeEncodeError:
        return _no_text()


def read_form_value(text: str) -> bytes | None:
    """The value in a form's field; None if the field was left empty.

    Browsers send every end of a line as CR and LF; a key with those opens nothing.
    """
    return check_value(text.replace("\r\n", "\n").encode()) if text else None


def read_paths(asked: object) -> tuple[str, ...]:
    """Projects' full paths, from JSON, each once. Raises ``InvalidRequest``."""
    if not isinstance(asked, list) or any(not isinstance(each, str) for each in asked):
        raise InvalidRequest("`projects` must be a list of projects' full paths.")
    return _paths(asked)


def read_form_paths(text: str) -> tuple[str, ...]:
    """Projects' full paths, one on each line."""
    return _paths(text.splitlines())


def _paths(asked: Sequence[str]) -> tuple[str, ...]:
    paths = dict.fromkeys(path for each in asked if (path := each.strip().strip("/")))
    if len(paths) > MOST_PROJECTS:
        raise InvalidRequest(f"A secret is granted to at most {MOST_PROJECTS} projects.")
    return tuple(paths)


def _no_text() -> bytes:
    raise InvalidRequest("`value` must be text; what is none goes into `value_base64`.")
