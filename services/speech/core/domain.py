"""What Speech talks about: the models it is given, what it is asked, and what may be asked at most."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from services.kit.errors import InvalidArgument, UnsupportedFormat, UnsupportedParameter, WrongModelKind

MIN_SAMPLE_RATE_HZ: Final = 8_000
MAX_SAMPLE_RATE_HZ: Final = 48_000
MAX_PHRASES: Final = 1_000
MAX_PHRASE_CHARS: Final = 256
MAX_PROMPT_CHARS: Final = 4_096
MAX_CHUNK_BYTES: Final = 1024 * 1024

_LANGUAGE = re.compile(r"[a-z]{2,3}")


class Engine(Enum):
    """What runs a model."""

    VOSK = "vosk"
    WHISPER = "whisper"


class Ability(Enum):
    """What can be asked of a speech model; the value is how the error says it."""

    TRANSCRIPTION = "transcribe files"
    STREAMING = "recognise a live stream"
    TRANSLATION = "translate speech into English"


# What to use instead, for the person who reads the error.
_ADVICE: Final = {
    Ability.TRANSCRIPTION: "use a Whisper or Vosk model, such as whisper-base",
    Ability.STREAMING: "use a Vosk model, such as vosk-small-ko, or send Whisper a whole file with Transcribe",
    Ability.TRANSLATION: "use a multilingual Whisper model, such as whisper-base",
}


@dataclass(frozen=True, slots=True)
class SpeechModel:
    """A model as the registry resolved it.

    version: `models/{m}/versions/{v}`; file_format: as the registry names it; engine: None if nothing here runs that
    format; languages: primary subtags (`ko`), empty if it has many or they are not known.
    """

    model_id: str
    version: str
    file_format: str
    engine: Engine | None
    abilities: frozenset[Ability]
    languages: tuple[str, ...] = ()

    def require_engine(self) -> Engine:
        """What runs it. Raises UnsupportedFormat."""
        if self.engine is None:
            raise UnsupportedFormat(
                f"'{self.model_id}' has files of format {self.file_format}, which Speech does not run;"
                " it runs CTranslate2 (Whisper) and Vosk models"
            )
        return self.engine

    def require(self, ability: Ability) -> None:
        """Raises WrongModelKind, with what to use instead, if the model cannot do it."""
        if ability not in self.abilities:
            raise WrongModelKind(f"'{self.model_id}' cannot {ability.value}; {_ADVICE[ability]}")

    def require_language(self, language: str) -> None:
        """Raises UnsupportedParameter if it is known not to understand it. language: empty for any."""
        if language and self.languages and language not in self.languages:
            understood = ", ".join(self.languages)
            raise UnsupportedParameter.at(
                "config.language", f"'{self.model_id}' understands only {understood}, not {language}"
            )


@dataclass(frozen=True, slots=True)
class RecognitionConfig:
    """How to recognise a live stream of signed 16 bit samples, one channel."""

    model: str
    sample_rate_hz: int
    partial_results: bool = True
    words: bool = True
    phrases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_model(self.model)
        if not MIN_SAMPLE_RATE_HZ <= self.sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
            raise InvalidArgument.at(
                "config.sample_rate_hz",
                f"must be between {MIN_SAMPLE_RATE_HZ} and {MAX_SAMPLE_RATE_HZ}, not {self.sample_rate_hz}",
            )
        if len(self.phrases) > MAX_PHRASES:
            raise InvalidArgument.at(
                "config.phrases", f"must be at most {MAX_PHRASES}, not {len(self.phrases)}"
            )
        for index, phrase in enumerate(self.phrases):
            field = f"config.phrases[{index}]"
            if not phrase.strip():
                raise InvalidArgument.at(field, "must not be empty")
            if len(phrase) > MAX_PHRASE_CHARS:
                raise InvalidArgument.at(field, f"must be at most {MAX_PHRASE_CHARS} characters")


@dataclass(frozen=True, slots=True)
class TranscriptionConfig:
    """How to transcribe a file. language: ISO 639-1 or empty; temperature: 0 to 1."""

    model: str
    language: str = ""
    translate: bool = False
    prompt: str = ""
    temperature: float = 0.0
    words: bool = False

    def __post_init__(self) -> None:
        _require_model(self.model)
        if self.language and not _LANGUAGE.fullmatch(self.language):
            raise InvalidArgument.at("config.language", "must be an ISO 639-1 code such as 'en' or 'vi'")
        if len(self.prompt) > MAX_PROMPT_CHARS:
            raise InvalidArgument.at("config.prompt", f"must be at most {MAX_PROMPT_CHARS} characters")
        if not 0.0 <= self.temperature <= 1.0:  # NaN too
            raise InvalidArgument.at("config.temperature", "must be between 0 and 1")


def check_audio(audio: bytes) -> None:
    """One message of live samples. Raises InvalidArgument at `audio`."""
    if len(audio) > MAX_CHUNK_BYTES:
        raise InvalidArgument.at(
            "audio", f"must be at most {MAX_CHUNK_BYTES} bytes a message, not {len(audio)}"
        )
    if len(audio) % 2:
        raise InvalidArgument.at("audio", f"must hold whole samples of 2 bytes, not {len(audio)} bytes")


def check_chunk(chunk: bytes) -> None:
    """One message of a file. Raises InvalidArgument at `chunk`."""
    if len(chunk) > MAX_CHUNK_BYTES:
        raise InvalidArgument.at(
            "chunk", f"must be at most {MAX_CHUNK_BYTES} bytes a message, not {len(chunk)}"
        )


def _require_model(model: str) -> None:
    if not model:
        raise InvalidArgument.at("config.model", "is required: the name of a speech model")
