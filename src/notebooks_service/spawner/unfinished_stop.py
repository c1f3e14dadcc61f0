"""Lets a server be started again whose stop the hub's own database broke off. ``LaunchMixin`` calls it.

JupyterHub marks a server as stopping and takes the mark away at the end of ``User.stop``. Where its
database cannot be written, because the disk is full, that end is never reached, and the server would be
stopping, in vain, until the hub is started again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import object_session


class UnfinishedStop:
    """``begun`` is called in the task that stops the server; what it left is undone when it ends."""

    def __init__(self, spawner: Any) -> None:
        self._spawner = spawner
        self._task: asyncio.Task[Any] | None = None

    def begun(self) -> None:
        """JupyterHub stops polling as the first thing of a stop, in the task that does all of it."""
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no loop: the hub is not running yet
            return
        if task is not None and task is not self._task:
            self._task = task
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if task is not self._task:
            return  # another task has it now
        self._task = None
        if not self._spawner._stop_pending:
            return
        self._spawner._stop_pending = False
        # Not one attribute of a row can be read before this.
        session = object_session(self._spawner.orm_spawner)
        if session is not None:
            try:
                session.rollback()
            except SQLAlchemyError as error:
                self._spawner.log.warning("Rolling back failed: %s", type(error).__name__)
        self._spawner.log.warning("The stop of server %s was broken off", self._spawner.name)
        # What the database still calls a running server is found to have ended, and stopped again.
        self._spawner.start_polling()
