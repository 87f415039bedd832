"""Room in the store: what does not fit is refused before its first byte, or where it crosses the line."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.core.blobs import KEEP_FRESH
from services.downloader.core.download import Download, DownloadState
from services.downloader.core.ports import Disk
from services.downloader.core.sources import PullRequest, Resolved
from services.downloader.core.space import SpaceLimits
from services.kit.errors import DiskFull, StoreFull
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.unit.services.downloader.fakes import SlowSource
from tests.unit.services.downloader.house import House, chunks


def house_of(folder: Path, kind: str, *, max_store_bytes: int = 0, min_free_bytes: int = 0) -> House:
    limits = SpaceLimits(max_store_bytes, min_free_bytes)
    if kind == "memory":
        return House(folder, limits=limits)
    store = DiskBlobStore(folder)
    store.open()
    return House(folder, store=store, limits=limits)


async def ended(house: House, source: str, model_id: str = "") -> Download:
    download = await house.jobs.create(source, model_id=model_id)
    async for _, seen in house.jobs.watch(download.id):
        download = seen
    return download


both = pytest.mark.parametrize("kind", ["memory", "disk"])


@both
async def test_a_pull_that_does_not_fit_is_refused_before_its_first_byte(tmp_path: Path, kind: str) -> None:
    house = house_of(tmp_path, kind, max_store_bytes=20)
    await house.write(b"0123456789")
    house.time += KEEP_FRESH
    house.source.content = bytes(11)
    download = await ended(house, "pypi:x==1")
    assert download.state is DownloadState.FAILED
    assert download.failure is not None
    assert download.failure.reason == "STORE_FULL"
    for number in ("needs 11 bytes", "10 are used of the 20", "`lares gc` would free 10"):
        assert number in download.failure.message
    assert house.source.num_fetched == 0
    house.source.content = bytes(10)
    assert (await ended(house, "pypi:y==1")).state is DownloadState.SUCCEEDED


class SharedSource(SlowSource):
    """Of a file that another program has on the disk already."""

    async def resolve(self, request: PullRequest) -> Resolved:
        resolved = await super().resolve(request)
        return replace(resolved, files=tuple(replace(file, is_shared=True) for file in resolved.files))


async def test_what_is_shared_needs_no_room_on_the_disk_and_counts_towards_the_limit(tmp_path: Path) -> None:
    source = SharedSource(bytes(11))
    house = House(tmp_path, limits=SpaceLimits(max_store_bytes=20), pulled_from=source)
    assert isinstance(house.store, MemoryBlobStore)
    house.store.pretended_disk = Disk(5, 1000)
    assert (await ended(house, "pypi:x==1")).state is DownloadState.SUCCEEDED
    assert await house.blobs.space.used_bytes() == 11
    source.content, source.num_fetched = bytes(10), 0
    refused = await ended(house, "pypi:y==1")
    assert refused.failure is not None
    assert refused.failure.reason == "STORE_FULL"
    assert source.num_fetched == 0
    assert await house.blobs.space.used_bytes() == 11


async def test_while_it_is_on_its_way_it_leaves_the_disk_to_others(tmp_path: Path) -> None:
    source = SharedSource(bytes(11), go=False)
    house = House(tmp_path, pulled_from=source)
    assert isinstance(house.store, MemoryBlobStore)
    house.store.pretended_disk = Disk(5, 1000)
    download = await house.jobs.create("pypi:x==1")
    await source.fetching.wait()
    assert await house.blobs.space.used_bytes() == 11
    await house.write(b"12345")
    source.go.set()
    async for _, seen in house.jobs.watch(download.id):
        download = seen
    assert download.state is DownloadState.SUCCEEDED


@both
async def test_room_that_was_freed_is_room(tmp_path: Path, kind: str) -> None:
    house = house_of(tmp_path, kind, max_store_bytes=20)
    await house.write(b"0123456789")
    house.source.content = bytes(range(15))
    failed = await ended(house, "pypi:x==1")
    assert failed.state is DownloadState.FAILED
    house.time += KEEP_FRESH
    await house.garbage.collect()
    assert await house.blobs.space.used_bytes() == 0
    assert (await ended(house, "pypi:x==1")).state is DownloadState.SUCCEEDED
    assert await house.blobs.space.used_bytes() == 15


@both
async def test_what_is_here_already_needs_no_room(tmp_path: Path, kind: str) -> None:
    house = house_of(tmp_path, kind, max_store_bytes=10)
    file = await house.write(house.source.content)
    house.source.sha256 = file.digest.removeprefix("sha256:")
    assert (await ended(house, "pypi:x==1")).state is DownloadState.SUCCEEDED
    assert await house.blobs.space.used_bytes() == 7


@both
async def test_what_turns_out_larger_is_stopped_where_it_crosses(tmp_path: Path, kind: str) -> None:
    house = house_of(tmp_path, kind, max_store_bytes=20)
    async with house.blobs.space.claim("unknown") as claim:
        await claim.expect(0)
        claim.arrived(20)
        with pytest.raises(StoreFull, match="20 are used of the 20"):
            claim.arrived(21)
        with pytest.raises(StoreFull):
            await house.write(b"x")
    assert await house.blobs.space.used_bytes() == 0


async def test_a_pull_of_unknown_size_is_stopped_where_it_crosses(tmp_path: Path) -> None:
    house = house_of(tmp_path, "memory", max_store_bytes=20)
    house.source.content = bytes(21)
    house.source.tells_size = False
    download = await ended(house, "pypi:x==1")
    assert download.failure is not None
    assert download.failure.reason == "STORE_FULL"
    assert house.source.num_fetched == 1
    assert await house.store.blobs() == []


@both
async def test_two_pulls_are_not_promised_the_same_room(tmp_path: Path, kind: str) -> None:
    house = house_of(tmp_path, kind, max_store_bytes=20)
    house.source.content = bytes(range(11))
    house.source.go.clear()
    first = asyncio.create_task(ended(house, "pypi:x==1"))
    await house.source.fetching.wait()
    refused = await ended(house, "pypi:y==1")
    assert refused.failure is not None
    assert "11 are used of the 20" in refused.failure.message
    with pytest.raises(StoreFull):
        await house.write(bytes(10))
    await house.write(bytes(9))
    house.source.go.set()
    assert (await first).state is DownloadState.SUCCEEDED
    assert await house.blobs.space.used_bytes() == 20


@both
async def test_a_write_that_does_not_fit_leaves_nothing(tmp_path: Path, kind: str) -> None:
    house = house_of(tmp_path, kind, max_store_bytes=20)
    with pytest.raises(StoreFull) as caught:
        await house.blobs.write(chunks(b""), size_bytes=2**63, digest="")
    assert caught.value.metadata["limit_bytes"] == "20"
    assert caught.value.metadata["reclaimable_bytes"] == "0"
    assert await house.store.ingests() == []
    await house.write(bytes(20))


async def test_what_is_to_stay_free_on_the_disk_stays_free(tmp_path: Path) -> None:
    house = house_of(tmp_path, "memory", min_free_bytes=40)
    assert isinstance(house.store, MemoryBlobStore)
    house.store.pretended_disk = Disk(free_bytes=50, size_bytes=1000)
    with pytest.raises(DiskFull, match="50 are free on the disk"):
        await house.write(bytes(11))
    await house.write(bytes(10))


async def test_what_was_unpacked_lies_on_the_disk_already(tmp_path: Path) -> None:
    house = house_of(tmp_path, "memory", max_store_bytes=50)
    assert isinstance(house.store, MemoryBlobStore)
    async with house.blobs.space.claim("archive") as claim:
        await claim.expect(10)
        claim.arrived(10)
        house.store.pretended_disk = Disk(free_bytes=0, size_bytes=1000)
        claim.unpacked(50)
        assert await house.blobs.space.used_bytes() == 50
        with pytest.raises(StoreFull):
            claim.unpacked(51)


async def test_of_a_small_disk_no_more_than_a_twentieth_is_reserved(tmp_path: Path) -> None:
    house = house_of(tmp_path, "memory", min_free_bytes=40)
    assert isinstance(house.store, MemoryBlobStore)
    house.store.pretended_disk = Disk(free_bytes=50, size_bytes=100)
    assert house.blobs.space.reserve_bytes == 5
    await house.write(bytes(45))


async def test_what_others_were_promised_is_not_free(tmp_path: Path) -> None:
    house = house_of(tmp_path, "memory")
    assert isinstance(house.store, MemoryBlobStore)
    house.store.pretended_disk = Disk(free_bytes=50, size_bytes=1000)
    async with house.blobs.space.claim("first") as claim:
        await claim.expect(30)
        claim.arrived(10)
        # What the first has brought is on the disk, and no more free.
        house.store.pretended_disk = Disk(free_bytes=40, size_bytes=1000)
        with pytest.raises(DiskFull):
            await house.write(bytes(21))
        await house.write(bytes(20))


async def test_the_total_is_right_after_a_crash(tmp_path: Path) -> None:
    house = house_of(tmp_path, "disk")
    kept = await house.write(b"0123456789")
    await house.store.quarantine((await house.write(b"damaged")).digest)
    await house.store.delete((await house.write(b"gone")).digest)
    (house.store.ingest("left-over") / "0.part").write_bytes(b"12345")
    assert await house.blobs.space.used_bytes() == 22
    # Nothing was closed: a new process counts what it finds.
    again = house_of(tmp_path, "disk", max_store_bytes=23)
    assert await again.blobs.space.used_bytes() == 22
    assert await again.store.size(kept.digest) == 10
    with pytest.raises(StoreFull):
        await again.write(b"xx")
