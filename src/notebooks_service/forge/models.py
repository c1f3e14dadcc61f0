"""The forge's core tables: people, tokens, OAuth, namespaces, projects, members.

Tables of pipelines and jobs are in ``ci_models.py``. Ids are never used twice (AUTOINCREMENT):
a server is named by its project's id.
"""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from notebooks_service.forge.database import Base, UtcDateTime, now

NO_CASE = String(collation="NOCASE")


class User(Base):
    """A person. ``state`` is ``active`` or ``blocked``."""

    __tablename__ = "users"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(NO_CASE, unique=True)
    name: Mapped[str]
    email: Mapped[str] = mapped_column(NO_CASE, unique=True)
    password_hash: Mapped[str | None]
    admin: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str] = mapped_column(default="active")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class PersonalToken(Base):
    """A personal access token; only its hash is kept. ``scopes`` are separated by spaces."""

    __tablename__ = "personal_tokens"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str]
    description: Mapped[str | None]
    scopes: Mapped[str]
    token_hash: Mapped[str] = mapped_column(unique=True)
    revoked: Mapped[bool] = mapped_column(default=False)
    expires_at: Mapped[date | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    user: Mapped[User] = relationship(lazy="joined")


class OAuthApplication(Base):
    """A client of the forge's OAuth. A trusted one asks people nothing."""

    __tablename__ = "oauth_applications"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(unique=True)
    secret_hash: Mapped[str | None]
    name: Mapped[str]
    redirect_uris: Mapped[str]
    scopes: Mapped[str]
    trusted: Mapped[bool] = mapped_column(default=False)
    confidential: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class OAuthGrant(Base):
    """An authorization code: used once, within minutes; ``used_at`` is kept to see a second use.

    ``nonce`` and ``signed_in_at`` are what OpenID Connect's ID token repeats.
    """

    __tablename__ = "oauth_grants"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    application_id: Mapped[int] = mapped_column(
        ForeignKey("oauth_applications.id", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    code_hash: Mapped[str] = mapped_column(unique=True)
    redirect_uri: Mapped[str]
    scopes: Mapped[str]
    code_challenge: Mapped[str | None]
    code_challenge_method: Mapped[str | None]
    nonce: Mapped[str | None]
    signed_in_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    user: Mapped[User] = relationship(lazy="joined")
    application: Mapped[OAuthApplication] = relationship(lazy="joined")


class OAuthToken(Base):
    """A pair of access and refresh token. Refreshing or revoking ends both."""

    __tablename__ = "oauth_tokens"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    application_id: Mapped[int] = mapped_column(
        ForeignKey("oauth_applications.id", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    grant_id: Mapped[int | None] = mapped_column(
        ForeignKey("oauth_grants.id", ondelete="SET NULL"), index=True
    )
    access_hash: Mapped[str] = mapped_column(unique=True)
    refresh_hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    user: Mapped[User] = relationship(lazy="joined")
    application: Mapped[OAuthApplication] = relationship(lazy="joined")


class BrowserSession(Base):
    """A signed-in browser; the cookie's hash."""

    __tablename__ = "browser_sessions"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    cookie_hash: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)

    user: Mapped[User] = relationship(lazy="joined")


class SignInLink(Base):
    """A link that signs its user in, once, within minutes, and sends them on to ``target``."""

    __tablename__ = "sign_in_links"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    code_hash: Mapped[str] = mapped_column(unique=True)
    target: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Namespace(Base):
    """Where a project lies: a person's own namespace (``user``) or a ``group``, nested to any depth.

    ``full_path`` is unique whatever the case. A ``user`` namespace's ``owner_id`` is that person.
    """

    __tablename__ = "namespaces"
    __table_args__ = (
        CheckConstraint("kind IN ('user', 'group')", name="kind"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    path: Mapped[str]
    full_path: Mapped[str] = mapped_column(NO_CASE, unique=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(default="")
    visibility: Mapped[str] = mapped_column(default="private")
    parent_id: Mapped[int | None] = mapped_column(
        ForeignKey("namespaces.id", ondelete="CASCADE"), index=True
    )
    owner_id: Mapped[int | None] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), index=True
    )
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    parent: Mapped[Namespace | None] = relationship(remote_side="Namespace.id")


class Project(Base):
    """A project; its repository is ``repositories/<id>.git``.

    ``default_branch`` is what the repository's HEAD names, also while that branch is unborn.
    ``import_source`` is where ``administration.import_repository`` took it from.
    ``job_token_scope_enabled``: jobs of other projects come in only if they are named.
    """

    __tablename__ = "projects"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    namespace_id: Mapped[int] = mapped_column(
        ForeignKey("namespaces.id", ondelete="CASCADE"), index=True
    )
    creator_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    path: Mapped[str]
    full_path: Mapped[str] = mapped_column(NO_CASE, unique=True)
    name: Mapped[str]
    description: Mapped[str] = mapped_column(default="")
    visibility: Mapped[str] = mapped_column(default="private")
    default_branch: Mapped[str] = mapped_column(default="main")
    import_source: Mapped[str | None]
    keep_latest_artifact: Mapped[bool] = mapped_column(default=True)
    job_token_scope_enabled: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_activity_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)

    namespace: Mapped[Namespace] = relationship(lazy="joined")


class Member(Base):
    """What a person may do in one project or one group, and in all that lies in that group."""

    __tablename__ = "members"
    __table_args__ = (
        UniqueConstraint("user_id", "namespace_id"),
        UniqueConstraint("user_id", "project_id", name="uq_members_user_id_project"),
        CheckConstraint("(namespace_id IS NULL) <> (project_id IS NULL)", name="one_source"),
        Index("ix_members_namespace_id", "namespace_id"),
        Index("ix_members_project_id", "project_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    namespace_id: Mapped[int | None] = mapped_column(
        ForeignKey("namespaces.id", ondelete="CASCADE")
    )
    project_id: Mapped[int | None] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    access_level: Mapped[int]
    expires_at: Mapped[date | None]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    user: Mapped[User] = relationship(lazy="joined")
