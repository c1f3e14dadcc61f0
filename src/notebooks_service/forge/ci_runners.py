"""Runners and what they may take; called by ``routes_runner`` and ``administration``."""

from __future__ import annotations

import os
import secrets as random
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge.ci_models import Job, Runner
from notebooks_service.forge.credentials import REGISTRATION_TOKEN, new_token, token_hash
from notebooks_service.forge.database import now

BUILTIN = "Built-in runner"
ONLINE = timedelta(hours=2)
STALE = timedelta(days=7)
"""As GitLab counts, since a runner was last heard of."""
LOOKED_AT = 1000
"""Jobs whose tags count as those of the runner that takes all."""


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


def contact(runner: Runner) -> str:
    """``online``, ``offline``, ``stale`` or ``never_contacted``, by when it was last heard of.

    https://docs.gitlab.com/ci/runners/runners_scope/#runner-statuses
    """
    moment = now()
    if (runner.contacted_at or runner.created_at) < moment - STALE:
        return "stale"
    if runner.contacted_at is None:
        return "never_contacted"
    return "online" if runner.contacted_at > moment - ONLINE else "offline"


def tags_of(session: Session, runner: Runner) -> list[str]:
    """The tags that a runner takes. Ours takes all: those that the newest jobs have."""
    if not runner.takes_all:
        return list(runner.tags)
    newest = select(Job.tags).order_by(Job.id.desc()).limit(LOOKED_AT)
    return sorted({tag for tags in session.scalars(newest) for tag in tags})


def matches(runner: Runner, tags: Collection[str]) -> bool:
    """Whether this runner takes a job with these tags.

    https://docs.gitlab.com/ci/runners/configure_runners/#control-jobs-that-a-runner-can-run
    """
    if runner.takes_all:
        return True
    return set(tags) <= set(runner.tags) and (bool(tags) or runner.run_untagged)


def registration_token(secrets: Path) -> str:
    """The token by which foreign runners register; made at first need, kept in ``secrets/``."""
    file = secrets / REGISTRATION_TOKEN
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
