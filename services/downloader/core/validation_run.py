"""One validation on its way: it reads blobs, takes what is not whole out of service, and says how versions stand."""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from services.downloader.core.blobs import Blobs
from services.downloader.core.findings import (
    FileVerdict,
    Progress,
    Summary,
    ValidatedFile,
    ValidatedVersion,
    VersionVerdict,
)
from services.downloader.core.models import ListedVersion, StoredFile
from services.downloader.core.ports import Blob, ModelRegistry
from services.kit.errors import BlobNotFound, CorruptBlob, EtagMismatch, NotFound

_PROGRESS_BYTES: Final = 16 * 1024 * 1024


class Pace:
    """Holds a reader back. max_bytes_per_second: 0 for not at all."""

    def __init__(
        self,
        max_bytes_per_second: int,
        sleep: Callable[[float], Awaitable[None]],
        clock_s: Callable[[], float],
    ) -> None:
        self._max_bytes_per_second = max_bytes_per_second
        self._sleep = sleep
        self._clock_s = clock_s
        self._start_s = clock_s()
        self._num_bytes = 0

    async def count(self, num_bytes: int) -> None:
        """Return when so many more may be read."""
        self._num_bytes += num_bytes
        if self._max_bytes_per_second:
            due_s = self._start_s + self._num_bytes / self._max_bytes_per_second
            if (early_s := due_s - self._clock_s()) > 0:
                await self._sleep(early_s)


