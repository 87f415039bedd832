import json
from typing import Any

import pytest

from services.downloader.core.vosk_catalog import choose, parse_list
from services.kit.errors import SourceNotFound, SourceUnavailable
from services.kit.names import ModelRef


def entry(name: str, language: str, **changes: Any) -> dict[str, Any]:
    made = {
        "lang": language,
        "lang_text": "...",
        "md5": "0" * 32,
        "name": f"vosk-model-{name}",
        "obsolete": "false",
        "size": 41_205_931,
        "size_text": "39.3MiB",
        "type": "small" if name.startswith("small") else "big",
        "url": f"https://example.com/vosk-model-{name}.zip",
        "version": name.rpartition("-")[2],
    }
    return made | changes


LIST = [
    entry("small-en-us-0.3", "en-us", obsolete="true"),
    entry("small-en-us-0.15", "en-us"),
    entry("en-us-0.22", "en-us"),
    entry("small-vn-0.3", "vn"),
    entry("small-vn-0.4", "vn"),
    entry("vn-0.4", "vn"),
    entry("small-cn-0.9", "cn"),
    entry("small-cn-0.22", "cn"),
    entry("br-0.8", "br"),
]


def chosen(ref: str, models: list[dict[str, Any]] = LIST) -> str:
    return choose(parse_list(json.dumps(models).encode()), ModelRef.parse(ref)).name


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("vosk:vi", "small-vn-0.4"),
        ("vosk:vn", "small-vn-0.4"),
        ("vosk:en", "small-en-us-0.15"),
        ("vosk:en-us", "small-en-us-0.15"),
        ("vosk:zh", "small-cn-0.22"),
        ("vosk:small-en-us-0.3", "small-en-us-0.3"),
        ("vosk:vosk-model-en-us-0.22", "en-us-0.22"),
        ("vosk:en-us-0.22@en-us-0.22", "en-us-0.22"),
        ("vosk:vi@small-vn-0.3", "small-vn-0.3"),
    ],
)
def test_a_language_means_its_newest_small_model_and_a_name_that_model(ref: str, name: str) -> None:
    assert chosen(ref) == name


@pytest.mark.parametrize(
    "ref", ["vosk:xx", "vosk:br", "vosk:small-en-us-9", "vosk:vi@small-cn-0.22", "vosk:vi@absent"]
)
def test_what_the_catalogue_lacks_is_answered_with_what_it_has(ref: str) -> None:
    with pytest.raises(SourceNotFound, match="cn, en-us, vn"):
        chosen(ref)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../../evil"},
        {"name": "vosk-model-small-x..y"},
        {"name": "con."},
        {"md5": "x"},
        {"md5": ""},
        {"size": 0},
        {"size": "5"},
        {"size": 2**60},
        {"url": None},
        {"lang": "a/b"},
    ],
)
def test_an_entry_that_makes_no_sense_is_left_out(changes: dict[str, Any]) -> None:
    odd = entry("small-de-0.15", "de") | changes
    assert parse_list(json.dumps([odd, *LIST, 3]).encode()) == parse_list(json.dumps(LIST).encode())


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b"\xff"])
def test_what_is_no_catalogue_is_said_so(body: bytes) -> None:
    with pytest.raises(SourceUnavailable):
        parse_list(body)
