"""Validation, on the store in memory and on the one on disk: what is not whole is found, put aside and mended."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

from services.downloader.adapters.disk_blob_store import DiskBlobStore
from services.downloader.core.download import PullOptions
from services.downloader.core.findings import (
    Event,
    FileVerdict,
    Progress,
    Summary,
    ValidatedFile,
    ValidatedVersion,
    VersionVerdict,
)
from services.downloader.core.models import ListedVersion, StoredFile
from services.downloader.core.validation import Validator
from services.kit.errors import (
    BlobNotFound,
    FailedPrecondition,
    InvalidReference,
    ModelNotAvailable,
    ModelNotFound,
    SourceNotFound,
    VersionNotFound,
)
from tests.contract.memory_blob_store import MemoryBlobStore
from tests.unit.services.downloader.house import House, damage


@pytest.fixture(params=["memory", "disk"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    if request.param == "memory":
        return House(tmp_path, store=MemoryBlobStore(tmp_path))
    store = DiskBlobStore(tmp_path)
    store.open()
    return House(tmp_path, store=store)


async def findings(
    house: House, *names: str, repair: bool = False
) -> tuple[list[ValidatedFile], dict[str, ValidatedVersion], Summary]:
    """Files that are not good, versions by name, and the summary."""
    events = [event async for event in house.validator.validate(names, repair=repair)]
    files = [event for event in events if isinstance(event, ValidatedFile)]
    versions = {event.name: event for event in events if isinstance(event, ValidatedVersion)}
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert summary.num_good + summary.num_damaged + summary.num_missing == len(files)
    return [file for file in files if file.verdict is not FileVerdict.GOOD], versions, summary


async def pulled(house: House) -> tuple[str, StoredFile]:
    """A version that came from a source, with its one file."""
    download = await house.jobs.create("pypi:x==1", model_id="m")
    async for _, seen in house.jobs.watch(download.id):
        download = seen
    return download.version, house.registry.versions[download.version].files[0]


async def test_a_whole_store_is_said_to_be_whole(house: House) -> None:
    shared = await house.write(b"shared")
    await house.record("m", shared, await house.write(b"weights", "b"))
    await house.record("n", shared)
    await house.write(b"fresh")
    bad, versions, summary = await findings(house)
    assert not bad
    assert {version.verdict for version in versions.values()} == {VersionVerdict.WHOLE}
    assert summary == Summary(num_versions=2, num_good=3, read_bytes=6 + 7 + 5)


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        (bytes(7), FileVerdict.DAMAGED),
        (b"weightz", FileVerdict.DAMAGED),
        (b"", FileVerdict.DAMAGED),
        (b"weights and more", FileVerdict.DAMAGED),
        (None, FileVerdict.MISSING),
    ],
)
async def test_what_is_not_whole_is_out_of_service_at_once(
    house: House, content: bytes | None, verdict: FileVerdict
) -> None:
    file = await house.write(b"weights")
    name = await house.record("m", file, await house.write(b"whole", "b"))
    damage(house.store, file.digest, content)
    (bad,), versions, summary = await findings(house, "models/m")
    assert (bad.version, bad.path, bad.verdict) == (name, "model.gguf", verdict)
    assert versions[name].verdict is VersionVerdict.QUARANTINED
    assert house.registry.quarantined == {name: f"model.gguf is {verdict.name.lower()}"}
    assert (summary.num_good, summary.num_damaged + summary.num_missing) == (1, 1)
    assert await house.store.size(file.digest) is None
    assert [blob.digest for blob in await house.store.quarantined()] == (
        [] if content is None else [file.digest]
    )
    with pytest.raises(ModelNotAvailable):
        await house.leases.create(name)
    with pytest.raises(BlobNotFound):
        await anext(house.blobs.read(file.digest, 0))


async def test_one_flipped_byte_is_never_listed_as_good_again(house: House) -> None:
    content = bytes(range(256)) * 16
    file = await house.write(content)
    name = await house.record("m", file)
    for position in range(0, len(content), 83):
        flipped = bytearray(content)
        flipped[position] ^= 1
        damage(house.store, file.digest, bytes(flipped))
        (bad,), _, _ = await findings(house)
        assert bad.verdict is FileVerdict.DAMAGED
        assert name in house.registry.quarantined
        await house.write(content)
        _, versions, _ = await findings(house)
        assert versions[name].verdict is VersionVerdict.RELEASED
    assert not house.registry.quarantined


async def test_a_damaged_file_takes_every_version_that_has_it_out_of_service(house: House) -> None:
    shared = await house.write(b"shared")
    first, second = await house.record("m", shared), await house.record("n", shared)
    damage(house.store, shared.digest, b"sharks")
    _, versions, summary = await findings(house, "models/m")
    assert set(house.registry.quarantined) == set(versions) == {first, second}
    assert summary.num_quarantined == 2


async def test_repair_downloads_it_again_and_releases_it(house: House) -> None:
    name, file = await pulled(house)
    damage(house.store, file.digest, bytes(file.size_bytes))
    _, versions, summary = await findings(house, repair=True)
    assert versions[name].verdict is VersionVerdict.REPAIRED
    assert versions[name].download.startswith("downloads/")
    assert not house.registry.quarantined
    assert (summary.num_repaired, summary.num_quarantined) == (1, 0)
    assert (await findings(house))[2].num_good == 1
    await house.leases.create(name)


async def test_repair_of_a_file_that_two_versions_share_mends_both(house: House) -> None:
    name, file = await pulled(house)
    other = await house.record("n", file)
    damage(house.store, file.digest, None)
    _, versions, _ = await findings(house, name, repair=True)
    assert {each.verdict for each in versions.values()} == {VersionVerdict.REPAIRED}
    assert set(versions) == {name, other}
    assert house.source.num_fetched == 2


async def test_what_its_source_has_no_more_stays_in_quarantine(house: House) -> None:
    name, file = await pulled(house)
    damage(house.store, file.digest, b"")
    house.source.failure = SourceNotFound("it was deleted there")
    _, versions, _ = await findings(house, name, repair=True)
    assert versions[name].verdict is VersionVerdict.QUARANTINED
    assert versions[name].reason.startswith("m.gguf is damaged")
    assert "it was deleted there" in versions[name].reason
    assert name in house.registry.quarantined


async def test_what_was_made_here_is_not_downloaded(house: House) -> None:
    file = await house.write(b"adapter")
    name = await house.record("m", file, source="jobs/1")
    damage(house.store, file.digest, b"adaptor")
    _, versions, _ = await findings(house, repair=True)
    assert versions[name].verdict is VersionVerdict.QUARANTINED
    assert versions[name].download == ""


async def test_what_is_quarantined_and_whole_is_released(house: House) -> None:
    name = await house.record("m", await house.write(b"weights"))
    house.registry.quarantined[name] = "a check failed"
    _, versions, summary = await findings(house)
    assert versions[name].verdict is VersionVerdict.RELEASED
    assert summary.num_released == 1
    await house.leases.create(name)


async def test_a_blob_without_a_version_is_read_only_with_all(house: House) -> None:
    name = await house.record("m", await house.write(b"weights"))
    orphan = await house.write(b"orphan")
    damage(house.store, orphan.digest, b"orphaN")
    assert (await findings(house, name))[2].num_damaged == 0
    (bad,), _, _ = await findings(house)
    assert (bad.version, bad.path) == ("", orphan.digest)
    assert await house.store.size(orphan.digest) is None


async def test_what_is_replaced_while_it_is_read_is_read_again(house: House) -> None:
    file = await house.write(b"weights")
    name = await house.record("m", file)
    damage(house.store, file.digest, b"weightz")
    quarantine = house.registry.quarantine

    async def mend_first(version: str, reason: str) -> None:
        await house.write(b"weights")
        await quarantine(version, reason)

    house.registry.quarantine = mend_first  # type: ignore[method-assign]
    bad, versions, summary = await findings(house)
    assert not bad
    assert versions[name].verdict is VersionVerdict.RELEASED
    assert summary.read_bytes == 7
    assert await house.store.size(file.digest) == 7


async def test_a_version_that_is_deleted_meanwhile_is_gone(house: House) -> None:
    file = await house.write(b"weights")
    name = await house.record("m", file)
    damage(house.store, file.digest, None)
    listed = house.registry.list_versions

    async def listed_then_deleted() -> AsyncGenerator[ListedVersion, None]:
        async for version in listed():
            yield version
        house.registry.versions.clear()

    house.registry.list_versions = listed_then_deleted  # type: ignore[method-assign]
    versions = [event async for event in house.validator.validate([]) if isinstance(event, ValidatedVersion)]
    assert versions == [ValidatedVersion(name, VersionVerdict.GONE)]


async def test_a_second_validation_is_refused_until_the_first_has_ended(house: House) -> None:
    await house.record("m", await house.write(b"weights"))
    async with aclosing(house.validator.validate([])) as first:
        await anext(first)
        with pytest.raises(FailedPrecondition, match="under way"):
            await anext(house.validator.validate([]))
    assert (await findings(house))[2].num_good == 1


async def test_reading_is_held_back_to_the_rate_that_was_asked_for(house: House) -> None:
    await house.record("m", await house.write(bytes(3_000_000)))
    clock_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal clock_s
        clock_s += seconds
        await asyncio.sleep(0)

    validator = Validator(
        house.blobs,
        house.registry,
        house.jobs,
        house.catalog,
        sleep=sleep,
        clock_s=lambda: clock_s,
    )
    events: list[Event] = [event async for event in validator.validate([], max_bytes_per_second=1_000_000)]
    assert isinstance(events[0], Progress)
    assert clock_s == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("models/x", ModelNotFound),
        ("models/m/versions/x", VersionNotFound),
        ("m", InvalidReference),
        ("models/../x", InvalidReference),
        ("", InvalidReference),
    ],
)
async def test_names_that_are_none_are_refused(house: House, name: str, error: type[Exception]) -> None:
    await house.record("m", await house.write(b"weights"))
    with pytest.raises(error):
        await anext(house.validator.validate([name]))
    assert (await findings(house))[2].num_good == 1


async def test_a_version_with_some_of_its_sources_files_is_repaired_with_the_same(house: House) -> None:
    name = await house.pull(
        "hf:org/m@c1", options=PullOptions(allow_patterns=("*.gguf", "*.txt"), priority=5)
    )
    whole = await house.pull("hf:org/m@c1")
    before = house.registry.versions[name].files
    assert {file.path for file in before} == {"m.gguf", "notes.txt"}
    assert {file.path for file in house.registry.versions[whole].files} == {"m.gguf"}
    for file in before:
        damage(house.store, file.digest, bytes(file.size_bytes))
    _, versions, summary = await findings(house, repair=True)
    assert {versions[each].verdict for each in (name, whole)} == {VersionVerdict.REPAIRED}
    assert (summary.num_repaired, summary.num_quarantined) == (2, 0)
    assert house.registry.versions[name].files == before
    assert len(house.registry.versions) == 2
    assert house.registry.current["models/m"] == whole
