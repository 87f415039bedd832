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
class ScoredToken:
    """A token of a prompt. logprob: after the tokens before it; None for the first. top: likely ones at its place."""

    token_id: int
    raw: bytes
    logprob: float | None
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
    """All choices are done. choices: in order. Times in milliseconds.

    queue_ms: until the first choice was let in. prefill_ms: from there to the first token. decode_ms: from there
    to the last. ttft_ms: time to first token, from arrival. inter_token_ms, max_inter_token_ms: mean and longest
    time between two tokens of a choice; 0 where none has two. num_cached_tokens: of the prompt, that were not
    computed because the cache had them. num_preemptions: how often choices gave way and were computed anew.
    """

    choices: tuple[ChoiceEnd, ...]
    num_prompt_tokens: int
    num_completion_tokens: int
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    ttft_ms: float = 0.0
    inter_token_ms: float = 0.0
    max_inter_token_ms: float = 0.0
    num_cached_tokens: int = 0
    num_preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """What one step says about one request.

    prompt: where it was to be scored, once, all of its tokens.
    """

    started: Started | None = None
    deltas: tuple[Delta, ...] = ()
    ended: Ended | None = None
    prompt: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class LoopStats:
    """How a loop stands, for metrics. Live and waiting are sequences; the last six count since its start.

    num_batch_tokens: computed in the last step, for num_batch_sequences. num_queried_tokens: of prompts that
    looked for cached blocks; num_hit_tokens: found there.
    """

    num_live: int
    num_waiting: int
    num_blocks: int
    num_used_blocks: int
    num_batch_sequences: int
    num_batch_tokens: int
    num_steps: int
    num_computed_tokens: int
    num_generated_tokens: int
    num_queried_tokens: int
    num_hit_tokens: int
    num_preemptions: int


@dataclass(slots=True)
class StepReport:
    """What one step says about all requests, by request id."""

    updates: list[tuple[int, Update]] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
