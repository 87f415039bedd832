"""What a recogniser's worker is started with."""

import msgspec


class VoskInit(msgspec.Struct, frozen=True):
    """folder: a Vosk model; num_threads: streams that are heard at the same moment."""

    model_id: str
    folder: str
    num_threads: int


class WhisperInit(msgspec.Struct, frozen=True):
    """folder: a CTranslate2 Whisper model; device: auto, cpu or cuda; compute_type: as CTranslate2 names it."""

    model_id: str
    folder: str
    device: str
    compute_type: str
    num_threads: int
    skip_silence: bool
