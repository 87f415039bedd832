"""The check for updates, rollbacks included, against a repository whose main branch a test moves."""

from datetime import timedelta
from pathlib import Path

import pytest

from services.downloader.core.download import PullOptions
from services.downloader.core.update import Update, UpdateVerdict
from services.kit.errors import InvalidReference, ModelNotFound, SourceUnavailable
from tests.unit.services.downloader.house import House

FIRST = {"m.gguf": b"first", "notes.txt": b"1"}
SECOND = {"m.gguf": b"second", "notes.txt": b"2"}

CATALOG = """
[m]
sources = ["hf:org/m@c2"]
kind = "text_generation"
description = ""
license = ""
download_bytes = 1
"""


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.repository.commits = {"c1": FIRST, "c2": SECOND, "c3": SECOND | {"m.gguf": b"third"}}
    return house


async def checked(house: House, *models: str, pull: bool = False) -> Update:
    [update] = await house.updates.check(models, pull=pull)
    return update


async def updated(house: House) -> str:
    """Check, pull what there is, and return the version that it became."""
    update = await checked(house, pull=True)
    assert update.verdict is UpdateVerdict.AVAILABLE
    async for _, download in house.jobs.watch(update.download.removeprefix("downloads/")):
        last = download
    return last.version


async def test_a_model_whose_source_has_nothing_else_is_up_to_date(house: House) -> None:
    name = await house.pull("hf:org/m@c1")
    update = await checked(house, pull=True)
    assert (update.verdict, update.latest_version, update.latest_source) == (
        UpdateVerdict.UP_TO_DATE,
        name,
        "hf:org/m@c1",
    )
    assert not update.download


async def test_what_is_newer_is_told_with_its_bytes_and_nothing_is_pulled(house: House) -> None:
    name = await house.pull("hf:org/m@c1")
    house.repository.main = "c2"
    update = await checked(house)
    assert (update.version, update.verdict) == (name, UpdateVerdict.AVAILABLE)
    assert (update.latest_source, update.latest_version) == ("hf:org/m@c2", "models/m/versions/c2")
    assert (update.download_bytes, update.download) == (len(b"second"), "")
    assert len(house.registry.versions) == 1


async def test_what_is_pulled_answers_and_the_version_before_stays(house: House) -> None:
    name = await house.pull("hf:org/m@c1")
    house.repository.main = "c2"
    assert await updated(house) == "models/m/versions/c2"
    assert house.registry.current == {"models/m": "models/m/versions/c2"}
    assert name in house.registry.versions
    assert (await checked(house)).verdict is UpdateVerdict.UP_TO_DATE


async def test_a_version_that_somebody_went_back_from_is_not_chosen_again(house: House) -> None:
    house.registry.current["models/m"] = await house.pull("hf:org/m@c1")
    house.repository.main = "c2"
    second = await updated(house)
    house.registry.current["models/m"] = "models/m/versions/c1"
    update = await checked(house, pull=True)
    assert (update.verdict, update.download) == (UpdateVerdict.HELD_BACK, "")
    assert "lares rollback m --to c2" in update.reason
    await house.registry.quarantine(second, "m.gguf is damaged")
    assert "in quarantine: m.gguf is damaged" in (await checked(house, pull=True)).reason
    # Removed altogether, it is still the one that was gone back from.
    del house.registry.versions[second]
    update = await checked(house, pull=True)
    assert (update.verdict, update.download) == (UpdateVerdict.HELD_BACK, "")
    assert "lares pull hf:org/m@c2 --name m" in update.reason
    house.repository.main = "c3"
    assert await updated(house) == "models/m/versions/c3"


async def test_a_newer_version_comes_with_the_patterns_of_the_one_before(house: House) -> None:
    name = await house.pull("hf:org/m@c1", options=PullOptions(("*.gguf", "*.txt"), priority=3))
    assert (await checked(house)).verdict is UpdateVerdict.UP_TO_DATE
    house.repository.main = "c2"
    second = await updated(house)
    assert second.rpartition("-only-")[2] == name.rpartition("-only-")[2]
    assert {file.path for file in house.registry.versions[second].files} == {"m.gguf", "notes.txt"}


