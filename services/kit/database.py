"""A service's tables: one SQLite file by default, PostgreSQL by URL, the same units of work on both.

    database = await Database.open(database_url(settings.database, home / "registry.db"), migrations=FOLDER)
    model = await database.run(lambda session: session.get(ModelRow, "smollm2"))
    await database.close()

SQLite has one connection, used by one thread. Units of work queue for it, so nobody meets "database is
locked", and the write-ahead log, which corrupts with several connections before 3.51.3, is not needed.

This file imports SQLAlchemy: only adapters of services that keep tables import it.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from services.kit.errors import DataLoss, DiskFull, InvalidArgument, LaresError, Unavailable, Unsupported

T = TypeVar("T")

_POSTGRES_CONNECTIONS: Final = 8
# Another process may hold the file for a moment: a backup, a shell.
_SQLITE_BUSY_S: Final = 30.0
# Any constant will do: it names "migrations of Lares" among a server's advisory locks.
_MIGRATION_LOCK: Final = 0x1A7E5


def database_url(database: str, default_file: Path) -> URL:
    """The URL of a service's database, which a setting gives; empty: SQLite in `default_file`.

    Raises InvalidArgument.
    """
    if not database:
        return URL.create("sqlite", database=str(default_file))
    try:
        url = make_url(database)
    except ArgumentError as error:
        raise InvalidArgument.at(
            "database", "must be a URL such as postgresql+psycopg://user@host/lares"
        ) from error
    match url.get_backend_name():
        case "postgresql":
            return url.set(drivername="postgresql+psycopg")
        case "sqlite" if url.database and url.database != ":memory:":
            return url
        case _:
            raise InvalidArgument.at("database", "must be a sqlite:///file or a postgresql:// URL")


class Database:
    """An engine and the threads its units of work run in. Make it with `open`."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._engine: Engine | None = None
        threads = 1 if self.is_sqlite else _POSTGRES_CONNECTIONS
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="database")

    @classmethod
    async def open(cls, url: URL, *, migrations: Path) -> Self:
        """Connect and bring the schema up to date. migrations: an Alembic folder.

        Raises Unavailable, DiskFull, DataLoss.
        """
        database = cls(url)
        try:
            await database._in_thread(lambda: database._connect(migrations))
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def is_sqlite(self) -> bool:
        """Whether this process alone owns the data. If not, other replicas may change it too."""
        return self._url.get_backend_name() == "sqlite"

    async def run(self, work: Callable[[Session], T]) -> T:
        """Run one transaction: committed when `work` returns, rolled back when it raises.

        `work` runs in a thread and must return plain values. It is never abandoned half-way: a caller that is
        cancelled leaves once the transaction has ended, unless it had not begun.
        Raises what `work` raises, Unavailable, DiskFull, DataLoss.
        """
        return await self._in_thread(lambda: self._transact(work))

    async def read(self, work: Callable[[Session], T]) -> T:
        """Like `run`, for work that only reads: all of its queries see the same moment."""
        return await self._in_thread(lambda: self._transact(work, isolation_level="REPEATABLE READ"))

    async def close(self) -> None:
        """Wait for the work that is under way, and disconnect."""
        if self._engine is not None:
            await self._in_thread(self._engine.dispose)
            self._engine = None
        self._threads.shutdown()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        job = self._threads.submit(work)
        waiting = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.wait([waiting])
            raise

    def _connect(self, migrations: Path) -> None:
        self._engine = make_engine(self._url)
        with _translated_errors(self._url):
            upgrade(self._engine, migrations)

    def _transact(self, work: Callable[[Session], T], isolation_level: str | None = None) -> T:
        assert self._engine is not None, "open() makes the engine"
        with (
            _translated_errors(self._url),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            if isolation_level and not self.is_sqlite:
                session.connection(execution_options={"isolation_level": isolation_level})
            return work(session)


def make_engine(url: URL) -> Engine:
    """An engine with Lares's own rules of durability. Connects when it is first used."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    try:
        return create_engine(
            url,
            pool_size=_POSTGRES_CONNECTIONS,
            max_overflow=0,
            # A server that was restarted costs one ping, not one error per connection.
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5},
        )
    except ModuleNotFoundError as error:
        raise Unsupported("PostgreSQL needs psycopg: install lares[postgres]") from error


def _sqlite_engine(url: URL) -> Engine:
    assert url.database, "database_url() leaves no SQLite URL without a file"
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, pool_size=1, max_overflow=0, connect_args={"timeout": _SQLITE_BUSY_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        # The driver must not begin transactions of its own: it would leave DDL outside them.
        connection.isolation_level = None
        # Truncating the journal with a sync makes a commit durable even if the power fails right after it.
        for pragma in ("journal_mode=TRUNCATE", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Immediate: to wait for a foreign lock here is harmless, to meet it half-way through is an error.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def upgrade(engine: Engine, migrations: Path, revision: str = "head") -> None:
    """Run the migrations up to `revision` in one transaction, one process at a time.

    DDL is transactional in SQLite and PostgreSQL: a migration that is killed leaves what was there before it,
    and the next start runs it again.
    """
    _migrate(engine, lambda connection: command.upgrade(alembic_config(connection, migrations), revision))


def downgrade(engine: Engine, migrations: Path, revision: str) -> None:
    """Undo the migrations after `revision`, as `upgrade` does them."""
    _migrate(engine, lambda connection: command.downgrade(alembic_config(connection, migrations), revision))


def _migrate(engine: Engine, migration: Callable[[Connection], None]) -> None:
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        if is_sqlite:
            # SQLite alters a table by copying and dropping it. A drop deletes what refers to the table while
            # keys are enforced, and they can only be switched between transactions.
            _set_foreign_keys(connection, enforced=False)
        try:
            with connection.begin():
                if not is_sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
                migration(connection)
                if is_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise DataLoss("a migration would leave rows that refer to nothing; nothing was changed")
        finally:
            if is_sqlite:
                _set_foreign_keys(connection, enforced=True)


def _set_foreign_keys(connection: Connection, *, enforced: bool) -> None:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute(f"PRAGMA foreign_keys={'ON' if enforced else 'OFF'}")


def alembic_config(connection: Connection, migrations: Path, metadata: MetaData | None = None) -> Config:
    """What Alembic's commands need. metadata: the tables that `check` and `revision` compare with."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["metadata"] = metadata
    return config


def run_env(context: ModuleType) -> None:
    """All that a service's `env.py` does: run the migrations on the connection that `upgrade` opened.

    context: `alembic.context`.
    """
    attributes = context.config.attributes
    context.configure(
        connection=attributes["connection"],
        target_metadata=attributes["metadata"],
        render_as_batch=True,
        compare_server_default=True,
    )
    context.run_migrations()


@contextmanager
def _translated_errors(url: URL) -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as error:
        raise Unavailable("the database is busy; try again") from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            translated = _sqlite_error(error.orig, url)
        else:
            translated = _postgres_error(error, url)
        if translated is None:
            raise
        raise translated from error


def _sqlite_error(error: sqlite3.Error, url: URL) -> LaresError | None:
    path = url.database
    # The low byte is the primary code: https://www.sqlite.org/rescode.html
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return DiskFull(f"no room left on the disk of {path}; free some, then try again")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"another process holds {path}; stop it, or try again")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return DataLoss(f"{path} is damaged; restore it from a backup")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY:
            return Unavailable(
                f"{path} cannot be opened, read or written; check the disk and its permissions"
            )
        case _:
            return None


def _postgres_error(error: DBAPIError, url: URL) -> LaresError | None:
    # https://www.postgresql.org/docs/current/errcodes-appendix.html
    state: str | None = getattr(error.orig, "sqlstate", None)
    if state == "53100":
        return DiskFull("the database server's disk is full; free some room, then try again")
    # 08 connection, 40 deadlock or serialization, 53 resources, 55 locks, 57 shutdown; none: no answer.
    if error.connection_invalidated or state is None or state[:2] in ("08", "40", "53", "55", "57"):
        where = url.render_as_string(hide_password=True)
        return Unavailable(f"the database {where} does not answer; try again")
    return None
