"""Plain completions, as OpenAI's older API has them."""

import secrets
import time
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from gateway.openai import common
from gateway.openai.common import GenerationRequest, Only, ResponseModel, StreamOptions, TokenId
from gateway.openai.frames import DONE, encode_json
from lares.inference.v1 import inference_pb2 as pb

_MAX_PROMPTS = 128
_DEFAULT_MAX_TOKENS = 16  # OpenAI's.

Tokens = Annotated[list[TokenId], Field(fail_fast=True, min_length=1)]
Prompts = (
    str
    | Tokens
    | Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]
    | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]
)


class CompletionRequest(GenerationRequest):
    """The body of POST /v1/completions."""

    prompt: Prompts
    echo: (
        Annotated[bool, Field(description="The prompt first; with logprobs, those of its tokens too.")] | None
    ) = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: (
        Annotated[
            int, Field(ge=0, le=common.UINT32_MAX, description="0 only scores the prompt: it needs echo.")
        ]
        | None
    ) = None
    best_of: Annotated[int, Field(ge=1, le=16)] | None = None
    stream_options: StreamOptions | None = None
    suffix: Annotated[Any, Only("")] = None

    @field_validator("best_of")
    @classmethod
    def _picks_no_best(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value != (info.data.get("n") or 1):
            raise ValueError("must equal n: Lares returns every answer that it makes")
        return value

    @field_validator("max_tokens")
    @classmethod
    def _says_something(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value == 0 and not info.data.get("echo"):
            raise ValueError("must be at least 1, unless echo is true")
        if value == 0 and info.data.get("stream"):
            raise ValueError("must be at least 1 in a stream")
        return value

    @property
    def only_scores(self) -> bool:
        """Whether the prompts are all that the answer tells of."""
        return self.max_tokens == 0

    @property
    def num_choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, each text or tokens."""
        prompts: Any = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        return [prompts] if isinstance(prompts[0], int) else prompts


def requests_to_proto(request: CompletionRequest, cache_salt: str) -> list[pb.GenerateRequest]:
    """One generation for each prompt."""
    return [_request_to_proto(request, prompt, cache_salt) for prompt in request.prompts()]


def _request_to_proto(
    request: CompletionRequest, prompt: str | list[int], cache_salt: str
) -> pb.GenerateRequest:
    message = pb.GenerateRequest(
        model=request.model,
        sampling=request.sampling(),
        stop=request.stop_conditions(request.max_tokens or _DEFAULT_MAX_TOKENS),
        output=pb.OutputOptions(
            num_choices=request.n,
            logprobs=request.logprobs is not None,
            top_logprobs=request.logprobs,
            echo=bool(request.echo),
        ),
        keep_alive=common.keep_alive_to_proto(request.keep_alive),
        cache_salt=cache_salt,
    )
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.tokens.token_ids.extend(prompt)
    return message


def score_requests_to_proto(request: CompletionRequest, cache_salt: str) -> list[pb.ScoreRequest]:
    """One for each prompt."""
    return [_score_request_to_proto(request, prompt, cache_salt) for prompt in request.prompts()]


def _score_request_to_proto(
    request: CompletionRequest, prompt: str | list[int], cache_salt: str
) -> pb.ScoreRequest:
    message = pb.ScoreRequest(
        model=request.model,
        top_logprobs=request.logprobs or 0,
        keep_alive=common.keep_alive_to_proto(request.keep_alive),
        cache_salt=cache_salt,
    )
    if isinstance(prompt, str):
        message.text = prompt
    else:
        message.tokens.token_ids.extend(prompt)
    return message


class CompletionLogprobs(ResponseModel):
    """Log probabilities of a choice's tokens, in four lists of one length. The first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One answer, or its news in a stream: then finish_reason is null until its end."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class Completion(ResponseModel):
    """The answer to a prompt, or one event of it. usage: in a stream only if it was asked for, in the last."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: common.Usage | None = None


def logprobs_to_openai(
    logprobs: Sequence[pb.TokenLogprob | pb.ScoredToken], *, offset: int
) -> CompletionLogprobs:
    """offset: where the first of these tokens begins in the answer, in characters; none begins before it."""
    offsets = accumulate((len(logprob.text) for logprob in logprobs), initial=offset)
    return CompletionLogprobs(
        tokens=[logprob.text for logprob in logprobs],
        token_logprobs=[
            common.finite_logprob(logprob.logprob) if _has_logprob(logprob) else None for logprob in logprobs
        ],
        top_logprobs=[
            {top.text: common.finite_logprob(top.logprob) for top in reversed(logprob.top)}
            if _has_logprob(logprob)
            else None
            for logprob in logprobs
        ],
        text_offset=[max(0, offset) for offset in offsets][:-1],
    )


def _has_logprob(logprob: pb.TokenLogprob | pb.ScoredToken) -> bool:
    return isinstance(logprob, pb.TokenLogprob) or logprob.HasField("logprob")


def prompt_offset(tokens: Sequence[pb.ScoredToken], text: str) -> int:
    """Where a prompt's first token begins: before the text, where special tokens that it does not have come first."""
    joined = "".join(token.text for token in tokens)
    return len(text) - len(joined) if joined.endswith(text) else 0


def completion_from_scores(request: CompletionRequest, scores: Sequence[pb.ScoreResponse]) -> Completion:
    """The answer to a request that only scores: its prompts, as they are."""
    choices = []
    for prompt, score in zip(request.prompts(), scores, strict=True):
        raw = b"".join(token.raw for token in score.tokens)
        text = prompt if isinstance(prompt, str) else raw.decode("utf-8", errors="replace")
        offset = prompt_offset(score.tokens, text)
        logprobs = None if request.logprobs is None else logprobs_to_openai(score.tokens, offset=offset)
        choices += [(text, logprobs)] * request.num_choices
    return Completion(
        id=f"cmpl-score-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=request.model,
        system_fingerprint=common.system_fingerprint(scores[0]),
        choices=[
            CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason="length")
            for index, (text, logprobs) in enumerate(choices)
        ],
        usage=common.usage_from_proto([score.usage for score in scores]),
    )


class CompletionCollector:
    """Gathers the events of one request's generations into one answer."""

    def __init__(self, request: CompletionRequest, started: list[pb.GenerateStarted]) -> None:
        num_choices = request.num_choices * len(started)
        self._request = request
        self._started = started[0]
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[pb.TokenLogprob]] = [[] for _ in range(num_choices)]
        self._prompts: list[Sequence[pb.ScoredToken]] = [()] * len(started)
        self._finish: list[Any] = ["stop"] * num_choices
        self._usages: list[pb.Usage] = []

    def add(self, prompt: int, event: pb.GenerateResponse) -> None:
        """Take the next event of the generation for the prompt of this index."""
        first = prompt * self._request.num_choices
        match event.WhichOneof("event"):
            case "delta":
                if event.delta.prompt:
                    self._prompts[prompt] = event.delta.prompt
                self._texts[first + event.delta.choice].append(event.delta.text)
                self._logprobs[first + event.delta.choice].extend(event.delta.logprobs)
            case "usage":
                self._usages.append(event.usage)
            case "finished":
                for finish in event.finished.choices:
                    self._finish[first + finish.choice] = common.FINISH_REASONS.get(finish.reason, "stop")

    def completion(self) -> Completion:
        """The answer, when every event is in."""
        return Completion(
            id=f"cmpl-{self._started.generation_id}",
            created=self._started.create_time.seconds,
            model=self._request.model,
            system_fingerprint=common.system_fingerprint(self._started),
            choices=[
                CompletionChoice(
                    index=index,
                    text="".join(text),
                    logprobs=None if self._request.logprobs is None else self._told(index),
                    finish_reason=finish,
                )
                for index, (text, finish) in enumerate(zip(self._texts, self._finish, strict=True))
            ],
            usage=common.usage_from_proto(self._usages),
        )

    def _told(self, choice: int) -> CompletionLogprobs:
        """Of the prompt, where it is echoed, and of what follows."""
        prompt = self._prompts[choice // self._request.num_choices]
        # The text of an echoed prompt comes by itself, before any other.
        offset = prompt_offset(prompt, self._texts[choice][0]) if prompt else 0
        return logprobs_to_openai([*prompt, *self._logprobs[choice]], offset=offset)


class CompletionFrames:
    """Turns the events of one request's generations into the frames of its stream."""

    def __init__(self, request: CompletionRequest, started: list[pb.GenerateStarted]) -> None:
        head = {
            "id": f"cmpl-{started[0].generation_id}",
            "object": "text_completion",
            "created": started[0].create_time.seconds,
            "model": request.model,
            "system_fingerprint": common.system_fingerprint(started[0]),
        }
        num_choices = request.num_choices * len(started)
        self._request = request
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['
        usage = b',"usage":null' if request.includes_usage else b""
        self._tail = b"]" + usage + b"}\n\n"
        self._text_tail = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._text_heads = [self._head + b'{"index":%d,"text":' % choice for choice in range(num_choices)]
        self._offsets = [0] * num_choices
        self._echoes: dict[int, str] = {}
        self._usages: list[pb.Usage] = []
        self._num_running = len(started)

    def frames(self, prompt: int, generated: pb.GenerateResponse) -> bytes:
        """The frames for one event of the generation for the prompt of this index; there may be none."""
        first = prompt * self._request.num_choices
        match generated.WhichOneof("event"):
            case "delta":
                return self._delta(first + generated.delta.choice, generated.delta)
            case "usage":
                self._usages.append(generated.usage)
                return b""
            case "finished":
                return self._finish(first, generated.finished)
            case _:
                return b""

    def _delta(self, choice: int, delta: pb.TextDelta) -> bytes:
        if delta.prompt:
            return self._prompt(choice, delta.prompt)
        if self._request.echo and choice not in self._echoes:
            # The text of an echoed prompt comes by itself, before any other.
            self._echoes[choice] = delta.text
            self._offsets[choice] += len(delta.text)
        if not delta.logprobs:
            return self._text_heads[choice] + encode_json(delta.text) + self._text_tail
        logprobs = logprobs_to_openai(list(delta.logprobs), offset=self._offsets[choice])
        self._offsets[choice] += sum(len(logprob.text) for logprob in delta.logprobs)
        return self._chunk(choice, delta.text, logprobs.model_dump(), None)

    def _prompt(self, first: int, tokens: Sequence[pb.ScoredToken]) -> bytes:
        """The prompt's tokens, to each of its choices; its text they have."""
        offset = prompt_offset(tokens, self._echoes.get(first, ""))
        logprobs = logprobs_to_openai(tokens, offset=offset).model_dump()
        choices = range(first, first + self._request.num_choices)
        return b"".join(self._chunk(choice, "", logprobs, None) for choice in choices)

    def _finish(self, first: int, finished: pb.GenerateFinished) -> bytes:
        frames = [
            self._chunk(first + finish.choice, "", None, common.FINISH_REASONS.get(finish.reason, "stop"))
            for finish in finished.choices
        ]
        self._num_running -= 1
        if not self._num_running:
            if self._request.includes_usage:
                usage = common.usage_from_proto(self._usages).model_dump_json().encode()
                frames.append(self._head + b'],"usage":' + usage + b"}\n\n")
            frames.append(DONE)
        return b"".join(frames)

    def _chunk(self, choice: int, text: str, logprobs: Any, finish_reason: str | None) -> bytes:
        body = {"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head + encode_json(body) + self._tail
