"""What every blob store must do: the one in memory that unit tests use, and the one on disk."""

import hashlib
import os
import random
import string
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.core.models import StoredFile
from services.downloader.core.ports import Area, Arrival, Blob, BlobStore
from services.kit.errors import (
    BlobNotFound,
    CorruptBlob,
    DigestMismatch,
    InvalidArgument,
    OffsetPastEnd,
    UnsupportedFormat,
)
from services.kit.manifest import manifest_digest
from tests.contract.memory_blob_store import MemoryBlobStore

CONTENT = os.urandom(3_000_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
ABSENT = "sha256:" + "0" * 64


@pytest.fixture(params=["memory", "disk"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "memory":
        return MemoryBlobStore(tmp_path)
    return opened(tmp_path)


def opened(root: Path) -> DiskBlobStore:
    store = DiskBlobStore(root)
    store.open()
    return store


async def put(store: BlobStore, content: bytes = CONTENT) -> Blob:
    file = await store.create("x")
    await file.write(content)
    await file.close()
    [blob] = await store.examine([Arrival(file.path)])
    await store.adopt([(file.path, blob)])
    return blob


async def contents(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_what_is_adopted_is_read_back_from_any_offset(store: BlobStore) -> None:
    blob = await put(store)
    assert blob == Blob(DIGEST, len(CONTENT))
    assert await store.size(DIGEST) == len(CONTENT)
    assert await store.sizes({DIGEST, ABSENT}) == {DIGEST: len(CONTENT)}
    assert await store.blobs() == [blob]
    assert store.blob_path(DIGEST).read_bytes() == CONTENT
    for offset in (0, 1, 1_048_576, len(CONTENT) - 1, len(CONTENT)):
        assert await contents(store.read(DIGEST, offset)) == CONTENT[offset:]


@pytest.mark.parametrize("offset", [0, 1, 1_048_575])
@pytest.mark.parametrize("num_bytes", [0, 1, 1_048_576, 1_048_577, 10**12])
async def test_a_range_ends_by_itself(store: BlobStore, offset: int, num_bytes: int) -> None:
    await put(store)
    assert await contents(store.read(DIGEST, offset, num_bytes)) == CONTENT[offset : offset + num_bytes]


async def test_an_offset_past_the_end_is_refused(store: BlobStore) -> None:
    await put(store)
    with pytest.raises(OffsetPastEnd):
        await contents(store.read(DIGEST, len(CONTENT) + 1))


async def test_what_is_not_there_is_said_to_be_absent(store: BlobStore) -> None:
    assert await store.size(ABSENT) is None
    assert await store.delete(ABSENT) == 0
    assert await store.blobs() == []
    with pytest.raises(BlobNotFound):
        await contents(store.read(ABSENT))
    with pytest.raises(CorruptBlob):
        await store.check(Blob(ABSENT, 1))


async def test_a_wrong_size_or_digest_is_refused_and_nothing_is_stored(store: BlobStore) -> None:
    file = await store.create("x")
    await file.write(CONTENT)
    await file.close()
    with pytest.raises(DigestMismatch):
        await store.examine([Arrival(file.path, size_bytes=len(CONTENT) + 1)])
    with pytest.raises(DigestMismatch):
        await store.examine([Arrival(file.path, digest=ABSENT)])
    assert await store.blobs() == []
    assert (await store.examine([Arrival(file.path, len(CONTENT), DIGEST)]))[0].digest == DIGEST
    known = DIGEST.removeprefix("sha256:")
    assert (await store.examine([Arrival(file.path, digest=DIGEST, sha256=known)]))[0].digest == DIGEST
    with pytest.raises(DigestMismatch):
        await store.examine([Arrival(file.path, digest=ABSENT, sha256=known)])


async def test_storing_the_same_bytes_twice_keeps_one(store: BlobStore) -> None:
    await put(store)
    await put(store)
    assert len(await store.blobs()) == 1
    assert await store.delete(DIGEST) == len(CONTENT)
    assert await store.blobs() == []


async def test_an_ingest_folder_is_dropped_with_all_in_it(store: BlobStore) -> None:
    (store.ingest("download-1") / "0.part").write_bytes(b"12345")
    assert await store.ingests() == ["download-1"]
    assert await store.drop_ingest("download-1") == 5
    assert await store.drop_ingest("download-1") == 0
    assert await store.ingests() == []


async def test_what_has_arrived_can_be_handed_on(store: BlobStore) -> None:
    (store.ingest("download-1") / "0.part").write_bytes(b"12345")
    await store.move_ingest("download-1", "download-2")
    await store.move_ingest("nothing", "download-3")
    assert await store.ingests() == ["download-2"]
    assert (store.ingest("download-2") / "0.part").read_bytes() == b"12345"


async def test_a_view_shows_blobs_under_their_own_names(store: BlobStore) -> None:
    first, second = await put(store, b"one"), await put(store, b"two")
    files = [
        StoredFile("config.json", first.size_bytes, first.digest),
        StoredFile("deep/er/model.bin", second.size_bytes, second.digest),
        StoredFile("copy.json", first.size_bytes, first.digest),
    ]
    manifest = manifest_digest(files)
    view = await store.open_view(manifest, files)
    assert view == store.view_path(manifest) == await store.open_view(manifest, files)
    assert (view / "config.json").read_bytes() == (view / "copy.json").read_bytes() == b"one"
    assert (view / "deep/er/model.bin").read_bytes() == b"two"
    assert await store.views() == [manifest]
    await store.delete_view(manifest)
    assert await store.views() == []
    assert await store.size(second.digest) == 3


async def test_what_is_put_aside_is_not_served_and_can_be_brought_again(store: BlobStore) -> None:
    blob = await put(store)
    assert await store.quarantine(DIGEST)
    assert not await store.quarantine(DIGEST)
    assert await store.size(DIGEST) is None
    assert await store.blobs() == []
    assert await store.quarantined() == [blob]
    with pytest.raises(CorruptBlob):
        await store.check(blob)
    await put(store)
    await store.check(blob)
    assert await store.quarantine(DIGEST)
    assert await store.quarantined() == [blob]
    assert await store.drop_quarantined(DIGEST) == len(CONTENT)
    assert await store.drop_quarantined(DIGEST) == 0
    assert await store.quarantined() == []


async def test_stored_bytes_are_those_of_blobs_and_of_what_was_put_aside(store: BlobStore) -> None:
    assert store.stored_bytes == 0
    first, second = await put(store, b"one"), await put(store, b"three")
    await put(store, b"one")
    assert store.stored_bytes == 8
    await store.quarantine(second.digest)
    assert store.stored_bytes == 8
    await put(store, b"three")
    assert store.stored_bytes == 13
    await store.drop_quarantined(second.digest)
    await store.delete(first.digest)
    await store.delete(first.digest)
    assert store.stored_bytes == 5


async def test_everything_has_a_size_and_a_time(store: BlobStore) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)  # File systems count in ticks of their own.
    blob = await put(store, b"12345")
    files = [StoredFile("config.json", blob.size_bytes, blob.digest)]
    manifest = manifest_digest(files)
    await store.open_view(manifest, files)
    (store.ingest("x") / "deep").mkdir()
    (store.ingest("x") / "deep" / "0.part").write_bytes(b"123")
    sizes = []
    for area, name in ((Area.BLOB, blob.digest), (Area.INGEST, "x"), (Area.VIEW, manifest)):
        measure = await store.measure(area, name)
        assert measure is not None
        assert before <= measure.change_time <= datetime.now(UTC) + timedelta(seconds=1)
        sizes.append(measure.size_bytes)
    assert sizes[:2] == [5, 3]
    assert sizes[2] < 1000
    await store.quarantine(blob.digest)
    aside = await store.measure(Area.QUARANTINE, blob.digest)
    assert aside is not None
    assert aside.size_bytes == 5
    assert await store.measure(Area.BLOB, blob.digest) is None
    assert await store.measure(Area.INGEST, "y") is None
    assert await store.measure(Area.VIEW, "0" * 64) is None
    assert store.disk().size_bytes >= store.disk().free_bytes > 0


async def test_no_name_or_digest_leads_out_of_the_store(store: BlobStore, tmp_path: Path) -> None:
    blob = await put(store, b"x")
    before = sorted(tmp_path.rglob("*"))
    for name in hostile_names():
        with pytest.raises(InvalidArgument):
            await store.size(name)
        with pytest.raises(InvalidArgument):
            await store.delete(f"sha256:{name}")
        with pytest.raises(InvalidArgument):
            await store.quarantine(f"sha256:{name}")
        with pytest.raises(InvalidArgument):
            await store.drop_quarantined(f"sha256:{name}")
        with pytest.raises(InvalidArgument):
            await store.measure(Area.INGEST, name)
        with pytest.raises(InvalidArgument):
            store.ingest(name)
        files = [StoredFile(name, blob.size_bytes, blob.digest)]
        with pytest.raises(UnsupportedFormat):
            await store.open_view(manifest_digest(files), files)
    assert sorted(tmp_path.rglob("*")) == before


def hostile_names() -> list[str]:
    fixed = [
        "",
        ".",
        "..",
        "../x",
        "/etc/passwd",
        "a/../../b",
        "a//b",
        "C:\\x",
        "\\\\host\\x",
        "a\0b",
        "con:x",
    ]
    choose = random.Random(13)
    made: list[str] = []
    while len(made) < 300:
        name = "".join(
            choose.choice("./\\\0:" + string.ascii_letters) for _ in range(choose.randrange(1, 40))
        )
        made.append(f"../{name}")
    return fixed + made


# What only the disk can do.


async def test_a_blob_on_disk_is_read_only_and_lies_under_its_digest(tmp_path: Path) -> None:
    await put(opened(tmp_path))
    hex_digits = DIGEST.removeprefix("sha256:")
    path = tmp_path / "blobs" / "sha256" / hex_digits[:2] / hex_digits
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o222 == 0


async def test_a_blob_that_was_zeroed_is_noticed_though_its_size_is_right(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob = await put(store)
    await store.check(blob)
    path = next((tmp_path / "blobs").rglob("??" + "?" * 62))
    path.chmod(0o644)
    path.write_bytes(bytes(len(CONTENT)))
    with pytest.raises(CorruptBlob, match="damaged"):
        await store.check(blob)
    await put(store)  # A pull brings it again, which repairs it.
    await store.check(blob)


async def test_a_copied_store_is_checked_once_and_trusted_again(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob = await put(store)
    path = next((tmp_path / "blobs").rglob("??" + "?" * 62))
    os.utime(path)
    await store.check(blob)
    assert path.stat().st_mtime < 1_500_000_000


async def test_a_view_with_a_broken_link_is_made_anew(tmp_path: Path) -> None:
    store = opened(tmp_path)
    blob = await put(store)
    files = [StoredFile("model.gguf", blob.size_bytes, blob.digest)]
    view = await store.open_view(manifest_digest(files), files)
    (view / "model.gguf").unlink()
    assert (await store.open_view(manifest_digest(files), files) / "model.gguf").read_bytes() == CONTENT


async def test_what_is_stored_is_counted_when_the_store_is_opened(tmp_path: Path) -> None:
    store = opened(tmp_path)
    await put(store, b"one")
    await store.quarantine((await put(store, b"three")).digest)
    assert opened(tmp_path).stored_bytes == store.stored_bytes == 8


async def test_a_view_of_hard_links_shows_the_blob_that_was_brought_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(Path, "symlink_to", no_links)
    store = opened(tmp_path)
    blob = await put(store)
    files = [StoredFile("model.gguf", blob.size_bytes, blob.digest)]
    view = await store.open_view(manifest_digest(files), files)
    assert (view / "model.gguf").stat().st_nlink == 2
    store.blob_path(DIGEST).chmod(0o644)
    store.blob_path(DIGEST).write_bytes(bytes(len(CONTENT)))
    await store.quarantine(DIGEST)
    await put(store)
    assert (await store.open_view(manifest_digest(files), files) / "model.gguf").read_bytes() == CONTENT


@pytest.fixture
def second_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A hard link to each file that is deleted, made in the moment before it goes: what its disk blocks hold then."""
    links: list[Path] = []
    unlink = Path.unlink

    def link_first(path: Path, missing_ok: bool = False) -> None:
        link = tmp_path / f"link-{len(links)}"
        os.link(path, link)
        links.append(link)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", link_first)
    return links


async def test_secure_deletion_leaves_zeros(tmp_path: Path, second_names: list[Path]) -> None:
    store = DiskBlobStore(tmp_path / "store", secure_delete=True)
    store.open()
    await put(store)
    assert await store.delete(DIGEST) == len(CONTENT)
    assert await store.delete(DIGEST) == 0
    assert await store.size(DIGEST) is None
    assert store.stored_bytes == 0
    # Killed before it was overwritten: the next process does it.
    store = DiskBlobStore(tmp_path / "store", secure_delete=True)
    store.open()
    await store.purge()
    (store.ingest("download") / "0.part").write_bytes(b"secret")
    assert await store.drop_ingest("download") == 6
    assert [link.read_bytes() for link in second_names] == [bytes(len(CONTENT)), bytes(6)]
    assert store.stored_bytes == 0
    assert await store.quarantined() == []


async def test_deletion_without_that_setting_writes_nothing(tmp_path: Path, second_names: list[Path]) -> None:
    store = opened(tmp_path / "store")
    await put(store)
    await store.delete(DIGEST)
    await store.purge()
    assert [link.read_bytes() for link in second_names] == [CONTENT]


async def test_secure_deletion_spares_what_another_link_uses(tmp_path: Path) -> None:
    store = DiskBlobStore(tmp_path / "store", secure_delete=True)
    store.open()
    await put(store)
    os.link(store.blob_path(DIGEST), tmp_path / "in-use")
    assert await store.delete(DIGEST) == len(CONTENT)
    await store.purge()
    assert (tmp_path / "in-use").read_bytes() == CONTENT


async def test_secure_deletion_does_not_follow_links_out_of_the_store(tmp_path: Path) -> None:
    store = DiskBlobStore(tmp_path / "store", secure_delete=True)
    store.open()
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (store.ingest("download") / "link").symlink_to(outside)
    await store.drop_ingest("download")
    assert await store.ingests() == []
    assert outside.read_bytes() == b"precious"
