"""The blob store with its one rule: garbage collection never takes what somebody is about to refer to.

Whoever brings a blob in says how long it is to be kept before it is there; whoever deletes one looks at that
in the same breath. One lock makes both whole. It is held for a moment, never for a transfer.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from services.downloader.core.ids import new_id
from services.downloader.core.ports import Arrival, Blob, BlobStore, DownloadStore
from services.downloader.core.space import Space, SpaceLimits
from services.kit.errors import BlobNotFound, DigestMismatch, FieldViolation, InvalidArgument
from services.kit.names import parse_digest

KEEP_FRESH: Final = timedelta(hours=1)
"""How long a blob is safe that no version refers to yet."""

MAX_CHUNK_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class WrittenBlob:
    """What a caller has written. expire_time: it is kept until then, recorded or not."""

    blob: Blob
    expire_time: datetime


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


class Blobs:
    """`BlobStore` and `DownloadStore` together. now: the clock, for tests."""

    def __init__(
        self,
        store: BlobStore,
        records: DownloadStore,
        *,
        limits: SpaceLimits | None = None,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.store = store
        self.records = records
        self.now = now
        self.lock = asyncio.Lock()
        self.collecting = asyncio.Lock()
        self.writing: set[str] = set()
        self.space = Space(store, limits or SpaceLimits())
        self._adoptions: list[set[str]] = []

    async def adopt(self, files: Sequence[Arrival], *, keeper: str) -> list[Blob]:
        """Check files of an ingest folder and store them, kept for `keeper`. Raises DigestMismatch, DiskFull."""
        blobs = await self.store.examine(files)
        async with self.lock:
            await self.records.keep((blob.digest for blob in blobs), self.now() + KEEP_FRESH, keeper=keeper)
            await self.store.adopt([(file.path, blob) for file, blob in zip(files, blobs, strict=True)])
            self.space.settle(keeper, sum(blob.size_bytes for blob in blobs))
            for noted in self._adoptions:
                noted.update(blob.digest for blob in blobs)
        return blobs

    @contextmanager
    def noted_adoptions(self) -> Iterator[set[str]]:
        """Digests of the blobs that come in meanwhile: what was read of one before says nothing of it any more."""
        noted: set[str] = set()
        self._adoptions.append(noted)
        try:
            yield noted
        finally:
            self._adoptions.remove(noted)

    async def keep(self, blobs: Collection[Blob], *, keeper: str) -> None:
        """Keep blobs from now on that are about to be referred to. Raises BlobNotFound if one is gone."""
        sizes = await self.keep_present({blob.digest for blob in blobs}, keeper=keeper)
        for blob in blobs:
            if sizes.get(blob.digest) != blob.size_bytes:
                raise BlobNotFound.named(blob.digest)

    async def keep_present(self, digests: Collection[str], *, keeper: str) -> dict[str, int]:
        """Keep those of some blobs from now on that are here. Returns their lengths."""
        async with self.lock:
            sizes = await self.store.sizes(digests)
            await self.records.keep(sizes, self.now() + KEEP_FRESH, keeper=keeper)
        return sizes

    async def held(self) -> set[str]:
        """Digests that no collection takes now, referred to or not: fresh ones, and those under a lease."""
        now = self.now()
        held = set(await self.records.kept(now))
        for lease in await self.records.leases():
            if lease.expire_time > now:
                held.update(lease.digests)
        return held

    async def let_go(self, keeper: str) -> None:
        """Its blobs are referred to now. Waits for a collection that began before they were."""
        async with self.collecting:
            await self.records.let_go(keeper)

    async def write(self, chunks: AsyncIterator[bytes], *, size_bytes: int, digest: str) -> WrittenBlob:
        """Store what a caller sends. digest: empty if the caller does not know it.

        Raises InvalidArgument if it is not `size_bytes` long, InvalidDigest, DigestMismatch, DiskFull, StoreFull.
        """
        expected = parse_digest(digest, field="header.digest") if digest else None
        name = f"write-{new_id()}"
        self.writing.add(name)
        try:
            async with self.space.claim(name) as claim:
                await claim.expect(size_bytes)
                file = await self._receive(chunks, name, size_bytes)
                blob = await self._adopt_written(name, file, size_bytes, expected)
            return WrittenBlob(blob, self.now() + KEEP_FRESH)
        finally:
            await self.drop_ingest(name)
            self.writing.discard(name)

    async def drop_ingest(self, name: str) -> None:
        """Delete an ingest folder, whose bytes are room for others then."""
        await self.store.drop_ingest(name)
        await self.space.measure()

    async def read(
        self, digest: str, offset_bytes: int, max_bytes: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A blob's bytes. Raises InvalidDigest, BlobNotFound, OffsetPastEnd."""
        parse_digest(digest)
        async with aclosing(self.store.read(digest, offset_bytes, max_bytes)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _receive(self, chunks: AsyncIterator[bytes], name: str, size_bytes: int) -> Path:
        file = await self.store.create(name)
        try:
            num_bytes = 0
            async for chunk in chunks:
                num_bytes += len(chunk)
                _check_chunk(chunk, num_bytes, size_bytes)
                await file.write(chunk)
        finally:
            await file.close()
        if num_bytes != size_bytes:
            raise _wrong_size(f"{num_bytes} bytes came instead of {size_bytes}")
        return file.path

    async def _adopt_written(self, name: str, file: Path, size_bytes: int, expected: str | None) -> Blob:
        try:
            [blob] = await self.adopt([Arrival(file, size_bytes, expected)], keeper=name)
            return blob
        except DigestMismatch as error:
            why = "is not the digest of the bytes that came"
            raise DigestMismatch(
                f"header.digest {why}; nothing was stored", violations=[FieldViolation("header.digest", why)]
            ) from error


def _check_chunk(chunk: bytes, num_bytes: int, size_bytes: int) -> None:
    if len(chunk) > MAX_CHUNK_BYTES:
        raise InvalidArgument.at("chunk", f"must have at most {MAX_CHUNK_BYTES} bytes")
    if num_bytes > size_bytes:
        raise _wrong_size(f"more than {size_bytes} bytes came")


def _wrong_size(why: str) -> InvalidArgument:
    return InvalidArgument.at("header.size_bytes", f"{why}; nothing was stored")
