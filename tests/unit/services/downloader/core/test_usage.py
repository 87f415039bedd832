"""What the store holds: every byte once, under what it is for."""

from pathlib import Path

from services.downloader.core.ports import Disk
from services.downloader.core.space import SpaceLimits
from services.downloader.core.usage import ModelUsage, Share, store_usage
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.unit.services.downloader.house import House


async def test_every_byte_is_counted_once(tmp_path: Path) -> None:
    house = House(tmp_path, limits=SpaceLimits(max_store_bytes=1000, min_free_bytes=30))
    assert isinstance(house.store, MemoryBlobStore)
    house.store.pretended_disk = Disk(500, 2000)
    shared = await house.write(b"shared")
    version = await house.record("m", shared, await house.write(b"12345", "own"), version_id="1")
    await house.record("m", shared, version_id="2")
    await house.record("n", shared)
    await house.write(b"fresh")
    await house.store.quarantine((await house.write(b"bad")).digest)
    (house.store.ingest("download") / "0.part").write_bytes(b"1234")
    await house.leases.create(version)
    usage = await store_usage(house.blobs, house.registry, num_models=10)
    assert usage.referenced == Share(2, 11)
    assert usage.unreferenced == Share(1, 5)
    assert usage.partial == Share(1, 4)
    assert usage.views.count == 1
    assert usage.quarantine == Share(1, 3)
    assert usage.used_bytes == 11 + 5 + 4 + 3
    assert (usage.limit_bytes, usage.reserve_bytes, usage.disk) == (1000, 30, Disk(500, 2000))
    assert usage.models == (ModelUsage("models/m", 2, 11, 6), ModelUsage("models/n", 1, 6, 6))
    assert (await store_usage(house.blobs, house.registry, num_models=1)).models == usage.models[:1]
