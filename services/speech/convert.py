"""Messages <-> domain."""

from datetime import datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lares.speech.v1 import speech_pb2 as pb
from services.kit.errors import InvalidArgument
from services.kit.names import parse_resource, resource_name
from services.speech.core.domain import RecognitionConfig, TranscriptionConfig, check_audio, check_chunk
from services.speech.core.live import LiveResult
from services.speech.core.messages import Final, Finished, Partial, Segment, Word
from services.speech.core.pool import RecognizerInfo
from services.speech.core.speech import FileStarted, LiveStarted

_PATTERN = "recognizers/{recognizer}"

_ENCODINGS = (pb.AUDIO_ENCODING_UNSPECIFIED, pb.AUDIO_ENCODING_SIGNED_16_LE)
_TASKS = {
    pb.TRANSCRIPTION_TASK_UNSPECIFIED: False,
    pb.TRANSCRIPTION_TASK_TRANSCRIBE: False,
    pb.TRANSCRIPTION_TASK_TRANSLATE: True,
}


def recognition_config_from_proto(message: pb.StreamRecognizeRequest) -> RecognitionConfig:
    """The first message of a live stream. Raises InvalidArgument."""
    if message.WhichOneof("part") != "config":
        raise InvalidArgument.at("config", "must be sent first")
    config = message.config
    if config.encoding not in _ENCODINGS:
        raise InvalidArgument.at("config.encoding", f"{config.encoding} is no encoding; send SIGNED_16_LE")
    return RecognitionConfig(
        model=config.model,
        sample_rate_hz=config.sample_rate_hz,
        partial_results=config.partial_results if config.HasField("partial_results") else True,
        words=config.words if config.HasField("words") else True,
        phrases=tuple(config.phrases),
    )


def audio_from_proto(message: pb.StreamRecognizeRequest) -> bytes:
    """Any further message of a live stream. Raises InvalidArgument."""
    if message.WhichOneof("part") != "audio":
        raise InvalidArgument.at("config", "must be sent once, and only audio after it")
    check_audio(message.audio)
    return message.audio


def transcription_config_from_proto(message: pb.TranscribeRequest) -> TranscriptionConfig:
    """The first message of a file. Raises InvalidArgument."""
    if message.WhichOneof("part") != "config":
        raise InvalidArgument.at("config", "must be sent first")
    config = message.config
    if config.task not in _TASKS:
        raise InvalidArgument.at("config.task", f"{config.task} is no task; send TRANSCRIBE or TRANSLATE")
    return TranscriptionConfig(
        model=config.model,
        language=config.language.lower(),
        translate=_TASKS[config.task],
        prompt=config.prompt,
        temperature=config.temperature,
        words=config.words,
    )


def chunk_from_proto(message: pb.TranscribeRequest) -> bytes:
    """Any further message of a file. Raises InvalidArgument."""
    if message.WhichOneof("part") != "chunk":
        raise InvalidArgument.at("config", "must be sent once, and only chunks after it")
    check_chunk(message.chunk)
    return message.chunk


def live_event_to_proto(event: LiveStarted | LiveResult) -> pb.StreamRecognizeResponse:
    """One event of a live stream."""
    match event:
        case LiveStarted():
            return pb.StreamRecognizeResponse(started=pb.RecognitionStarted(version=event.version))
        case Partial():
            return pb.StreamRecognizeResponse(partial=pb.PartialResult(text=event.text))
        case Final():
            words = [_word_to_proto(word) for word in event.words]
            return pb.StreamRecognizeResponse(final=pb.FinalResult(text=event.text, words=words))
        case Finished():
            finished = pb.RecognitionFinished(audio_duration=_duration(event.duration_s))
            return pb.StreamRecognizeResponse(finished=finished)


def file_event_to_proto(event: FileStarted | Segment | Finished) -> pb.TranscribeResponse:
    """One event of a file."""
    match event:
        case FileStarted():
            started = pb.TranscriptionStarted(
                version=event.version,
                language=event.read.language,
                language_probability=event.read.language_probability,
                audio_duration=_duration(event.read.duration_s),
            )
            return pb.TranscribeResponse(started=started)
        case Segment():
            return pb.TranscribeResponse(segment=_segment_to_proto(event))
        case Finished():
            finished = pb.TranscriptionFinished(audio_duration=_duration(event.duration_s))
            return pb.TranscribeResponse(finished=finished)


def recognizer_to_proto(info: RecognizerInfo) -> pb.Recognizer:
    """A recogniser in memory."""
    return pb.Recognizer(
        name=resource_name(_PATTERN, info.model_id),
        version=info.version,
        device=info.device,
        memory_bytes=info.memory_bytes,
        num_active_requests=info.num_active_requests,
        load_time=_timestamp(info.load_time),
        last_use_time=_timestamp(info.last_use_time),
        worker_pid=info.worker_pid,
    )


def recognizer_name_from_proto(name: str) -> str:
    """`recognizers/x` -> `x`. Raises InvalidReference."""
    (model_id,) = parse_resource(name, _PATTERN)
    return model_id


def _segment_to_proto(segment: Segment) -> pb.Segment:
    return pb.Segment(
        index=segment.index,
        start_offset=_duration(segment.start_s),
        end_offset=_duration(segment.end_s),
        text=segment.text,
        words=[_word_to_proto(word) for word in segment.words],
        average_logprob=segment.average_logprob,
        no_speech_probability=segment.no_speech_probability,
    )


def _word_to_proto(word: Word) -> pb.Word:
    return pb.Word(
        text=word.text,
        start_offset=_duration(word.start_s),
        end_offset=_duration(word.end_s),
        confidence=word.confidence,
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration


def _timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
