"""Alembic's entry: runs the forge's migrations on the file that ``database.migrate`` gives."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from notebooks_service.forge.database import Base

engine = create_engine(
    f"sqlite+pysqlite:///{context.config.attributes['database']}", poolclass=NullPool
)
with engine.begin() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
