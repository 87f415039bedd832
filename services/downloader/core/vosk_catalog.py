"""The list of models that Vosk's own site publishes, and which of them a name means. Pure functions.

Its form is that of https://alphacephei.com/vosk/models/model-list.json, as vosk's own `Model(lang=...)` reads it. The
list is not trusted: an entry that is not what it should be is left out.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.downloader.core.paths import path_fault
from services.kit.errors import SourceNotFound, SourceUnavailable
from services.kit.names import ModelRef

PREFIX: Final = "vosk-model-"

# The list names some languages by a country; ISO 639 is what everybody else speaks.
_LANGUAGES: Final = {
    "el": "el-gr",
    "en": "en-us",
    "kk": "kz",
    "tl": "tl-ph",
    "uk": "ua",
    "vi": "vn",
    "zh": "cn",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MD5 = re.compile(r"[0-9a-f]{32}")
_MAX_MODEL_BYTES: Final = 64 * 1024**3
_MAX_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class VoskModel:
    """One entry. name: without its prefix, such as `small-en-us-0.15`. md5: of the zip, in hex."""

    name: str
    language: str
    url: str
    size_bytes: int
    md5: str
    is_offered: bool

    @property
    def release(self) -> tuple[int, ...]:
        """Greater for a newer one: the numbers in its name, which ends in its version."""
        return tuple(int(number) for number in re.findall(r"\d+", self.name))


def parse_list(body: bytes) -> list[VoskModel]:
    """All entries that make sense. Raises SourceUnavailable for what is no list."""
    try:
        entries = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SourceUnavailable("the catalogue of Vosk's models is no JSON") from error
    if not isinstance(entries, list):
        raise SourceUnavailable("the catalogue of Vosk's models is no list")
    return [model for entry in entries if (model := _model(entry)) is not None]


def choose(models: Sequence[VoskModel], ref: ModelRef) -> VoskModel:
    """The model of that name, or the newest small one of that language. Raises SourceNotFound."""
    name = ref.name.removeprefix(PREFIX)
    found = [model for model in models if model.name == name]
    if not found:
        languages = {ref.name, _LANGUAGES.get(ref.name, ref.name)}
        found = [model for model in models if model.language in languages]
        if ref.revision is None:
            found = [model for model in found if model.is_offered]
    if ref.revision is not None:
        found = [model for model in found if model.name == ref.revision]
    if not found:
        offered = sorted({model.language for model in models if model.is_offered})[:_MAX_SHOWN]
        raise SourceNotFound(
            f"Vosk's catalogue has no {ref}: neither a model of that name nor a small one of that language; it has"
            f" small ones for {', '.join(offered) or 'none'}",
            metadata={"source": str(ref)},
        )
    return max(found, key=lambda model: (model.release, model.name))


def _model(entry: Any) -> VoskModel | None:
    match entry:
        case {"name": str(name), "lang": str(language), "url": str(url), "md5": str(md5), "size": int(size)}:
            is_sound = (
                _NAME.fullmatch(name)
                and ".." not in name
                and not path_fault(name)
                and _NAME.fullmatch(language)
                and _MD5.fullmatch(md5)
                and 0 < size <= _MAX_MODEL_BYTES
            )
            # The list writes what is true or false as text.
            is_offered = entry.get("type") == "small" and str(entry.get("obsolete")).lower() == "false"
            return (
                VoskModel(name.removeprefix(PREFIX), language, url, size, md5, is_offered)
                if is_sound
                else None
            )
        case _:
            return None
