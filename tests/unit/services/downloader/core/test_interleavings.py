"""RELIABILITY.md, D12: pull, delete, load, renew, collect, clean up, validate and the clock, in any order."""

import asyncio
import hashlib
import tempfile
from collections.abc import Coroutine, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.core.blobs import KEEP_FRESH
from services.downloader.core.download import DownloadState
from services.downloader.core.leases import lease_name
from services.downloader.core.models import StoredFile
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved
from services.kit.errors import LeaseNotFound
from tests.torture.numbers import num
from tests.unit.services.downloader.house import House

pytestmark = [pytest.mark.torture, pytest.mark.timeout(num(300, 1800))]

SHARED = b"what all versions share"
PULLS = st.sampled_from(["pypi:m==1", "pypi:m==2", "pypi:n==1"])
CHOICES = st.integers(0, 100)
CONTENTS = st.sampled_from([b"a", b"bb", SHARED])
NUM_INTERLEAVINGS = num(200, 1000)


class GatedSource:
    """`Source` of models with one file that all share and one of their own, in whose middle it waits for its gate.

    arrivals: set when it has come there.
    """

    def __init__(self) -> None:
        self.gates: dict[str, asyncio.Event] = {}
        self.arrivals: dict[str, asyncio.Event] = {}

    async def resolve(self, request: PullRequest) -> Resolved:
        ref = request.refs[0]
        version = ref.revision or "1"
        own = f"{ref.name} {version}".encode()
        files = tuple(
            # Of unknown size, so that they are fetched one after another.
            RemoteFile(path, content.hex(), None, hashlib.sha256(content).hexdigest())
            for path, content in (("shared.gguf", SHARED), (f"{version}.gguf", own))
        )
        return Resolved(f"pypi:{ref.name}=={version}", version, version, files)

    async def latest(self, request: PullRequest) -> Resolved:
        return await self.resolve(request.unpinned)

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        content = bytes.fromhex(file.url)
        target.write_bytes(content[:3])
        on_bytes(3, len(content))
        if content != SHARED:  # For that others may be waiting.
            self.arrivals[target.parent.name].set()
            await self.gates[target.parent.name].wait()
        target.write_bytes(content)
        on_bytes(len(content), len(content))
        return hashlib.sha256(content).hexdigest()

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        return [LocalFile(path, local) for path, local in fetched.items()]


