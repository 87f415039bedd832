"""Full disks, locks and links, on a real disk."""

import asyncio
import hashlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.downloader.adapters.disk_blob_store import DiskBlobStore, DiskIngestFile
from services.downloader.adapters.folder_lock import FolderLock
from services.downloader.adapters.partial_file import BLOCK_BYTES, PartialFile
from services.downloader.core.models import StoredFile
from services.downloader.core.parts import SEGMENT_BYTES
from services.downloader.core.ports import Arrival
from services.kit.errors import DiskFull, FailedPrecondition
from services.kit.manifest import manifest_digest

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
async def test_a_full_disk_is_told_as_such() -> None:
    file = DiskIngestFile(FULL)
    with pytest.raises(DiskFull, match="free some and resume"):
        await file.write(b"x")
    await file.close()


async def test_a_partial_file_keeps_what_fitted(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "f", "identity")
    partial.open(10**17)
    partial.begin('"1"', 10**17)
    taken = partial.take()
    assert taken is not None
    partial.write(taken, memoryview(b"12345"))
    with pytest.raises(DiskFull, match="more bytes are needed"):
        partial.check_room()
    partial.close()
    again = PartialFile(tmp_path / "f", "identity")
    again.open(None)
    assert (again.parts.num_bytes, again.validator) == (5, '"1"')
    again.close()


async def test_a_partial_file_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "f.json").write_text("junk")
    partial = PartialFile(tmp_path / "f", "identity")
    partial.open(None)
    assert partial.parts.num_bytes == 0
    partial.close()


@pytest.mark.parametrize("step", [1_048_576, 4096, 4095, 100_001, SEGMENT_BYTES])
@pytest.mark.parametrize("is_aligned", [True, False])
def test_a_large_file_is_what_was_written_however_it_was_cut(
    tmp_path: Path, step: int, *, is_aligned: bool
) -> None:
    content = os.urandom(SEGMENT_BYTES + 12_345)
    memory = memoryview(mmap.mmap(-1, 2 * len(content)))
    at = 0
    while at < len(content):
        partial = PartialFile(tmp_path / "f", "identity")
        partial.open(len(content))
        if not at:
            partial.begin('"1"', len(content))
        assert (partial.parts.num_bytes, partial.is_behind) == (at, at > 0)
        while partial.hash():
            pass
        taken = partial.take()
        assert taken is not None
        # A few pieces, then it is opened anew.
        for _ in range(700):
            start = at % BLOCK_BYTES if is_aligned else 1
            piece = content[at : at + step]
            memory[start : start + len(piece)] = piece
            partial.write(taken, memory[start : start + len(piece)])
            at += len(piece)
        assert not partial.is_behind
        assert partial.sha256 == hashlib.sha256(content[:at]).hexdigest()
        partial.close()
    assert (tmp_path / "f").read_bytes() == content


async def test_what_a_power_cut_took_of_a_partial_file_with_gaps_is_not_believed(tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "f", "identity")
    partial.open(10 * SEGMENT_BYTES)
    partial.begin('"1"', 10 * SEGMENT_BYTES)
    first, second = partial.take(), partial.take()
    assert first is not None
    assert second is not None
    partial.write(first, memoryview(b"12345"))
    partial.write(second, memoryview(b"67890"))
    partial.close()
    again = PartialFile(tmp_path / "f", "identity")
    again.open(10 * SEGMENT_BYTES)
    assert again.parts.num_bytes == 10
    again.close()
    os.truncate(tmp_path / "f", 5)
    again = PartialFile(tmp_path / "f", "identity")
    again.open(10 * SEGMENT_BYTES)
    assert again.parts.num_bytes == 0
    again.close()


async def test_one_process_holds_a_folder_and_its_death_lets_go_of_it(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys, time; from pathlib import Path;"
        "from services.downloader.adapters.folder_lock import FolderLock;"
        "asyncio.run(FolderLock(Path(sys.argv[1])).acquire()); print('held', flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), stdout=subprocess.PIPE, env=environment
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    lock = FolderLock(tmp_path)
    with pytest.raises(FailedPrecondition, match="another process uses the store"):
        await lock.acquire(timeout_s=0.2)
    waiting = asyncio.create_task(lock.acquire())
    holder.kill()
    await holder.wait()
    await waiting
    lock.release()


async def test_a_view_works_without_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no symbolic links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    store = DiskBlobStore(tmp_path)
    store.open()
    file = await store.create("x")
    await file.write(b"weights")
    await file.close()
    [blob] = await store.examine([Arrival(file.path)])
    await store.adopt([(file.path, blob)])
    files = [StoredFile("a/m.gguf", blob.size_bytes, blob.digest)]
    view = await store.open_view(manifest_digest(files), files)
    assert (view / "a" / "m.gguf").read_bytes() == b"weights"
    await store.delete_view(manifest_digest(files))
    assert await store.size(blob.digest) == 7


async def test_a_store_that_was_moved_still_shows_its_views(tmp_path: Path) -> None:
    store = DiskBlobStore(tmp_path / "here")
    store.open()
    file = await store.create("x")
    await file.write(b"weights")
    await file.close()
    [blob] = await store.examine([Arrival(file.path)])
    await store.adopt([(file.path, blob)])
    files = [StoredFile("deep/m.gguf", blob.size_bytes, blob.digest)]
    view = await store.open_view(manifest_digest(files), files)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / view.relative_to(tmp_path / "here")
    assert (moved / "deep" / "m.gguf").read_bytes() == b"weights"
