"""What crosses to a recogniser's worker and what comes back. Times are seconds from the start of the sound."""

import msgspec


class LiveRequest(msgspec.Struct, frozen=True, tag=True):
    """Opens a live stream; `Audio` follows."""

    sample_rate_hz: int
    partial_results: bool
    words: bool
    phrases: list[str]


class Audio(msgspec.Struct, frozen=True, tag=True):
    """Signed 16 bit little endian samples, one channel."""

    samples: bytes


class FileRequest(msgspec.Struct, frozen=True, tag=True):
    """Transcribes a file. language: ISO 639-1, empty to find it; max_duration_s: longer sound is refused."""

    path: str
    language: str
    translate: bool
    prompt: str
    temperature: float
    words: bool
    max_duration_s: float


class Word(msgspec.Struct, frozen=True):
    """A word. confidence: 0 to 1."""

    text: str
    start_s: float
    end_s: float
    confidence: float


class Consumed(msgspec.Struct, frozen=True, tag=True):
    """So many bytes of a live stream were worked through: as many more may be sent."""

    num_bytes: int


class Partial(msgspec.Struct, frozen=True, tag=True):
    """What is heard so far; the next one replaces it."""

    text: str


class Final(msgspec.Struct, frozen=True, tag=True):
    """A finished utterance of a live stream."""

    text: str
    words: list[Word]


class FileRead(msgspec.Struct, frozen=True, tag=True):
    """The file could be decoded. language: empty if the model does not say; probability: 0 to 1."""

    language: str
    language_probability: float
    duration_s: float


class Segment(msgspec.Struct, frozen=True, tag=True):
    """A piece of a file's text. average_logprob: 0 where the model does not say."""

    index: int
    start_s: float
    end_s: float
    text: str
    words: list[Word]
    average_logprob: float = 0.0
    no_speech_probability: float = 0.0


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The end, after all there was to hear."""

    duration_s: float


WorkerRequest = LiveRequest | FileRequest | Audio
LiveEvent = Consumed | Partial | Final | Finished
FileEvent = FileRead | Segment | Finished
WorkerEvent = Consumed | Partial | Final | FileRead | Segment | Finished


class Loaded(msgspec.Struct, frozen=True):
    """The model is in the worker's memory. device: `cpu`, `cuda:0`."""

    device: str
