"""Old versions: the newest stay, what is in use stays, and what is said to be freed is freed."""

from datetime import timedelta
from pathlib import Path

import pytest

from services.downloader.core.blobs import KEEP_FRESH
from services.downloader.core.cleanup import KeepReason
from services.kit.errors import InvalidReference, ModelNotFound
from tests.unit.services.downloader.house import House


@pytest.fixture
async def house(tmp_path: Path) -> House:
    """Model m in versions 1 to 5, each with a file of its own and one that all share."""
    house = House(tmp_path)
    for number in range(1, 6):
        own = await house.write(bytes([number] * number), "own")
        await house.record("m", own, await house.write(b"shared", "shared"), version_id=str(number))
    await house.record("n", await house.write(b"other"))
    house.time += KEEP_FRESH
    return house


def name(number: int) -> str:
    return f"models/m/versions/{number}"


async def test_the_newest_stay(house: House) -> None:
    told = await house.cleaner.clean_up([], num_keep=2, dry_run=True)
    assert [version.name for version in told.removed] == [name(3), name(2), name(1)]
    assert told.freed_bytes == 3 + 2 + 1
    assert len(house.registry.versions) == 6
    done = await house.cleaner.clean_up([], num_keep=2, dry_run=False)
    assert (done.removed, done.freed_bytes) == (told.removed, told.freed_bytes)
    assert set(house.registry.versions) == {name(4), name(5), "models/n/versions/1"}
    assert len(await house.store.blobs()) == 4


async def test_what_is_in_use_stays_however_old_it_is(house: House) -> None:
    await house.leases.create(name(1), ttl=timedelta(hours=1))
    house.registry.labels[name(2)] = {"pinned": ""}
    house.registry.bases["models/m/versions/adapter"] = name(3)
    adapter = await house.write(b"adapter")
    await house.record("m", adapter, version_id="adapter")
    house.registry.current["models/m"] = name(5)
    done = await house.cleaner.clean_up(["models/m"], num_keep=0, dry_run=False)
    assert [version.name for version in done.removed] == [name(4)]
    assert {(version.name, reason) for version, reason in done.kept} == {
        (name(5), KeepReason.CURRENT),
        (name(3), KeepReason.BASE),
        (name(2), KeepReason.PINNED),
        (name(1), KeepReason.LEASED),
    }
    assert "models/m/versions/adapter" in house.registry.versions


async def test_other_garbage_is_collected_but_not_counted_as_theirs(house: House) -> None:
    await house.write(b"somebody else's")
    house.time += KEEP_FRESH
    done = await house.cleaner.clean_up([], num_keep=4, dry_run=False)
    assert done.freed_bytes == 1
    assert len(await house.store.blobs()) == 6


async def test_a_version_that_is_loaded_meanwhile_stays(house: House) -> None:
    delete = house.registry.delete_version

    async def load_the_next(version: str, etag: str) -> None:
        await delete(version, etag)
        if version == name(2):
            await house.leases.create(name(1))

    house.registry.delete_version = load_the_next  # type: ignore[method-assign]
    done = await house.cleaner.clean_up([], num_keep=3, dry_run=False)
    assert [version.name for version in done.removed] == [name(2)]
    assert (name(1), KeepReason.LEASED) in [(version.name, reason) for version, reason in done.kept]


async def test_a_wrong_name_costs_no_version(house: House) -> None:
    with pytest.raises(ModelNotFound, match="'x' is not here"):
        await house.cleaner.clean_up(["models/m", "models/x"], num_keep=0, dry_run=False)
    with pytest.raises(InvalidReference):
        await house.cleaner.clean_up(["m"], num_keep=0, dry_run=False)
    assert len(house.registry.versions) == 6
