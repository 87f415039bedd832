"""Leases and garbage collection: no blob that somebody refers to, holds or is about to record is ever lost."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from services.downloader.core.blobs import KEEP_FRESH
from services.downloader.core.download import Download, DownloadState, Failure
from services.downloader.core.garbage import KEEP_QUARANTINED, MAX_ITEMS, Collected, Garbage, Reason
from services.downloader.core.leases import lease_name
from services.kit.errors import (
    CorruptBlob,
    DigestMismatch,
    InvalidArgument,
    LeaseNotFound,
    VersionNotFound,
)
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.unit.services.downloader.house import House, chunks


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_what_nobody_refers_to_goes_once_its_hour_is_over(house: House) -> None:
    kept = await house.write(b"kept")
    await house.record("m", kept)
    lost = await house.write(b"lost!")
    assert await house.garbage.collect() == Collected()
    house.time += KEEP_FRESH
    item = Garbage(lost.digest, Reason.UNREFERENCED, 5, KEEP_FRESH)
    assert await house.garbage.collect(dry_run=True) == Collected(1, 5, items=(item,))
    assert await house.store.size(lost.digest) == 5
    assert await house.garbage.collect() == Collected(1, 5, items=(item,))
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
    told = await house.garbage.collect(dry_run=True)
    assert [(item.name, item.reason) for item in told.items] == [(lease.manifest, Reason.UNUSED_VIEW)]
    assert await house.store.views() == [lease.manifest]
    assert await house.garbage.collect() == told
    assert await house.store.views() == []
    with pytest.raises(LeaseNotFound):
        await house.leases.delete(lease_name(lease.id))


async def test_a_lease_on_a_damaged_version_names_the_file_and_leaves_nothing(house: House) -> None:
    file = await house.write(b"weights")
    version = await house.record("m", file)
    assert isinstance(house.store, MemoryBlobStore)
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
    told = await house.garbage.collect(dry_run=True)
    assert [(item.name, item.reason, item.size_bytes) for item in told.items] == [
        ("downloads/done", Reason.EXPIRED_PARTIAL, 5),
        ("downloads/long-failed", Reason.EXPIRED_PARTIAL, 5),
        ("unknown", Reason.ORPHANED_INGEST, 5),
    ]
    assert len(await house.store.ingests()) == 6
    assert await house.garbage.collect() == told
    assert (told.num_partials, told.freed_bytes) == (3, 15)
    assert await house.store.ingests() == ["failed", "paused", "running"]


async def test_what_was_put_aside_goes_after_a_week(house: House) -> None:
    file = await house.write(b"weights")
    await house.store.quarantine(file.digest)
    house.time += KEEP_QUARANTINED - timedelta(seconds=1)
    assert await house.garbage.collect() == Collected()
    house.time += timedelta(seconds=1)
    collected = await house.garbage.collect()
    assert (collected.num_quarantined, collected.freed_bytes) == (1, 7)
    assert await house.store.quarantined() == []


async def test_a_thousand_are_named_and_all_are_counted(house: House) -> None:
    for number in range(MAX_ITEMS + 1):
        house.store.ingest(f"left-{number}")
    collected = await house.garbage.collect()
    assert (collected.num_partials, len(collected.items)) == (MAX_ITEMS + 1, MAX_ITEMS)


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
