from collections.abc import Callable

import pytest

from services.kit.errors import InvalidArgument, UnsupportedFormat, UnsupportedParameter, WrongModelKind
from services.speech.core.domain import (
    Ability,
    Engine,
    RecognitionConfig,
    TranscriptionConfig,
    check_audio,
    check_chunk,
)
from tests.unit.services.speech.house import speech_model


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("config.model", lambda: RecognitionConfig("", 16000)),
        ("config.sample_rate_hz", lambda: RecognitionConfig("m", 0)),
        ("config.sample_rate_hz", lambda: RecognitionConfig("m", 7_999)),
        ("config.sample_rate_hz", lambda: RecognitionConfig("m", 48_001)),
        ("config.phrases", lambda: RecognitionConfig("m", 16000, phrases=("a",) * 1001)),
        ("config.phrases[1]", lambda: RecognitionConfig("m", 16000, phrases=("a", "b" * 257))),
        ("config.phrases[0]", lambda: RecognitionConfig("m", 16000, phrases=(" ",))),
        ("config.model", lambda: TranscriptionConfig("")),
        ("config.language", lambda: TranscriptionConfig("m", language="vietnamese")),
        ("config.prompt", lambda: TranscriptionConfig("m", prompt="x" * 4097)),
        ("config.temperature", lambda: TranscriptionConfig("m", temperature=1.01)),
        ("config.temperature", lambda: TranscriptionConfig("m", temperature=-0.1)),
        ("config.temperature", lambda: TranscriptionConfig("m", temperature=float("nan"))),
        ("audio", lambda: check_audio(b"123")),
        ("audio", lambda: check_audio(b"1" * (1024 * 1024 + 2))),
        ("chunk", lambda: check_chunk(b"1" * (1024 * 1024 + 1))),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_the_name_of_its_field(
    field: str, make: Callable[[], object]
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        make()
    assert [violation.field for violation in refused.value.violations] == [field]


def test_what_is_at_the_bounds_is_taken() -> None:
    RecognitionConfig("m", 8_000, phrases=("a" * 256,) * 1000)
    RecognitionConfig("m", 48_000)
    TranscriptionConfig("m", language="yue", prompt="x" * 4096, temperature=1.0)
    check_audio(b"1" * (1024 * 1024))
    check_chunk(b"1" * (1024 * 1024))


def test_model_without_streaming_says_what_to_use() -> None:
    with pytest.raises(WrongModelKind, match="vosk-small-ko"):
        speech_model("whisper-base", Engine.WHISPER).require(Ability.STREAMING)


def test_format_that_nothing_runs_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="CTranslate2"):
        speech_model("m", None).require_engine()


def test_language_is_checked_only_where_the_languages_are_known() -> None:
    speech_model("m").require_language("vi")
    speech_model("m", languages=("ko",)).require_language("")
    speech_model("m", languages=("ko",)).require_language("ko")
    with pytest.raises(UnsupportedParameter, match="only ko, not vi"):
        speech_model("m", languages=("ko",)).require_language("vi")
