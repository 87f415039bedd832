"""The downloader's tables. Bytes are not in them, only what is to be said about bytes."""

from sqlalchemy import (
    JSON,
    Column,
    MetaData,
    String,
    Table,
    Text,
)

from services.kit.columns import NAMING, Id, UtcTime

metadata = MetaData(naming_convention=NAMING)

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
    # Null for a download from before there were any.
    Column("options", JSON),
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
