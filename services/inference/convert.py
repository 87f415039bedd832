"""Messages <-> domain. What this engine cannot do is refused here, by the name of the field."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from lares.inference.v1 import inference_pb2 as pb
from services.inference.core.events import Delta, FinishReason, ScoredToken, TokenChance, TokenLogprob
from services.inference.core.inference import (
    GenerationEnded,
    GenerationEvent,
    GenerationRequest,
    GenerationStarted,
    PromptScored,
)
from services.inference.core.prompts import (
    MAX_TEMPLATE_ARGUMENTS_BYTES,
    ChatMessage,
    ChatPrompt,
    Prompt,
    Tool,
    ToolCall,
)
from services.inference.core.sampling import OutputOptions, SamplingParameters, StopConditions
from services.kit.errors import InvalidArgument, UnsupportedParameter

_ROLES: Final = {
    pb.ROLE_SYSTEM: "system",
    pb.ROLE_USER: "user",
    pb.ROLE_ASSISTANT: "assistant",
    pb.ROLE_TOOL: "tool",
}
_REASONS: Final = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_MAX_SCHEMA_BYTES: Final = 64 * 1024


class _HasKeepAlive(Protocol):
    @property
    def keep_alive(self) -> Duration: ...

    def HasField(self, field_name: Any, /) -> bool: ...


def generation_request_from_proto(request: pb.GenerateRequest) -> GenerationRequest:
    """Raises InvalidArgument and UnsupportedParameter, naming the field."""
    if (form := request.response_format.WhichOneof("format")) is not None:
        raise UnsupportedParameter.at(
            f"response_format.{form}",
            "constrained text is not offered by this engine yet; ask for it in the prompt",
        )
    return GenerationRequest(
        model=required_model(request.model),
        prompt=prompt_from_proto(request),
        sampling=sampling_from_proto(request.sampling),
        stop=StopConditions(
            max_tokens=request.stop.max_tokens if request.stop.HasField("max_tokens") else None,
            stop=tuple(request.stop.stop),
            stop_token_ids=tuple(request.stop.stop_token_ids),
            ignore_eos=request.stop.ignore_eos,
            min_tokens=request.stop.min_tokens,
        ),
        output=OutputOptions(
            num_choices=request.output.num_choices if request.output.HasField("num_choices") else 1,
            logprobs=request.output.logprobs,
            top_logprobs=request.output.top_logprobs,
            echo=request.output.echo,
        ),
        keep_alive_s=keep_alive_from_proto(request),
        cache_salt=request.cache_salt,
        priority=request.priority,
    )


def prompt_from_proto(request: pb.GenerateRequest | pb.ScoreRequest) -> Prompt:
    """Whichever is set."""
    if isinstance(request, pb.GenerateRequest) and request.HasField("chat"):
        return Prompt(chat=_chat_from_proto(request.chat))
    match request.WhichOneof("prompt"):
        case "text":
            return Prompt(text=request.text)
        case "tokens":
            return Prompt(token_ids=tuple(request.tokens.token_ids))
        case _:
            return Prompt()


def sampling_from_proto(sampling: pb.SamplingParameters) -> SamplingParameters:
    """Unset knobs become None."""
    knobs: dict[str, Any] = {
        name: getattr(sampling, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "seed",
        )
        if sampling.HasField(name)
    }
    return SamplingParameters(**knobs, logit_bias=dict(sampling.logit_bias))


def _chat_from_proto(chat: pb.ChatPrompt) -> ChatPrompt:
    match chat.tool_choice.mode:
        case pb.TOOL_CHOICE_MODE_REQUIRED | pb.TOOL_CHOICE_MODE_FUNCTION:
            raise UnsupportedParameter.at(
                "chat.tool_choice.mode", "a call cannot be forced by this engine yet; use auto"
            )
        case pb.TOOL_CHOICE_MODE_NONE:
            tools = []
        case _:
            tools = list(chat.tools)
    if any(tool.strict for tool in tools):
        raise UnsupportedParameter.at("chat.tools.strict", "this engine cannot hold a call to its schema yet")
    return ChatPrompt(
        messages=tuple(_message_from_proto(index, message) for index, message in enumerate(chat.messages)),
        tools=tuple(
            Tool(
                tool.name,
                tool.description,
                _object(
                    f"chat.tools[{index}].parameters_json_schema",
                    tool.parameters_json_schema,
                    _MAX_SCHEMA_BYTES,
                ),
            )
            for index, tool in enumerate(tools)
        ),
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else None,
        template_arguments=_template_arguments(chat.template_arguments_json),
    )


def _message_from_proto(index: int, message: pb.ChatMessage) -> ChatMessage:
    field = f"chat.messages[{index}]"
    if message.role not in _ROLES:
        raise InvalidArgument.at(f"{field}.role", "is required: system, user, assistant or tool")
    texts = []
    for part_index, part in enumerate(message.content):
        kind = part.WhichOneof("part")
        if kind in ("image", "audio"):
            raise UnsupportedParameter.at(
                f"{field}.content[{part_index}].{kind}", "this model takes text only"
            )
        texts.append(part.text)
    calls = []
    for call_index, call in enumerate(message.tool_calls):
        name = f"{field}.tool_calls[{call_index}].arguments_json"
        calls.append(ToolCall(call.id, call.name, _object(name, call.arguments_json, _MAX_SCHEMA_BYTES)))
    return ChatMessage(
        role=_ROLES[message.role],
        content="".join(texts),
        name=message.name,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
    )


# What the renderer itself passes to the template, or to the function that runs it.
_RESERVED_ARGUMENTS: Final = frozenset(
    [
        "conversation",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "self",
        "processor_kwargs",
        "load_audio_from_video",
    ]
)


def _template_arguments(text: str) -> dict[str, Any]:
    name = "chat.template_arguments_json"
    arguments = _object(name, text, MAX_TEMPLATE_ARGUMENTS_BYTES)
    if taken := sorted(_RESERVED_ARGUMENTS & arguments.keys()):
        raise InvalidArgument.at(name, f"must not set {', '.join(taken)}")
    return arguments


def _object(field: str, text: str, max_bytes: int) -> dict[str, Any]:
    """A JSON object; empty text is an empty one."""
    if not text:
        return {}
    if len(text.encode()) > max_bytes:
        raise InvalidArgument.at(field, f"must be at most {max_bytes // 1024} KiB")
    try:
        found = msgspec.json.decode(
            text
        )  # Unlike Python's own, without halves of surrogate pairs, NaN or infinity.
        msgspec.msgpack.encode(found)  # As it will travel to the worker: no integer beyond 64 bits.
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidArgument.at(field, f"is not JSON that can be read: {error}") from error
    if not isinstance(found, dict):
        raise InvalidArgument.at(field, "must be a JSON object")
    return found


def generation_event_to_proto(event: GenerationEvent) -> Iterator[pb.GenerateResponse]:
    """The end becomes two messages, usage and finished; the others one."""
    match event:
        case Delta():
            yield pb.GenerateResponse(delta=_delta_to_proto(event))
        case GenerationStarted():
            started = pb.GenerateStarted(
                generation_id=event.generation_id,
                version=event.version,
                adapter=event.adapter,
                prompt_tokens=event.num_prompt_tokens,
                create_time=timestamp_to_proto(event.create_time),
                seed=event.seed,
            )
            yield pb.GenerateResponse(started=started)
        case PromptScored():
            scored = [scored_token_to_proto(token) for token in event.tokens]
            yield pb.GenerateResponse(delta=pb.TextDelta(prompt=scored))
        case GenerationEnded():
            ended = event.ended
            usage = pb.Usage(
                prompt_tokens=ended.num_prompt_tokens,
                completion_tokens=ended.num_completion_tokens,
                cached_prompt_tokens=ended.num_cached_tokens,
            )
            yield pb.GenerateResponse(usage=usage)
            finished = pb.GenerateFinished(
                choices=[
                    pb.ChoiceFinish(choice=index, reason=_REASONS[end.reason], stop=end.stop)
                    for index, end in enumerate(ended.choices)
                ],
                timing=pb.GenerateTiming(
                    queue_ms=ended.queue_ms,
                    prefill_ms=ended.prefill_ms,
                    decode_ms=ended.decode_ms,
                    load_ms=event.load_ms,
                    ttft_ms=ended.ttft_ms,
                    inter_token_ms=ended.inter_token_ms,
                    max_inter_token_ms=ended.max_inter_token_ms,
                    num_preemptions=ended.num_preemptions,
                ),
            )
            yield pb.GenerateResponse(finished=finished)


def _delta_to_proto(delta: Delta) -> pb.TextDelta:
    if not delta.logprobs:
        return pb.TextDelta(choice=delta.choice, text=delta.text)
    logprobs = [_logprob_to_proto(logprob) for logprob in delta.logprobs]
    return pb.TextDelta(choice=delta.choice, text=delta.text, logprobs=logprobs)


def _logprob_to_proto(logprob: TokenLogprob) -> pb.TokenLogprob:
    picked = logprob.picked
    return pb.TokenLogprob(
        token_id=picked.token_id,
        text=_text(picked),
        raw=picked.raw,
        logprob=picked.logprob,
        top=_top_to_proto(logprob.top),
    )


def scored_token_to_proto(token: ScoredToken) -> pb.ScoredToken:
    """A token of a prompt."""
    return pb.ScoredToken(
        token_id=token.token_id,
        text=_text(token),
        raw=token.raw,
        logprob=token.logprob,
        top=_top_to_proto(token.top),
    )


def _top_to_proto(top: Iterable[TokenChance]) -> list[pb.TopLogprob]:
    return [
        pb.TopLogprob(token_id=chance.token_id, text=_text(chance), raw=chance.raw, logprob=chance.logprob)
        for chance in top
    ]


def _text(chance: TokenChance | ScoredToken) -> str:
    return chance.raw.decode("utf-8", errors="replace")


def keep_alive_from_proto(request: _HasKeepAlive) -> float | None:
    """Seconds; None if the request does not say."""
    if not request.HasField("keep_alive"):
        return None
    return request.keep_alive.seconds + request.keep_alive.nanos / 1e9


def required_model(name: str) -> str:
    """Raises InvalidArgument for an empty name."""
    if not name:
        raise InvalidArgument.at("model", "is required; `lares list` shows what is here")
    return name


def timestamp_to_proto(time: datetime) -> Timestamp:
    """To the microsecond."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
