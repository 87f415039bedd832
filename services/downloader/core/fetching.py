"""The files of one pull, brought into its ingest folder: what is a blob already, small ones in one go, the others."""

import contextlib
import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.downloader.core.blobs import Blobs
from services.downloader.core.concurrency import each
from services.downloader.core.ports import Arrival, Blob
from services.downloader.core.sources import SMALL_BYTES, ManyFiles, RemoteFile, Source
from services.downloader.core.space import Claim
from services.downloader.core.transfers import Transfer, Transfers
from services.kit.errors import CorruptBlob

# Files up to this size several at once, for each waits mostly; larger ones one after another, with the whole line each.
_ALONE_BYTES: Final = 8 * 1024**2
_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Fetched:
    """paths: of what came, by its source's name. stored: those that are blobs. sha256s: of the others."""

    paths: dict[str, Path] = field(default_factory=dict)
    stored: dict[Path, Blob] = field(default_factory=dict)
    sha256s: dict[Path, str] = field(default_factory=dict)


class Fetching:
    """One run of it. name: of the ingest folder, and keeper of the blobs. on_arrived: of (file number, bytes, size)."""

    def __init__(
        self,
        name: str,
        files: Sequence[RemoteFile],
        source: Source,
        blobs: Blobs,
        transfers: Transfers,
        claim: Claim,
        on_arrived: Callable[[int, int, int | None], None],
    ) -> None:
        self._name = name
        self._files = files
        self._source = source
        self._blobs = blobs
        self._transfers = transfers
        self._claim = claim
        self._on_arrived = on_arrived
        ingest = blobs.store.ingest(name)
        # Numbered, so that no name of theirs becomes one of ours.
        self._targets = [ingest / f"{number:05}.part" for number in range(len(files))]
        self._fetched = Fetched()
        self._arrivals: dict[int, int] = {}
        self._total_bytes = 0

    async def run(self) -> Fetched:
        """Bring all of them. Raises what `Source.fetch` does, StoreFull, DiskFull."""
        if isinstance(self._source, ManyFiles):
            await self._bring_small(self._source)
        alone: list[int] = []
        together: list[int] = []
        for number, file in enumerate(self._files):
            if not self._is_here(number):
                is_small = file.size_bytes is not None and file.size_bytes <= _ALONE_BYTES
                (together if is_small else alone).append(number)
        await each(together, self._bring, at_once=_AT_ONCE)
        await each(alone, self._bring, at_once=1)
        await self._transfers.settle(self._name)
        self._fetched.paths.update(
            (file.path, target) for file, target in zip(self._files, self._targets, strict=True)
        )
        return self._fetched

    async def _bring_small(self, source: ManyFiles) -> None:
        """As far as they come at once; nobody is waited for."""
        taken: dict[int, Transfer] = {}
        for number, file in enumerate(self._files):
            if file.size_bytes is not None and file.size_bytes <= SMALL_BYTES:
                transfer = self._transfers.take(_digest(file), self._name)
                if transfer is not None:
                    taken[number] = transfer
        await self._find(taken)
        numbers = {self._targets[number]: number for number in taken if not self._is_here(number)}

        def came(target: Path) -> None:
            size_bytes = self._files[numbers[target]].size_bytes or 0
            self._arrived(numbers[target], size_bytes, size_bytes)

        self._fetched.sha256s.update(
            await source.fetch_small(
                {target: self._files[number] for target, number in numbers.items()}, came
            )
        )
        for number, transfer in taken.items():
            if self._targets[number] in self._fetched.sha256s:
                transfer.arrived(functools.partial(self._store, number))
            else:
                await transfer.end()

    async def _bring(self, number: int) -> None:
        file = self._files[number]
        transfer = await self._transfers.begin(_digest(file), self._name)
        await self._find([number])
        if self._is_here(number):
            await transfer.end()
            return
        self._fetched.sha256s[self._targets[number]] = await self._source.fetch(
            file, self._targets[number], functools.partial(self._arrived, number)
        )
        transfer.arrived(functools.partial(self._store, number))

    async def _find(self, numbers: Collection[int]) -> None:
        """Those that are blobs, and whole: of another model, or from before a kill."""
        digests = {number: digest for number in numbers if (digest := _digest(self._files[number]))}
        sizes = await self._blobs.keep_present(set(digests.values()), keeper=self._name)
        for number, digest in digests.items():
            if digest in sizes:
                blob = Blob(digest, sizes[digest])
                with contextlib.suppress(CorruptBlob):  # It is brought anew, which repairs it.
                    await self._blobs.store.verify(blob)
                    self._found(number, blob)

    async def _store(self, number: int) -> None:
        """What has arrived becomes a blob before the rest has, for others."""
        arrival = Arrival(self._targets[number], sha256=self._fetched.sha256s[self._targets[number]])
        [blob] = await self._blobs.adopt([arrival], keeper=self._name)
        # It is a blob's room that it takes now.
        self._total_bytes -= self._arrivals.pop(number, 0)
        self._found(number, blob)

    def _is_here(self, number: int) -> bool:
        target = self._targets[number]
        return target in self._fetched.stored or target in self._fetched.sha256s

    def _found(self, number: int, blob: Blob) -> None:
        self._targets[number] = self._blobs.store.blob_path(blob.digest)
        self._fetched.stored[self._targets[number]] = blob
        self._on_arrived(number, blob.size_bytes, blob.size_bytes)

    def _arrived(self, number: int, num_bytes: int, size_bytes: int | None) -> None:
        if not self._files[number].is_shared:
            self._total_bytes += num_bytes - self._arrivals.get(number, 0)
            self._arrivals[number] = num_bytes
            self._claim.arrived(self._total_bytes)
        self._on_arrived(number, num_bytes, size_bytes)


def _digest(file: RemoteFile) -> str:
    """Empty if the source does not tell it."""
    return "" if file.sha256 is None else f"sha256:{file.sha256}"
