"""What several of OpenAI's requests and answers share."""

import hashlib
import json
import re
from typing import Annotated, Any

from google.protobuf.duration_pb2 import Duration
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from gateway.validation import UNSUPPORTED
from lares.inference.v1 import inference_pb2 as pb
from services.kit.durations import duration_s, duration_to_proto

UINT32_MAX = 2**32 - 1
INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1

FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}

_MIN_LOGPROB = -9999.0
"""What OpenAI says for a probability of 0; JSON has no infinity."""


class RequestModel(BaseModel):
    """What a client sends. Unknown fields are ignored, as OpenAI's own clients expect; null is as good as absent."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class ResponseModel(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class ErrorDetail(ResponseModel):
    """What went wrong. param: the field at fault, if one is."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ResponseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class Deleted(ResponseModel):
    """Something is gone."""

    id: str
    object: str
    deleted: bool = True


class Only:
    """Annotation of a field that OpenAI knows and Lares offers with these values only, which change nothing."""

    def __init__(self, *allowed: object) -> None:
        self._allowed = allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Accept null and the allowed values."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The same, for the document."""
        return {"enum": [None, *self._allowed], "description": "Lares supports no other value."}

    def _check(self, value: object) -> object:
        if value is None or value in self._allowed:
            return value
        hint = (
            f"only {' or '.join(json.dumps(item) for item in self._allowed)} is"
            if self._allowed
            else "is not"
        )
        raise PydanticCustomError(UNSUPPORTED, "{hint} supported; leave it out", {"hint": hint})


ModelName = Annotated[str, StringConstraints(min_length=1, max_length=512)]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Stop = Annotated[
    StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=16)],
    Field(description="Texts to stop before."),
]
TokenId = Annotated[int, Field(ge=0, le=UINT32_MAX)]
KeepAlive = Annotated[
    float | str,
    Field(description="How long the model stays in memory: seconds, or `5m`, `1h`; negative keeps it."),
]


def check_keep_alive(value: float | str | None) -> float | str | None:
    """Validator of a field of this type."""
    if value is not None:
        duration_s(value)
    return value


def keep_alive_to_proto(value: float | str | None) -> Duration | None:
    """None is unset: the service's own setting."""
    return None if value is None else duration_to_proto(value)


def _check_logit_bias(value: dict[str, float] | None) -> dict[str, float] | None:
    for token, bias in (value or {}).items():
        if not re.fullmatch(r"[0-9]{1,10}", token) or int(token) > UINT32_MAX:
            raise ValueError("keys must be token ids")
        if not -100 <= bias <= 100:
            raise ValueError("values must be between -100 and 100")
    return value


class GenerationRequest(RequestModel):
    """What /v1/chat/completions and /v1/completions have in common."""

    model: ModelName
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=UINT32_MAX, description="Lares extension.")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, description="Lares extension.")] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2, description="Lares extension.")] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[str, float], Field(max_length=1024), AfterValidator(_check_logit_bias)] | None
    ) = None
    seed: Annotated[int, Field(ge=INT64_MIN, le=UINT64_MAX)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    stop: Stop | None = None
    ignore_eos: Annotated[
        bool, Field(description="Lares extension: go on past the end of the text. For benchmarks.")
    ] = False
    keep_alive: Annotated[KeepAlive | None, AfterValidator(check_keep_alive)] = None
    user: str | None = None

    def sampling(self) -> pb.SamplingParameters:
        """How tokens are picked; what the client left out stays unset."""
        return pb.SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            # OpenAI's seeds are signed; the contract's are not.
            seed=None if self.seed is None else self.seed % 2**64,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
        )

    def stop_conditions(self, max_tokens: int | None) -> pb.StopConditions:
        """When generation stops."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return pb.StopConditions(max_tokens=max_tokens, stop=stop or (), ignore_eos=self.ignore_eos)


class StreamOptions(RequestModel):
    """How an answer is streamed."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class PromptTokensDetails(ResponseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(ResponseModel):
    """What the generated tokens were for."""

    reasoning_tokens: int


class Usage(ResponseModel):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def usage_from_proto(usages: list[pb.Usage]) -> Usage:
    """The sum over the generations of one request."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(u.cached_prompt_tokens for u in usages)),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=sum(u.reasoning_tokens for u in usages)
        ),
    )


def system_fingerprint(started: pb.GenerateStarted | pb.ScoreResponse) -> str:
    """Changes when the weights that answer change."""
    return f"fp_{hashlib.sha256(f'{started.version} {started.adapter}'.encode()).hexdigest()[:12]}"


def finite_logprob(value: float) -> float:
    """A log probability that JSON can hold."""
    return value if value > _MIN_LOGPROB else _MIN_LOGPROB
