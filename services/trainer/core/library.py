"""Datasets: taken in, handed out, removed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from datetime import datetime
from typing import Final

from services.kit.errors import InvalidDataset
from services.trainer.core.datasets import DatasetChecker, parse_file_name
from services.trainer.core.ids import new_id
from services.trainer.core.model import Dataset
from services.trainer.core.ports import DatasetFiles, DatasetStore

MAX_CHUNK_BYTES: Final = 1024 * 1024
_READ_BYTES: Final = 256 * 1024


class Library:
    """The datasets of the house."""

    def __init__(
        self, store: DatasetStore, files: DatasetFiles, *, max_bytes: int, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._files = files
        self._max_bytes = max_bytes
        self._now = now
        # Equal files share their bytes: none may be removed between another's commit and its record.
        self._bytes_lock = asyncio.Lock()

    async def take_in(self, file_name: str, chunks: AsyncIterator[bytes], *, request_id: str) -> Dataset:
        """Check and keep a file. Raises InvalidDataset, PayloadTooLarge, DiskFull; then nothing is kept."""
        parse_file_name(file_name)
        checker = DatasetChecker(max_bytes=self._max_bytes)
        draft = await asyncio.to_thread(self._files.draft)
        try:
            async for chunk in chunks:
                if len(chunk) > MAX_CHUNK_BYTES:
                    raise InvalidDataset.at("chunk", f"must be at most {MAX_CHUNK_BYTES} bytes")
                await asyncio.to_thread(checker.feed, chunk)
                await asyncio.to_thread(draft.write, chunk)
            summary = await asyncio.to_thread(checker.finish)
            dataset = Dataset(
                dataset_id=new_id("dataset"),
                file_name=file_name,
                format=summary.format,
                size_bytes=summary.size_bytes,
                digest=summary.digest,
                num_examples=summary.num_examples,
                create_time=self._now(),
            )
            async with self._bytes_lock:
                await asyncio.to_thread(draft.commit, summary.digest)
                return await self._store.add_dataset(dataset, request_id=request_id)
        finally:
            await asyncio.to_thread(draft.discard)

    async def get(self, dataset_id: str) -> Dataset:
        """Raises DatasetNotFound."""
        return await self._store.get_dataset(dataset_id)

    async def list_datasets(self, *, before: str | None, limit: int) -> list[Dataset]:
        """Newest first, those older than the id `before`."""
        return await self._store.list_datasets(before=before, limit=limit)

    async def read(self, dataset_id: str) -> AsyncGenerator[bytes, None]:
        """The file as it was taken in. Raises DatasetNotFound."""
        dataset = await self._store.get_dataset(dataset_id)
        # Not in a thread, which would leave it open for a reader that is cancelled meanwhile.
        file = self._files.path(dataset.digest).open("rb")
        try:
            while chunk := await asyncio.to_thread(file.read, _READ_BYTES):
                yield chunk
        finally:
            file.close()

    async def remove(self, dataset_id: str) -> None:
        """Raises DatasetNotFound, FailedPrecondition while a job that has not ended needs it."""
        async with self._bytes_lock:
            dataset = await self._store.get_dataset(dataset_id)
            if await self._store.remove_dataset(dataset_id):
                await asyncio.to_thread(self._files.remove, dataset.digest)
