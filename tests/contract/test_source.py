"""What every source must do, whatever it pulls from; Ollama's speaks with a real registry."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.downloader.core.catalog import Layout
from services.downloader.core.paths import check_paths
from services.downloader.core.sources import PullRequest, RemoteFile, Resolved
from services.kit.errors import (
    DigestMismatch,
    SourceNotFound,
    SourceUnavailable,
    UnsupportedFormat,
)
from services.kit.names import ModelRef
from tests.contract.source_rigs import GATE, REMOTE, RemoteRig, Rig, rig_of


@pytest.fixture(params=["file", "ollama", *REMOTE])
async def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    async with rig_of(request.param, tmp_path_factory.mktemp("rig")) as rig:
        yield rig


@pytest.fixture(params=["ollama", *REMOTE])
async def remote(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RemoteRig]:
    async with rig_of(request.param, tmp_path_factory.mktemp("rig")) as rig:
        assert isinstance(rig, RemoteRig)
        yield rig


def requested(ref: str) -> PullRequest:
    return PullRequest((ModelRef.parse(ref),), Layout())


async def largest(rig: Rig) -> RemoteFile:
    """The file with the weights; of a source with one file only, that one."""
    resolved = await rig.source.resolve(requested(rig.ref))
    return max(resolved.files, key=lambda file: file.size_bytes or 0)


async def pull(rig: Rig, ref: str, folder: Path) -> dict[str, bytes]:
    request = requested(ref)
    resolved = await rig.source.resolve(request)
    fetched = {}
    for number, file in enumerate(resolved.files):
        fetched[file.path] = folder / f"{number}.part"
        sha256 = await rig.source.fetch(file, fetched[file.path], lambda num_bytes, size_bytes: None)
        assert sha256 == hashlib.sha256(fetched[file.path].read_bytes()).hexdigest()
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    files = await rig.source.unpack(request, fetched, unpacked)
    check_paths(file.path for file in files)
    return {file.path: file.local.read_bytes() for file in files}


async def test_what_comes_is_what_is_there(rig: Rig, tmp_path: Path) -> None:
    assert await pull(rig, rig.ref, tmp_path) == rig.model


async def test_resolving_pins_and_what_is_pinned_resolves_to_the_same(rig: Rig) -> None:
    first: Resolved = await rig.source.resolve(requested(rig.ref))
    assert await rig.source.resolve(requested(rig.ref)) == first
    pinned = ModelRef.parse(first.source)
    assert (await rig.source.resolve(PullRequest((pinned,), Layout()))).files == first.files


async def test_what_is_newest_is_told_pinned_whatever_revision_was_named(rig: Rig) -> None:
    resolved = await rig.source.resolve(requested(rig.ref))
    latest = await rig.source.latest(requested(resolved.source))
    if not rig.follows:
        assert latest is None
        return
    assert latest == resolved
    newer = rig.publish()
    latest = await rig.source.latest(requested(resolved.source))
    assert latest is not None
    assert latest == await rig.source.resolve(requested(newer))
    assert latest.source == newer
    assert latest.version_id not in (None, resolved.version_id)
    # What was pinned is what it was.
    assert (await rig.source.resolve(requested(resolved.source))).files == resolved.files


async def test_what_is_not_there_is_said_so(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFound):
        await pull(rig, rig.absent, tmp_path)


async def test_a_name_that_leads_out_of_its_folder_is_refused(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    with pytest.raises(UnsupportedFormat):
        await pull(rig, rig.hostile(), folder)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name]


async def test_a_server_that_is_gone_is_said_so(remote: RemoteRig, tmp_path: Path) -> None:
    await remote.stop()
    with pytest.raises(SourceUnavailable):
        await pull(remote, remote.ref, tmp_path)


async def test_a_flipped_byte_is_found_and_nothing_is_kept(remote: RemoteRig, tmp_path: Path) -> None:
    file = await largest(remote)
    remote.change(lambda body: body[:2_000_000] + bytes([body[2_000_000] ^ 1]) + body[2_000_001:])
    with pytest.raises(DigestMismatch):
        await remote.source.fetch(file, tmp_path / "0.part", lambda num_bytes, size_bytes: None)
    assert not (tmp_path / "0.part").exists()


async def test_more_than_was_promised_is_never_kept(remote: RemoteRig, tmp_path: Path) -> None:
    file = await largest(remote)
    told = [0]
    remote.change(lambda body: body + bytes(5_000_000))
    with pytest.raises(DigestMismatch):
        await remote.source.fetch(
            file, tmp_path / "0.part", lambda num_bytes, size_bytes: told.append(num_bytes)
        )
    assert not (tmp_path / "0.part").exists()
    assert file.size_bytes is None or max(told) <= file.size_bytes


async def test_a_fetch_that_was_cancelled_goes_on_where_it_was(remote: RemoteRig, tmp_path: Path) -> None:
    file = await largest(remote)
    before: list[int] = []
    after: list[int] = []

    def cancel(num_bytes: int, size_bytes: int | None) -> None:
        before.append(num_bytes)
        if num_bytes:
            fetching.cancel()
            # Behind the cancellation, which ends the connection.
            asyncio.get_running_loop().call_soon(GATE.open)

    GATE.close()
    fetching = asyncio.ensure_future(remote.source.fetch(file, tmp_path / "0.part", cancel))
    try:
        with pytest.raises(asyncio.CancelledError):
            await fetching
    finally:
        GATE.open()
    assert max(before) > 0
    await remote.source.fetch(
        file, tmp_path / "0.part", lambda num_bytes, size_bytes: after.append(num_bytes)
    )
    # Whatever still lay in a buffer has come too, perhaps all of it: then nothing is fetched, nor told.
    assert min(after, default=max(before)) >= max(before)
    assert (tmp_path / "0.part").stat().st_size > 3_000_000
