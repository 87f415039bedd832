"""Columns that mean the same in every service's tables, on SQLite and on PostgreSQL."""

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import DateTime, Dialect, String, TypeDecorator

NAMING: Final = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(referred_table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}
"""Names of constraints, for `MetaData(naming_convention=...)`: a migration can only drop what has a name."""

Id: Final = String(128).with_variant(String(128, collation="C"), "postgresql")
"""Ids are compared and sorted by code point, whatever the language that the server was set up in."""


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
