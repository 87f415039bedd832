from pathlib import Path

import pytest

from services.downloader.core.download import PullOptions
from services.downloader.core.required import RequiredModel, RequiredState, Requirements
from services.kit.errors import InvalidArgument
from tests.unit.services.downloader.house import House

CATALOG = """
[starter]
sources = ["pypi:tiny==1"]
kind = "text_generation"
description = ""
license = ""
download_bytes = 1
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, catalog=CATALOG)


async def ensured(house: House, *required: str, dry_run: bool = False) -> list[RequiredModel]:
    requirements = Requirements(required, house.catalog, house.jobs, house.registry)
    return await requirements.ensure(dry_run=dry_run)


async def test_what_is_missing_begins_to_come_and_what_is_here_is_left_alone(house: House) -> None:
    hub = await house.pull("hf:org/m@c1")
    house.source.go.clear()
    required = ("starter", "hf:org/m@c1")
    told = await ensured(house, *required, dry_run=True)
    assert told == [
        RequiredModel("starter", "starter", RequiredState.MISSING),
        RequiredModel("hf:org/m@c1", "m", RequiredState.PRESENT, version=hub),
    ]
    assert await ensured(house, *required, dry_run=True) == told
    [begun, _] = await ensured(house, *required)
    assert begun.state is RequiredState.PULLING
    assert (await ensured(house, *required))[0] == begun
    assert (await ensured(house, *required, dry_run=True))[0] == begun
    house.source.go.set()
    async for _, seen in house.jobs.watch(begun.download.removeprefix("downloads/")):
        last = seen
    here = RequiredModel("starter", "starter", RequiredState.PRESENT, version="models/starter/versions/1")
    assert last.version == here.version
    assert await ensured(house, *required) == [here, told[1]]


async def test_a_revision_that_is_named_is_the_only_one_that_counts(house: House) -> None:
    house.repository.commits["c2"] = {"m.gguf": b"second"}
    await house.pull("hf:org/m@c2")
    [pinned] = await ensured(house, "hf:org/m@c1", dry_run=True)
    assert pinned.state is RequiredState.MISSING
    [any_of_them] = await ensured(house, "hf:org/m", dry_run=True)
    assert any_of_them.version == "models/m/versions/c2"


async def test_neither_a_part_of_it_nor_what_is_damaged_counts(house: House) -> None:
    await house.pull("hf:org/m@c1", options=PullOptions(allow_patterns=("*.gguf",)))
    [narrow] = await ensured(house, "hf:org/m@c1", dry_run=True)
    assert narrow.state is RequiredState.MISSING
    whole = await house.pull("hf:org/m@c1")
    await house.registry.quarantine(whole, "damaged")
    [damaged] = await ensured(house, "hf:org/m@c1", dry_run=True)
    assert damaged.state is RequiredState.MISSING
    await house.registry.release(whole, "")
    house.registry.bases[whole] = "models/m/versions/other"
    [adapter] = await ensured(house, "hf:org/m@c1", dry_run=True)
    assert adapter.state is RequiredState.MISSING


async def test_a_model_of_the_same_name_from_elsewhere_does_not_count(house: House) -> None:
    await house.pull("pypi:other==1", "starter")
    [other] = await ensured(house, "starter", dry_run=True)
    assert other.state is RequiredState.MISSING


@pytest.mark.parametrize("wrong", ["no-such-name", "hf:../x", "", "file:"])
def test_what_names_no_model_is_a_wrong_setting(house: House, wrong: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Requirements(("starter", wrong), house.catalog, house.jobs, house.registry)
    assert caught.value.violations[0].field == "downloader.required"
