"""A model without weights:

the next token is a function of all before it. It obeys the Engine port to the letter.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from services.inference.core.engine import EngineFacts, EngineSequence, PickedToken

VOCAB_SIZE = 258
EOS = 257


class FakeEngine:
    """Picks by a checksum of the tokens so far, or plays a script; remembers sequences as a cache would.

    script: what every sequence says, whatever its prompt. A sequence whose script is over says EOS.
    """

    def __init__(self, *, context_length: int = 64, script: Sequence[int] | None = None) -> None:
        self.facts = EngineFacts(context_length, VOCAB_SIZE, frozenset({EOS}), "cpu", "none")
        self.batches: list[tuple[str, int]] = []
        self._script = script
        self._seen: dict[int, list[int]] = {}
        self._adapters: dict[str, int] = {}
        self._random: dict[int, random.Random] = {}

    @property
    def num_sequences(self) -> int:
        """How many sequences are remembered."""
        return len(self._seen)

    def prefill(self, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """Take in new sequences."""
        self.batches.append(("prefill", len(sequences)))
        for sequence in sequences:
            assert sequence.sequence_id not in self._seen
            assert not sequence.output
            self._seen[sequence.sequence_id] = list(sequence.prompt)
        return [self._pick(sequence) for sequence in sequences]

    def decode(self, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """Go on with known sequences."""
        self.batches.append(("decode", len(sequences)))
        for sequence in sequences:
            seen = self._seen[sequence.sequence_id]
            seen.append(sequence.output[-1])
            assert seen == [*sequence.prompt, *sequence.output]
            assert len(seen) <= self.facts.context_length
        return [self._pick(sequence) for sequence in sequences]

    def release(self, sequence: EngineSequence) -> None:
        """Forget one."""
        self._seen.pop(sequence.sequence_id, None)
        self._random.pop(sequence.sequence_id, None)

    def load_adapter(self, name: str, folder: Path) -> None:
        """An adapter is a number that is added."""
        self._adapters[name] = len(self._adapters) + 7

    def drop_adapter(self, name: str) -> None:
        """Forget it."""
        self._adapters.pop(name, None)

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
        allowed = [token_id for token_id in range(VOCAB_SIZE) if token_id not in sequence.bans]
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
        checksum = sum((index + 3) * token for index, token in enumerate(self._seen[sequence.sequence_id]))
        return allowed[(checksum + shift) % len(allowed)]


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
