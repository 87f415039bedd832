"""First tables"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A migration repeats the types that it means: those in tables.py will change, this will not.
Id = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "downloads",
        sa.Column("id", Id, nullable=False),
        sa.Column("request_id", sa.String(128), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("resolved_source", sa.Text(), nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("failure_reason", sa.Text(), nullable=False),
        sa.Column("failure_message", sa.Text(), nullable=False),
        sa.Column("create_time", Time, nullable=False),
        sa.Column("start_time", Time, nullable=True),
        sa.Column("end_time", Time, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_downloads"),
        sa.UniqueConstraint("request_id", name="uq_downloads_request_id"),
    )
    op.create_index("ix_downloads_state", "downloads", ["state"])
    op.create_table(
        "leases",
        sa.Column("id", Id, nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("artifact_id", Id, nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("manifest", sa.String(64), nullable=False),
        sa.Column("digests", sa.JSON(), nullable=False),
        sa.Column("expire_time", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
    )
    op.create_table(
        "kept_blobs",
        sa.Column("digest", sa.String(71), nullable=False),
        sa.Column("keeper", sa.String(64), nullable=False),
        sa.Column("expire_time", Time, nullable=False),
        sa.PrimaryKeyConstraint("digest", "keeper", name="pk_kept_blobs"),
    )


def downgrade() -> None:
    op.drop_table("kept_blobs")
    op.drop_table("leases")
    op.drop_index("ix_downloads_state", "downloads")
    op.drop_table("downloads")
