"""Whether a model's files are all there, by what they say of each other. Pure functions.

For files whose source cannot be asked: what an interrupted download left, or one that fetched only some.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

_SHARD: Final = re.compile(r"(?P<whole>.+-)(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[A-Za-z]+)")
_ADAPTER: Final = "adapter_config.json"
# What reads a model's input. One of them is enough: which, its config does not say.
_READERS: Final = ("tokenizer", "vocab", "spiece", "sentencepiece", "preprocessor_config", "processor_config")


def missing_file(names: Sequence[str], indexes: Iterable[Any]) -> str:
    """A file that is not among them and should be; empty if there is none to be told.

    indexes: what the files `*.safetensors.index.json` among them hold.
    """
    here = set(names)
    return next((name for name in _wanted(names, indexes) if name not in here), "")


def shards_of(name: str) -> Iterator[str]:
    """Of a file that is one part of several, the names of all; nothing for one that is whole."""
    if match := _SHARD.fullmatch(name):
        for number in range(1, int(match["count"]) + 1):
            yield f"{match['whole']}{number:05}-of-{match['count']}{match['suffix']}"


def _wanted(names: Sequence[str], indexes: Iterable[Any]) -> Iterator[str]:
    for name in names:
        yield from shards_of(name)
    for index in indexes:
        match index:
            case {"weight_map": dict(weights)}:
                yield from sorted(map(str, weights.values()))
    if any(name.endswith(".safetensors") for name in names) and _ADAPTER not in names:
        yield "config.json"
        if not any(name.startswith(_READERS) for name in names):
            yield "tokenizer.json"
