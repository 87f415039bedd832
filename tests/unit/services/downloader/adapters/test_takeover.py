import hashlib
import os
import shutil
from pathlib import Path

import pytest

from services.downloader.adapters import takeover as takeover_module
from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_small import fetch_small
from services.downloader.adapters.local_files import copy_file
from services.downloader.adapters.partial_file import PartialFile
from services.downloader.adapters.takeover import Takeover
from services.downloader.core.ports import Arrival, Blob
from services.downloader.core.sources import RemoteFile
from services.kit.errors import CorruptBlob, DigestMismatch, DiskFull, SourceNotFound
from tests.contract.local_caches import age, as_it_is, git_id, sha256
from tests.unit.services.downloader.http_server import serving, whole

CONTENT = b"GGUF" + bytes(5_000_000) + b"end"
OTHER_DISK = Path("/dev/shm")
other_user = pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives files away")
other_disk = pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="there is no second file system")


@pytest.fixture(autouse=True)
def no_clones(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on most file systems: what is shared is one file with two names."""
    monkeypatch.setattr(takeover_module, "_clone", lambda source, target: False)


@pytest.fixture
def store(tmp_path: Path) -> DiskBlobStore:
    store = DiskBlobStore(tmp_path / "store")
    store.open()
    return store


@pytest.fixture
def takeover(tmp_path: Path, store: DiskBlobStore) -> Takeover:
    return Takeover(tmp_path / "store")


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    file = tmp_path / "theirs.gguf"
    file.write_bytes(CONTENT)
    file.chmod(0o640)
    age(file)
    return file


def remote(file: Path, takeover: Takeover) -> RemoteFile:
    return RemoteFile(
        "m.gguf", file.as_uri(), file.stat().st_size, sha256(CONTENT), is_shared=takeover.can_share(file)
    )


async def imported(store: DiskBlobStore, takeover: Takeover, file: Path) -> Blob:
    target = store.ingest("download") / "00000.part"
    digest = await takeover.take(remote(file, takeover), target, lambda num, size: None)
    [blob] = await store.examine([Arrival(target, sha256=digest)])
    await store.adopt([(target, blob)])
    await store.drop_ingest("download")
    return blob


async def test_a_file_that_is_taken_over_keeps_its_mode_and_its_time(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = as_it_is(theirs)
    blob = await imported(store, takeover, theirs)
    assert store.blob_path(blob.digest).stat().st_ino == theirs.stat().st_ino
    assert theirs.stat().st_nlink == 2
    assert as_it_is(theirs) == before
    reads: list[Path] = []
    monkeypatch.setattr("services.downloader.adapters.disk_blob_store.sha256_of", reads.append)
    await store.check(blob)
    assert reads == []


async def test_what_is_written_into_it_later_is_noticed(
    store: DiskBlobStore, takeover: Takeover, theirs: Path
) -> None:
    blob = await imported(store, takeover, theirs)
    with theirs.open("r+b") as file:
        file.write(b"X")
    with pytest.raises(CorruptBlob, match="damaged"):
        await store.check(blob)
    with theirs.open("r+b") as file:
        file.write(b"G")
    await store.check(blob)


async def test_a_time_that_was_just_set_is_not_relied_on(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(theirs)
    blob = await imported(store, takeover, theirs)
    now = theirs.stat().st_mtime_ns
    with theirs.open("r+b") as file:
        file.write(b"X")
    # A second write within one tick of the file system's clock.
    os.utime(theirs, ns=(now, now))
    with pytest.raises(CorruptBlob):
        await store.check(blob)
    theirs.write_bytes(CONTENT)
    age(theirs)
    await store.check(blob)
    monkeypatch.setattr("services.downloader.adapters.disk_blob_store.sha256_of", lambda path: "")
    await store.check(blob)


async def test_a_lost_seal_is_made_anew_without_a_change_to_their_file(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    before = as_it_is(theirs)
    blob = await imported(store, takeover, theirs)
    (seal,) = (tmp_path / "store" / "seals").iterdir()
    seal.unlink()
    await store.check(blob)
    assert seal.exists()
    assert as_it_is(theirs) == before


async def test_what_they_delete_stays_and_what_we_delete_stays_theirs(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    blob = await imported(store, takeover, theirs)
    await store.delete(blob.digest)
    assert theirs.read_bytes() == CONTENT
    assert list((tmp_path / "store" / "seals").iterdir()) == []
    blob = await imported(store, takeover, theirs)
    theirs.unlink()
    await store.check(blob)
    await store.verify(blob)


@pytest.mark.parametrize("step", ["delete", "quarantine", "ingest"])
async def test_secure_deletion_spares_their_file(
    tmp_path: Path, takeover: Takeover, theirs: Path, step: str
) -> None:
    store = DiskBlobStore(tmp_path / "store", secure_delete=True)
    before = as_it_is(theirs)
    if step == "ingest":
        target = store.ingest("download") / "00000.part"
        await takeover.take(remote(theirs, takeover), target, lambda num, size: None)
        await store.drop_ingest("download")
    else:
        blob = await imported(store, takeover, theirs)
        if step == "quarantine":
            await store.quarantine(blob.digest)
            await store.drop_quarantined(blob.digest)
        await store.delete(blob.digest)
        await store.purge()
    assert as_it_is(theirs) == before
    assert theirs.stat().st_nlink == 1


async def test_the_same_file_twice_is_one_blob(
    store: DiskBlobStore, takeover: Takeover, theirs: Path
) -> None:
    blob = await imported(store, takeover, theirs)
    assert await imported(store, takeover, theirs) == blob
    assert store.stored_bytes == len(CONTENT)
    assert theirs.stat().st_nlink == 2
    await store.check(blob)


async def test_what_is_fetched_after_an_import_that_failed_is_sealed_as_our_own(
    store: DiskBlobStore, takeover: Takeover, theirs: Path
) -> None:
    target = store.ingest("download") / "00000.part"
    await takeover.take(remote(theirs, takeover), target, lambda num, size: None)
    before = as_it_is(theirs)
    partial = PartialFile(target, "another source")
    partial.open(3)
    partial.begin("", 3)
    taken = partial.take()
    assert taken is not None
    partial.write(taken, memoryview(b"abc"))
    partial.close()
    [blob] = await store.examine([Arrival(target)])
    await store.adopt([(target, blob)])
    assert as_it_is(theirs) == before
    assert store.blob_path(blob.digest).stat().st_mode & 0o777 == 0o444


async def test_a_copy_does_not_write_into_a_link_that_was_left(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    target = store.ingest("download") / "00000.part"
    await takeover.take(remote(theirs, takeover), target, lambda num, size: None)
    before = as_it_is(theirs)
    (tmp_path / "small").write_bytes(b"small")
    await copy_file(tmp_path / "small", target, lambda num, size: None)
    assert target.read_bytes() == b"small"
    assert as_it_is(theirs) == before


async def test_a_small_download_does_not_write_into_a_link_that_was_left(
    takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "0.part"
    await takeover.take(remote(theirs, takeover), target, lambda num, size: None)
    before = as_it_is(theirs)
    async with serving(whole(b"small")) as server:
        client = HttpClient(limits=HttpLimits())
        file = RemoteFile("small", f"{server.url}/small", 5, hashlib.sha256(b"small").hexdigest())
        assert (await fetch_small(client, {target: file}, lambda path: None)).keys() == {target}
        await client.close()
    assert target.read_bytes() == b"small"
    assert as_it_is(theirs) == before


@other_user
async def test_a_file_of_another_user_is_copied(
    store: DiskBlobStore, takeover: Takeover, theirs: Path
) -> None:
    os.chown(theirs, 12345, 12345)
    assert not takeover.can_share(theirs)
    blob = await imported(store, takeover, theirs)
    assert store.blob_path(blob.digest).stat().st_nlink == 1
    assert store.blob_path(blob.digest).stat().st_uid == os.geteuid()


@other_disk
async def test_a_file_of_another_disk_is_copied(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    there = OTHER_DISK / f"lares-{os.getpid()}.gguf"
    shutil.copy(theirs, there)
    try:
        assert not takeover.can_share(there)
        blob = await imported(store, takeover, there)
        # It was said that it could be shared, and it turns out that it cannot.
        said = RemoteFile("m.gguf", there.as_uri(), len(CONTENT), is_shared=True)
        await takeover.take(said, tmp_path / "0.part", lambda num, size: None)
    finally:
        there.unlink()
    assert store.blob_path(blob.digest).read_bytes() == (tmp_path / "0.part").read_bytes() == CONTENT


async def test_a_copy_that_does_not_fit_is_refused_before_its_first_byte(
    takeover: Takeover, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    file = RemoteFile("m.gguf", theirs.as_uri(), len(CONTENT))
    with pytest.raises(DiskFull):
        await takeover.take(file, tmp_path / "0.part", lambda num, size: None)
    assert not (tmp_path / "0.part").exists()


async def test_where_the_disk_clones_the_blob_is_a_file_of_our_own(
    store: DiskBlobStore, takeover: Takeover, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clone(source: int, target: int) -> bool:
        """As FICLONE does, which few file systems have; with another way to the same bytes."""
        os.sendfile(target, source, 0, os.fstat(source).st_size)
        os.lseek(target, 0, os.SEEK_SET)
        return True

    monkeypatch.setattr(takeover_module, "_clone", clone)
    before = as_it_is(theirs)
    blob = await imported(store, takeover, theirs)
    assert theirs.stat().st_nlink == 1
    assert as_it_is(theirs) == before
    assert store.blob_path(blob.digest).stat().st_mode & 0o777 == 0o444
    theirs.write_bytes(b"changed")
    await store.check(blob)


async def test_a_file_that_changes_while_it_is_read_is_refused(
    takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    file = RemoteFile("m.gguf", theirs.as_uri(), len(CONTENT), is_shared=True)

    def change(num_bytes: int, size_bytes: int | None) -> None:
        with theirs.open("r+b") as opened:
            opened.write(b"X")

    with pytest.raises(DigestMismatch, match="changed while it was read"):
        await takeover.take(file, tmp_path / "0.part", change)
    assert not list(tmp_path.glob("0.part*"))


async def test_a_link_that_took_the_files_place_is_not_followed(
    takeover: Takeover, theirs: Path, tmp_path: Path
) -> None:
    file = remote(theirs, takeover)
    theirs.rename(tmp_path / "moved")
    theirs.symlink_to(tmp_path / "moved")
    with pytest.raises(SourceNotFound):
        await takeover.take(file, tmp_path / "0.part", lambda num, size: None)


async def test_a_git_id_is_checked(takeover: Takeover, theirs: Path, tmp_path: Path) -> None:
    good = RemoteFile("m", theirs.as_uri(), len(CONTENT), git_id=git_id(CONTENT), is_shared=True)
    assert await takeover.take(good, tmp_path / "0.part", lambda num, size: None) == sha256(CONTENT)
    bad = RemoteFile("m", theirs.as_uri(), len(CONTENT), git_id=git_id(b""), is_shared=True)
    with pytest.raises(DigestMismatch):
        await takeover.take(bad, tmp_path / "1.part", lambda num, size: None)
