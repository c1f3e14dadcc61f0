"""The forge's tables for large files (Git LFS): objects, which project has which, and locks."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from notebooks_service.forge.database import Base, UtcDateTime, now
from notebooks_service.forge.models import User


class LfsObject(Base):
    """An object that the store has. ``oid`` is its SHA-256; ``size`` is in bytes.

    ``touched_at`` is the last time that somebody began to send it: an object that no project has
    is removed only some time after that.
    """

    __tablename__ = "lfs_objects"

    oid: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int]
    touched_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)


class LfsLink(Base):
    """A project has an object. Nobody reads an object but through a project that has it."""

    __tablename__ = "lfs_links"

    project_id: Mapped[int] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    oid: Mapped[str] = mapped_column(ForeignKey("lfs_objects.oid"), primary_key=True, index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class LfsLock(Base):
    """A person has locked a file of a project against changes by others."""

    __tablename__ = "lfs_locks"
    __table_args__ = (UniqueConstraint("project_id", "path"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    path: Mapped[str]
    locked_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    user: Mapped[User] = relationship(lazy="joined")
