"""The step loop: schedule, run, postprocess. Continuous: who waits is let in between any two steps.

loop.add(request)            joins the queue
report = loop.step()         lets in, prefills the new, decodes the others; one update a request
loop.cancel(request_id)      frees its slots; not one more token is computed for it
"""

import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.inference.core.choice import Choice, prompt_echo
from services.inference.core.detokenizer import Vocabulary
from services.inference.core.engine import Engine, EngineSequence, PickedToken
from services.inference.core.events import Delta, Ended, Started, StepReport, Update
from services.inference.core.sampling import (
    OutputOptions,
    SamplingDefaults,
    SamplingParameters,
    StopConditions,
    resolve_sampling,
)
from services.kit.errors import ContextLengthExceeded, InvalidArgument


@dataclass(frozen=True, slots=True)
class LoopRequest:
    """One generation as the loop takes it. echo: the prompt's text, to be shown first."""

    request_id: int
    prompt: Sequence[int]
    seed: int
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    stop: StopConditions = field(default_factory=StopConditions)
    output: OutputOptions = field(default_factory=OutputOptions)
    adapter: str | None = None
    cache_salt: str = ""
    priority: int = 0
    echo: str = ""


@dataclass(slots=True, eq=False)
class _Running:
    """A request in the loop.

    Its choices take slots one by one, so that it may have more of them than there are slots.
    """

    request: LoopRequest
    choices: list[Choice]
    added_s: float
    admitted_s: float | None = None
    first_token_s: float | None = None
    deltas: list[Delta] = field(default_factory=list)
    is_new: bool = False
    is_cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Slot:
    running: _Running
    choice: Choice


