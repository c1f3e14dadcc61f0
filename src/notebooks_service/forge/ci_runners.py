"""Runners and what they may take; called by ``routes_runner`` and ``administration``."""

from __future__ import annotations

import os
import secrets as random
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge.ci_models import Runner
from notebooks_service.forge.credentials import new_token, token_hash

BUILTIN = "Built-in runner"


def ensure_builtin_runner(session: Session, token: str) -> None:
    """Our own runner knows itself by ``token``; it takes every job, whatever its tags."""
    hashed = token_hash(token)
    runner = session.scalar(select(Runner).where(Runner.takes_all))
    if runner is None:
        session.add(Runner(token_hash=hashed, description=BUILTIN, takes_all=True))
    else:
        runner.token_hash = hashed
    session.flush()


def find_runner(session: Session, token: str) -> Runner | None:
    return session.scalar(select(Runner).where(Runner.token_hash == token_hash(token)))


def create_runner(session: Session, **values: Any) -> tuple[Runner, str]:
    """A new runner and its authentication token, which is kept nowhere."""
    token = new_token("glrt-")
    runner = Runner(token_hash=token_hash(token), **values)
    session.add(runner)
    session.flush()
    return runner, token


def matches(runner: Runner, tags: Collection[str]) -> bool:
    """Whether this runner takes a job with these tags.

    https://docs.gitlab.com/ci/runners/configure_runners/#control-jobs-that-a-runner-can-run
    """
    if runner.takes_all:
        return True
    return set(tags) <= set(runner.tags) and (bool(tags) or runner.run_untagged)


def registration_token(secrets: Path) -> str:
    """The token by which foreign runners register; made at first need, kept in ``secrets/``."""
    file = secrets / "forge-runner-registration-token"
    if file.exists():
        return file.read_text().strip()
    secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
    half = file.with_name(f"{file.name}.{random.token_hex(4)}.new")
    descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(new_token("GR1348941") + "\n")
    try:
        os.link(half, file)
    except FileExistsError:
        pass  # Another process was first; its token holds.
    finally:
        half.unlink()
    return file.read_text().strip()
