"""The database: migrations make what the models say, older data is kept, newer refused."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select

from forge_fixtures import StartForge, make_repository, run_git
from notebooks_service.errors import PlatformFailed
from notebooks_service.forge import (
    ci_models,
    lfs_models,
    models,
    project_models,
    web_hook_models,
)
from notebooks_service.forge.administration import Administration
from notebooks_service.forge.database import Base, Database
from small_disk import SmallDisk, fill


def test_the_migrations_make_the_models(tmp_path: Path) -> None:
    assert ci_models.Pipeline.__table__.metadata is Base.metadata
    assert lfs_models.LfsObject.__table__.metadata is Base.metadata
    assert web_hook_models.WebHook.__table__.metadata is Base.metadata
    assert project_models.ProtectedRef.__table__.metadata is Base.metadata
    Database(tmp_path / "forge.sqlite").close()
    engine = create_engine(f"sqlite:///{tmp_path / 'forge.sqlite'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_newer_data_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "forge.sqlite"
    Database(file).close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = file.read_bytes()
    with pytest.raises(PlatformFailed, match="newer version"):
        Database(file)
    assert file.read_bytes() == before


def test_older_data_is_backed_up_and_migrated(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    from notebooks_service.forge.database import MIGRATIONS

    file = tmp_path / "forge.sqlite"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database"] = file
    command.upgrade(config, "0001")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "INSERT INTO users (username, name, email, admin, state, created_at) "
            "VALUES ('ada', 'Ada', 'a@b', 0, 'active', '2026-01-01 00:00:00')"
        )
    database = Database(file)
    with database.read() as session:
        assert session.scalars(select(models.User.username)).all() == ["ada"]
    database.close()
    [backup] = tmp_path.glob("forge.sqlite.backup-0001-*")
    with closing(sqlite3.connect(backup)) as connection:
        assert connection.execute("SELECT username FROM users").fetchall() == [("ada",)]
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert ("ci_jobs",) not in tables


def test_what_0005_does_with_older_data(tmp_path: Path) -> None:
    """Default branches stay protected, variables keep what they say."""
    from alembic import command
    from alembic.config import Config

    from notebooks_service.forge.database import MIGRATIONS

    file = tmp_path / "forge.sqlite"
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database"] = file
    command.upgrade(config, "0004")
    moment = "2026-01-01 00:00:00"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript(
            f"""
            INSERT INTO namespaces (id, kind, path, full_path, name, description, visibility,
              created_at) VALUES (7, 'group', 'g', 'g', 'G', '', 'public', '{moment}');
            INSERT INTO projects (id, namespace_id, path, full_path, name, description, visibility,
              default_branch, created_at, updated_at, last_activity_at)
              VALUES (3, 7, 'p', 'g/p', 'P', '', 'private', 'trunk', '{moment}', '{moment}',
              '{moment}');
            INSERT INTO ci_variables (id, project_id, key, value, variable_type, protected, masked,
              raw) VALUES (5, 3, 'A', 'old', 'file', 1, 0, 1);
            """
        )
    database = Database(file)
    with database.write() as session:
        [branch] = session.scalars(select(project_models.ProtectedRef)).all()
        assert (branch.project_id, branch.kind, branch.name) == (3, "heads", "trunk")
        assert (branch.push_level, branch.merge_level, branch.allow_force_push) == (40, 40, False)
        [old] = session.scalars(select(ci_models.Variable)).all()
        assert (old.id, old.key, old.value, old.protected, old.raw) == (5, "A", "old", True, True)
        assert (old.environment_scope, old.hidden, old.variable_type) == ("*", False, "file")
        session.add(ci_models.Variable(project_id=3, key="A", value="n", environment_scope="prod"))
        session.flush()
        project = session.get_one(models.Project, 3)
        assert project.keep_latest_artifact and project.job_token_scope_enabled
        project.namespace_id = 7
    database.close()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "forge.sqlite"
    file.write_text("this is text" * 100)
    with pytest.raises(PlatformFailed, match="cannot be read"):
        Database(file)


def test_many_writers_wait_for_each_other(tmp_path: Path) -> None:
    administrations = [Administration(tmp_path) for _ in range(4)]

    def write(number: int) -> None:
        for count in range(5):
            administrations[number].add_user(f"user-{number}-{count}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with administrations[0].database.read() as session:
        assert len(session.scalars(select(models.User)).all()) == 20
    for one in administrations:
        one.close()


def test_ids_are_never_used_twice(tmp_path: Path) -> None:
    from forge_fixtures import make_repository
    from notebooks_service.forge import namespaces

    administration = Administration(tmp_path / "data")
    administration.ensure_owner("ada", "Ada", "a@b")
    make_repository(tmp_path / "thing")
    first = administration.import_repository(tmp_path / "thing", None, "private", "ada")
    with administration.database.write() as session:
        project = session.get_one(models.Project, first.project_id)
        namespaces.delete_project(session, administration.config, project)
    assert not administration.config.repository(first.project_id).exists()
    second = administration.import_repository(tmp_path / "thing", None, "private", "ada")
    assert second.path == first.path and second.project_id > first.project_id
    administration.close()


def test_secrets_of_the_forge_are_private(tmp_path: Path) -> None:
    administration = Administration(tmp_path / "data")
    token = administration.runner_token()
    assert token.startswith("glrt-") and administration.runner_token() == token
    file = administration.config.secrets / "forge-runner-token"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert administration.config.root.stat().st_mode & 0o777 == 0o700
    administration.close()


def test_a_disk_that_is_full(
    start_forge: StartForge, small_disk: SmallDisk, tmp_path: Path
) -> None:
    """Reading goes on; every write is refused with one sentence, changes nothing, and succeeds later."""
    forge = start_forge(data=small_disk(tmp_path / "disk", "24m"))
    person = forge.user()
    make_repository(tmp_path / "source", {"README.md": "# Thing\n"})
    number = forge.project(tmp_path / "source", f"{person}/thing", person)
    url = forge.git_url(f"{person}/thing", person, forge.token(person))
    run_git("clone", "--quiet", url, str(tmp_path / "clone"))
    (tmp_path / "clone" / "data").write_bytes(os.urandom(500_000))
    run_git("add", ".", cwd=tmp_path / "clone")
    run_git("commit", "--quiet", "-m", "More", cwd=tmp_path / "clone")
    api = httpx.Client(
        base_url=f"{forge.url}/api/v4/projects/{number}",
        headers={"PRIVATE-TOKEN": forge.token(person)},
        trust_env=False,
        timeout=30,
    )
    branches = [each["name"] for each in api.get("/repository/branches").json()]
    filler = fill(tmp_path / "disk")
    assert api.get("").status_code == 200
    for answer in (
        api.put("", json={"description": "new " * 2000}),
        api.post("/variables", json={"key": "LONG", "value": "x" * 9000}),
    ):
        assert answer.status_code == 507, answer.text
        assert "disk is full" in answer.json()["message"].lower(), answer.text
    said = run_git("push", "origin", "HEAD:refs/heads/new", cwd=tmp_path / "clone", check=False)
    assert "remote: The disk is full. Free some space" in said, said
    assert list((forge.data / "forge" / "pushes").iterdir()) == []
    assert [each["name"] for each in api.get("/repository/branches").json()] == branches
    assert api.get("").json()["description"] in ("", None)
    filler.unlink()
    assert api.get("/variables").json() == []
    assert api.put("", json={"description": "new"}).json()["description"] == "new"
    run_git("push", "--quiet", "origin", "HEAD:refs/heads/new", cwd=tmp_path / "clone")
    assert len(api.get("/repository/branches").json()) == len(branches) + 1
    api.close()
