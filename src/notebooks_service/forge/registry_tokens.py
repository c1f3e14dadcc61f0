"""Tokens for a container registry: who may do what with which repository of images, signed.

Docker's token protocol (https://distribution.github.io/distribution/spec/auth/token/) with GitLab's
rules. ``routes_registry_token`` answers with them; a registry that trusts ``certificates`` (or the keys
in ``key_set``) believes them.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from notebooks_service.forge import access, tag_rules
from notebooks_service.forge.authentication import Asker
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.database import now
from notebooks_service.forge.models import Project
from notebooks_service.forge.permissions import Can
from notebooks_service.forge.signing import SigningKeys

SERVICE = "container_registry"
ISSUER = "notebooks-forge"
LIFETIME = 300
"""Seconds, as GitLab's ``container_registry_token_expire_delay``."""

MOST_SCOPES = 50
_PATH = re.compile(
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*\Z"
)
MOST_PATH = 255

_LOGIN_SCOPES = ("api", "read_registry", "write_registry")


def signing_keys(config: ForgeConfig) -> SigningKeys:
    """The keys of registry tokens."""
    return SigningKeys(config.secrets / "forge-registry-keys")


def certificates(config: ForgeConfig) -> Path:
    """The registry's ``auth.token.rootcertbundle``."""
    return config.root / "registry" / "token-certificates.pem"


def key_set(config: ForgeConfig) -> Path:
    """The registry's ``auth.token.jwks`` (distribution 3)."""
    return config.root / "registry" / "token-keys.json"


def write_files(config: ForgeConfig) -> None:
    """Both files for the keys that there are now; called when the forge starts."""
    keys = signing_keys(config).all()
    path = certificates(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = {key_set(config): json.dumps({"keys": [{**k.jwk, "kid": k.libtrust} for k in keys]})}
    known = path.with_name("token-certificates.of")
    names = "\n".join(key.libtrust for key in keys)
    if not path.exists() or not known.exists() or known.read_text() != names:
        # A certificate has the time of its making in it: made once for each set of keys.
        wanted[path] = b"".join(key.certificate(ISSUER) for key in keys).decode()
        wanted[known] = names
    for file, content in wanted.items():
        half = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
        half.write_text(content)
        half.replace(file)


def may_log_in(asker: Asker) -> bool:
    """Whether this login may have tokens at all: a token needs a scope that concerns the registry."""
    return asker.kind in ("nobody", "job", "password") or asker.has_scope(*_LOGIN_SCOPES)


def granted(session: Session, asker: Asker, scopes: Iterable[str]) -> list[dict[str, Any]]:
    """The ``access`` claim: of what was asked, what this login may. Hidden is as missing: nothing."""
    found: list[dict[str, Any]] = []
    for scope in [word for value in scopes for word in value.split()][:MOST_SCOPES]:
        kind, _, rest = scope.partition(":")
        name, _, words = rest.rpartition(":")
        actions = list(dict.fromkeys(word for word in words.split(",") if word))
        if kind == "registry":
            if asker.admin and asker.has_scope("api") and (name, actions) == ("catalog", ["*"]):
                found.append({"type": kind, "name": name, "actions": actions})
            continue
        if kind != "repository" or not is_repository(name):
            continue
        project = project_of(session, name)
        if project is None:
            continue
        allowed = _allowed(session, asker, project)
        if left := [action for action in actions if action in allowed]:
            found.append(
                {
                    "type": kind,
                    "name": name,
                    "actions": left,
                    "meta": {
                        "project_path": project.full_path.lower(),
                        "project_id": project.id,
                        "root_namespace_id": access.ancestors(session, project.namespace)[-1].id,
                        **_denied_tags(session, asker, project, left),
                    },
                }
            )
    return found


def _denied_tags(
    session: Session, asker: Asker, project: Project, actions: list[str]
) -> dict[str, Any]:
    """What protected tags close to this login, for GitLab's registry; others do not read it."""
    if not tag_rules.rows(session, project.id):
        return {}
    found = access.project_access(session, asker, project)
    known: tuple[tag_rules.Action, ...] = ("push", "delete")
    asked = [one for one in known if one in actions or "*" in actions]
    denied = {one: tag_rules.denied(session, found, one) for one in asked}
    return {"tag_deny_access_patterns": denied} if denied else {}


def project_of(session: Session, name: str) -> Project | None:
    """The project whose repository of images this is: its path, or the start of it."""
    parts = name.split("/")
    for length in range(len(parts), 1, -1):
        project = access.project_by_path(session, "/".join(parts[:length]))
        if project is not None:
            return project
    return None


def _allowed(session: Session, asker: Asker, project: Project) -> set[str]:
    can = access.project_access(session, asker, project).can
    job = asker.kind == "job"
    everything = job or asker.kind == "password" or asker.has_scope("api")
    allowed = set()
    public = (
        Can.READ_REGISTRY
        in access.project_access(session, Asker(None, frozenset(), "nobody"), project).can
    )
    if Can.READ_REGISTRY in can and (everything or public or asker.has_scope("read_registry")):
        allowed.add("pull")
    # A job pushes to its own project only.
    own = not job or asker.project_id == project.id
    if Can.CHANGE_REGISTRY in can and own and (everything or asker.has_scope("write_registry")):
        allowed.add("push")
        if job:
            allowed.add("delete")
    if Can.EDIT_PROJECT in can and everything:
        allowed |= {"delete", "*"}
    return allowed


def token(
    config: ForgeConfig, asker: Asker, service: str, granted: list[dict[str, Any]]
) -> dict[str, Any]:
    """The answer of the token endpoint."""
    moment = now()
    return {
        "token": _signed(
            config, asker.user.username if asker.user else "", service, granted, moment
        ),
        "expires_in": LIFETIME,
        "issued_at": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def own_token(config: ForgeConfig, scope: str) -> tuple[str, float]:
    """A token for the forge itself, and its seconds: ``scope`` is one repository and what for."""
    name, _, actions = scope.removeprefix("repository:").rpartition(":")
    if not is_repository(name):
        raise ValueError(f"{scope} is no scope of a repository")
    granted = [{"type": "repository", "name": name, "actions": actions.split(",")}]
    return _signed(config, ISSUER, SERVICE, granted, now()), LIFETIME


def is_repository(name: str) -> bool:
    """Whether a registry takes this as a repository's name."""
    return len(name) <= MOST_PATH and _PATH.match(name) is not None


def _signed(
    config: ForgeConfig,
    subject: str,
    service: str,
    granted: list[dict[str, Any]],
    moment: datetime,
) -> str:
    issued = int(moment.timestamp())
    key = signing_keys(config).newest()
    claims = {
        "iss": ISSUER,
        "sub": subject,
        "aud": service,
        "exp": issued + LIFETIME,
        # Another machine's clock may be a little behind.
        "nbf": issued - 5,
        "iat": issued,
        "jti": str(uuid.uuid4()),
        "access": granted,
    }
    return key.sign(claims, kid=key.libtrust)
