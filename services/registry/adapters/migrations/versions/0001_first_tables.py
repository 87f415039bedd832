"""First tables"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# A migration repeats the types that it means: those in tables.py will change, this will not.
Id = sa.String(128).with_variant(sa.String(128, collation="C"), "postgresql")
Serial = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Time = sa.DateTime(timezone=True)
Enum = sa.String(32)


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("id", Id, nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("search_text", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("kind", Enum, nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("license", sa.Text(), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("num_parameters", sa.BigInteger(), nullable=False),
        sa.Column("context_length", sa.BigInteger(), nullable=False),
        sa.Column("languages", sa.JSON(), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("default_version_id", Id, nullable=False),
        sa.Column("state", Enum, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", Time, nullable=False),
        sa.Column("update_time", Time, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_table(
        "aliases",
        sa.Column("alias", Id, nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_aliases_models", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("alias", name="pk_aliases"),
    )
    op.create_index("ix_aliases_model_id", "aliases", ["model_id"])
    op.create_table(
        "capabilities",
        sa.Column("model_id", Id, nullable=False),
        sa.Column("capability", Enum, nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name="fk_capabilities_models", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "capability", name="pk_capabilities"),
    )
    op.create_table(
        "versions",
        sa.Column("model_id", Id, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("serial", Serial, nullable=False),
        sa.Column("kind", Enum, nullable=False),
        sa.Column("state", Enum, nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("format", Enum, nullable=False),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("base_version_id", Id, nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("num_files", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("create_time", Time, nullable=False),
        sa.Column("update_time", Time, nullable=False),
        sa.Column("etag", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_versions_models", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("model_id", "id", name="pk_versions"),
        sa.UniqueConstraint("serial", name="uq_versions_serial"),
    )
    op.create_table(
        "artifacts",
        sa.Column("model_id", Id, nullable=False),
        sa.Column("version_id", Id, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("format", Enum, nullable=False),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("producer", sa.Text(), nullable=False),
        sa.Column("create_time", Time, nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "version_id"],
            ["versions.model_id", "versions.id"],
            name="fk_artifacts_versions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_id", "version_id", "id", name="pk_artifacts"),
    )
    op.create_table(
        "files",
        sa.Column("model_id", Id, nullable=False),
        sa.Column("version_id", Id, nullable=False),
        sa.Column("artifact_id", Id, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(71), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id", "version_id"],
            ["versions.model_id", "versions.id"],
            name="fk_files_versions",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("model_id", "version_id", "artifact_id", "position", name="pk_files"),
    )
    op.create_table(
        "sources",
        sa.Column("reference_hash", sa.String(64), nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("version_id", Id, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_sources_models", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("reference_hash", "model_id", "version_id", name="pk_sources"),
    )
    op.create_index("ix_sources_model_id", "sources", ["model_id", "version_id"])
    op.create_table(
        "events",
        sa.Column("sequence", Serial, autoincrement=False, nullable=False),
        sa.Column("change", Enum, nullable=False),
        sa.Column("model", sa.LargeBinary(), nullable=False),
        sa.Column("time", Time, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_events"),
    )
    op.create_table(
        "requests",
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("serial", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("model_id", Id, nullable=False),
        sa.Column("version_id", Id, nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_serial", "requests", ["serial"])
    changes = op.create_table(
        "changes",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_changes"),
    )
    op.bulk_insert(changes, [{"id": 1, "last": 0}])


def downgrade() -> None:
    for table in (
        "changes",
        "requests",
        "events",
        "sources",
        "files",
        "artifacts",
        "versions",
        "capabilities",
        "aliases",
        "models",
    ):
        op.drop_table(table)
