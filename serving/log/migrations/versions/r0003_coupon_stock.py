"""Pieces of coupons, counted down by the servers"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "coupon_stock",
        sa.Column("coupon_id", sa.String(length=64), nullable=False),
        sa.Column("pieces", sa.BigInteger(), nullable=True),
        sa.Column("given", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("given >= 0", name=op.f("ck_coupon_stock_given")),
        sa.PrimaryKeyConstraint("coupon_id", name=op.f("pk_coupon_stock")),
    )


def downgrade() -> None:
    op.drop_table("coupon_stock")
