"""What Speech does: it listens to a stream, or reads a file, with the model that was asked for."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from services.kit.errors import InvalidAudio, PayloadTooLarge, UnsupportedParameter
from services.speech.core.domain import Ability, Engine, RecognitionConfig, SpeechModel, TranscriptionConfig
from services.speech.core.live import LiveResult, converse
from services.speech.core.messages import FileRead, FileRequest, Finished, LiveRequest, Segment, WorkerEvent
from services.speech.core.pool import RecognizerPool
from services.speech.core.ports import ModelCatalog, Spool, SpoolFile

_BYTES_PER_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """max_pending_s: live audio that a worker may have and not have heard yet."""

    max_file_bytes: int
    max_duration_s: float
    max_pending_s: float


@dataclass(frozen=True, slots=True)
class LiveStarted:
    """The recogniser listens. version: `models/{m}/versions/{v}`."""

    version: str


@dataclass(frozen=True, slots=True)
class FileStarted:
    """The file could be read. version: `models/{m}/versions/{v}`."""

    version: str
    read: FileRead


class Speech:
    """The use cases."""

    def __init__(
        self, *, catalog: ModelCatalog, pool: RecognizerPool, spool: Spool, limits: AudioLimits
    ) -> None:
        self._catalog = catalog
        self._pool = pool
        self._spool = spool
        self._limits = limits

    async def recognize(
        self, config: RecognitionConfig, audio: AsyncIterator[bytes]
    ) -> AsyncGenerator[LiveStarted | LiveResult, None]:
        """Listen to a stream. Yields LiveStarted first and Finished last."""
        model = await self._catalog.resolve(config.model)
        model.require(Ability.STREAMING)
        request = LiveRequest(
            config.sample_rate_hz, config.partial_results, config.words, list(config.phrases)
        )
        max_pending_bytes = int(self._limits.max_pending_s * config.sample_rate_hz) * _BYTES_PER_SAMPLE
        async with self._pool.use(model) as worker, worker.call(request) as call:
            yield LiveStarted(model.version)
            async with aclosing(converse(call, audio, max_pending_bytes=max_pending_bytes)) as results:
                async for result in results:
                    yield result

    async def transcribe(
        self, config: TranscriptionConfig, chunks: AsyncIterator[bytes]
    ) -> AsyncGenerator[FileStarted | Segment | Finished, None]:
        """Read a file. Yields FileStarted first and Finished last; refuses what cannot be done before it is read."""
        model = await self._catalog.resolve(config.model)
        _check_transcription(model, config)
        async with self._spool.file() as file:
            await self._receive(file, chunks)
            request = FileRequest(
                path=str(file.path),
                language=config.language or (model.languages[0] if len(model.languages) == 1 else ""),
                translate=config.translate,
                prompt=config.prompt,
                temperature=config.temperature,
                words=config.words,
                max_duration_s=self._limits.max_duration_s,
            )
            async with self._pool.use(model) as worker, worker.call(request) as call:
                async for event in call:
                    yield _file_event(model, event)

    async def _receive(self, file: SpoolFile, chunks: AsyncIterator[bytes]) -> None:
        num_bytes = 0
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > self._limits.max_file_bytes:
                raise PayloadTooLarge(
                    f"the file is larger than {self._limits.max_file_bytes} bytes, which is the limit;"
                    " send a compressed format such as Opus, or split it",
                    metadata={"max_bytes": str(self._limits.max_file_bytes)},
                )
            await file.write(chunk)
        if not num_bytes:
            raise InvalidAudio.at("chunk", "the file is empty; send its bytes after the configuration")


def _check_transcription(model: SpeechModel, config: TranscriptionConfig) -> None:
    model.require(Ability.TRANSCRIPTION)
    if config.translate:
        model.require(Ability.TRANSLATION)
    model.require_language(config.language)
    if model.require_engine() is Engine.VOSK:
        for field, is_asked in (
            ("config.prompt", bool(config.prompt)),
            ("config.temperature", config.temperature > 0),
        ):
            if is_asked:
                raise UnsupportedParameter.at(
                    field, f"'{model.model_id}' is a Vosk model, which has none; leave it out"
                )


def _file_event(model: SpeechModel, event: WorkerEvent) -> FileStarted | Segment | Finished:
    match event:
        case FileRead():
            return FileStarted(model.version, event)
        case Segment() | Finished():
            return event
        case _:
            raise TypeError(f"a recogniser sent {type(event).__name__} for a file")
