"""The Engine port: the one seam between the step loop and whatever computes tokens.

The loop decides who runs and where keys and values lie; an engine computes chunks of many sequences at once
and picks the next token of those whose last token is among them. No logits cross the seam: an engine samples
where its logits are.

    blocks of a sequence    [7, 3, 9]: its tokens 0..B-1 lie in block 7, the next B in block 3, ... (B: block_size)
    chunk                   the next num_tokens tokens of a sequence, from sequence.num_computed on
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.inference.core.sampling import Sampling


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the loop and its callers need to know of a model in memory.

    dtype: of the weights, `bfloat16`, `int8`; device: `cpu`, `cuda:0`. block_size: tokens in a KV block;
    num_blocks: in the pool. shares_blocks: whether sequences may read each other's blocks, so that equal
    beginnings are computed once. weights_bytes, kv_bytes: taken by weights and by the pool of blocks. note: what
    the operator should know about where it runs, or empty.
    """

    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    device: str
    dtype: str
    block_size: int
    num_blocks: int
    shares_blocks: bool
    weights_bytes: int = 0
    kv_bytes: int = 0
    note: str = ""


@dataclass(slots=True, eq=False)
class EngineSequence:
    """One sequence of tokens that grows. The loop appends what the engine picked to `output`.

    sequence_id: unique in the life of the engine. adapter: a name given to `load_adapter`, or None for the
    base. num_logprobs: None for none, else how many likely tokens to tell beside the picked one.
    wants_prompt_logprobs: tell the log probability of each prompt token but the first.
    banned_token_ids: not to be picked while fewer than num_banned_steps tokens are out. allowed_tokens: one bit
    a token, lowest bit first; only those whose bit is set may be picked; None for all. cache_salt: sequences of
    different salts share no block.

    blocks and num_computed are the scheduler's: where keys and values lie, and of how many tokens they are there.
    """

    sequence_id: int
    prompt: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    num_logprobs: int | None = None
    wants_prompt_logprobs: bool = False
    banned_token_ids: frozenset[int] = frozenset()
    num_banned_steps: int = 0
    allowed_tokens: bytes | None = None
    cache_salt: str = ""
    output: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt) + len(self.output)

    @property
    def bans(self) -> frozenset[int]:
        """What must not be picked now."""
        return self.banned_token_ids if len(self.output) < self.num_banned_steps else frozenset()

    def tokens(self, start: int, stop: int) -> Sequence[int]:
        """Tokens at positions start to stop, counted over prompt and output."""
        num_prompt = len(self.prompt)
        if start >= num_prompt:
            return self.output[start - num_prompt : stop - num_prompt]
        if stop <= num_prompt:
            return self.prompt[start:stop]
        return [*self.prompt[start:], *self.output[: stop - num_prompt]]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """The next num_tokens tokens of a sequence, whose blocks have room for them."""

    sequence: EngineSequence
    num_tokens: int

    @property
    def start(self) -> int:
        """Position of the first of them."""
        return self.sequence.num_computed

    @property
    def picks(self) -> bool:
        """Whether the sequence's last token is among them, so that the next is picked."""
        return self.sequence.num_computed + self.num_tokens == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class PickedToken:
    """One sequence's next token.

    logprob and top are of the model's own distribution, before any sampling parameter.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """What a chunk gave. picked: set if the chunk picks.

    prompt_logprobs: where they are wanted, of the prompt tokens that follow a token of the chunk, in order.
    prompt_tops: for each of these, where num_logprobs is above 0, so many likely tokens at its place, most likely
    first.
    """

    picked: PickedToken | None = None
    prompt_logprobs: tuple[float, ...] = ()
    prompt_tops: tuple[tuple[tuple[int, float], ...], ...] = ()


class Engine(Protocol):
    """Computes next tokens. One thread uses it."""

    @property
    def facts(self) -> EngineFacts:
        """What the model is."""
        ...

    def step(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Compute chunks of different sequences, in any mix of prefill and decode.

        Results in the order of the chunks. A sequence whose num_computed is 0 again is computed anew; its blocks
        may be others. Does not change the sequences.
        """
        ...

    def release(self, sequence: EngineSequence) -> None:
        """Forget what is kept of a sequence beside its blocks. One that is not known is no error."""
        ...

    def load_adapter(self, name: str, folder: Path) -> None:
        """Bring a LoRA adapter into memory. Raises UnsupportedFormat for one that does not fit this model."""
        ...

    def drop_adapter(self, name: str) -> None:
        """Take an adapter out of memory. No live sequence may use it."""
        ...
