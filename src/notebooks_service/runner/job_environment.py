"""The environment of a job's script: what the forge gave, what the runner knows, nothing else. Pure
but for the files of file variables.

https://docs.gitlab.com/ci/variables/predefined_variables/
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_HANDED_ON = re.compile(
    r"(TZ|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|UV_\w+|(http|https|no|all)_proxy)\Z", re.IGNORECASE
)
"""Of the runner's own environment: how packages are reached from this machine."""
_WITHHELD = re.compile(
    r"UV_(PUBLISH\w*|INDEX_\w+_(USERNAME|PASSWORD)|\w*TOKEN\w*)\Z", re.IGNORECASE
)
"""What of that are credentials of the machine's owner: no job gets them."""


def handed_on() -> dict[str, str]:
    """What a job gets of the runner's own environment."""
    return {
        name: value
        for name, value in os.environ.items()
        if _HANDED_ON.match(name) and not _WITHHELD.match(name)
    }


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
VALUE_LIMIT = 120_000
"""Linux takes no single variable over 128 KiB."""


def entries(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The variables of a job as the forge sent them; later ones win."""
    sent = job.get("variables")
    if not isinstance(sent, list):
        return []
    return [item for item in sent if isinstance(item, dict) and isinstance(item.get("key"), str)]


def values(job: Mapping[str, Any]) -> dict[str, str]:
    return {item["key"]: str(item.get("value") or "") for item in entries(job)}


def secrets(job: Mapping[str, Any]) -> list[str]:
    """Everything that the log must not show."""
    found = [
        str(item["value"]) for item in entries(job) if item.get("masked") and item.get("value")
    ]
    found += [str(job.get("token") or "")]
    for credential in job.get("credentials") or []:
        if isinstance(credential, dict):
            found.append(str(credential.get("password") or ""))
    # Addresses of proxies and indexes may hold a password.
    found += [password for value in handed_on().values() if (password := _password(value))]
    # A value of several lines is shown line by line.
    lines = [line for secret in found for line in secret.splitlines() if len(line) >= 8]
    return [secret for secret in {*found, *lines} if len(secret) > 3]


def _password(address: str) -> str | None:
    try:
        return urlsplit(address).password
    except ValueError:
        return None


def build(
    job: Mapping[str, Any],
    *,
    project: Path,
    home: Path,
    temporary: Path,
    builds: Path,
    environments: Path,
    slot: int,
    files: Path,
    limits: Mapping[str, str],
) -> tuple[dict[str, str], list[str]]:
    """The environment, and sentences about what was left out of it.

    ``files`` is where the values of file variables are written, each 0600. ``limits`` are variables
    for builds of environments, which the project's own cannot change.
    """
    base = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), _path()]),
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "SHELL": "/bin/bash",
        "TERM": "dumb",
    }
    base |= handed_on()
    own = {
        "CI_PROJECT_DIR": str(project),
        "CI_BUILDS_DIR": str(builds),
        "CI_CONCURRENT_ID": str(slot),
        "CI_CONCURRENT_PROJECT_ID": str(slot),
        "CI_RUNNER_VERSION": version("notebooks-service"),
        "CI_RUNNER_EXECUTABLE_ARCH": f"{sys.platform}/{os.uname().machine}",
        "CI_DISPOSABLE_ENVIRONMENT": "false",
        "CI_JOB_STATUS": "running",
        "CI_SHARED_ENVIRONMENT": "true",
        "NOTEBOOKS_ENVIRONMENTS": str(environments),
        **limits,
    }
    notes: list[str] = []
    given: dict[str, str] = {}
    for item in entries(job):
        key, value = item["key"], str(item.get("value") or "")
        if not _NAME.match(key) or "\0" in value:
            notes.append(f"WARNING: the variable {key[:40]!r} cannot be set and is left out.")
            continue
        if item.get("file"):
            path = files / key
            path.unlink(missing_ok=True)
            path.touch(mode=0o600)
            path.write_text(value)
            value = str(path)
        elif not item.get("raw"):
            value = _with_own(value, own)
        if len(value.encode()) > VALUE_LIMIT:
            notes.append(f"WARNING: the variable {key} is too long and is left out.")
            continue
        given[key] = value
    return {**base, **given, **own}, notes


def _path() -> str:
    return os.environ.get("PATH", os.defpath)


def _with_own(value: str, own: Mapping[str, str]) -> str:
    """The forge expands what it knows; only a runner knows where the project lies."""
    return _REFERENCE.sub(lambda match: own.get(match[1] or match[2], match[0]), value)


def cache_of(caches: Path, project: int, job: Mapping[str, Any]) -> Path:
    """Where the builds of this project keep what they download.

    Those of protected refs have one of their own, as GitLab's caches do: whoever may push a branch
    has a whole job to write there what later builds take for downloaded. The forge says which it is
    beside the variables, because a job may set any variable.
    """
    protected = (job.get("git_info") or {}).get("protected") is True
    return caches / (f"{project}-protected" if protected else str(project))


def script_steps(job: Mapping[str, Any]) -> Sequence[tuple[str, list[str], float, bool]]:
    """The steps: name, commands, time-out in seconds, whether it also runs after a failure."""
    found = []
    for step in job.get("steps") or []:
        if isinstance(step, dict) and isinstance(step.get("script"), list):
            commands = [str(line) for line in step["script"]]
            timeout = step.get("timeout")
            seconds = (
                float(timeout) if isinstance(timeout, (int, float)) and timeout > 0 else 3600.0
            )
            found.append((str(step.get("name")), commands, seconds, step.get("when") == "always"))
    return found
