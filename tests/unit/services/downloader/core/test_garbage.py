"""Leases and garbage collection: no blob that somebody refers to, holds or is about to record is ever lost."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.downloader.core.blobs import KEEP_FRESH, Blobs
from services.downloader.core.download import Download, DownloadState, Failure
from services.downloader.core.garbage import Collected, GarbageCollector
from services.downloader.core.leases import Leases, lease_name
from services.downloader.core.models import Facts, Format, ModelKind, ModelRecord, StoredFile, VersionRecord
from services.kit.errors import (
    CorruptBlob,
    DigestMismatch,
    InvalidArgument,
    LeaseNotFound,
    VersionNotFound,
)
from services.kit.names import version_name
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.contract.memory_download_store import MemoryDownloadStore
from tests.unit.services.downloader.fakes import MemoryRegistry

FACTS = Facts(ModelKind.TEXT_GENERATION, Format.GGUF)


class House:
    """A store with its leases and its garbage collector, and a clock that a test moves."""

    def __init__(self, folder: Path) -> None:
        self.time = datetime(2026, 11, 21, tzinfo=UTC)
        self.store = MemoryBlobStore(folder)
        self.records = MemoryDownloadStore()
        self.registry = MemoryRegistry()
        self.blobs = Blobs(self.store, self.records, now=lambda: self.time)
        self.leases = Leases(self.blobs, self.registry)
        self.garbage = GarbageCollector(self.blobs, self.registry)

    async def write(self, content: bytes) -> StoredFile:
        written = await self.blobs.write(chunks(content), size_bytes=len(content), digest="")
        return StoredFile("model.gguf", written.blob.size_bytes, written.blob.digest)

    async def record(self, model_id: str, file: StoredFile) -> str:
        model = ModelRecord(model_id, "file", "", FACTS)
        version = VersionRecord(model_id, "1", "", "", FACTS, (file,))
        await self.registry.record(model, version, request_id="")
        return version_name(model_id, "1")


async def chunks(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_what_nobody_refers_to_goes_once_its_hour_is_over(house: House) -> None:
    kept = await house.write(b"kept")
    await house.record("m", kept)
    lost = await house.write(b"lost!")
    assert await house.garbage.collect() == Collected()
    house.time += KEEP_FRESH
    assert await house.garbage.collect(dry_run=True) == Collected(1, 5)
    assert await house.store.size(lost.digest) == 5
    assert await house.garbage.collect() == Collected(1, 5)
    assert await house.store.size(lost.digest) is None
    assert await house.store.size(kept.digest) == 4


async def test_a_lease_holds_its_files_and_its_view_after_the_version_is_gone(house: House) -> None:
    version = await house.record("m", await house.write(b"weights"))
    lease, path = await house.leases.create(version, holder="inference@here:1")
    house.registry.versions.clear()
    house.time += timedelta(minutes=4)
    await house.leases.renew(lease_name(lease.id), ttl=timedelta(hours=1))
    house.time += timedelta(minutes=59)
    assert await house.garbage.collect() == Collected()
    assert (path / "model.gguf").read_bytes() == b"weights"
    house.time += timedelta(minutes=1)
    assert (await house.garbage.collect()).num_blobs == 1
    assert await house.store.views() == []
    with pytest.raises(LeaseNotFound):
        await house.leases.renew(lease_name(lease.id))


async def test_a_lease_that_is_given_back_holds_nothing(house: House) -> None:
    version = await house.record("m", await house.write(b"weights"))
    lease, _ = await house.leases.create(version)
    await house.leases.delete(lease_name(lease.id))
    await house.garbage.collect()
    assert await house.store.views() == []
    with pytest.raises(LeaseNotFound):
        await house.leases.delete(lease_name(lease.id))


async def test_a_lease_on_a_damaged_version_names_the_file_and_leaves_nothing(house: House) -> None:
    file = await house.write(b"weights")
    version = await house.record("m", file)
    house.store.damaged.add(file.digest)
    with pytest.raises(CorruptBlob, match=r"model\.gguf of models/m/versions/1") as caught:
        await house.leases.create(version)
    assert caught.value.metadata["file"] == "model.gguf"
    assert await house.records.leases() == []


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(milliseconds=999), timedelta(hours=1, seconds=1)])
async def test_a_lease_for_too_short_or_too_long_is_refused(house: House, ttl: timedelta) -> None:
    version = await house.record("m", await house.write(b"weights"))
    with pytest.raises(InvalidArgument, match="ttl"):
        await house.leases.create(version, ttl=ttl)


async def test_a_lease_on_nothing_is_refused(house: House) -> None:
    with pytest.raises(VersionNotFound):
        await house.leases.create("models/m/versions/1")
    with pytest.raises(InvalidArgument):
        await house.leases.create("models/m")
    with pytest.raises(InvalidArgument, match="holder"):
        await house.leases.create("models/m/versions/1", holder="x" * 129)


@pytest.mark.parametrize(
    ("sent", "size", "digest", "error"),
    [
        ([b"abc"], 4, "", InvalidArgument),
        ([b"abc", b"de"], 4, "", InvalidArgument),
        ([b"abc"], 3, "sha256:" + "0" * 64, DigestMismatch),
        ([b"abc"], 3, "sha256:../../x", InvalidArgument),
        ([bytes(4 * 1024 * 1024 + 1)], 4 * 1024 * 1024 + 1, "", InvalidArgument),
    ],
)
async def test_bytes_that_are_not_what_was_announced_are_not_stored(
    house: House, sent: list[bytes], size: int, digest: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await house.blobs.write(chunks(*sent), size_bytes=size, digest=digest)
    assert await house.store.blobs() == []
    assert await house.store.ingests() == []


async def test_leftovers_go_and_what_can_be_resumed_stays(house: House) -> None:
    states = {
        "running": DownloadState.RUNNING,
        "paused": DownloadState.PAUSED,
        "failed": DownloadState.FAILED,
        "long-failed": DownloadState.FAILED,
        "done": DownloadState.SUCCEEDED,
    }
    for name, state in states.items():
        (house.store.ingest(name) / "0.part").write_bytes(b"12345")
        download = Download(name, "pypi:x", "x", house.time, state=state)
        if state is DownloadState.FAILED:
            ended = house.time - timedelta(days=2 if name == "long-failed" else 0)
            download = download.failed(Failure("X", "y"), ended)
        await house.records.save_download(download)
    (house.store.ingest("unknown") / "blob").write_bytes(b"12345")
    assert (await house.garbage.collect()).freed_bytes == 15
    assert await house.store.ingests() == ["failed", "paused", "running"]


async def test_a_registry_that_does_not_answer_costs_no_blob(house: House) -> None:
    await house.write(b"weights")
    house.time += KEEP_FRESH

    async def nobody() -> AsyncIterator[str]:
        raise TimeoutError
        yield ""

    house.registry.referenced = nobody  # type: ignore[method-assign]
    with pytest.raises(TimeoutError):
        await house.garbage.collect()
    assert len(await house.store.blobs()) == 1


class Interleavings(RuleBasedStateMachine):
    """Pull, lease, delete, collect and the passing of time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.house = House(Path(self.folder.name))
        self.fresh: list[StoredFile] = []
        self.held: dict[str, tuple[StoredFile, datetime]] = {}

    def teardown(self) -> None:
        self.folder.cleanup()

    @rule(content=st.sampled_from([b"a", b"bb", b"ccc"]))
    def write(self, content: bytes) -> None:
        self.fresh.append(run(self.house.write(content)))

    @rule(model_id=st.sampled_from(["m", "n"]))
    def record(self, model_id: str) -> None:
        if self.fresh:
            run(self.house.record(model_id, self.fresh.pop()))

    @rule(model_id=st.sampled_from(["m", "n"]), minutes=st.integers(1, 60))
    def lease(self, model_id: str, minutes: int) -> None:
        name = version_name(model_id, "1")
        if name in self.house.registry.versions:
            lease, _ = run(self.house.leases.create(name, ttl=timedelta(minutes=minutes)))
            file = self.house.registry.versions[name].files[0]
            self.held[lease.id] = (file, lease.expire_time)

    @rule(model_id=st.sampled_from(["m", "n"]))
    def delete(self, model_id: str) -> None:
        self.house.registry.versions.pop(version_name(model_id, "1"), None)

    @rule(minutes=st.integers(1, 50))
    def wait(self, minutes: int) -> None:
        self.house.time += timedelta(minutes=minutes)
        # Whoever writes a blob records it within the hour, or writes it again.
        self.fresh.clear()

    @rule()
    def collect(self) -> None:
        run(self.house.garbage.collect())

    @rule(content=st.sampled_from([b"a", b"bb", b"ccc"]))
    def collect_while_it_is_written_again(self, content: bytes) -> None:
        async def both() -> StoredFile:
            _, file = await asyncio.gather(self.house.garbage.collect(), self.house.write(content))
            return file

        self.fresh.append(run(both()))

    @invariant()
    def nothing_needed_is_lost(self) -> None:
        needed = [file for version in self.house.registry.versions.values() for file in version.files]
        needed += [file for file, until in self.held.values() if until > self.house.time]
        needed += self.fresh
        for file in needed:
            assert run(self.house.store.size(file.digest)) == file.size_bytes


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