class ValidationRun:
    """One validation: what it has found so far, and what it does about it."""

    def __init__(
        self,
        versions: Sequence[ListedVersion],
        blobs: Blobs,
        registry: ModelRegistry,
        adopted: set[str],
        pace: Pace,
    ) -> None:
        self.summary = Summary()
        self._versions = versions
        self._blobs = blobs
        self._registry = registry
        self._adopted = adopted
        self._pace = pace
        self._verdicts: dict[Blob, FileVerdict] = {}
        self._quarantined = {version.name for version in versions if version.is_quarantined}
        self._gone: set[str] = set()
        self._total_bytes = 0
        self._hit: set[str] = set()
        self._owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for version in versions:
            for file in version.all_files:
                self._owners[file.digest].append((version.name, file.path))

    def bystanders(self, chosen: Sequence[ListedVersion]) -> list[ListedVersion]:
        """Versions that nobody asked about, and that a file which they share took out of service."""
        names = self._hit - {version.name for version in chosen}
        return [version for version in self._versions if version.name in names]

    def expect(self, blobs: set[Blob]) -> None:
        """All that will be read."""
        self._total_bytes = sum(blob.size_bytes for blob in blobs)

    async def orphans(self) -> list[Blob]:
        """Blobs that no version refers to."""
        return [blob for blob in await self._blobs.store.blobs() if blob.digest not in self._owners]

    async def read(
        self, version: str, path: str, blob: Blob
    ) -> AsyncGenerator[Progress | ValidatedFile, None]:
        """Read a blob unless it was read already, and act on what is found."""
        if blob in self._verdicts:
            return
        before_bytes = self.summary.read_bytes
        while True:
            # A second reading, of what was replaced, is not progress twice.
            self.summary.read_bytes = before_bytes
            self._adopted.discard(blob.digest)
            sha256 = hashlib.sha256()
            num_bytes = told_bytes = 0
            verdict = FileVerdict.DAMAGED
            try:
                async with aclosing(self._blobs.store.read(blob.digest)) as chunks:
                    async for chunk in chunks:
                        await asyncio.to_thread(sha256.update, chunk)
                        num_bytes += len(chunk)
                        self.summary.read_bytes += len(chunk)
                        await self._pace.count(len(chunk))
                        if num_bytes - told_bytes >= _PROGRESS_BYTES:
                            told_bytes = num_bytes
                            yield self.progress(version, path)
                        if num_bytes > blob.size_bytes:
                            break
                if (num_bytes, f"sha256:{sha256.hexdigest()}") == (blob.size_bytes, blob.digest):
                    verdict = FileVerdict.GOOD
            except BlobNotFound:
                verdict = FileVerdict.MISSING
            except OSError:
                pass  # A disk that cannot read it any more: as bad as other bytes.
            if verdict is FileVerdict.GOOD or await self._is_taken_out(blob, verdict):
                break
        if verdict is FileVerdict.MISSING and not version:
            return  # It was garbage, and was collected meanwhile.
        self._verdicts[blob] = verdict
        self.summary.count_file(verdict)
        yield self.progress(version, path)
        yield ValidatedFile(version, path, blob, verdict)

    async def settled(self, version: ListedVersion) -> ValidatedVersion:
        """What is to be said of a version whose files were all read; quarantine ends where they are whole."""
        bad = self._bad(version)
        if version.name in self._gone:
            return ValidatedVersion(version.name, VersionVerdict.GONE)
        if bad:
            return ValidatedVersion(version.name, VersionVerdict.QUARANTINED, self._reason(bad))
        if version.name not in self._quarantined:
            return ValidatedVersion(version.name, VersionVerdict.WHOLE)
        return await self._released(version, version.etag if version.is_quarantined else "")

    async def is_mended(self, version: ListedVersion) -> bool:
        """Whether what was bad of it is whole now."""
        try:
            for file in self._bad(version):
                await self._blobs.store.verify(blob_of(file))
        except CorruptBlob:
            return False
        return True

    def is_downloadable(self, version: ListedVersion) -> bool:
        """Whether what is bad of it comes from its source; artifacts are made here."""
        return set(self._bad(version)) <= set(version.files)

    async def settled_again(self, version: ListedVersion, reason: str, download: str) -> ValidatedVersion:
        """What is to be said of a version after its repair."""
        try:
            if await self.is_mended(version):
                await self._registry.release(version.name, "")
                return ValidatedVersion(version.name, VersionVerdict.REPAIRED, "", download)
            # Again: a download that brought back a part of it has had it served.
            await self._registry.quarantine(version.name, self._reason(self._bad(version)))
        except NotFound:
            return ValidatedVersion(version.name, VersionVerdict.GONE, "", download)
        return ValidatedVersion(version.name, VersionVerdict.QUARANTINED, reason, download)

    async def _released(self, version: ListedVersion, etag: str) -> ValidatedVersion:
        try:
            await self._registry.release(version.name, etag)
        except NotFound:
            return ValidatedVersion(version.name, VersionVerdict.GONE)
        except EtagMismatch:
            why = "it changed while it was read; validate it again"
            return ValidatedVersion(version.name, VersionVerdict.QUARANTINED, why)
        return ValidatedVersion(version.name, VersionVerdict.RELEASED)

    async def _is_taken_out(self, blob: Blob, verdict: FileVerdict) -> bool:
        """Take it out of service. Returns whether that is final: not if it was replaced since it was read."""
        for name, path in self._owners[blob.digest]:
            if name in self._quarantined or name in self._gone:
                continue
            try:
                await self._registry.quarantine(name, f"{path} is {verdict.name.lower()}")
            except NotFound:
                self._gone.add(name)
            else:
                self._quarantined.add(name)
                self._hit.add(name)
        async with self._blobs.lock:
            if blob.digest in self._adopted:
                return False
            if verdict is FileVerdict.DAMAGED:
                await self._blobs.store.quarantine(blob.digest)
            return True

    def _bad(self, version: ListedVersion) -> list[StoredFile]:
        bad = (FileVerdict.DAMAGED, FileVerdict.MISSING)
        return [file for file in version.all_files if self._verdicts.get(blob_of(file)) in bad]

    def _reason(self, bad: Sequence[StoredFile]) -> str:
        first = f"{bad[0].path} is {self._verdicts[blob_of(bad[0])].name.lower()}"
        return first if len(bad) == 1 else f"{first}, and so are {len(bad) - 1} more files"

    def progress(self, version: str, path: str) -> Progress:
        """How far it is."""
        return Progress(version, path, self.summary.read_bytes, self._total_bytes)


def blob_of(file: StoredFile) -> Blob:
    """What holds its bytes."""
    return Blob(file.digest, file.size_bytes)