class Interleavings(RuleBasedStateMachine):
    """What must be there is asked of the registry, of the leases, and of whoever wrote within the hour.

    No rule has a precondition: how far a pull has come is up to the threads of the disk, and hypothesis wants to draw
    the same each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.loop = asyncio.Runner()
        self.store = DiskBlobStore(Path(self.folder.name))
        self.store.open()
        self.source = GatedSource()
        self.house = House(Path(self.folder.name), store=self.store, pulled_from=self.source)
        self.fresh: list[tuple[StoredFile, datetime]] = []
        self.held: dict[str, datetime] = {}
        self.pulling: list[str] = []

    def teardown(self) -> None:
        self.run(self.house.jobs.stop())
        self.loop.close()
        self.folder.cleanup()

    def recorded(self, choice: int) -> str:
        return list(self.house.registry.versions)[choice % len(self.house.registry.versions)]

    async def ended(self, download_id: str) -> tuple[DownloadState, str]:
        async for _, download in self.house.jobs.watch(download_id):
            state, version = download.state, download.version
        return state, version

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run(work)

    @rule(source=PULLS)
    def begin_a_pull(self, source: str) -> None:
        async def begin() -> str:
            download = await self.house.jobs.create(source)
            self.source.gates.setdefault(download.id, asyncio.Event())
            arrival = self.source.arrivals.setdefault(download.id, asyncio.Event())
            # Not left on its way: what is stored for another meanwhile would be at odds with the total.
            ways = [asyncio.create_task(arrival.wait()), asyncio.create_task(self.ended(download.id))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            return download.id

        download_id = self.run(begin())
        if download_id not in self.pulling:
            self.pulling.append(download_id)

    @rule(choice=CHOICES, collect=st.booleans())
    def let_a_pull_end(self, choice: int, collect: bool) -> None:
        if not self.pulling:
            return
        download_id = self.pulling.pop(choice % len(self.pulling))

        async def end() -> None:
            self.source.gates[download_id].set()
            if collect:
                await self.house.garbage.collect()
            state, version = await self.ended(download_id)
            # Time may have passed over what it kept; then it fails, and nothing is listed of it.
            assert state is DownloadState.SUCCEEDED or not version

        self.run(end())

    @rule(content=CONTENTS, collect=st.booleans())
    def write(self, content: bytes, collect: bool) -> None:
        async def both() -> StoredFile:
            writing = asyncio.ensure_future(self.house.write(content))
            if collect:
                await self.house.garbage.collect()
            return await writing

        self.fresh.append((self.run(both()), self.house.time + KEEP_FRESH))

    @rule()
    def record(self) -> None:
        if not self.fresh:
            return
        file, until = self.fresh.pop()
        if until > self.house.time:
            self.run(self.house.record("m", file, version_id="made-here"))

    @rule(choice=CHOICES)
    def delete(self, choice: int) -> None:
        if not self.house.registry.versions:
            return
        del self.house.registry.versions[self.recorded(choice)]

    @rule(choice=CHOICES, minutes=st.integers(1, 60), collect=st.booleans(), delete=st.booleans())
    def load(self, choice: int, minutes: int, collect: bool, delete: bool) -> None:
        if not self.house.registry.versions:
            return
        name = self.recorded(choice)

        async def lease() -> None:
            leasing = asyncio.ensure_future(self.house.leases.create(name, ttl=timedelta(minutes=minutes)))
            if collect:
                await self.house.garbage.collect()
            made, _ = await leasing
            self.held[made.id] = made.expire_time

        self.run(lease())
        if delete:
            del self.house.registry.versions[name]

    @rule(choice=CHOICES, minutes=st.integers(1, 60))
    def renew(self, choice: int, minutes: int) -> None:
        if not self.held:
            return
        lease_id = list(self.held)[choice % len(self.held)]
        try:
            made, _ = self.run(self.house.leases.renew(lease_name(lease_id), ttl=timedelta(minutes=minutes)))
        except LeaseNotFound:
            assert self.held.pop(lease_id) <= self.house.time
        else:
            self.held[lease_id] = made.expire_time

    @rule(choice=CHOICES)
    def unload(self, choice: int) -> None:
        if not self.held:
            return
        lease_id = list(self.held)[choice % len(self.held)]
        until = self.held.pop(lease_id)
        try:
            self.run(self.house.leases.delete(lease_name(lease_id)))
        except LeaseNotFound:
            assert until <= self.house.time

    @rule(minutes=st.integers(1, 90))
    def wait(self, minutes: int) -> None:
        self.house.time += timedelta(minutes=minutes)

    @rule()
    def collect(self) -> None:
        told = self.run(self.house.garbage.collect(dry_run=True))
        collected = self.run(self.house.garbage.collect())
        # A pull under way goes on between the two, and takes hold of what nobody had.
        assert self.pulling or collected == told

    @rule(num_keep=st.integers(0, 2))
    def clean_up(self, num_keep: int) -> None:
        self.run(self.house.cleaner.clean_up([], num_keep=num_keep, dry_run=False))

    @rule(collect=st.booleans())
    def validate(self, collect: bool) -> None:
        async def validate() -> None:
            async for _ in self.house.validator.validate([]):
                if collect:
                    await self.house.garbage.collect()

        self.run(validate())
        assert not self.house.registry.quarantined

    @invariant()
    def nothing_needed_is_lost(self) -> None:
        now = self.house.time
        needed = {
            (file.digest, file.size_bytes)
            for version in self.house.registry.versions.values()
            for file in version.files
        }
        needed |= {(file.digest, file.size_bytes) for file, until in self.fresh if until > now}
        for lease in self.run(self.house.records.leases()):
            if self.held.get(lease.id, now) > now:
                view = self.house.store.view_path(lease.manifest)
                assert all(path.stat().st_size for path in view.iterdir())
                needed |= {(digest, self.run(self.house.store.size(digest))) for digest in lease.digests}
        for digest, size_bytes in needed:
            content = self.house.store.blob_path(digest).read_bytes()
            assert f"sha256:{hashlib.sha256(content).hexdigest()}" == digest
            assert size_bytes == len(content)

    @invariant()
    def the_running_total_is_the_sum(self) -> None:
        # A pull may be storing what another waits for, in a thread.
        with self.store._changing:
            assert self.store.stored_bytes == sum(blob.size_bytes for blob in self.store._all())


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=NUM_INTERLEAVINGS, stateful_step_count=30, deadline=None)