class StepLoop:
    """Runs many requests through one engine. One thread uses it; nothing here waits."""

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        *,
        max_sequences: int,
        defaults: SamplingDefaults | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._max_sequences = max_sequences
        self._defaults = defaults or SamplingDefaults()
        self._clock = clock
        self._requests: dict[int, _Running] = {}
        self._waiting: list[tuple[int, int, _Slot]] = []  # A heap of (-priority, arrival, slot).
        self._live: list[_Slot] = []
        self._last_sequence_id = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._requests)

    @property
    def num_live_sequences(self) -> int:
        """How many slots are taken."""
        return len(self._live)

    def add(self, request: LoopRequest) -> None:
        """Queue a request.

        Raises InvalidArgument for tokens that the model does not have, ContextLengthExceeded for too many.
        """
        max_tokens = self._check(request)
        choices = [self._choice(request, index, max_tokens) for index in range(request.output.num_choices)]
        running = _Running(request, choices, self._clock())
        self._requests[request.request_id] = running
        for choice in choices:
            arrival = choice.sequence.sequence_id
            heapq.heappush(self._waiting, (-request.priority, arrival, _Slot(running, choice)))

    def cancel(self, request_id: int) -> None:
        """Drop a request and free its slots now. One that has ended is no error."""
        running = self._requests.pop(request_id, None)
        if running is None:
            return
        running.is_cancelled = True
        for slot in [slot for slot in self._live if slot.running is running]:
            self._free(slot)

    def step(self) -> StepReport:
        """One step of everything: at most one token for each live sequence."""
        before = list(self._live)
        if before:
            self._take(before, self._engine.decode([slot.choice.sequence for slot in before]))
        admitted = self._admit()  # Slots that this very step made free are taken again at once.
        if admitted:
            self._take(admitted, self._engine.prefill([slot.choice.sequence for slot in admitted]))
        return self._report([*before, *admitted])

    def uses_adapter(self, name: str) -> bool:
        """Whether a request that is not done yet needs this adapter."""
        return any(running.request.adapter == name for running in self._requests.values())

    def _check(self, request: LoopRequest) -> int:
        """Returns how many tokens each choice may have."""
        facts = self._engine.facts
        if not request.prompt:
            raise InvalidArgument.at("prompt", "must hold at least one token")
        named = {
            "prompt": request.prompt,
            "sampling.logit_bias": request.sampling.logit_bias,
            "stop.stop_token_ids": request.stop.stop_token_ids,
        }
        for name, token_ids in named.items():
            if (highest := max(token_ids, default=0)) >= facts.vocab_size:
                why = f"token {highest} is not in the model's vocabulary of {facts.vocab_size}"
                raise InvalidArgument.at(name, why)
        room = facts.context_length - len(request.prompt)
        if room < 1:
            raise ContextLengthExceeded.of(
                num_prompt_tokens=len(request.prompt),
                max_tokens=request.stop.max_tokens or 1,
                context_length=facts.context_length,
            )
        return min(request.stop.max_tokens or room, room)

    def _choice(self, request: LoopRequest, index: int, max_tokens: int) -> Choice:
        self._last_sequence_id += 1
        eos_token_ids = self._engine.facts.eos_token_ids
        stop = request.stop
        sequence = EngineSequence(
            sequence_id=self._last_sequence_id,
            prompt=request.prompt,
            sampling=resolve_sampling(request.sampling, self._defaults, seed=request.seed, choice=index),
            adapter=request.adapter,
            num_logprobs=request.output.num_logprobs,
            banned_token_ids=eos_token_ids | frozenset(stop.stop_token_ids)
            if stop.min_tokens
            else frozenset(),
            num_banned_steps=stop.min_tokens,
            cache_salt=request.cache_salt,
        )
        return Choice(
            index,
            sequence,
            stop,
            eos_token_ids=eos_token_ids,
            max_tokens=max_tokens,
            vocabulary=self._vocabulary,
        )

    def _admit(self) -> list[_Slot]:
        admitted: list[_Slot] = []
        while self._waiting and len(self._live) < self._max_sequences:
            _, _, slot = heapq.heappop(self._waiting)
            running = slot.running
            if running.is_cancelled:
                continue
            if running.admitted_s is None:
                running.admitted_s = self._clock()
                running.is_new = True
            running.deltas.extend(prompt_echo(slot.choice.index, running.request.echo))
            self._live.append(slot)
            admitted.append(slot)
        return admitted

    def _take(self, slots: Sequence[_Slot], picks: Sequence[PickedToken]) -> None:
        now = self._clock()
        for slot, picked in zip(slots, picks, strict=True):
            if slot.running.first_token_s is None:
                slot.running.first_token_s = now
            delta = slot.choice.push(picked)
            if delta is not None:
                slot.running.deltas.append(delta)
            if slot.choice.end is not None:
                self._free(slot)

    def _free(self, slot: _Slot) -> None:
        self._live.remove(slot)
        self._engine.release(slot.choice.sequence)

    def _report(self, slots: Sequence[_Slot]) -> StepReport:
        report = StepReport()
        for running in dict.fromkeys(slot.running for slot in slots):
            request_id = running.request.request_id
            ended = self._ended(running)
            started = Started(len(running.request.prompt), running.request.seed) if running.is_new else None
            if started or running.deltas or ended:
                report.updates.append((request_id, Update(started, tuple(running.deltas), ended)))
            running.is_new = False
            running.deltas.clear()
            if ended:
                del self._requests[request_id]
                report.finished.append(request_id)
        return report

    def _ended(self, running: _Running) -> Ended | None:
        ends = [choice.end for choice in running.choices if choice.end is not None]
        if len(ends) < len(running.choices):
            return None
        now = self._clock()
        admitted_s = running.admitted_s if running.admitted_s is not None else now
        first_token_s = running.first_token_s if running.first_token_s is not None else now
        return Ended(
            choices=tuple(ends),
            num_prompt_tokens=len(running.request.prompt),
            num_completion_tokens=sum(len(choice.sequence.output) for choice in running.choices),
            queue_ms=(admitted_s - running.added_s) * 1e3,
            prefill_ms=(first_token_s - admitted_s) * 1e3,
            decode_ms=(now - first_token_s) * 1e3,
        )
