"""The step loop: schedule, run, postprocess. Continuous: who waits is let in at any step.

    loop.add(request)            joins the queue
    report = loop.step()         at most max_batch_tokens tokens of all; one update a request
    loop.cancel(request_id)      frees its blocks; not one more token is computed for it

An engine that raises leaves the loop in no state to go on: the process that holds both is to end.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.inference.core.choice import Choice, prompt_echo
from services.inference.core.detokenizer import Vocabulary
from services.inference.core.engine import Chunk, ChunkResult, Engine, EngineSequence
from services.inference.core.events import (
    ChoiceEnd,
    Delta,
    Ended,
    FinishReason,
    LoopStats,
    ScoredToken,
    Started,
    StepReport,
    TokenChance,
    Update,
)
from services.inference.core.sampling import (
    OutputOptions,
    SamplingDefaults,
    SamplingParameters,
    StopConditions,
    resolve_sampling,
)
from services.inference.core.scheduler import Scheduler
from services.kit.errors import ContextLengthExceeded, InvalidArgument

# A step of so many tokens keeps one core busy for less than a second with a small model, and a card well filled. A
# prompt of 512 and what a template puts around it make one step, not one and a short one.
DEFAULT_MAX_BATCH_TOKENS: Final = 576


@dataclass(frozen=True, slots=True)
class LoopRequest:
    """One generation as the loop takes it. echo: the prompt's text, to be shown first.

    scores_prompt: tell the log probabilities of the prompt. With stop.max_tokens 0 that is all: it ends when
    its prompt is computed.
    """

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
    scores_prompt: bool = False


@dataclass(slots=True, eq=False)
class _Running:
    """A request in the loop: its slots, what is to be told of it, and what became of it."""

    request: LoopRequest
    max_tokens: int
    added_s: float
    slots: list["_Slot"] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    prompt: tuple[ScoredToken, ...] = ()
    is_new: bool = False
    admitted_s: float | None = None
    first_token_s: float | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """One choice of a request. prompt_logprobs: those known so far, in order, each with its likely tokens."""

    running: _Running
    choice: Choice
    is_new: bool = True
    prompt_logprobs: list[tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=list)
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    max_gap_s: float = 0.0


class StepLoop:
    """Runs many requests through one engine. One thread uses it; nothing here waits.

    max_sequences: that run at once. max_batch_tokens: computed in one step, over all of them.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        *,
        max_sequences: int,
        max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS,
        defaults: SamplingDefaults | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._vocabulary = vocabulary
        self._scheduler = Scheduler(
            engine.facts, max_sequences=max_sequences, max_batch_tokens=max_batch_tokens
        )
        self._defaults = defaults or SamplingDefaults()
        self._clock = clock
        self._requests: dict[int, _Running] = {}
        self._slots: dict[int, _Slot] = {}  # By sequence id, of choices that are not over.
        self._last_sequence_id = 0
        self._num_steps = 0
        self._num_generated_tokens = 0
        self._last_batch: Sequence[Chunk] = ()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._requests)

    @property
    def num_live_sequences(self) -> int:
        """How many hold blocks."""
        return self._scheduler.num_running

    def stats(self) -> LoopStats:
        """How it stands now."""
        scheduler, counts = self._scheduler, self._scheduler.counts
        return LoopStats(
            num_live=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_blocks=scheduler.pool.num_blocks,
            num_used_blocks=scheduler.pool.num_used,
            num_batch_sequences=len(self._last_batch),
            num_batch_tokens=sum(chunk.num_tokens for chunk in self._last_batch),
            num_steps=self._num_steps,
            num_computed_tokens=counts.num_computed_tokens,
            num_generated_tokens=self._num_generated_tokens,
            num_queried_tokens=counts.num_queried_tokens,
            num_hit_tokens=counts.num_hit_tokens,
            num_preemptions=counts.num_preemptions,
        )

    def add(self, request: LoopRequest) -> None:
        """Queue a request.

        Raises InvalidArgument for tokens that the model does not have, ContextLengthExceeded for too many. An
        answer that the context, or the memory for keys and values, cannot hold in full ends where they do.
        """
        running = _Running(request, self._max_tokens(request), self._clock())
        self._requests[request.request_id] = running
        for index in range(request.output.num_choices):
            slot = _Slot(running, self._choice(running, index))
            running.slots.append(slot)
            self._slots[slot.choice.sequence.sequence_id] = slot
            self._scheduler.add(slot.choice.sequence, request.priority)

    def cancel(self, request_id: int) -> None:
        """Drop a request and free its blocks now. One that has ended is no error."""
        running = self._requests.pop(request_id, None)
        if running is None:
            return
        for slot in running.slots:
            if slot.choice.end is None:
                self._free(slot)

    def step(self) -> StepReport:
        """One step of everything: at most one new token for each live sequence."""
        chunks = self._scheduler.schedule()
        if not chunks:
            return StepReport()
        slots = [self._slots[chunk.sequence.sequence_id] for chunk in chunks]
        self._begin(slots)
        # Where each begins is gone once the scheduler moves on.
        starts = [chunk.start for chunk in chunks]
        picks = [chunk.picks for chunk in chunks]
        results = self._engine.step(chunks)
        self._scheduler.advance(chunks)
        now = self._clock()
        for slot, start, does_pick, result in zip(slots, starts, picks, results, strict=True):
            self._take(slot, start, does_pick, result, now)
        self._num_steps += 1
        self._last_batch = chunks
        return self._report(slots)

    def uses_adapter(self, name: str) -> bool:
        """Whether a request that is not done yet needs this adapter."""
        return any(running.request.adapter == name for running in self._requests.values())

    def _max_tokens(self, request: LoopRequest) -> int:
        """How many tokens each choice may have. Raises InvalidArgument, ContextLengthExceeded."""
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
        capacity, num_prompt = self._scheduler.capacity, len(request.prompt)
        # The last token of an answer is never computed: it needs a place in the context, and none in the pool.
        room = min(facts.context_length, capacity + 1) - num_prompt
        asked = request.stop.max_tokens
        if num_prompt > min(facts.context_length, capacity) or (room < 1 and asked != 0):
            raise ContextLengthExceeded.of(
                num_prompt_tokens=num_prompt,
                max_tokens=1 if asked is None else asked,
                context_length=min(facts.context_length, capacity),
            )
        return room if asked is None else min(asked, room)

    def _choice(self, running: _Running, index: int) -> Choice:
        request, stop = running.request, running.request.stop
        self._last_sequence_id += 1
        eos_token_ids = self._engine.facts.eos_token_ids
        sequence = EngineSequence(
            sequence_id=self._last_sequence_id,
            prompt=request.prompt,
            sampling=resolve_sampling(request.sampling, self._defaults, seed=request.seed, choice=index),
            adapter=request.adapter,
            num_logprobs=request.output.num_logprobs,
            wants_prompt_logprobs=request.scores_prompt and index == 0,
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
            max_tokens=running.max_tokens,
            vocabulary=self._vocabulary,
        )

    def _begin(self, slots: Sequence[_Slot]) -> None:
        """Note who is let in with this step."""
        for slot in slots:
            if not slot.is_new:
                continue
            slot.is_new = False
            running = slot.running
            if running.admitted_s is None:
                running.admitted_s = self._clock()
                running.is_new = True
                running.num_cached_tokens = self._scheduler.num_cached_tokens(slot.choice.sequence)
            running.deltas.extend(prompt_echo(slot.choice.index, running.request.echo))

    def _take(self, slot: _Slot, start: int, does_pick: bool, result: ChunkResult, now: float) -> None:
        """What the engine says of one chunk, which began at `start`."""
        running, choice = slot.running, slot.choice
        if result.prompt_logprobs:
            # A place that was computed before its sequence had to give way is told a second time.
            stop = start + len(result.prompt_logprobs)
            tops = result.prompt_tops or ((),) * len(result.prompt_logprobs)
            slot.prompt_logprobs[start:stop] = zip(result.prompt_logprobs, tops, strict=True)
        if not does_pick:
            return
        if choice.sequence.wants_prompt_logprobs and not choice.sequence.output:
            running.prompt = self._scored_prompt(slot)
        if running.first_token_s is None:
            running.first_token_s = now
        if running.max_tokens == 0:
            choice.end = ChoiceEnd(FinishReason.LENGTH)
        else:
            assert result.picked is not None
            self._note_time(slot, now)
            self._num_generated_tokens += 1
            delta = choice.push(result.picked)
            if delta is not None:
                running.deltas.append(delta)
        if choice.end is not None:
            running.num_preemptions += self._scheduler.num_preemptions(choice.sequence)
            self._free(slot)

    def _scored_prompt(self, slot: _Slot) -> tuple[ScoredToken, ...]:
        token_bytes = self._vocabulary.token_bytes
        told = [(None, ()), *slot.prompt_logprobs]  # Nothing comes before the first.
        return tuple(
            ScoredToken(
                token_id,
                token_bytes(token_id),
                logprob,
                tuple(TokenChance(other, token_bytes(other), chance) for other, chance in top),
            )
            for token_id, (logprob, top) in zip(slot.running.request.prompt, told, strict=True)
        )

    def _note_time(self, slot: _Slot, now: float) -> None:
        if slot.choice.sequence.output:
            slot.max_gap_s = max(slot.max_gap_s, now - slot.last_token_s)
        else:
            slot.first_token_s = now
        slot.last_token_s = now

    def _free(self, slot: _Slot) -> None:
        sequence = slot.choice.sequence
        self._scheduler.remove(sequence)
        self._engine.release(sequence)
        del self._slots[sequence.sequence_id]

    def _report(self, slots: Sequence[_Slot]) -> StepReport:
        report = StepReport()
        for running in dict.fromkeys(slot.running for slot in slots):
            request_id = running.request.request_id
            ended = self._ended(running)
            started = Started(len(running.request.prompt), running.request.seed) if running.is_new else None
            if started or running.deltas or ended or running.prompt:
                update = Update(started, tuple(running.deltas), ended, running.prompt)
                report.updates.append((request_id, update))
            running.is_new = False
            running.deltas.clear()
            running.prompt = ()
            if ended:
                del self._requests[request_id]
                report.finished.append(request_id)
        return report

    def _ended(self, running: _Running) -> Ended | None:
        ends = [slot.choice.end for slot in running.slots if slot.choice.end is not None]
        if len(ends) < len(running.slots):
            return None
        assert running.admitted_s is not None
        assert running.first_token_s is not None
        now = self._clock()
        nums_tokens = [len(slot.choice.sequence.output) for slot in running.slots]
        num_gaps = sum(max(num_tokens - 1, 0) for num_tokens in nums_tokens)
        gaps_s = sum(slot.last_token_s - slot.first_token_s for slot in running.slots)
        return Ended(
            choices=tuple(ends),
            num_prompt_tokens=len(running.request.prompt),
            num_completion_tokens=sum(nums_tokens),
            queue_ms=(running.admitted_s - running.added_s) * 1e3,
            prefill_ms=(running.first_token_s - running.admitted_s) * 1e3,
            decode_ms=(now - running.first_token_s) * 1e3,
            ttft_ms=(running.first_token_s - running.added_s) * 1e3,
            inter_token_ms=gaps_s / num_gaps * 1e3 if num_gaps else 0.0,
            max_inter_token_ms=max(slot.max_gap_s for slot in running.slots) * 1e3,
            num_cached_tokens=running.num_cached_tokens,
            num_preemptions=running.num_preemptions,
        )
