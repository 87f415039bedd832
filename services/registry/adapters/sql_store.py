"""The model store on a database. A transaction's view of the tables is in `sql_records.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import URL, select
from sqlalchemy.orm import Session

from services.kit.database import Database
from services.registry.adapters import tables
from services.registry.adapters.sql_records import SqlRecords
from services.registry.core.ports import Records

T = TypeVar("T")

MIGRATIONS = Path(__file__).parent / "migrations"

KEPT_EVENTS = 10_000
KEPT_REQUESTS = 10_000


class SqlStore:
    """A `ModelStore` on SQLite or PostgreSQL. kept_events: how many changes a watcher may have missed."""

    def __init__(self, url: URL, *, kept_events: int = KEPT_EVENTS) -> None:
        self._url = url
        self._kept_events = kept_events
        self._database: Database | None = None

    @property
    def is_sole_writer(self) -> bool:
        """So it is with a file, which one process owns."""
        return self._opened.is_sqlite

    async def open(self) -> None:
        """Connect, and bring the tables up to date. Raises Unavailable, DiskFull, DataLoss."""
        self._database = await Database.open(self._url, migrations=MIGRATIONS)

    async def close(self) -> None:
        """Disconnect, once what is under way has ended."""
        if self._database is not None:
            await self._database.close()

    async def read(self, work: Callable[[Records], T]) -> T:
        """Run `work` on one consistent view."""
        return await self._opened.read(lambda session: work(self._records(session)))

    async def write(self, work: Callable[[Records], T]) -> T:
        """Run `work` as the only writer."""

        def alone(session: Session) -> T:
            # One writer at a time in the whole house: rules read before they write, and numbers of changes
            # become visible in order. SQLite has taken its lock with the transaction.
            session.execute(select(tables.changes.c.last).with_for_update())
            return work(self._records(session))

        return await self._opened.run(alone)

    def _records(self, session: Session) -> SqlRecords:
        return SqlRecords(session, kept_events=self._kept_events, kept_requests=KEPT_REQUESTS)

    @property
    def _opened(self) -> Database:
        assert self._database is not None, "open() comes first"
        return self._database