async def test_what_cannot_be_told_says_why_and_holds_up_nobody(house: House) -> None:
    await house.pull(f"https://host/m.gguf#sha256={'0' * 64}", "from-an-address")
    await house.pull("hf:org/m@c1", "from-a-hub")
    await house.record("made-here", await house.write(b"x"), source="jobs/1")
    house.registry.current["models/empty"] = ""
    house.repository.failure = SourceUnavailable("the hub is down")
    updates = {update.model_id: update for update in await house.updates.check((), pull=True)}
    assert {update.verdict for update in updates.values()} == {UpdateVerdict.UNKNOWN}
    assert {model_id: update.reason for model_id, update in updates.items()} == {
        "empty": "it has no version",
        "from-a-hub": "the hub is down",
        "from-an-address": "https: does not tell what is newer",
        "made-here": "it came from no source that could be asked",
    }


async def test_a_model_of_the_catalogue_is_compared_to_the_catalogue(tmp_path: Path) -> None:
    house = House(tmp_path, catalog=CATALOG)
    house.repository.commits = {"c1": FIRST, "c2": SECOND, "c3": SECOND}
    house.repository.main = "c3"
    # From a time when the catalogue named it, on a machine that has no record of its download any more.
    await house.record("m", await house.write(b"first"), version_id="c1", source="hf:org/m@c1")
    assert await updated(house) == "models/m/versions/c2"
    assert (await house.jobs.page([], before_id=None, limit=1))[0].source == "m"
    num_asked = house.repository.num_asked
    update = await checked(house)
    assert (update.verdict, update.latest_source) == (UpdateVerdict.UP_TO_DATE, "hf:org/m@c2")
    assert house.repository.num_asked == num_asked, "nobody was asked"


async def test_who_asked_for_a_revision_of_a_catalogue_model_is_not_taken_back_to_the_catalogue(
    tmp_path: Path,
) -> None:
    house = House(tmp_path, catalog=CATALOG)
    house.repository.commits = {"c1": FIRST, "c2": SECOND, "c3": SECOND}
    house.repository.main = "c3"
    await house.pull("hf:org/m@c3")
    assert (await checked(house, pull=True)).verdict is UpdateVerdict.UP_TO_DATE


async def test_only_the_models_that_were_named_are_checked(house: House) -> None:
    await house.pull("hf:org/m@c1")
    await house.pull("hf:org/m@c1", "other")
    assert (await checked(house, "models/other")).model_id == "other"
    with pytest.raises(ModelNotFound):
        await house.updates.check(["models/other", "models/none"], pull=True)
    with pytest.raises(InvalidReference):
        await house.updates.check(["../m"], pull=True)


async def test_what_was_found_is_kept_until_the_next_check(house: House) -> None:
    await house.pull("hf:org/m@c1")
    await house.pull("hf:org/m@c1", "other")
    interval = timedelta(days=1)
    assert await house.updates.due_in(interval) == timedelta()
    found = await house.updates.check((), pull=False)
    assert await house.updates.page(after_id="", limit=10) == found
    assert [update.model_id for update in await house.updates.page(after_id="m", limit=10)] == ["other"]
    house.time += timedelta(hours=5)
    again = await checked(house, "models/m")
    assert await house.updates.page(after_id="", limit=10) == [again, found[1]]
    assert await house.updates.due_in(interval) == timedelta(hours=19)
    house.time += timedelta(days=3)
    assert await house.updates.due_in(interval) == timedelta()
    del house.registry.current["models/other"]
    await house.updates.check((), pull=False)
    assert [update.model_id for update in await house.updates.page(after_id="", limit=10)] == ["m"]
