"""`DownloadStore` in tables."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, Table, delete, insert, select, update
from sqlalchemy.engine import URL, Row
from sqlalchemy.orm import Session

from services.downloader.adapters.tables import downloads, kept_blobs, leases
from services.downloader.core.download import (
    Download,
    DownloadPhase,
    DownloadState,
    Failure,
    FileProgress,
    PullOptions,
)
from services.downloader.core.ports import Lease
from services.kit.database import Database

MIGRATIONS: Final = Path(__file__).parent / "migrations"


class SqlStore:
    """See `DownloadStore`. `open` it first."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._opened: Database | None = None

    async def open(self) -> None:
        """Connect and migrate. Raises Unavailable, DiskFull, DataLoss."""
        self._opened = await Database.open(self._url, migrations=MIGRATIONS)

    async def close(self) -> None:
        """Disconnect, once what is under way has ended."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def save_download(self, download: Download) -> None:
        """Insert or replace."""
        await self._database.run(lambda session: _put(session, downloads, "id", _download_to_row(download)))

    async def download(self, download_id: str) -> Download | None:
        """One of them."""
        return await self._one_download(downloads.c.id == download_id)

    async def download_of_request(self, request_id: str) -> Download | None:
        """The download that a request made."""
        return await self._one_download(downloads.c.request_id == request_id)

    async def downloads(
        self, states: Sequence[DownloadState], *, before_id: str | None, limit: int
    ) -> Sequence[Download]:
        """Newest first, older than `before_id`; in any state if `states` is empty."""
        query = select(downloads).order_by(downloads.c.id.desc()).limit(limit)
        if states:
            query = query.where(downloads.c.state.in_([state.name for state in states]))
        if before_id is not None:
            query = query.where(downloads.c.id < before_id)
        return await self._database.read(
            lambda session: [_download_from_row(row) for row in session.execute(query)]
        )

    async def save_lease(self, lease: Lease) -> None:
        """Insert or replace."""
        row = asdict(lease) | {"digests": list(lease.digests)}
        await self._database.run(lambda session: _put(session, leases, "id", row))

    async def lease(self, lease_id: str) -> Lease | None:
        """One of them, expired or not."""
        query = select(leases).where(leases.c.id == lease_id)
        return await self._database.read(
            lambda session: next((_lease_from_row(row) for row in session.execute(query)), None)
        )

    async def leases(self) -> Sequence[Lease]:
        """All of them, expired or not."""
        return await self._database.read(
            lambda session: [_lease_from_row(row) for row in session.execute(select(leases))]
        )

    async def delete_lease(self, lease_id: str) -> bool:
        """Whether it was there."""
        query = delete(leases).where(leases.c.id == lease_id).returning(leases.c.id)
        return await self._database.run(lambda session: session.execute(query).first() is not None)

    async def keep(self, digests: Iterable[str], until: datetime, *, keeper: str) -> None:
        """Keep blobs from garbage collection for a download or a writer, at least until then."""
        wanted = set(digests)
        own = kept_blobs.c.keeper == keeper

        def work(session: Session) -> None:
            # All of its own, in one statement: what one keeper brings is recorded together.
            session.execute(
                update(kept_blobs).where(own, kept_blobs.c.expire_time < until).values(expire_time=until)
            )
            new = wanted - set(session.execute(select(kept_blobs.c.digest).where(own)).scalars())
            if new:
                rows = [{"digest": digest, "keeper": keeper, "expire_time": until} for digest in new]
                session.connection().execute(insert(kept_blobs), rows)

        await self._database.run(work)

    async def let_go(self, keeper: str) -> None:
        """What was kept for it alone is kept no more."""
        query = delete(kept_blobs).where(kept_blobs.c.keeper == keeper)
        await self._database.run(lambda session: session.execute(query))

    async def kept(self, now: datetime) -> frozenset[str]:
        """Digests of blobs that are kept now; what has run out is forgotten."""

        def work(session: Session) -> frozenset[str]:
            session.execute(delete(kept_blobs).where(kept_blobs.c.expire_time <= now))
            return frozenset(session.execute(select(kept_blobs.c.digest)).scalars())

        return await self._database.run(work)

    @property
    def _database(self) -> Database:
        assert self._opened is not None, "open() comes first"
        return self._opened

    async def _one_download(self, condition: ColumnElement[bool]) -> Download | None:
        query = select(downloads).where(condition)
        return await self._database.read(
            lambda session: next((_download_from_row(row) for row in session.execute(query)), None)
        )


def _put(session: Session, table: Table, key: str, row: dict[str, Any]) -> None:
    """Insert or replace, in the words of every database."""
    found = session.execute(update(table).where(table.c[key] == row[key]).values(row).returning(table.c[key]))
    if found.first() is None:
        session.execute(insert(table).values(row))


def _download_to_row(download: Download) -> dict[str, Any]:
    failure = download.failure
    return {
        "id": download.id,
        "request_id": download.request_id or None,
        "source": download.source,
        "resolved_source": download.resolved_source,
        "model_id": download.model_id,
        "version": download.version,
        "state": download.state.name,
        "phase": download.phase.name,
        "files": [[file.path, file.completed_bytes, file.total_bytes] for file in download.files],
        "failure_reason": failure.reason if failure else "",
        "failure_message": failure.message if failure else "",
        "create_time": download.create_time,
        "start_time": download.start_time,
        "end_time": download.end_time,
        "options": asdict(download.options),
    }


def _download_from_row(row: Row[Any]) -> Download:
    failure = Failure(row.failure_reason, row.failure_message) if row.failure_reason else None
    return Download(
        id=row.id,
        request_id=row.request_id or "",
        source=row.source,
        resolved_source=row.resolved_source,
        model_id=row.model_id,
        version=row.version,
        state=DownloadState[row.state],
        phase=DownloadPhase[row.phase],
        files=tuple(FileProgress(*file) for file in row.files),
        failure=failure,
        create_time=row.create_time,
        start_time=row.start_time,
        end_time=row.end_time,
        options=_options_from_json(row.options or {}),
    )


def _options_from_json(options: dict[str, Any]) -> PullOptions:
    return PullOptions(
        **options | {name: tuple(options.get(name, ())) for name in ("allow_patterns", "ignore_patterns")}
    )


def _lease_from_row(row: Row[Any]) -> Lease:
    return Lease(
        id=row.id,
        version=row.version,
        artifact_id=row.artifact_id,
        holder=row.holder,
        manifest=row.manifest,
        digests=tuple(row.digests),
        expire_time=row.expire_time,
    )
