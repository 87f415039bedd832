"""RELIABILITY.md, R4: each migration up, down and up again, with data in it, and killed half-way."""

import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import URL, inspect

from services.kit.database import alembic_config, database_url, downgrade, make_engine, upgrade
from services.registry.adapters.sql_store import MIGRATIONS, SqlStore
from services.registry.adapters.tables import metadata
from services.registry.core.catalog import Catalog
from services.registry.core.models import File, Format, Model, ModelKind, Version, VersionKind
from services.registry.core.watch import Wakeup

REVISIONS = [script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()][::-1]

MODEL = Model("m", kind=ModelKind.EMBEDDING, aliases=("alias",), source="pypi:m==1")
VERSION = Version(
    "m", "v", VersionKind.WEIGHTS, format=Format.ONNX, files=(File("a", 1, f"sha256:{'0' * 64}"),)
)


@pytest.fixture
def url(tmp_path: Path) -> URL:
    return database_url("", tmp_path / "registry.db")


async def fill(url: URL) -> None:
    store = SqlStore(url)
    await store.open()
    catalog = Catalog(store, Wakeup())
    await catalog.create_model(MODEL, request_id="r1")
    await catalog.create_version(replace(VERSION, source="pypi:m==1"), request_id="r2")
    await store.close()


async def test_each_migration_goes_down_and_up_with_data_in_it(url: URL) -> None:
    await fill(url)
    engine = make_engine(url)
    for revision in [*REVISIONS[-2::-1], "base"]:
        downgrade(engine, MIGRATIONS, revision)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    for revision in REVISIONS:
        upgrade(engine, MIGRATIONS, revision)
    engine.dispose()
    await fill(url)


async def test_what_was_recorded_before_findings_were_stays_over_0003_up_and_down(url: URL) -> None:
    await fill(url)
    engine = make_engine(url)
    downgrade(engine, MIGRATIONS, "0002")
    upgrade(engine, MIGRATIONS)
    engine.dispose()
    store = SqlStore(url)
    await store.open()
    version = await Catalog(store, Wakeup()).get_version("m", "v")
    await store.close()
    assert (version.files, version.findings) == (VERSION.files, ())


def test_the_migrations_make_the_tables_that_the_store_uses(url: URL) -> None:
    engine = make_engine(url)
    upgrade(engine, MIGRATIONS)
    with engine.connect() as connection:
        command.check(alembic_config(connection, MIGRATIONS, metadata))
    engine.dispose()


async def test_an_upgrade_of_what_is_up_to_date_changes_nothing(url: URL) -> None:
    await fill(url)
    store = SqlStore(url)
    await store.open()
    model = await Catalog(store, Wakeup()).get_model("m")
    await store.close()
    assert (model.aliases, model.default_version_id) == (("alias",), "v")


KILLED = """
revision = "9999"
down_revision = "{down_revision}"

import os
from pathlib import Path

import sqlalchemy as sa
from alembic import op


def upgrade() -> None:
    op.add_column("models", sa.Column("half", sa.Text(), nullable=True))
    op.execute("UPDATE models SET description = 'half-way'")
    if Path("{trap}").exists():
        os._exit(9)


def downgrade() -> None:
    op.drop_column("models", "half")
"""


def _upgrade(url: str, migrations: Path) -> None:
    upgrade(make_engine(database_url(url, Path(os.devnull))), migrations)


async def test_a_killed_migration_leaves_what_was_there_and_runs_again(url: URL, tmp_path: Path) -> None:
    await fill(url)
    migrations, trap = tmp_path / "migrations", tmp_path / "trap"
    shutil.copytree(MIGRATIONS, migrations)
    source = KILLED.format(down_revision=REVISIONS[-1], trap=trap)
    (migrations / "versions" / "9999_killed.py").write_text(source)
    trap.touch()

    child = multiprocessing.get_context("spawn").Process(target=_upgrade, args=(str(url), migrations))
    child.start()
    child.join()
    assert child.exitcode == 9

    engine = make_engine(url)
    assert "half" not in [column["name"] for column in inspect(engine).get_columns("models")]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT description FROM models").scalars().all() == [""]
    trap.unlink()
    upgrade(engine, migrations)
    assert "half" in [column["name"] for column in inspect(engine).get_columns("models")]
    engine.dispose()
