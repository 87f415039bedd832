"""Who computes what in the next step: chunked prefill and decode under one budget of tokens (Sarathi-Serve,
arXiv 2403.02310), blocks as in vLLM (arXiv 2309.06180).

    scheduler.add(sequence, priority=0)
    chunks = scheduler.schedule()      decodes, then prefills in progress, then admissions
    engine.step(chunks)
    scheduler.advance(chunks)          those tokens are computed
    scheduler.remove(sequence)         it is done or not wanted: its blocks are free

Urgency is (priority, then who came first), for who is let in and for who must give way. The most urgent
sequence that runs can take the blocks of all others, and alone it fits the pool: so it always goes on, and
with it, in the end, everybody.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from services.inference.core.blocks import BlockPool, block_hash, root_hash
from services.inference.core.engine import Chunk, EngineFacts, EngineSequence


@dataclass(slots=True, eq=False)
class _Entry:
    """A sequence in the scheduler.

    urgency: the higher, the sooner; unique. hashes: of its full blocks, as far as they were needed. num_sealed:
    of its blocks, that others were told of. num_scored: tokens that were computed at some time, which a prompt
    to be scored need not compute again. parked_on: the hash whose computation it waits for.
    """

    sequence: EngineSequence
    urgency: tuple[int, int]
    hashes: list[bytes] = field(default_factory=list)
    num_sealed: int = 0
    num_scored: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    was_admitted: bool = False
    is_running: bool = False
    parked_on: bytes | None = None

    @property
    def num_missing(self) -> int:
        """Tokens that are known and not computed."""
        return self.sequence.num_tokens - self.sequence.num_computed

    def hash_of(self, index: int, block_size: int) -> bytes:
        """Hash of its full block at this place."""
        sequence, hashes = self.sequence, self.hashes
        while len(hashes) <= index:
            start = len(hashes) * block_size
            parent = hashes[-1] if hashes else root_hash(sequence.cache_salt, sequence.adapter)
            hashes.append(block_hash(parent, sequence.tokens(start, start + block_size)))
        return hashes[index]


def _urgency(entry: _Entry) -> tuple[int, int]:
    return entry.urgency


@dataclass(slots=True)
class SchedulerCounts:
    """Counted since the start. num_queried_tokens: of prompts that looked for cached blocks; num_hit_tokens: found."""

    num_computed_tokens: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_preemptions: int = 0


class Scheduler:
    """Owns `blocks` and `num_computed` of the sequences that are added.

    max_batch_tokens: computed in one step at most; no more sequences than that run, so that none starves.
    """

    def __init__(self, facts: EngineFacts, *, max_sequences: int, max_batch_tokens: int) -> None:
        self.pool = BlockPool(facts.num_blocks, facts.block_size)
        self.counts = SchedulerCounts()
        self._shares_blocks = facts.shares_blocks
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = min(max_sequences, max_batch_tokens)
        self._entries: dict[int, _Entry] = {}
        self._num_arrived = 0
        # Both ordered by urgency, the most urgent last.
        self._waiting: list[_Entry] = []
        self._running: list[_Entry] = []
        # Who runs and will compute the block of a hash; who waits for it, by sequence id.
        self._pending: dict[bytes, _Entry] = {}
        self._parked: dict[bytes, dict[int, _Entry]] = {}

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that do not."""
        return len(self._entries) - len(self._running)

    @property
    def capacity(self) -> int:
        """Tokens that one sequence may compute at most: what the whole pool can hold."""
        return self.pool.num_blocks * self.pool.block_size

    def add(self, sequence: EngineSequence, priority: int = 0) -> None:
        """Let a sequence wait for its turn. It must end before it needs more than `capacity`."""
        self._num_arrived += 1
        entry = _Entry(sequence, (priority, -self._num_arrived))
        self._entries[sequence.sequence_id] = entry
        insort(self._waiting, entry, key=_urgency)

    def remove(self, sequence: EngineSequence) -> None:
        """Forget a sequence and free its blocks. One that is not here is no error."""
        entry = self._entries.pop(sequence.sequence_id, None)
        if entry is None:
            return
        if entry.is_running:
            self._stop(entry)
        elif entry.parked_on is not None:
            parked = self._parked[entry.parked_on]
            del parked[sequence.sequence_id]
            if not parked:
                del self._parked[entry.parked_on]
        else:
            _take_out(self._waiting, entry)

    def num_cached_tokens(self, sequence: EngineSequence) -> int:
        """Tokens of the prompt that came from the cache when it was let in first."""
        return self._entries[sequence.sequence_id].num_cached_tokens

    def num_preemptions(self, sequence: EngineSequence) -> int:
        """How often it had to give way."""
        return self._entries[sequence.sequence_id].num_preemptions

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty if and only if nothing was added."""
        chunks = self._decodes()
        budget = self._max_batch_tokens - len(chunks)
        for entry in reversed(self._running):
            if budget and entry.num_missing > 1:
                budget -= self._prefill(entry, budget, chunks)
        while budget and len(self._running) < self._max_sequences:
            admitted = self._admit_one()
            if admitted is None:
                break
            budget -= self._prefill(admitted, budget, chunks)
        return chunks

    def advance(self, chunks: Sequence[Chunk]) -> None:
        """The engine computed these. To be called before what it picked is appended."""
        for chunk in chunks:
            entry = self._entries[chunk.sequence.sequence_id]
            chunk.sequence.num_computed += chunk.num_tokens
            self.counts.num_computed_tokens += chunk.num_tokens
            entry.num_scored = max(entry.num_scored, chunk.sequence.num_computed)
            if self._shares_blocks:
                self._seal(entry)

    def _decodes(self) -> list[Chunk]:
        """One token of each sequence that lacks one, the most urgent first: who is last gives way to them."""
        chunks: list[Chunk] = []
        place = len(self._running) - 1
        while place >= 0:
            entry = self._running[place]
            if entry.num_missing == 1:
                num_given_way = self._make_room(entry)
                place -= num_given_way  # They stood before it in the list.
                if self._has_room(entry):
                    chunks.append(Chunk(entry.sequence, 1))
            place -= 1
        return chunks

    def _has_room(self, entry: _Entry) -> bool:
        return len(entry.sequence.blocks) * self.pool.block_size >= entry.sequence.num_tokens

    def _make_room(self, entry: _Entry) -> int:
        """Take a block for the next token where one is needed. Returns how many had to give way for it.

        Without success for the least urgent: it keeps what it has until somebody more urgent ends or needs it.
        """
        if self._has_room(entry):
            return 0
        num_given_way = 0
        while not self.pool.can_take(1) and self._running[0] is not entry:
            self._preempt(self._running[0])
            num_given_way += 1
        if self.pool.can_take(1):
            entry.sequence.blocks += self.pool.take(1)
        return num_given_way

    def _prefill(self, entry: _Entry, budget: int, chunks: list[Chunk]) -> int:
        """Returns how many tokens of the budget it takes."""
        num_tokens = min(entry.num_missing, budget)
        chunks.append(Chunk(entry.sequence, num_tokens))
        return num_tokens

    def _preempt(self, entry: _Entry) -> None:
        """Back to its place in the queue. It is computed anew, as far as its blocks are not found again."""
        self._stop(entry)
        entry.num_preemptions += 1
        self.counts.num_preemptions += 1
        insort(self._waiting, entry, key=_urgency)

    def _stop(self, entry: _Entry) -> None:
        """Free the blocks of one that runs. Who waited for what it had begun looks again."""
        entry.is_running = False
        _take_out(self._running, entry)
        self.pool.give_back(entry.sequence.blocks)
        for hashed in islice(entry.hashes, entry.num_sealed, None):
            self._settle(entry, hashed)
        entry.sequence.blocks = []
        entry.sequence.num_computed = entry.num_sealed = 0

    def _admit_one(self) -> _Entry | None:
        """Let in who is next, with blocks for all its known tokens.

        Nobody overtakes one that waits for blocks; one that waits for another's computation stands aside.
        """
        while self._waiting:
            entry = self._waiting[-1]
            reusable = self._reusable(entry)
            found = self.pool.find(reusable)
            if self._park(entry, reusable[len(found) :]):
                continue
            num_new = self.pool.num_blocks_of(entry.sequence.num_tokens) - len(found)
            # Room for everybody else to grow by a block: who is let in shall not have to give way at once.
            if not self.pool.can_take(num_new + len(self._running), beside=found):
                return None
            self._waiting.pop()
            self._start(entry, found, num_new)
            return entry
        return None

    def _reusable(self, entry: _Entry) -> list[bytes]:
        """Hashes of the full blocks that need not be computed if they are found. The last token always is."""
        if not self._shares_blocks:
            return []
        num_tokens = entry.sequence.num_tokens - 1
        if entry.sequence.wants_prompt_logprobs:
            num_tokens = min(num_tokens, entry.num_scored)
        return self._hashes(entry, num_tokens)

    def _hashes(self, entry: _Entry, num_tokens: int) -> list[bytes]:
        """Of the blocks that so many tokens fill."""
        num_full = num_tokens // self.pool.block_size
        if num_full:
            entry.hash_of(num_full - 1, self.pool.block_size)
        return entry.hashes[:num_full]

    def _park(self, entry: _Entry, not_found: Sequence[bytes]) -> bool:
        """Stand aside while somebody computes what comes next: equal beginnings are computed once."""
        pending = list(takewhile(self._pending.__contains__, not_found))
        if not pending:
            return False
        last = pending[-1]
        self._waiting.pop()
        entry.parked_on = last
        self._parked.setdefault(last, {})[entry.sequence.sequence_id] = entry
        return True

    def _start(self, entry: _Entry, found: list[int], num_new: int) -> None:
        sequence = entry.sequence
        self.pool.share(found)
        sequence.blocks = [*found, *self.pool.take(num_new)]
        sequence.num_computed = len(found) * self.pool.block_size
        entry.num_sealed = len(found)
        entry.is_running = True
        insort(self._running, entry, key=_urgency)
        if not self._shares_blocks:
            return
        if not entry.was_admitted:
            entry.was_admitted = True
            entry.num_cached_tokens = sequence.num_computed
            self.counts.num_queried_tokens += len(sequence.prompt)
            self.counts.num_hit_tokens += sequence.num_computed
        for hashed in islice(self._hashes(entry, sequence.num_tokens), len(found), None):
            if not self.pool.holds(hashed):
                self._pending.setdefault(hashed, entry)

    def _seal(self, entry: _Entry) -> None:
        """Let the blocks that became full be found."""
        sequence, block_size = entry.sequence, self.pool.block_size
        while (entry.num_sealed + 1) * block_size <= sequence.num_computed:
            hashed = entry.hash_of(entry.num_sealed, block_size)
            self.pool.seal(sequence.blocks[entry.num_sealed], hashed)
            self._settle(entry, hashed)
            entry.num_sealed += 1

    def _settle(self, entry: _Entry, hashed: bytes) -> None:
        """The computation of a block is over, or given up: who waited for it is let in by turn."""
        if self._pending.get(hashed) is not entry:
            return
        del self._pending[hashed]
        for waiter in self._parked.pop(hashed, {}).values():
            waiter.parked_on = None
            insort(self._waiting, waiter, key=_urgency)


def _take_out(entries: list[_Entry], entry: _Entry) -> None:
    del entries[bisect_left(entries, entry.urgency, key=_urgency)]
