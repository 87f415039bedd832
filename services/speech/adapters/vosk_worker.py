"""The worker of a Vosk model: many live streams and files on one model, one recogniser each."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import vosk

from services.kit.errors import FieldViolation, InvalidArgument, UnsupportedFormat, UnsupportedParameter
from services.kit.worker_port import WorkerPort
from services.speech.adapters.audio import SAMPLE_RATE_HZ, decode
from services.speech.adapters.job_loop import SLICE_S, FileJob, Job, JobLoop, Slice, Step
from services.speech.adapters.worker_init import VoskInit
from services.speech.core.messages import (
    Consumed,
    FileRead,
    FileRequest,
    Finished,
    LiveRequest,
    Loaded,
    Partial,
    Segment,
    Word,
    WorkerEvent,
    WorkerRequest,
)
from services.speech.core.messages import (
    Final as FinalResult,
)

# What a recogniser of phrases hears when it hears none of them.
_UNKNOWN_WORD: Final = "[unk]"
# As a live stream is heard: the two give the same words.
_SLICE_BYTES: Final = 2 * int(SAMPLE_RATE_HZ * SLICE_S)


def main(init: VoskInit, port: WorkerPort[WorkerRequest, WorkerEvent]) -> None:
    """Load the model, then listen until the parent asks for the end."""
    vosk.SetLogLevel(-1)
    model = _VoskModel(init)
    port.ready(Loaded("cpu"))
    JobLoop(port, model.job, num_threads=init.num_threads).run()


class _VoskModel:
    def __init__(self, init: VoskInit) -> None:
        self.model_id = init.model_id
        self._folder = Path(init.folder)
        try:
            self._model = vosk.Model(init.folder)
        except Exception as error:  # Vosk raises nothing narrower.
            raise UnsupportedFormat(f"'{init.model_id}' cannot be loaded as a Vosk model: {error}") from error

    def job(self, request: LiveRequest | FileRequest) -> Job:
        if isinstance(request, LiveRequest):
            return _LiveJob(self, request)
        return FileJob(_read_file(self, request))

    def recognizer(self, sample_rate_hz: int, *, words: bool, phrases: list[str] | None = None) -> Any:
        """A new vosk.KaldiRecognizer, which resamples by itself.

        Raises InvalidArgument for words that the model does not know, UnsupportedParameter if it cannot take phrases.
        """
        if phrases:
            grammar = json.dumps(self._grammar(phrases), ensure_ascii=False)
            recognizer = vosk.KaldiRecognizer(self._model, sample_rate_hz, grammar)
        else:
            recognizer = vosk.KaldiRecognizer(self._model, sample_rate_hz)
        recognizer.SetWords(words)
        return recognizer

    def _grammar(self, phrases: list[str]) -> list[str]:
        # Only a graph in two parts can be given another grammar; Vosk itself would ignore the phrases with a warning.
        if not (self._folder / "graph" / "Gr.fst").is_file():
            raise UnsupportedParameter.at(
                "config.phrases",
                f"'{self.model_id}' has a fixed graph and cannot be held to phrases; leave them out",
            )
        unknown = [
            FieldViolation(f"config.phrases[{index}]", f"'{self.model_id}' does not know the word '{word}'")
            for index, phrase in enumerate(phrases)
            for word in phrase.split()
            if not self._knows(word)
        ]
        if unknown:
            raise InvalidArgument(f"{unknown[0].field}: {unknown[0].description}", violations=unknown[:20])
        return [*phrases, _UNKNOWN_WORD] if self._knows(_UNKNOWN_WORD) else phrases

    def _knows(self, word: str) -> bool:
        return bool(self._model.vosk_model_find_word(word) >= 0)


class _LiveJob:
    def __init__(self, model: _VoskModel, request: LiveRequest) -> None:
        self._model = model
        self._request = request
        self._recognizer: Any = None
        self._num_bytes = 0
        self._last_partial = ""

    def step(self, heard: Slice) -> Step:
        if self._recognizer is None:
            self._recognizer = self._model.recognizer(
                self._request.sample_rate_hz, words=True, phrases=self._request.phrases
            )
        events: list[WorkerEvent] = []
        if heard.samples:
            self._num_bytes += len(heard.samples)
            events.append(Consumed(len(heard.samples)))
            if self._recognizer.AcceptWaveform(heard.samples):
                events += self._final(self._recognizer.Result())
            elif self._request.partial_results:
                events += self._partial()
        if heard.is_last:
            events += self._final(self._recognizer.FinalResult())
            events.append(Finished(self._num_bytes / 2 / self._request.sample_rate_hz))
        return Step(events, is_done=heard.is_last)

    def _partial(self) -> list[WorkerEvent]:
        text = _without_unknown(json.loads(self._recognizer.PartialResult())["partial"])
        if not text or text == self._last_partial:
            return []
        self._last_partial = text
        return [Partial(text)]

    def _final(self, result: str) -> list[WorkerEvent]:
        self._last_partial = ""
        text, words = _utterance(result)
        return [FinalResult(text, words if self._request.words else [])] if text else []


def _read_file(model: _VoskModel, request: FileRequest) -> Generator[WorkerEvent | None, None, None]:
    samples = yield from decode(Path(request.path), max_duration_s=request.max_duration_s)
    duration_s = len(samples) / SAMPLE_RATE_HZ
    # The model has one language; who asked for it has been checked against what the registry knows.
    yield FileRead(request.language, 1.0 if request.language else 0.0, duration_s)
    recognizer = model.recognizer(SAMPLE_RATE_HZ, words=True)
    pcm = samples.tobytes()
    index = 0
    for start in range(0, len(pcm), _SLICE_BYTES):
        is_utterance = recognizer.AcceptWaveform(pcm[start : start + _SLICE_BYTES])
        segment = _segment(index, recognizer.Result(), request.words) if is_utterance else None
        index += segment is not None
        yield segment
    last = _segment(index, recognizer.FinalResult(), request.words)
    if last is not None:
        yield last
    yield Finished(duration_s)


def _segment(index: int, result: str, with_words: bool) -> Segment | None:
    text, words = _utterance(result)
    if not text:
        return None
    return Segment(index, words[0].start_s, words[-1].end_s, text, words if with_words else [])


def _utterance(result: str) -> tuple[str, list[Word]]:
    """Text and words of a result; without what was heard and not understood."""
    words = [
        Word(word["word"], word["start"], word["end"], word["conf"])
        for word in json.loads(result).get("result", [])
        if word["word"] != _UNKNOWN_WORD
    ]
    return " ".join(word.text for word in words), words


def _without_unknown(text: str) -> str:
    return " ".join(word for word in text.split() if word != _UNKNOWN_WORD)
