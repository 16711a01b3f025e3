"""Audience jobs: who works on one, the moment it decides as of, one of a campaign at a time"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None

_UNFINISHED = sa.text("state IN ('queued', 'running', 'committing')")


def upgrade() -> None:
    # Added without rebuilding the table; the release before writes no jobs and needs none of it.
    op.add_column("jobs", sa.Column("owner", sa.String(length=64), nullable=True))
    op.add_column("jobs", sa.Column("decided_at", sa.BigInteger(), nullable=True))
    op.create_index(
        "uq_jobs_unfinished",
        "jobs",
        ["campaign_id"],
        unique=True,
        sqlite_where=_UNFINISHED,
        postgresql_where=_UNFINISHED,
    )


def downgrade() -> None:
    op.drop_index("uq_jobs_unfinished", "jobs")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_column("decided_at")
        batch_op.drop_column("owner")
