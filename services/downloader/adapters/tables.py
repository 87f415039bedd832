"""The downloader's tables. Bytes are not in them, only what is to be said about bytes."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Dialect,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)


class UtcTime(TypeDecorator[datetime]):
    """An aware time. SQLite keeps no zone, so what it gives back is UTC, as what it was given."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To the driver."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the driver."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


# Ids are compared and sorted by code point, whatever the language that the server was set up in.
Id = String(128).with_variant(String(128, collation="C"), "postgresql")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

downloads = Table(
    "downloads",
    metadata,
    Column("id", Id, primary_key=True),
    # Null, not empty, where there is none: only then may many rows have none.
    Column("request_id", String(128), unique=True),
    Column("source", Text, nullable=False),
    Column("resolved_source", Text, nullable=False),
    Column("model_id", Id, nullable=False),
    Column("version", Text, nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("phase", String(32), nullable=False),
    Column("files", JSON, nullable=False),
    Column("failure_reason", Text, nullable=False),
    Column("failure_message", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("start_time", UtcTime),
    Column("end_time", UtcTime),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Id, primary_key=True),
    Column("version", Text, nullable=False),
    Column("artifact_id", Id, nullable=False),
    Column("holder", Text, nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("digests", JSON, nullable=False),
    Column("expire_time", UtcTime, nullable=False),
)

kept_blobs = Table(
    "kept_blobs",
    metadata,
    Column("digest", String(71), primary_key=True),
    # A download's id or a writer's: two may bring the same blob, and each is done with it at its own time.
    Column("keeper", String(64), primary_key=True),
    Column("expire_time", UtcTime, nullable=False),
)
