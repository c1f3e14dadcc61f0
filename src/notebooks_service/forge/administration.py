"""Direct administration of the embedded forge, also while it runs: people, members, imports, tokens.

Called by ``notebooks up`` and ``notebooks forge …``. It opens the database itself (SQLite in WAL
mode allows that) and needs no HTTP.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.domain import AccessLevel
from notebooks_service.errors import Conflict, InvalidRequest, NotFound
from notebooks_service.forge import (
    access,
    deploy_tokens,
    errors,
    importing,
    lfs_import,
    namespaces,
    openid,
    paths,
    protection,
    registry_tokens,
    repositories,
)
from notebooks_service.forge.authentication import API_SCOPES
from notebooks_service.forge.config import ForgeConfig
from notebooks_service.forge.credentials import (
    KNOWN_BROWSERS,
    REGISTRATION_TOKEN,
    RUNNER_TOKEN,
    new_password,
    new_token,
    password_hash,
    token_hash,
)
from notebooks_service.forge.database import Database, now
from notebooks_service.forge.lfs_store import StoreOptions, open_store
from notebooks_service.forge.models import (
    Member,
    Namespace,
    OAuthApplication,
    PersonalToken,
    Project,
    SignInLink,
    User,
)

LOGIN_SCOPES = ("openid", "profile", "email")


class Administration:
    """What the owner of the machine may do. ``data`` is ``settings.data``; the database is made or
    migrated when this is made. ``large_files`` says where an import takes those to.
    Errors are ``NotebooksError`` with a sentence."""

    def __init__(self, data: Path, large_files: StoreOptions | None = None) -> None:
        # Nothing that is stored here holds an address of the forge, so any will do.
        self.config = ForgeConfig(data, "http://127.0.0.1", lfs=large_files or StoreOptions())
        self.config.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.database = Database(self.config.database)

    def close(self) -> None:
        self.database.close()

    def ensure_owner(self, username: str, name: str, email: str) -> None:
        """The person whose machine this is: an administrator without a password, who signs in by
        link. An existing user of that name is made administrator and keeps everything else."""
        with self.database.write() as session:
            user = namespaces.find_user(session, username)
            if user is not None:
                user.admin = True
                user.state = "active"
                return
            with _InWords():
                namespaces.create_user(
                    session, username, name, email, password_hash=None, admin=True
                )

    def add_user(self, username: str, name: str | None = None, email: str | None = None) -> str:
        """A new person; returns the password made for them, which is stored nowhere.

        Raises ``Conflict`` if the name is taken.
        """
        password = new_password()
        with self.database.write() as session, _InWords():
            namespaces.create_user(
                session,
                username,
                name or username,
                email or f"{username}@localhost",
                password_hash=password_hash(password),
            )
        return password

    def rotate_keys(self) -> None:
        """New keys for ID tokens and registry tokens; those before them are still believed.

        Also while the forge runs; a registry has to be started again to know the new one.
        """
        openid.signing_keys(self.config).rotate()
        registry_tokens.signing_keys(self.config).rotate()
        registry_tokens.write_files(self.config)

    def rotate_stored_keys(self) -> None:
        """New keys for all else in ``secrets/`` that is the forge's; nothing may run on it meanwhile.

        Who is signed in stays so, and who is registered. The salt of ID tokens' old-style subjects
        stays: another would make everybody somebody else.
        """
        self.rotate_keys()
        deploy_tokens.rotate_key(self.database, self.config.secrets)
        for name in (RUNNER_TOKEN, REGISTRATION_TOKEN, KNOWN_BROWSERS):
            (self.config.secrets / name).unlink(missing_ok=True)
        self.runner_token()

    def set_password(self, username: str) -> str:
        """A new password for a person; returns it."""
        password = new_password()
        with self.database.write() as session:
            _user(session, username).password_hash = password_hash(password)
        return password

    def add_member(self, project_or_group: str, username: str, level: str) -> None:
        """Give a person a level (``guest`` … ``owner``) in a project or group; replaces their level there."""
        if level not in set(AccessLevel) - {AccessLevel.NONE}:
            raise InvalidRequest(
                f"There is no level `{level}`; take guest, reporter, developer, maintainer or owner."
            )
        number = AccessLevel(level).number
        with self.database.write() as session:
            user = _user(session, username)
            project = access.project_by_path(session, project_or_group)
            group = namespaces.find_namespace(session, project_or_group)
            if project is None and (group is None or group.kind != "group"):
                raise NotFound(f"There is no project or group {project_or_group} on this forge.")
            key = (
                {"project_id": project.id}
                if project is not None
                else {"namespace_id": group.id if group else None}
            )
            member = session.scalar(select(Member).filter_by(user_id=user.id, **key))
            if member is None:
                session.add(Member(user_id=user.id, access_level=number, **key))
            else:
                member.access_level = number
                member.expires_at = None

    def ensure_application(
        self,
        name: str,
        redirect_uri: str,
        scopes: Sequence[str],
        client_id: str,
        secret: str,
        trusted: bool,
    ) -> None:
        """Register an OAuth application, or bring the one of that ``client_id`` to these values.

        ``redirect_uri`` may hold several addresses, one a line. No secret makes a public client,
        which then has to use PKCE.
        """
        unknown = set(scopes) - {*API_SCOPES, *LOGIN_SCOPES}
        if unknown:
            raise InvalidRequest(f"The forge has no scope {', '.join(sorted(unknown))}.")
        for uri in redirect_uri.split():
            parts = urlsplit(uri)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.fragment:
                raise InvalidRequest(f"{uri} cannot be a redirect address.")
        with self.database.write() as session:
            application = session.scalar(
                select(OAuthApplication).where(OAuthApplication.client_id == client_id)
            )
            if application is None:
                application = OAuthApplication(client_id=client_id)
                session.add(application)
            application.name = name
            application.redirect_uris = "\n".join(redirect_uri.split())
            application.scopes = " ".join(scopes)
            application.secret_hash = token_hash(secret) if secret else None
            application.confidential = bool(secret)
            application.trusted = trusted

    def import_repository(
        self, source: Path | str, as_path: str | None, visibility: str, owner: str
    ) -> ImportResult:
        """Take in all branches and tags of a repository (directory or http(s) address).

        Without ``as_path`` the project is ``<owner>/<folder name>``; a second source with the same
        folder name gets a number. Groups in ``as_path`` are made. An import into an existing project
        fetches what is new and changes neither its visibility nor what people pushed to it. Starts
        no pipeline. Raises ``NotFound`` or ``InvalidRequest`` with a sentence.
        """
        found = importing.find_source(source)
        with self.database.write() as session, _InWords():
            user = _user(session, owner)
            project, new = self._project_for(session, user, found, as_path, visibility)
        repository = self.config.repository(project.id)
        was_empty = repositories.is_empty(repository)
        try:
            with FileLock(f"{repository}.import.lock"):
                changes = importing.fetch(repository, found)
                store = open_store(self.config.lfs, self.config.large_files)
                large = lfs_import.bring(
                    self.database, store, project.id, repository, found.location
                )
        except BaseException:
            if new:
                with self.database.write() as session:
                    namespaces.delete_project(
                        session, self.config, session.get_one(Project, project.id)
                    )
            raise
        with self.database.write() as session:
            project = session.get_one(Project, project.id)
            if new:
                branches = repositories.branch_names(repository)
                project.default_branch = importing.choose_default(branches, found.head)
                repositories.set_head(repository, project.default_branch)
            if was_empty and not repositories.is_empty(repository):
                protection.protect_default(session, project)
            if changes.created or changes.updated or changes.forced:
                project.last_activity_at = now()
        return ImportResult(
            project.id,
            project.full_path,
            project.default_branch,
            new,
            changes.created,
            changes.updated,
            changes.forced,
            changes.kept,
            large.brought,
            large.missing,
        )

    def _project_for(
        self,
        session: Session,
        user: User,
        source: importing.Source,
        as_path: str | None,
        visibility: str,
    ) -> tuple[Project, bool]:
        """The project that this import goes into, and whether it is new."""
        if as_path is None:
            parent = namespaces.user_namespace(session, user)
            known = session.scalar(
                select(Project).where(
                    Project.import_source == source.location, Project.namespace_id == parent.id
                )
            )
            if known is not None:
                return known, False
            base = paths.slug(source.name)
            if base in paths.RESERVED_PROJECTS:
                base = f"{base}-project"
            names = (base, *(f"{base}-{number}" for number in range(2, 1000)))
            path = next(
                name
                for name in names
                if access.project_by_path(session, f"{parent.full_path}/{name}") is None
            )
            name = source.name
        else:
            *above, path = as_path.strip("/").split("/")
            if not above:
                raise InvalidRequest(
                    f"`{as_path}` names no group: say `--as group/{as_path}` or `--as {user.username}/{as_path}`."
                )
            existing = access.project_by_path(session, as_path.strip("/"))
            if existing is not None:
                existing.import_source = source.location
                return existing, False
            parent = self._groups_for(session, user, above, visibility)
            name = path
        project = namespaces.create_project(
            session,
            self.config,
            user,
            parent,
            path,
            paths.display_name(name),
            visibility=visibility,
            default_branch=source.head or namespaces.DEFAULT_BRANCH,
        )
        project.import_source = source.location
        return project, True

    @staticmethod
    def _groups_for(session: Session, user: User, names: list[str], visibility: str) -> Namespace:
        parent: Namespace | None = None
        for depth in range(1, len(names) + 1):
            full_path = "/".join(names[:depth])
            found = namespaces.find_namespace(session, full_path)
            if found is None:
                found = namespaces.create_group(
                    session,
                    user,
                    names[depth - 1],
                    names[depth - 1],
                    parent=parent,
                    visibility=visibility,
                )
            parent = found
        if parent is None:
            raise AssertionError("a path has at least one group")
        return parent

    def sign_in_url(
        self, base_url: str, username: str, redirect_to: str, seconds: int = 300
    ) -> str:
        """An address that signs this person in, once, within ``seconds``, and goes on to ``redirect_to``.

        ``base_url`` is the forge's address as browsers open it.
        """
        code = new_token()
        moment = now()
        with self.database.write() as session:
            user = _user(session, username)
            session.add(
                SignInLink(
                    user_id=user.id,
                    code_hash=token_hash(code),
                    target=redirect_to,
                    expires_at=moment + timedelta(seconds=seconds),
                )
            )
        return f"{base_url.rstrip('/')}/-/sign_in/{code}"

    def personal_token(self, username: str, name: str, scopes: Sequence[str]) -> str:
        """A new personal access token without an end; it is shown here and never again."""
        unknown = set(scopes) - set(API_SCOPES)
        if unknown or not scopes:
            raise InvalidRequest(
                f"A personal token has scopes among {', '.join(API_SCOPES)}; not {', '.join(sorted(unknown)) or 'none'}."
            )
        token = new_token("glpat-")
        with self.database.write() as session:
            user = _user(session, username)
            session.add(
                PersonalToken(
                    user_id=user.id,
                    name=name,
                    scopes=" ".join(scopes),
                    token_hash=token_hash(token),
                )
            )
        return token

    def runner_token(self) -> str:
        """The authentication token of the built-in runner; made once, kept in ``secrets/``."""
        from notebooks_service.forge import ci_runners

        secrets = self.config.secrets
        secrets.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = secrets / RUNNER_TOKEN
        # The database's write lock also keeps two of us from making two tokens.
        with self.database.write() as session:
            token = file.read_text().strip() if file.exists() else ""
            if not token:
                token = new_token("glrt-")
                half = file.with_suffix(".new")
                descriptor = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "w") as stream:
                    stream.write(token + "\n")
                half.rename(file)
            ci_runners.ensure_builtin_runner(session, token)
        return token


@dataclass(frozen=True)
class ImportResult:
    """What an import did. ``path`` is the project's full path; refs are given by short name.

    ``kept`` are branches that were rewritten at the source and also pushed to here: ours stayed.
    ``large_files`` is how many were brought (Git LFS); ``large_files_missing`` are the oids of those
    that the source does not have either.
    """

    project_id: int
    path: str
    default_branch: str
    new: bool
    created: tuple[str, ...]
    updated: tuple[str, ...]
    forced: tuple[str, ...]
    kept: tuple[str, ...]
    large_files: int = 0
    large_files_missing: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What happened, for a person."""
        parts = [f"{self.path}: {'imported' if self.new else 'already here'}"]
        for words, names in (
            ("new", self.created),
            ("updated", self.updated),
            ("rewritten at the source and here", self.forced),
            ("kept as pushed here, although the source differs", self.kept),
        ):
            if names:
                shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
                parts.append(f"{words}: {shown}")
        if self.large_files:
            parts.append(f"large files (Git LFS): {self.large_files}")
        sentence = "; ".join(parts) + "."
        if missing := self.large_files_missing:
            shown = ", ".join(oid[:12] for oid in missing[:3]) + (" …" if missing[3:] else "")
            sentence += (
                f" {len(missing)} large files (Git LFS) are not in the source ({shown}): they will be"
                " missing here. `git lfs fetch --all` there, then import again."
            )
        return sentence


class _InWords:
    """Turns the API's bodies of ``namespaces`` into sentences for a person at a terminal."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, errors.ForgeError):
            return
        message = error.body.get("message", error.message)
        if isinstance(message, dict):
            message = "; ".join(
                f"{field} {', '.join(reasons)}" for field, reasons in message.items()
            )
        sentence = str(message).rstrip(".") + "."
        raise (Conflict if error.status == 409 else InvalidRequest)(
            sentence[0].upper() + sentence[1:]
        ) from None


def _user(session: Session, username: str) -> User:
    user = namespaces.find_user(session, username)
    if user is None:
        raise NotFound(f"There is no user {username} on this forge.")
    return user
