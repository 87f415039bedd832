"""The Engine port: the one seam between the step loop and whatever computes tokens.

The loop decides who runs; an engine turns prompts and last tokens into next tokens for many sequences at
once, keeps what it must remember of each (its KV cache), and gives that back on `release`. No logits cross
the seam: an engine samples where its logits are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.inference.core.sampling import Sampling


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the loop and its callers need to know of a model in memory.

    dtype: `bfloat16`; device: `cpu`, `cuda:0`.
    """

    context_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    device: str
    dtype: str


@dataclass(slots=True, eq=False)
class EngineSequence:
    """One sequence of tokens that grows. The loop appends what the engine picked to `output`.

    sequence_id: unique in the life of the engine. adapter: a name given to `load_adapter`, or None for the
    base. num_logprobs: None for none, else how many likely tokens to tell beside the picked one.
    banned_token_ids: not to be picked while fewer than num_banned_steps tokens are out. cache_salt: sequences
    of different salts share no cache.
    """

    sequence_id: int
    prompt: Sequence[int]
    sampling: Sampling
    adapter: str | None = None
    num_logprobs: int | None = None
    banned_token_ids: frozenset[int] = frozenset()
    num_banned_steps: int = 0
    cache_salt: str = ""
    output: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.prompt) + len(self.output)

    @property
    def bans(self) -> frozenset[int]:
        """What must not be picked now."""
        return self.banned_token_ids if len(self.output) < self.num_banned_steps else frozenset()


@dataclass(frozen=True, slots=True)
class PickedToken:
    """One sequence's next token.

    logprob and top are of the model's own distribution, before any sampling parameter.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Engine(Protocol):
    """Computes next tokens. One thread uses it."""

    @property
    def facts(self) -> EngineFacts:
        """What the model is."""
        ...

    def prefill(self, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """Take in new sequences, whole prompts, and pick the first token of each."""
        ...

    def decode(self, sequences: Sequence[EngineSequence]) -> list[PickedToken]:
        """Pick the next token of sequences that were prefilled and whose last token was appended to their
        output.
        """
        ...

    def release(self, sequence: EngineSequence) -> None:
        """Forget a sequence. One that is not known is no error."""
        ...

    def load_adapter(self, name: str, folder: Path) -> None:
        """Bring a LoRA adapter into memory. Raises UnsupportedFormat for one that does not fit this model."""
        ...

    def drop_adapter(self, name: str) -> None:
        """Take an adapter out of memory. No live sequence may use it."""
        ...
