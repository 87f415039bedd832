"""A chat as a stream of `chat.completion.chunk`. The hot path: everything but the text is encoded once a request."""

from typing import Annotated, Any, Literal

from pydantic import Field

from gateway.openai import common
from gateway.openai.chat import ChatRequest
from gateway.openai.chat_answer import ChoiceLogprobs, logprob_to_openai
from gateway.openai.common import ResponseModel
from gateway.openai.frames import DONE, encode_json
from lares.inference.v1 import inference_pb2 as pb


class DeltaFunction(ResponseModel):
    """A piece of a call. The name comes with the first."""

    name: str | None = None
    arguments: str


class DeltaToolCall(ResponseModel):
    """A piece of a call."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


class Delta(ResponseModel):
    """What is new in a choice."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaToolCall] | None = None


class ChunkChoice(ResponseModel):
    """A choice's news."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(ResponseModel):
    """One event of a streamed chat. usage: only if it was asked for, in the last."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: Annotated[list[ChunkChoice], Field(max_length=1)]
    usage: common.Usage | None = None


class ChatFrames:
    """Turns a generation's events into the frames of its stream."""

    def __init__(self, request: ChatRequest, started: pb.GenerateStarted) -> None:
        head = {
            "id": f"chatcmpl-{started.generation_id}",
            "object": "chat.completion.chunk",
            "created": started.create_time.seconds,
            "model": request.model,
            "system_fingerprint": common.system_fingerprint(started),
        }
        self._request = request
        self._usage = pb.Usage()
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['
        # With include_usage every chunk has the field, and only the last has a value.
        usage = b',"usage":null' if request.includes_usage else b""
        self._tail = b"]" + usage + b"}\n\n"
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail
        self._text_heads = [
            self._head + b'{"index":%d,"delta":{"content":' % choice for choice in range(request.num_choices)
        ]

    def opening(self) -> bytes:
        """What goes out when the request is admitted: each choice's role."""
        return b"".join(
            self._chunk(choice, {"role": "assistant", "content": ""})
            for choice in range(self._request.num_choices)
        )

    def frames(self, generated: pb.GenerateResponse) -> bytes:
        """The frames for one event, which may be none."""
        match generated.WhichOneof("event"):
            case "delta":
                return self._delta(generated.delta)
            case "tool_call_delta":
                return self._tool_call(generated.tool_call_delta)
            case "usage":
                return self._hold_usage(generated.usage)
            case "finished":
                return self._finish(generated.finished)
            case _:
                return b""

    def _delta(self, delta: pb.TextDelta) -> bytes:
        if not delta.logprobs and not delta.reasoning:
            return self._text_heads[delta.choice] + encode_json(delta.text) + self._text_tail
        content: dict[str, str] = {"content": delta.text}
        if delta.reasoning:
            content = {"reasoning_content": delta.reasoning} | ({"content": delta.text} if delta.text else {})
        logprobs = None
        if delta.logprobs:
            logprobs = ChoiceLogprobs(
                content=[logprob_to_openai(item) for item in delta.logprobs]
            ).model_dump()
        return self._chunk(delta.choice, content, logprobs=logprobs)

    def _tool_call(self, delta: pb.ToolCallDelta) -> bytes:
        call: dict[str, Any] = {"index": delta.index, "function": {"arguments": delta.arguments_json}}
        if delta.id:
            call = {"index": delta.index, "id": delta.id, "type": "function"}
            call["function"] = {"name": delta.name, "arguments": delta.arguments_json}
        return self._chunk(delta.choice, {"tool_calls": [call]})

    def _hold_usage(self, usage: pb.Usage) -> bytes:
        # The contract tells usage before the end, OpenAI after it.
        self._usage = usage
        return b""

    def _finish(self, finished: pb.GenerateFinished) -> bytes:
        frames = [
            self._chunk(finish.choice, {}, finish_reason=common.FINISH_REASONS.get(finish.reason, "stop"))
            for finish in finished.choices
        ]
        if self._request.includes_usage:
            usage = common.usage_from_proto([self._usage]).model_dump_json().encode()
            frames.append(self._head + b'],"usage":' + usage + b"}\n\n")
        return b"".join([*frames, DONE])

    def _chunk(
        self, choice: int, delta: dict[str, Any], *, logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        body = {"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head + encode_json(body) + self._tail
