"""What checks for updates found"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

Id = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "updates",
        sa.Column("model_id", Id, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("verdict", sa.String(32), nullable=False),
        sa.Column("check_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("latest_source", sa.Text(), nullable=False),
        sa.Column("latest_version", sa.Text(), nullable=False),
        sa.Column("download_bytes", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("download", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_updates"),
    )


def downgrade() -> None:
    op.drop_table("updates")
