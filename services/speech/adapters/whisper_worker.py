"""The worker of Whisper models: faster-whisper over CTranslate2. One thread of work; CTranslate2 brings its own."""

from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import numpy as np
from faster_whisper import WhisperModel

from services.kit.errors import (
    FieldViolation,
    InvalidArgument,
    UnsupportedFormat,
    UnsupportedParameter,
    WrongModelKind,
)
from services.kit.worker_port import WorkerPort
from services.speech.adapters.audio import SAMPLE_RATE_HZ, Samples, blocks, decode
from services.speech.adapters.job_loop import FileJob, Job, JobLoop
from services.speech.adapters.worker_init import WhisperInit
from services.speech.core.messages import (
    FileRead,
    FileRequest,
    Finished,
    LiveRequest,
    Loaded,
    Segment,
    Word,
    WorkerEvent,
    WorkerRequest,
)

# faster-whisper computes the features of all it is given at once, about 0.5 MB a second of sound at its peak.
_BLOCK_S: Final = 600.0
_SEARCH_S: Final = 20.0
_BEAM_SIZE: Final = 5
# Hotter and hotter while an answer repeats itself or is improbable: section 4.5 of the Whisper paper.
_TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def main(init: WhisperInit, port: WorkerPort[WorkerRequest, WorkerEvent]) -> None:
    """Load the model, then transcribe until the parent asks for the end."""
    whisper = _Whisper(init)
    port.ready(Loaded(whisper.device))
    JobLoop(port, whisper.job, num_threads=1).run()


class _Whisper:
    def __init__(self, init: WhisperInit) -> None:
        self._init = init
        folder = Path(init.folder)
        # Without its tokenizer faster-whisper would ask a hub for one.
        for needed in ("model.bin", "config.json", "tokenizer.json"):
            if not (folder / needed).is_file():
                raise UnsupportedFormat(f"'{init.model_id}' has no {needed}, which a Whisper model needs")
        try:
            self._model = WhisperModel(
                init.folder,
                device=init.device,
                compute_type=init.compute_type,
                cpu_threads=init.num_threads,
                local_files_only=True,
            )
        except (RuntimeError, ValueError) as error:
            raise UnsupportedFormat(
                f"'{init.model_id}' cannot be loaded as a Whisper model: {error}"
            ) from error

        self.device = "cuda:0" if self._model.model.device == "cuda" else "cpu"

    def job(self, request: LiveRequest | FileRequest) -> Job:
        if isinstance(request, LiveRequest):
            # The registry should not have said that it can.
            raise WrongModelKind(
                f"'{self._init.model_id}' is a Whisper model, which has no live streams; use a Vosk model"
            )
        return FileJob(self._transcribe(request))

    def _transcribe(self, request: FileRequest) -> Generator[WorkerEvent | None, None, None]:
        self._check(request)
        samples = yield from decode(Path(request.path), max_duration_s=request.max_duration_s)
        duration_s = len(samples) / SAMPLE_RATE_HZ
        language, prompt = request.language, request.prompt
        index = 0
        for offset, block in blocks(samples, block_s=_BLOCK_S, search_s=_SEARCH_S):
            found, info = self._listen(block, request, language, prompt)
            if offset == 0:
                language = info.language
                yield FileRead(language, info.language_probability, duration_s)
            for raw in found:
                segment = _segment(index, raw, offset / SAMPLE_RATE_HZ)
                yield segment
                index += 1
                prompt = segment.text
        yield Finished(duration_s)

    def _listen(self, block: Samples, request: FileRequest, language: str, prompt: str) -> tuple[Any, Any]:
        found: tuple[Any, Any] = self._model.transcribe(
            block.astype(np.float32) / 32768.0,
            language=language or None,
            task="translate" if request.translate else "transcribe",
            initial_prompt=prompt or None,
            beam_size=_BEAM_SIZE,
            temperature=request.temperature or _TEMPERATURES,
            word_timestamps=request.words,
            vad_filter=self._init.skip_silence,
        )
        return found

    def _check(self, request: FileRequest) -> None:
        known = self._model.supported_languages
        if request.language and request.language not in known:
            if not self._model.model.is_multilingual:
                raise UnsupportedParameter.at(
                    "config.language",
                    f"'{self._init.model_id}' understands only English, not {request.language};"
                    " use a multilingual model, such as whisper-base",
                )
            why = f"'{request.language}' is none of the languages of '{self._init.model_id}': {', '.join(known)}"
            raise InvalidArgument(
                f"config.language: {why}", violations=[FieldViolation("config.language", why)]
            )
        if request.translate and not self._model.model.is_multilingual:
            raise WrongModelKind(
                f"'{self._init.model_id}' understands only English, so it cannot translate into it;"
                " use a multilingual model, such as whisper-base"
            )


def _segment(index: int, raw: Any, offset_s: float) -> Segment:
    return Segment(
        index=index,
        start_s=offset_s + float(raw.start),
        end_s=offset_s + float(raw.end),
        text=raw.text.strip(),
        words=[
            Word(
                word.word.strip(),
                offset_s + float(word.start),
                offset_s + float(word.end),
                float(word.probability),
            )
            for word in raw.words or ()
        ],
        average_logprob=float(raw.avg_logprob),
        no_speech_probability=float(raw.no_speech_prob),
    )
