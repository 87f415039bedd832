"""What every download store must do: the one in memory that unit tests use, SQLite, and PostgreSQL."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.downloader.adapters.sql_store import MIGRATIONS, SqlStore
from services.downloader.adapters.tables import metadata
from services.downloader.core.download import (
    Download,
    DownloadPhase,
    DownloadState,
    Failure,
    FileProgress,
)
from services.downloader.core.ports import DownloadStore, Lease
from services.kit.database import alembic_config, database_url, downgrade, make_engine, upgrade
from tests.contract.memory_download_store import MemoryDownloadStore

NOW = datetime(2026, 11, 21, 12, 30, 15, 123456, tzinfo=UTC)


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[DownloadStore]:
    if request.param == "memory":
        yield MemoryDownloadStore()
        return
    url = database_url("", tmp_path / "downloader.db")
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create_schema()
    sql_store = SqlStore(url)
    await sql_store.open()
    yield sql_store
    await sql_store.close()


def download(number: int, state: DownloadState = DownloadState.QUEUED) -> Download:
    return Download(f"d{number:03}", "pypi:x", "x", NOW + timedelta(seconds=number), state=state)


async def test_a_download_comes_back_as_it_was_saved(store: DownloadStore) -> None:
    full = Download(
        id="d1",
        source="pypi:x==1",
        model_id="x",
        create_time=NOW,
        resolved_source="pypi:x==1.0",
        version="models/x/versions/1.0",
        state=DownloadState.FAILED,
        phase=DownloadPhase.FETCHING,
        files=(FileProgress("a.whl", 3, 10), FileProgress("ü.whl", 2**40, None)),
        failure=Failure("DISK_FULL", "no room left"),
        start_time=NOW + timedelta(seconds=1),
        end_time=NOW + timedelta(seconds=2),
        request_id="once",
    )
    await store.save_download(full)
    assert await store.download("d1") == full
    assert await store.download_of_request("once") == full
    changed = replace(full, state=DownloadState.QUEUED, failure=None, end_time=None)
    await store.save_download(changed)
    assert await store.download("d1") == changed
    assert await store.download("d2") is None
    assert await store.download_of_request("twice") is None


async def test_downloads_are_listed_newest_first_by_state_and_page(store: DownloadStore) -> None:
    for number in range(6):
        state = DownloadState.QUEUED if number % 2 else DownloadState.SUCCEEDED
        await store.save_download(download(number, state))
    everything = await store.downloads([], before_id=None, limit=10)
    assert [each.id for each in everything] == ["d005", "d004", "d003", "d002", "d001", "d000"]
    queued = await store.downloads([DownloadState.QUEUED], before_id="d005", limit=1)
    assert [each.id for each in queued] == ["d003"]


async def test_a_lease_is_saved_renewed_and_deleted_once(store: DownloadStore) -> None:
    lease = Lease("l1", "models/x/versions/1", "", "me", "f" * 64, ("sha256:" + "0" * 64,), NOW)
    await store.save_lease(lease)
    renewed = replace(lease, expire_time=NOW + timedelta(minutes=5))
    await store.save_lease(renewed)
    assert await store.lease("l1") == renewed
    assert await store.leases() == [renewed]
    assert await store.delete_lease("l1")
    assert not await store.delete_lease("l1")
    assert await store.lease("l1") is None


async def test_a_blob_is_kept_until_the_latest_time_that_was_asked_for(store: DownloadStore) -> None:
    await store.keep(["sha256:a"], NOW + timedelta(hours=2), keeper="k")
    await store.keep(["sha256:a"], NOW + timedelta(hours=1), keeper="k")
    await store.keep(["sha256:b", "sha256:a"], NOW + timedelta(hours=1), keeper="k")
    assert await store.kept(NOW) == {"sha256:a", "sha256:b"}
    assert await store.kept(NOW + timedelta(minutes=90)) == {"sha256:a"}
    assert await store.kept(NOW + timedelta(hours=2)) == frozenset()


async def test_a_blob_is_kept_until_its_last_keeper_lets_go(store: DownloadStore) -> None:
    for keeper in ("first", "second"):
        await store.keep(["sha256:a"], NOW + timedelta(hours=1), keeper=keeper)
    await store.let_go("first")
    assert await store.kept(NOW) == {"sha256:a"}
    await store.let_go("second")
    assert await store.kept(NOW) == frozenset()


async def test_what_a_keeper_brings_later_prolongs_all_that_it_keeps(store: DownloadStore) -> None:
    await store.keep(["sha256:a"], NOW + timedelta(hours=1), keeper="one")
    await store.keep(["sha256:b"], NOW + timedelta(hours=1), keeper="other")
    await store.keep(["sha256:c"], NOW + timedelta(hours=3), keeper="one")
    assert await store.kept(NOW + timedelta(hours=2)) == {"sha256:a", "sha256:c"}


def test_the_migrations_make_the_tables_that_the_code_means(tmp_path: Path) -> None:
    from alembic import command

    engine = make_engine(database_url("", tmp_path / "downloader.db"))
    upgrade(engine, MIGRATIONS)
    downgrade(engine, MIGRATIONS, "base")
    upgrade(engine, MIGRATIONS)
    with engine.connect() as connection:
        command.check(alembic_config(connection, MIGRATIONS, metadata))
    engine.dispose()
