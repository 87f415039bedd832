import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.kit.database import Database, database_url
from services.kit.errors import DataLoss, DiskFull, InvalidArgument, Unavailable

ENV = """
from alembic import context

from services.kit.database import run_env

run_env(context)
"""
FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    op.create_table("t", sa.Column("id", sa.Integer, primary_key=True), sa.Column("blob", sa.LargeBinary))
"""


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "100% migrations"
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(ENV)
    (folder / "versions" / "1_first.py").write_text(FIRST)
    return folder


@pytest.fixture
async def database(tmp_path: Path, migrations: Path) -> AsyncIterator[Database]:
    opened = await Database.open(database_url("", tmp_path / "home" / "a.db"), migrations=migrations)
    yield opened
    await opened.close()


def add(session: Session) -> None:
    session.execute(text("INSERT INTO t DEFAULT VALUES"))


def count(session: Session) -> int:
    return int(session.scalars(text("SELECT count(*) FROM t")).one())


async def test_work_is_committed_when_it_returns_and_undone_when_it_raises(database: Database) -> None:
    def fail(session: Session) -> None:
        add(session)
        raise ValueError("no")

    await database.run(add)
    with pytest.raises(ValueError, match="no"):
        await database.run(fail)
    assert await database.read(count) == 1


async def test_sqlite_is_set_up_to_keep_what_it_acknowledged(database: Database) -> None:
    def pragmas(session: Session) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [session.scalars(text(f"PRAGMA {name}")).one() for name in names]

    assert await database.run(pragmas) == ["truncate", 2, 1]


async def test_work_that_has_begun_ends_though_its_caller_is_cancelled(database: Database) -> None:
    begun, proceed = threading.Event(), threading.Event()

    def slow(session: Session) -> None:
        begun.set()
        proceed.wait()
        add(session)

    running = asyncio.create_task(database.run(slow))
    waiting = asyncio.create_task(database.run(add))
    await asyncio.to_thread(begun.wait)
    running.cancel()
    waiting.cancel()
    proceed.set()
    await asyncio.wait([running, waiting])
    assert running.cancelled()
    assert waiting.cancelled()
    assert await database.read(count) == 1


async def test_a_broken_constraint_is_the_callers_to_see(database: Database) -> None:
    def break_it(session: Session) -> None:
        session.execute(text("INSERT INTO t (id) VALUES (1), (1)"))

    with pytest.raises(IntegrityError):
        await database.run(break_it)


async def test_a_full_disk_is_told_as_such_and_nothing_is_lost(database: Database) -> None:
    def fill(session: Session) -> None:
        # The file may not grow: what SQLite says then is what it says on a full disk.
        session.execute(text("PRAGMA max_page_count = 1"))
        session.execute(text("INSERT INTO t (blob) VALUES (zeroblob(10000000))"))

    await database.run(add)
    with pytest.raises(DiskFull):
        await database.run(fill)
    assert await database.read(count) == 1


async def test_a_damaged_file_is_data_loss(tmp_path: Path, migrations: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"this is no database " * 1000)
    with pytest.raises(DataLoss, match="backup"):
        await Database.open(database_url("", tmp_path / "a.db"), migrations=migrations)


async def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path, migrations: Path) -> None:
    (tmp_path / "a.db").mkdir()
    with pytest.raises(Unavailable):
        await Database.open(database_url("", tmp_path / "a.db"), migrations=migrations)


async def test_two_that_start_at_once_migrate_once(tmp_path: Path, migrations: Path) -> None:
    url = database_url("", tmp_path / "a.db")
    opened = await asyncio.gather(*(Database.open(url, migrations=migrations) for _ in range(3)))
    for database in opened:
        await database.close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("1",)]
    connection.close()


@pytest.mark.parametrize("wrong", ["mysql://host/x", "sqlite://", "nonsense"])
def test_other_databases_are_refused(wrong: str) -> None:
    with pytest.raises(InvalidArgument):
        database_url(wrong, Path("x.db"))


def test_postgresql_is_spoken_to_through_psycopg() -> None:
    assert database_url("postgresql://host/x", Path("x.db")).drivername == "postgresql+psycopg"
