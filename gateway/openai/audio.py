"""Transcriptions and translations of sound."""

from typing import Annotated, Any, Literal

from google.protobuf.duration_pb2 import Duration
from pydantic import Field, StringConstraints, ValidationInfo, field_validator

from gateway.openai import subtitles
from gateway.openai.common import ModelName, Only, RequestModel, ResponseModel
from lares.speech.v1 import speech_pb2 as pb

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


class TranslationForm(RequestModel):
    """The fields of POST /v1/audio/translations beside `file`."""

    model: ModelName
    prompt: Annotated[str, Field(max_length=4096)] | None = None
    response_format: Format = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None


class TranscriptionForm(TranslationForm):
    """The fields of POST /v1/audio/transcriptions beside `file`."""

    language: Annotated[str, StringConstraints(pattern=r"^([A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*)?$")] | None = (
        None
    )
    stream: bool = False
    granularities: Annotated[
        tuple[Literal["word", "segment"], ...], Field(alias="timestamp_granularities[]", max_length=2)
    ] = ()
    include: Annotated[Any, Field(alias="include[]"), Only()] = None
    chunking_strategy: Annotated[Any, Only("auto")] = None

    @field_validator("granularities")
    @classmethod
    def _needs_verbose_json(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("response_format") != "verbose_json":
            raise ValueError("needs response_format verbose_json")
        return value


def config_to_proto(form: TranslationForm) -> pb.TranscriptionConfig:
    """A form of transcriptions transcribes, one of translations translates."""
    config = pb.TranscriptionConfig(model=form.model, prompt=form.prompt or "", temperature=form.temperature)
    if isinstance(form, TranscriptionForm):
        config.task = pb.TRANSCRIPTION_TASK_TRANSCRIBE
        config.language = (form.language or "").lower()
        config.words = "word" in form.granularities
    else:
        config.task = pb.TRANSCRIPTION_TASK_TRANSLATE
    return config


class DurationUsage(ResponseModel):
    """What was used: seconds of sound."""

    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(ResponseModel):
    """The text."""

    text: str
    usage: DurationUsage


class TranscriptionSegment(ResponseModel):
    """A piece of text; times in seconds."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(ResponseModel):
    """A word; times in seconds."""

    word: str
    start: float
    end: float


class VerboseTranscription(Transcription):
    """The text with times."""

    task: Literal["transcribe", "translate"]
    language: str
    duration: float
    segments: list[TranscriptionSegment] | None = None
    words: list[TranscriptionWord] | None = None


class TextDelta(ResponseModel):
    """One event of a streamed transcription: a piece of text."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(ResponseModel):
    """The last event of a streamed transcription."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: DurationUsage


class TranscriptCollector:
    """Gathers a transcription's events into one answer."""

    def __init__(self, form: TranslationForm) -> None:
        self._form = form
        self._started = pb.TranscriptionStarted()
        self._segments: list[pb.Segment] = []
        self._duration_s = 0.0

    def add(self, event: pb.TranscribeResponse) -> str:
        """Take the next event. Returns the text that it adds, which may be empty."""
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
            case "segment":
                before = self.text
                self._segments.append(event.segment)
                return self.text[len(before) :]
            case "finished":
                self._duration_s = seconds(event.finished.audio_duration)
        return ""

    @property
    def text(self) -> str:
        """All text so far."""
        return join([segment.text for segment in self._segments])

    def done(self) -> TextDone:
        """The last event of a stream."""
        return TextDone(text=self.text, usage=self._usage())

    def answer(self) -> tuple[str, str]:
        """(body, media type) as the form wants it, when every event is in."""
        cues = [(seconds(s.start_offset), seconds(s.end_offset), s.text.strip()) for s in self._segments]
        match self._form.response_format:
            case "text":
                return self.text + "\n", "text/plain"
            case "srt":
                return subtitles.srt(cues), "text/plain"
            case "vtt":
                return subtitles.vtt(cues), "text/plain"
            case "verbose_json":
                return self._verbose().model_dump_json(exclude_none=True), "application/json"
            case _:
                return Transcription(
                    text=self.text, usage=self._usage()
                ).model_dump_json(), "application/json"

    def _usage(self) -> DurationUsage:
        return DurationUsage(seconds=self._duration_s)

    def _verbose(self) -> VerboseTranscription:
        granularities = self._form.granularities if isinstance(self._form, TranscriptionForm) else ()
        words = [
            TranscriptionWord(word=word.text, start=seconds(word.start_offset), end=seconds(word.end_offset))
            for segment in self._segments
            for word in segment.words
        ]
        return VerboseTranscription(
            text=self.text,
            usage=self._usage(),
            task="transcribe" if isinstance(self._form, TranscriptionForm) else "translate",
            language=self._started.language,
            duration=self._duration_s,
            words=words if "word" in granularities else None,
            segments=[self._segment(s) for s in self._segments] if granularities != ("word",) else None,
        )

    def _segment(self, segment: pb.Segment) -> TranscriptionSegment:
        return TranscriptionSegment(
            id=segment.index,
            seek=0,
            start=seconds(segment.start_offset),
            end=seconds(segment.end_offset),
            text=segment.text,
            tokens=[],
            temperature=self._form.temperature or 0.0,
            avg_logprob=segment.average_logprob,
            compression_ratio=0.0,
            no_speech_prob=segment.no_speech_probability,
        )


def seconds(duration: Duration) -> float:
    """To the millisecond."""
    return round(duration.seconds + duration.nanos / 1e9, 3)


def join(texts: list[str]) -> str:
    """Segments into one text. Whisper's begin with their own space; others need one between."""
    joined = ""
    for text in texts:
        gap = " " if joined and not joined[-1].isspace() and text and not text[0].isspace() else ""
        joined += gap + text
    return joined.strip()
