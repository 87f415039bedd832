"""RELIABILITY.md, R1, R2, R4 and R6 in the short form of every CI run."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import URL

from services.kit.database import database_url
from services.kit.errors import EtagMismatch, Unavailable
from services.registry.adapters.sql_store import SqlStore
from services.registry.core.catalog import Catalog
from services.registry.core.models import File, Format, Model, ModelFilter, ModelKind, Version, VersionKind
from services.registry.core.watch import Wakeup, Watcher
from tests.postgres import PostgresServer

NUM_KILLS = 5
NUM_WRITERS = 8
NUM_WRITES = 50
MODEL = Model("m", kind=ModelKind.EMBEDDING)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "sqlite":
        return database_url("", tmp_path / "registry.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create_schema()


@pytest.fixture
async def replicas(url: URL) -> AsyncIterator[list[SqlStore]]:
    """All the stores that there may be on one database: one on SQLite, any number on PostgreSQL."""
    stores = [SqlStore(url) for _ in range(1 if url.get_backend_name() == "sqlite" else 2)]
    for store in stores:
        await store.open()
    yield stores
    for store in stores:
        await store.close()


async def test_every_acknowledged_write_survives_kills(url: URL) -> None:
    acknowledged = -1
    for _ in range(NUM_KILLS):
        acknowledged = write_until_killed(url, first=acknowledged + 1 + 1000, num_writes=10)

        store = SqlStore(url)
        await store.open()
        page = await store.read(lambda r: r.versions(None, after_serial=0, limit=1000))
        await store.close()
        recorded = {version.model_id: version for version in page.items}
        assert f"m{acknowledged}" in recorded
        # What was not acknowledged is there whole or not at all.
        assert all(len(version.files) == 20 and version.size_bytes == 190 for version in page.items)
        if url.get_backend_name() == "sqlite":
            with sqlite3.connect(str(url.database)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def write_until_killed(url: URL, *, first: int, num_writes: int) -> int:
    """Start a writer, kill it in the midst of its work, return the last number that it said it wrote."""
    root = Path(__file__).parents[2]
    writer = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.contract.registry_writer",
            url.render_as_string(hide_password=False),
            str(first),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "protos")])},
    )
    assert writer.stdout is not None
    said = [int(writer.stdout.readline()) for _ in range(num_writes)]
    writer.send_signal(signal.SIGKILL)
    rest = [int(line) for line in writer.stdout if line.endswith("\n")]
    writer.stdout.close()
    writer.wait()
    said += rest
    assert said == list(range(first, first + len(said)))
    return said[-1]


async def test_eight_writers_at_once_lose_nothing(replicas: list[SqlStore]) -> None:
    await write_at_once([Catalog(store, Wakeup()) for store in replicas])


async def write_at_once(catalogs: list[Catalog]) -> None:
    """Let the writers record versions, and check that all are there."""
    await catalogs[0].create_model(MODEL)

    async def write(writer: int) -> None:
        catalog = catalogs[writer % len(catalogs)]
        for number in range(NUM_WRITES):
            file = File("x", 1, f"sha256:{writer * NUM_WRITES + number:064x}")
            version = Version(
                "m", f"v{writer}-{number}", VersionKind.WEIGHTS, format=Format.ONNX, files=(file,)
            )
            await catalog.create_version(version)

    await asyncio.gather(*(write(writer) for writer in range(NUM_WRITERS)))

    model = await catalogs[0].get_model("m")
    assert model.size_bytes == NUM_WRITERS * NUM_WRITES
    assert model.etag == str(NUM_WRITERS * NUM_WRITES + 1)


async def test_no_update_under_an_etag_is_lost(replicas: list[SqlStore]) -> None:
    catalogs = [Catalog(store, Wakeup()) for store in replicas]
    await catalogs[0].create_model(MODEL)

    async def count(catalog: Catalog) -> None:
        while True:
            model = await catalog.get_model("m")
            try:
                await catalog.update_model(
                    replace(model, num_parameters=model.num_parameters + 1), ["num_parameters"]
                )
                return
            except EtagMismatch:
                continue

    await asyncio.gather(*(count(catalogs[number % len(catalogs)]) for number in range(2 * NUM_WRITERS)))
    assert (await catalogs[0].get_model("m")).num_parameters == 2 * NUM_WRITERS


async def test_a_watcher_sees_what_another_replica_wrote(postgres: PostgresServer) -> None:
    url = postgres.create_schema()
    here, there = SqlStore(url), SqlStore(url)
    await here.open()
    await there.open()
    events = Watcher(here, Wakeup(), poll_s=0.02).watch(ModelFilter(), after_sequence=0)
    await Catalog(there, Wakeup()).create_model(MODEL)
    async with asyncio.timeout(5):
        assert (await anext(events)).model.id == "m"
    await events.aclose()
    await here.close()
    await there.close()


async def test_a_restart_of_postgresql_is_unavailable_and_then_forgotten(postgres: PostgresServer) -> None:
    store = SqlStore(postgres.create_schema())
    await store.open()
    catalog = Catalog(store, Wakeup())
    await catalog.create_model(MODEL)
    for _ in range(2):
        await asyncio.to_thread(postgres.stop)
        try:
            with pytest.raises(Unavailable):
                await catalog.get_model("m")
        finally:
            await asyncio.to_thread(postgres.start)
        assert (await catalog.get_model("m")).id == "m"
    await store.close()


async def test_an_unreachable_database_is_unavailable_at_the_start(tmp_path: Path) -> None:
    store = SqlStore(database_url(f"postgresql://user:secret@/none?host={tmp_path}", tmp_path / "unused"))
    with pytest.raises(Unavailable) as caught:
        await store.open()
    assert "secret" not in caught.value.message
