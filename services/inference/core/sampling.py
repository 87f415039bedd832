"""What a caller may ask of a generation: how to pick tokens, when to stop, what to tell. Each class checks
its own limits.

The limits are those of inference.proto. A field that breaks one is named by its path in the request,
`sampling.top_p`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from services.kit.errors import InvalidArgument

MAX_CHOICES: Final = 16
MAX_TOP_LOGPROBS: Final = 20
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 512
MAX_STOP_TOKENS: Final = 64
MAX_LOGIT_BIASES: Final = 1024


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How tokens are picked; None leaves it to the model.

    Applied in the order logit bias, penalties, temperature, top_k, top_p, min_p.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise InvalidArgument for the first value out of its range. A NaN is out of every range."""
        _check_range("sampling.temperature", self.temperature, 0, 2)
        _check_range("sampling.top_p", self.top_p, 0, 1, above=True)
        _check_range("sampling.min_p", self.min_p, 0, 1)
        _check_range("sampling.presence_penalty", self.presence_penalty, -2, 2)
        _check_range("sampling.frequency_penalty", self.frequency_penalty, -2, 2)
        _check_range("sampling.repetition_penalty", self.repetition_penalty, 0, 2, above=True)
        _check_count("sampling.logit_bias", len(self.logit_bias), MAX_LOGIT_BIASES)
        for token_id, bias in self.logit_bias.items():
            _check_range(f"sampling.logit_bias[{token_id}]", bias, -100, 100)


@dataclass(frozen=True, slots=True)
class StopConditions:
    """When a generation ends, beside the end-of-text token."""

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    def check(self) -> None:
        """Raise InvalidArgument for the first value out of its range."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidArgument.at("stop.max_tokens", "must be at least 1")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidArgument.at("stop.min_tokens", "must be at most max_tokens")
        _check_count("stop.stop", len(self.stop), MAX_STOPS)
        for index, text in enumerate(self.stop):
            if not 1 <= len(text) <= MAX_STOP_CHARS:
                raise InvalidArgument.at(f"stop.stop[{index}]", f"must be 1 to {MAX_STOP_CHARS} characters")
        _check_count("stop.stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKENS)


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is told beside the text.

    top_logprobs: None for no log probabilities, else how many alternatives.
    """

    num_choices: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    echo: bool = False

    def check(self) -> None:
        """Raise InvalidArgument for the first value out of its range."""
        if not 1 <= self.num_choices <= MAX_CHOICES:
            raise InvalidArgument.at("output.num_choices", f"must be between 1 and {MAX_CHOICES}")
        if self.top_logprobs > MAX_TOP_LOGPROBS:
            raise InvalidArgument.at("output.top_logprobs", f"must be between 0 and {MAX_TOP_LOGPROBS}")
        if self.top_logprobs and not self.logprobs:
            raise InvalidArgument.at("output.top_logprobs", "needs output.logprobs")

    @property
    def num_logprobs(self) -> int | None:
        """How many likely tokens to tell beside the picked one; None if not even that one is asked for."""
        return self.top_logprobs if self.logprobs else None


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model's own generation_config.json says."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one sequence picks its tokens, nothing left open. seed: 64 bits, this choice's own."""

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether what was said before matters."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)


def resolve_sampling(
    asked: SamplingParameters, defaults: SamplingDefaults, *, seed: int, choice: int
) -> Sampling:
    """Fill what was not asked for from the model's defaults, then from ours.

    Choice 0 uses the seed as it is, others derive theirs.
    """
    values: dict[str, object] = {}
    for item in fields(Sampling):
        value = getattr(asked, item.name, None)
        if value is None:
            value = getattr(defaults, item.name, None)
        if value is not None:
            values[item.name] = value
    # The golden-ratio step of SplitMix64 keeps neighbouring choices' generators apart.
    values["seed"] = (seed + choice * 0x9E3779B97F4A7C15) % 2**64
    return Sampling(**values)  # type: ignore[arg-type]  # By name, from classes that say what each is.


def _check_range(name: str, value: float | None, low: float, high: float, *, above: bool = False) -> None:
    if value is None:
        return
    if not (low < value if above else low <= value) or not value <= high:
        bounds = f"above {low} and at most {high}" if above else f"between {low} and {high}"
        raise InvalidArgument.at(name, f"must be {bounds}")


def _check_count(name: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidArgument.at(name, f"must hold at most {most}, not {count}")
