"""Deploy tokens that are handed to jobs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deploy_tokens", sa.Column("sealed", sa.String(), nullable=True))
