"""What a generation tells, step by step. These cross from the worker to the service as they are."""

from dataclasses import dataclass, field
from enum import StrEnum


class FinishReason(StrEnum):
    """Why a choice ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token and the natural logarithm of its probability."""

    token_id: int
    raw: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The picked token, and the most likely ones at its place."""

    picked: TokenChance
    top: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a slot and its prompt is known. seed: in force, to repeat the answer with."""

    num_prompt_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice, never a part of a character."""

    choice: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceEnd:
    """How a choice ended; stop is the text that was met, if one was."""

    reason: FinishReason
    stop: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """All choices are done. choices: in order. Times in milliseconds."""

    choices: tuple[ChoiceEnd, ...]
    num_prompt_tokens: int
    num_completion_tokens: int
    queue_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Update:
    """What one step says about one request."""

    started: Started | None = None
    deltas: tuple[Delta, ...] = ()
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class LoopStats:
    """How a step loop stands, and what it has done since it began.

    num_live, num_waiting: sequences with and without a place in the step. num_blocks, num_used_blocks: of the KV
    pool. The others only grow, but for last_batch_size: sequences in the last step.
    """

    num_live: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_used_blocks: int = 0
    num_steps: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_prefix_queried_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_preemptions: int = 0
    last_batch_size: int = 0


@dataclass(slots=True)
class StepReport:
    """What one step says about all requests, by request id."""

    updates: list[tuple[int, Update]] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
