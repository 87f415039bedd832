from dataclasses import replace
from datetime import UTC, datetime

import pytest
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined] # Public, but lazily so.

from services.downloader.core.download import Download, PullOptions
from services.downloader.core.options import (
    check_options,
    chosen_files,
    is_narrowed_id,
    narrowed,
    narrowing_of,
)
from services.downloader.core.selection import model_files
from services.downloader.core.sources import RemoteFile, Resolved
from services.kit.errors import (
    FailedPrecondition,
    InvalidArgument,
    UnsupportedFormat,
    UnsupportedParameter,
)
from services.kit.names import ModelRef
from tests.contract.memory_download_store import MemoryDownloadStore

HF = ModelRef.parse("hf:org/repo@abc")
REPOSITORY = [
    "config.json",
    "model.safetensors",
    "onnx/model.onnx",
    "onnx/deep/config.json",
    "pytorch_model.bin",
    "modeling.py",
    "run.SH",
    "tokenizer[1].json",
    "README.md",
]


def chosen(*allow: str, ignore: tuple[str, ...] = (), paths: list[str] = REPOSITORY) -> list[str]:
    return chosen_files(paths, PullOptions(allow, ignore), model_files)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (PullOptions(allow_patterns=("*",) * 65), "options.allow_patterns"),
        (PullOptions(allow_patterns=("",)), "options.allow_patterns"),
        (PullOptions(allow_patterns=("x" * 257,)), "options.allow_patterns"),
        (PullOptions(ignore_patterns=("a\nb",)), "options.ignore_patterns"),
        (PullOptions(ignore_patterns=("\x1b[2J",)), "options.ignore_patterns"),
        (PullOptions(priority=101), "options.priority"),
        (PullOptions(priority=-101), "options.priority"),
        (PullOptions(timeout_s=0.5), "options.timeout"),
        (PullOptions(timeout_s=7 * 86_400 + 1), "options.timeout"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_field_named(options: PullOptions, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_options(options, HF)
    assert caught.value.violations[0].field == field


def test_what_is_at_the_limits_is_taken() -> None:
    patterns = ("x" * 256,) * 64
    check_options(PullOptions(patterns, patterns, 100, 7 * 86_400.0), HF)
    check_options(PullOptions(priority=-100, timeout_s=1), HF)


@pytest.mark.parametrize(
    "source", ["ollama:tiny:1b", "pypi:x==1", "vosk:vi", "https://host/m.gguf", "http://127.0.0.1/m.zip"]
)
def test_patterns_are_refused_where_there_is_nothing_to_choose_from(source: str) -> None:
    ref = ModelRef.parse(source)
    with pytest.raises(UnsupportedParameter) as caught:
        check_options(PullOptions(allow_patterns=("*",)), ref)
    assert caught.value.violations[0].field == "options.allow_patterns"
    with pytest.raises(UnsupportedParameter) as caught:
        check_options(PullOptions(ignore_patterns=("*",)), ref)
    assert caught.value.violations[0].field == "options.ignore_patterns"
    check_options(PullOptions(priority=1, timeout_s=60), ref)


def test_a_tag_and_patterns_cannot_both_choose() -> None:
    with pytest.raises(InvalidArgument, match="Q8_0"):
        check_options(PullOptions(allow_patterns=("*",)), ModelRef.parse("hf:org/repo:Q8_0@abc"))
    check_options(PullOptions(ignore_patterns=("*",)), ModelRef.parse("hf:org/repo:Q8_0@abc"))


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.json", "onnx/", "onnx/*", "*config.json", "onnx", "?onfig.json", "tokenizer[[]1].json"],
)
def test_globs_mean_what_they_mean_to_the_hubs_own_client(pattern: str) -> None:
    storable = chosen("*")
    # One file beside them, so that a choice is never empty.
    theirs = filter_repo_objects(storable, allow_patterns=[pattern, "model.safetensors"])
    assert chosen(pattern, "model.safetensors") == list(theirs)
    theirs = filter_repo_objects([*storable, "m.gguf"], allow_patterns="*", ignore_patterns=[f"z{pattern}"])
    assert chosen("*", ignore=(f"z{pattern}",), paths=[*storable, "m.gguf"]) == list(theirs)
    kept = list(filter_repo_objects(storable, ignore_patterns=[pattern]))
    assert chosen(ignore=(pattern,), paths=storable) == (kept if "model.safetensors" in kept else [])


def test_neither_code_nor_pickles_come_whatever_the_patterns_say() -> None:
    found = chosen("*", "*.bin", "*.py", "*.SH")
    assert found == [
        "config.json",
        "model.safetensors",
        "onnx/model.onnx",
        "onnx/deep/config.json",
        "tokenizer[1].json",
    ]
    with pytest.raises(UnsupportedFormat, match="never stored"):
        chosen("*.bin")


def test_what_is_ignored_is_not_there_for_the_usual_choice_either() -> None:
    assert "model.safetensors" not in chosen(ignore=("*.safetensors",), paths=[*REPOSITORY, "m.gguf"])
    assert chosen(ignore=("*.safetensors",), paths=[*REPOSITORY, "m.gguf"]) == ["m.gguf"]


def test_several_models_are_not_one() -> None:
    shards = ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf"]
    assert chosen("*F16*", paths=shards) == shards
    with pytest.raises(UnsupportedFormat, match="several models"):
        chosen("*.gguf", paths=[*shards, "m-Q8_0.gguf"])


def test_a_version_with_some_of_the_files_never_has_the_id_of_the_whole_one() -> None:
    def resolved(*paths: str, version_id: str | None = "0123456789ab") -> Resolved:
        return Resolved("hf:o/r@c", "c", version_id, tuple(RemoteFile(path, "u") for path in paths))

    whole = resolved("a", "b")
    assert narrowed(whole, PullOptions(priority=3)) is whole
    ids = [
        narrowed(each, PullOptions(allow_patterns=("*",))).version_id
        for each in (whole, resolved("a"), resolved("b", "a"), resolved("a", "b", version_id="x" * 128))
    ]
    assert all(version_id and is_narrowed_id(version_id) and len(version_id) <= 128 for version_id in ids)
    assert ids[0] == ids[2] != ids[1]
    assert not is_narrowed_id("0123456789ab")
    untold = resolved("a", version_id=None)
    assert narrowed(untold, PullOptions(allow_patterns=("*",))) is untold


async def test_how_a_version_was_chosen_is_known_as_long_as_its_download_is() -> None:
    records = MemoryDownloadStore()
    options = PullOptions(("*.json",), ("x",), priority=9, timeout_s=5, local_folder="/cache")
    download = Download("d1", "hf:o/r@c", "m", datetime(2026, 11, 21, tzinfo=UTC), options=options)
    name = "models/m/versions/c-only-01234567"
    with pytest.raises(FailedPrecondition, match="same patterns"):
        await narrowing_of(name, records)
    assert await narrowing_of("models/m/versions/c", records) == PullOptions()
    await records.save_download(replace(download, version=name))
    assert await narrowing_of(name, records) == PullOptions(("*.json",), ("x",))
