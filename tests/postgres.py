"""A throwaway PostgreSQL server, reached over a socket in its own folder."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from sqlalchemy import URL, create_engine, text

_schemas = count()


class PostgresServer:
    """A server that runs. folder: holds its data and its socket."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._binaries = binaries
        self._folder = folder

    def create_schema(self) -> URL:
        """An empty schema, which stands for a database: those are slow to make."""
        name = f"test_{next(_schemas)}"
        engine = create_engine(self._url())
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        engine.dispose()
        return self._url().update_query_dict({"options": f"-csearch_path={name}"})

    def start(self) -> None:
        """Return when it accepts connections."""
        # No fsync: a test kills processes, it does not cut the power.
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-w", "-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        """Return when it is gone; its clients are cut off. mode: as pg_ctl calls it."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def initialise(self) -> None:
        """Make the data folder."""
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync")

    @property
    def _data(self) -> str:
        return str(self._folder / "data")

    def _url(self) -> URL:
        query = {"host": str(self._folder)}
        return URL.create("postgresql+psycopg", username="postgres", database="postgres", query=query)

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to run as root.
        as_root = os.geteuid() == 0
        subprocess.run(
            [self._binaries / program, *arguments],
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            user="postgres" if as_root else None,
            group="postgres" if as_root else None,
            extra_groups=[] if as_root else None,
        )


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """Start one, and remove it in the end. Fails where PostgreSQL is not installed."""
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = binaries[-1] if binaries else shutil.which("initdb")
    assert found, "these tests need PostgreSQL: tests/install-system-packages.sh installs it"
    folder = Path(tempfile.mkdtemp(prefix="lares-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = PostgresServer(Path(found).parent, folder)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)
