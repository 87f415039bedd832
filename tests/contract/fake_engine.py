"""A model without weights:

the next token is a function of all before it, read out of simulated blocks of keys and values. It obeys the
Engine port to the letter, and checks that the loop does.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from services.inference.core.engine import Chunk, ChunkResult, EngineFacts, EngineSequence, PickedToken

VOCAB_SIZE = 258
EOS = 257
_MODULUS = 2**61 - 1


class _Written(NamedTuple):
    """What stands for the key and value of one token: all that came before it is in the checksum."""

    cache_salt: str
    adapter: str | None
    checksum: int


class FakeEngine:
    """Picks by a checksum of the tokens so far, or plays a script.

    script: what every sequence says, whatever its prompt. A sequence whose script is over says EOS.
    """

    def __init__(
        self,
        *,
        context_length: int = 64,
        script: Sequence[int] | None = None,
        block_size: int = 4,
        num_blocks: int = 256,
        shares_blocks: bool = True,
    ) -> None:
        self.facts = EngineFacts(
            context_length=context_length,
            vocab_size=VOCAB_SIZE,
            eos_token_ids=frozenset({EOS}),
            device="cpu",
            dtype="none",
            block_size=block_size,
            num_blocks=num_blocks,
            shares_blocks=shares_blocks,
        )
        self.batches: list[list[tuple[int, int]]] = []
        self.num_written = 0
        self._script = script
        self._memory: list[_Written | None] = [None] * (num_blocks * block_size)
        self._adapters: dict[str, int] = {}
        self._num_computed: dict[int, int] = {}
        self._random: dict[int, random.Random] = {}

    @property
    def num_sequences(self) -> int:
        """How many sequences are remembered."""
        return len(self._num_computed)

    def step(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Check, write, pick."""
        self.batches.append([(chunk.sequence.sequence_id, chunk.num_tokens) for chunk in chunks])
        assert len({chunk.sequence.sequence_id for chunk in chunks}) == len(chunks) > 0
        for chunk in chunks:
            self._check(chunk)
        results = [self._compute(chunk) for chunk in chunks]
        for chunk in chunks:  # Nobody wrote over what another has computed or just read.
            self._check_memory(chunk.sequence, chunk.start + chunk.num_tokens)
        return results

    def release(self, sequence: EngineSequence) -> None:
        """Forget one."""
        self._num_computed.pop(sequence.sequence_id, None)
        self._random.pop(sequence.sequence_id, None)

    def load_adapter(self, name: str, folder: Path) -> None:
        """An adapter is a number that is added."""
        self._adapters[name] = len(self._adapters) + 7

    def drop_adapter(self, name: str) -> None:
        """Forget it."""
        self._adapters.pop(name, None)

    def _check(self, chunk: Chunk) -> None:
        sequence, facts = chunk.sequence, self.facts
        assert 0 < chunk.num_tokens <= sequence.num_tokens - chunk.start
        assert sequence.num_tokens <= facts.context_length
        assert len(set(sequence.blocks)) == len(sequence.blocks)
        assert all(0 <= block < facts.num_blocks for block in sequence.blocks)
        assert chunk.start + chunk.num_tokens <= len(sequence.blocks) * facts.block_size
        if not facts.shares_blocks:  # What a sequence did not compute itself is not there.
            assert chunk.start in (0, self._num_computed.get(sequence.sequence_id, 0))
        self._num_computed[sequence.sequence_id] = chunk.start + chunk.num_tokens
        self._check_memory(sequence, chunk.start)

    def _check_memory(self, sequence: EngineSequence, num_tokens: int) -> None:
        """The blocks hold exactly the sequence's own first tokens."""
        checksum = 0
        for position, token in enumerate(sequence.tokens(0, num_tokens)):
            checksum = _mix(checksum, token)
            expected = _Written(sequence.cache_salt, sequence.adapter, checksum)
            assert self._memory[self._place(sequence, position)] == expected

    def _compute(self, chunk: Chunk) -> ChunkResult:
        sequence, stop = chunk.sequence, chunk.start + chunk.num_tokens
        checksum, prompt_logprobs = self._checksum(sequence, chunk.start), []
        for position, token in enumerate(sequence.tokens(chunk.start, stop), chunk.start):
            checksum = _mix(checksum, token)
            self._memory[self._place(sequence, position)] = _Written(
                sequence.cache_salt, sequence.adapter, checksum
            )
            self.num_written += 1
            if sequence.wants_prompt_logprobs and position + 1 < len(sequence.prompt):
                prompt_logprobs.append(-1.0 - _mix(checksum, sequence.prompt[position + 1]) % 1000)
        picked = self._pick(sequence) if chunk.picks else None
        tops = [
            tuple((token, -0.5 - token) for token in range(sequence.num_logprobs or 0))
            for _ in prompt_logprobs
        ]
        return ChunkResult(picked, tuple(prompt_logprobs), tuple(tops) if sequence.num_logprobs else ())

    def _place(self, sequence: EngineSequence, position: int) -> int:
        block_size = self.facts.block_size
        return sequence.blocks[position // block_size] * block_size + position % block_size

    def _checksum(self, sequence: EngineSequence, num_tokens: int) -> int:
        """Of its first tokens, as the memory has it."""
        if num_tokens == 0:
            return 0
        written = self._memory[self._place(sequence, num_tokens - 1)]
        assert written is not None
        return written.checksum

    def _pick(self, sequence: EngineSequence) -> PickedToken:
        token_id = self._next(sequence)
        if sequence.num_logprobs is None:
            return PickedToken(token_id)
        others = tuple(
            ((token_id + shift) % VOCAB_SIZE, -0.1 - shift) for shift in range(sequence.num_logprobs)
        )
        return PickedToken(token_id, -0.1, others)

    def _next(self, sequence: EngineSequence) -> int:
        sampling = sequence.sampling
        allowed = [token for token in range(VOCAB_SIZE) if token not in sequence.bans]
        if (bits := sequence.allowed_tokens) is not None:
            allowed = [token for token in allowed if bits[token // 8] >> token % 8 & 1]
        certain = [token for token, bias in sampling.logit_bias.items() if bias >= 100 and token in allowed]
        if certain:
            return certain[0]
        if self._script is not None:
            position = len(sequence.output)
            return self._script[position] if position < len(self._script) else EOS
        if not sampling.is_greedy:
            generator = self._random.setdefault(sequence.sequence_id, random.Random(sampling.seed))
            return generator.choice(allowed)
        shift = self._adapters[sequence.adapter] if sequence.adapter is not None else 0
        return allowed[(self._checksum(sequence, sequence.num_tokens) + shift) % len(allowed)]


def _mix(checksum: int, token: int) -> int:
    return (checksum * 1_000_003 + token + 1) % _MODULUS


class ByteVocabulary:
    """Tokens 0 to 255 are bytes; 256 and 257 are special and have no text."""

    adds_up = True

    def decode(self, token_ids: Sequence[int]) -> str:
        """Bytes as UTF-8."""
        return bytes(token for token in token_ids if token < 256).decode("utf-8", errors="replace")

    def text_bytes(self, token_id: int, *, begins_text: bool = False) -> bytes:
        """One byte, or nothing."""
        return bytes([token_id]) if token_id < 256 else b""

    def token_bytes(self, token_id: int) -> bytes:
        """One byte, or a name."""
        return bytes([token_id]) if token_id < 256 else b"<special>"
