"""The tables. What is searched or filtered by has a column; labels and languages, only shown, are JSON."""

from enum import IntEnum
from typing import Generic, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
)

from services.kit.columns import NAMING, Id, UtcTime
from services.registry.core.models import (
    Capability,
    Format,
    ModelChange,
    ModelKind,
    ModelState,
    VersionKind,
    VersionState,
)

E = TypeVar("E", bound=IntEnum)


class Named(TypeDecorator[E], Generic[E]):
    """An enum by the name of its value: readable in the table, and independent of numbers."""

    impl = String(32)
    cache_ok = True

    def __init__(self, enum: type[E]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: E | None, dialect: Dialect) -> str | None:
        """To the driver."""
        return None if value is None else value.name

    def process_result_value(self, value: str | None, dialect: Dialect) -> E | None:
        """From the driver."""
        return None if value is None else self.enum[value]


Serial = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData(naming_convention=NAMING)

models = Table(
    "models",
    metadata,
    Column("id", Id, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("search_text", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("kind", Named(ModelKind), nullable=False),
    Column("provider", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("license", Text, nullable=False),
    Column("architecture", Text, nullable=False),
    Column("num_parameters", BigInteger, nullable=False),
    Column("context_length", BigInteger, nullable=False),
    Column("languages", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("default_version_id", Id, nullable=False),
    Column("state", Named(ModelState), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("etag", String(32), nullable=False),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", Id, primary_key=True),
    Column("model_id", Id, ForeignKey("models.id", ondelete="CASCADE"), nullable=False, index=True),
)

capabilities = Table(
    "capabilities",
    metadata,
    Column("model_id", Id, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("capability", Named(Capability), primary_key=True),
)

versions = Table(
    "versions",
    metadata,
    Column("model_id", Id, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    Column("id", Id, primary_key=True),
    Column("serial", Serial, nullable=False, unique=True),
    Column("kind", Named(VersionKind), nullable=False),
    Column("state", Named(VersionState), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("format", Named(Format), nullable=False),
    Column("quantization", Text, nullable=False),
    Column("base_version_id", Id, nullable=False),
    Column("findings", JSON, nullable=False, server_default="[]"),
    Column("labels", JSON, nullable=False),
    Column("num_files", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("update_time", UtcTime, nullable=False),
    Column("etag", String(32), nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("model_id", Id, primary_key=True),
    Column("version_id", Id, primary_key=True),
    Column("id", Id, primary_key=True),
    Column("format", Named(Format), nullable=False),
    Column("quantization", Text, nullable=False),
    Column("producer", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("perplexity", JSON(none_as_null=True), nullable=True),
    ForeignKeyConstraint(
        ["model_id", "version_id"], ["versions.model_id", "versions.id"], ondelete="CASCADE"
    ),
)

files = Table(
    "files",
    metadata,
    Column("model_id", Id, primary_key=True),
    Column("version_id", Id, primary_key=True),
    # Empty for the files of the version itself.
    Column("artifact_id", Id, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("path", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("digest", String(71), nullable=False),
    ForeignKeyConstraint(
        ["model_id", "version_id"], ["versions.model_id", "versions.id"], ondelete="CASCADE"
    ),
)

sources = Table(
    "sources",
    metadata,
    # sha256 of the reference, which may be longer than PostgreSQL indexes.
    Column("reference_hash", String(64), primary_key=True),
    Column("model_id", Id, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True),
    # Empty where the model itself names this source.
    Column("version_id", Id, primary_key=True),
    Index("ix_sources_model_id", "model_id", "version_id"),
)

events = Table(
    "events",
    metadata,
    Column("sequence", Serial, primary_key=True, autoincrement=False),
    Column("change", Named(ModelChange), nullable=False),
    # The model as it was then, as JSON: its row may have changed since, or be gone.
    Column("model", LargeBinary, nullable=False),
    Column("time", UtcTime, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("serial", BigInteger, nullable=False, index=True),
    Column("fingerprint", String(64), nullable=False),
    Column("model_id", Id, nullable=False),
    Column("version_id", Id, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    # One row: the number of the last change. Whoever writes holds it: changes become visible in order.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)
