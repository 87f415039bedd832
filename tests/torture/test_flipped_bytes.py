"""RELIABILITY.md, D3: one byte is another, on its way or in the store. It is found, and never listed as good."""

import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.adapters.hf_source import HfSource
from services.downloader.adapters.http_client import HttpLimits
from services.downloader.core.download import DownloadState
from services.downloader.core.findings import ValidatedFile, ValidatedVersion, VersionVerdict
from services.downloader.core.sources import RemoteFile
from services.kit.errors import CorruptBlob, DigestMismatch, ModelNotAvailable
from tests.contract.source_rigs import PypiRig, Shelf
from tests.torture.numbers import num
from tests.unit.services.downloader.house import House
from tests.unit.services.downloader.wheels import gguf_bytes

pytestmark = [pytest.mark.torture, pytest.mark.timeout(num(120, 1800))]

NUM_POSITIONS = num(50, 1_000)
BODY = gguf_bytes() + os.urandom(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
GIT_ID = hashlib.sha1(b"blob %d\0" % len(BODY) + BODY, usedforsecurity=False).hexdigest()


def positions(size_bytes: int) -> list[int]:
    """The first and the last, and some between."""
    choose = random.Random(3)
    return [0, size_bytes - 1, *(choose.randrange(size_bytes) for _ in range(NUM_POSITIONS - 2))]


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << position % 8]) + content[position + 1 :]


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    shelf = Shelf()
    await shelf.open()
    yield shelf
    await shelf.stop()


@pytest.fixture
def store(tmp_path: Path) -> DiskBlobStore:
    store = DiskBlobStore(tmp_path / "store")
    store.open()
    return store


@pytest.mark.parametrize(("sha256", "git_id"), [(SHA256, None), (None, GIT_ID)], ids=["sha256", "git id"])
async def test_a_byte_that_the_server_flips_is_found_and_nothing_is_kept(
    shelf: Shelf, tmp_path: Path, sha256: str | None, git_id: str | None
) -> None:
    source = HfSource(shelf.url, "", HttpLimits())
    file = RemoteFile("m.gguf", f"{shelf.url}/m", len(BODY), sha256, git_id)
    for position in positions(len(BODY)):
        shelf.files["/m"] = flipped(BODY, position)
        with pytest.raises(DigestMismatch):
            await source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
        assert not (tmp_path / "0.part").exists()
    shelf.files["/m"] = BODY
    assert await source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None) == SHA256
    await source.close()


async def test_a_model_of_which_the_server_flips_a_byte_is_never_listed(
    shelf: Shelf, store: DiskBlobStore, tmp_path: Path
) -> None:
    rig = PypiRig(shelf, BODY)
    house = House(tmp_path, store=store, pulled_from=rig.source)
    whole = shelf.files[rig.path]
    for position in positions(len(whole)):
        shelf.files[rig.path] = flipped(whole, position)
        begun = await house.jobs.create(rig.ref)
        *_, (_, download) = [seen async for seen in house.jobs.watch(begun.id)]
        assert download.state is DownloadState.FAILED
        assert download.failure is not None
        assert download.failure.reason == "DIGEST_MISMATCH"
    assert house.registry.versions == {}
    assert await store.blobs() == []
    await rig.close()


@pytest.mark.parametrize("is_sealed", [True, False], ids=["untold", "told by its time"])
async def test_a_byte_that_the_disk_flips_takes_the_model_out_of_service(
    store: DiskBlobStore, tmp_path: Path, is_sealed: bool
) -> None:
    house = House(tmp_path, store=store)
    file = await house.write(BODY)
    name = await house.record("m", file)
    path = store.blob_path(file.digest)
    for position in positions(len(BODY)):
        found = path.stat()
        path.chmod(0o644)
        path.write_bytes(flipped(BODY, position))
        if is_sealed:
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        else:
            with pytest.raises(CorruptBlob):
                await house.leases.create(name)
        events = [event async for event in house.validator.validate([])]
        assert [event.verdict.name for event in events if isinstance(event, ValidatedFile)] == ["DAMAGED"]
        assert house.registry.quarantined == {name: "model.gguf is damaged"}
        with pytest.raises(ModelNotAvailable):
            await house.leases.create(name)
        await house.write(BODY)
        events = [event async for event in house.validator.validate([])]
        [verdict] = [event.verdict for event in events if isinstance(event, ValidatedVersion)]
        assert verdict is VersionVerdict.RELEASED
