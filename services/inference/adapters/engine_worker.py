"""The worker of a language model. `main` runs in a child process and holds the model, its loop, its adapters."""

import contextlib
import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from services.inference.adapters.messages import (
    DropAdapter,
    EngineEvent,
    EngineInit,
    EngineRequest,
    Generate,
    LoadAdapter,
    Loaded,
    LoadProgress,
    Step,
    WatchStats,
)
from services.inference.adapters.stats_reporter import StatsReporter
from services.inference.core.engine import Engine
from services.inference.core.loop import LoopRequest, StepLoop
from services.inference.core.prompts import Prompt
from services.kit.errors import LaresError, UnsupportedFormat
from services.kit.worker_port import Incoming, WorkerPort

# Long enough that whoever talks with a model never waits for memory that was given back a moment before.
_IDLE_S: Final = 10.0


def main(init: EngineInit, port: WorkerPort[EngineRequest, EngineEvent]) -> None:
    """Load, say so, and step until told to stop."""
    EngineWorker(init, port).run()


def make_engine(
    init: EngineInit, folder: Path, end_token_ids: frozenset[int], on_progress: Callable[[float], None]
) -> Engine:
    """The engine that runs this model, its weights in memory: our own for the families it knows."""
    # Imported here and below, so that a worker's first sign of life comes before torch is imported, and a model that
    # our own engine runs never waits for transformers.
    from services.inference.adapters.placement import place, use_all_cores
    from services.inference.adapters.runner.load import load_runner

    use_all_cores()
    placement = place(folder, init.device, init.weight_type)
    runner = load_runner(init, folder, placement, end_token_ids, on_progress)
    if runner is not None:
        return runner
    if init.weight_type in ("int8", "int4"):
        raise UnsupportedFormat(f"{init.weight_type} is not offered for this family: load it as bf16 or fp32")
    from services.inference.adapters.transformers_engine import load_transformers_engine

    return load_transformers_engine(init, folder, placement, end_token_ids)


def give_back_memory() -> None:
    """Give freed memory that the allocator keeps for the next step (see workers.py) to the system, on glibc."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class EngineWorker:
    """Ties the loop to the pipes: what comes in between two steps, and one message out for each."""

    def __init__(self, init: EngineInit, port: WorkerPort[EngineRequest, EngineEvent]) -> None:
        port.progress(LoadProgress(0.05))
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from services.inference.adapters.model_folder import check_folder, end_token_ids, sampling_defaults
        from services.inference.adapters.prompt_renderer import PromptRenderer
        from services.inference.adapters.tokenizer import load_tokenizer
        from services.inference.adapters.vocabulary import TokenizerVocabulary

        folder = Path(init.folder)
        check_folder(folder)
        tokenizer = load_tokenizer(folder)
        port.progress(LoadProgress(0.1))
        ends = end_token_ids(folder)
        if tokenizer.eos_token_id is not None:
            ends |= {tokenizer.eos_token_id}
        self._engine = make_engine(
            init, folder, ends, lambda share: port.progress(LoadProgress(0.1 + 0.9 * share))
        )
        self._port = port
        self._stats = StatsReporter(port)
        self._renderer = PromptRenderer(tokenizer, self._engine.facts.context_length)
        self._vocabulary = TokenizerVocabulary(tokenizer)
        self._loop = StepLoop(
            self._engine,
            self._vocabulary,
            max_sequences=init.max_sequences,
            max_batch_tokens=init.max_batch_tokens,
            defaults=sampling_defaults(folder),
        )

    def run(self) -> None:
        """Serve until the parent says stop."""
        from services.inference.adapters.placement import card_bytes  # As above.

        facts = self._engine.facts
        give_back_memory()  # What loading took and needs no more.
        self._port.ready(
            Loaded(
                device=facts.device,
                dtype=facts.dtype,
                context_length=facts.context_length,
                num_kv_tokens=facts.num_blocks * facts.block_size,
                weights_bytes=facts.weights_bytes,
                kv_bytes=facts.kv_bytes,
                card_bytes=card_bytes(facts.device),
                note=facts.note,
            )
        )
        keeps_memory = False
        while not self._port.closed:
            timeout_s = 0 if self._loop.has_work else self._stats.due_in_s
            waits_to_rest = keeps_memory and timeout_s is None
            received = self._port.receive(timeout_s=_IDLE_S if waits_to_rest else timeout_s)
            if waits_to_rest and not received:
                give_back_memory()
                keeps_memory = False
            for incoming in received:
                self._take(incoming)
            if self._loop.has_work:
                keeps_memory = True
                report = self._loop.step()
                self._port.post(
                    events=[(call_id, Step(update)) for call_id, update in report.updates],
                    finished=report.finished,
                )
            self._stats.tell(self._loop.stats)

    def _take(self, incoming: Incoming[EngineRequest]) -> None:
        call_id = incoming.call_id
        try:
            match incoming.message:
                case Generate() as request:
                    self._loop.add(self._loop_request(call_id, request))
                case LoadAdapter(name, folder):
                    self._engine.load_adapter(name, Path(folder))
                    self._port.finish(call_id)
                case DropAdapter(name):
                    self._engine.drop_adapter(name)
                    self._port.finish(call_id)
                case WatchStats():
                    self._stats.watch(call_id)
                case None if incoming.kind == "cancel":
                    self._stats.unwatch(call_id)
                    self._loop.cancel(call_id)
        except LaresError as error:
            self._port.fail(call_id, error)

    def _loop_request(self, call_id: int, request: Generate) -> LoopRequest:
        prompt = self._renderer.tokens(request.prompt)
        return LoopRequest(
            request_id=call_id,
            prompt=prompt,
            seed=request.seed,
            sampling=request.sampling,
            stop=request.stop,
            output=request.output,
            adapter=request.adapter or None,
            cache_salt=request.cache_salt,
            priority=request.priority,
            echo=self._echo(request.prompt, prompt) if request.output.echo else "",
            scores_prompt=request.scores_prompt,
        )

    def _echo(self, prompt: Prompt, token_ids: Sequence[int]) -> str:
        """The prompt's text: as it was given, or what its tokens stand for."""
        return self._vocabulary.decode(token_ids) if prompt.text is None else prompt.text
