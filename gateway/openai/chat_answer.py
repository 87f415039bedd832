"""Chat completions: the whole answer."""

from typing import Any, Literal

from gateway.openai import common
from gateway.openai.chat import ChatRequest
from gateway.openai.common import ResponseModel
from lares.inference.v1 import inference_pb2 as pb


class TopLogprob(ResponseModel):
    """A likely token."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was picked."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(ResponseModel):
    """Log probabilities of a choice's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class AnswerFunctionCall(ResponseModel):
    """The function that the model calls."""

    name: str
    arguments: str


class AnswerToolCall(ResponseModel):
    """A call that the model makes."""

    id: str
    type: Literal["function"] = "function"
    function: AnswerFunctionCall


class AnswerMessage(ResponseModel):
    """What the model says. reasoning_content: its thoughts, where it tells them apart."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[AnswerToolCall] | None = None
    refusal: None = None


class ChatChoice(ResponseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(ResponseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: common.Usage


def logprob_to_openai(logprob: pb.TokenLogprob) -> TokenLogprob:
    """One token."""
    return TokenLogprob(
        token=logprob.text,
        logprob=common.finite_logprob(logprob.logprob),
        bytes=list(logprob.raw),
        top_logprobs=[
            TopLogprob(token=top.text, logprob=common.finite_logprob(top.logprob), bytes=list(top.raw))
            for top in logprob.top
        ],
    )


class _Answer:
    """One choice as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.tool_calls: dict[int, tuple[str, str, list[str]]] = {}
        self.finish_reason: Any = "stop"

    def add_tool_call(self, delta: pb.ToolCallDelta) -> None:
        _, _, arguments = self.tool_calls.setdefault(delta.index, (delta.id, delta.name, []))
        arguments.append(delta.arguments_json)

    def message(self) -> AnswerMessage:
        calls = [
            AnswerToolCall(id=call_id, function=AnswerFunctionCall(name=name, arguments="".join(arguments)))
            for _, (call_id, name, arguments) in sorted(self.tool_calls.items())
        ]
        text = "".join(self.text)
        return AnswerMessage(
            content=None if calls and not text else text,
            reasoning_content="".join(self.reasoning) or None,
            tool_calls=calls or None,
        )


class ChatCollector:
    """Gathers a generation's events into one answer."""

    def __init__(self, request: ChatRequest, started: pb.GenerateStarted) -> None:
        self._request = request
        self._started = started
        self._answers = [_Answer() for _ in range(request.num_choices)]
        self._usage = pb.Usage()

    def add(self, event: pb.GenerateResponse) -> None:
        """Take the next event."""
        match event.WhichOneof("event"):
            case "delta":
                answer = self._answers[event.delta.choice]
                answer.text.append(event.delta.text)
                answer.reasoning.append(event.delta.reasoning)
                answer.logprobs += [logprob_to_openai(logprob) for logprob in event.delta.logprobs]
            case "tool_call_delta":
                self._answers[event.tool_call_delta.choice].add_tool_call(event.tool_call_delta)
            case "usage":
                self._usage = event.usage
            case "finished":
                for finish in event.finished.choices:
                    self._answers[finish.choice].finish_reason = common.FINISH_REASONS.get(
                        finish.reason, "stop"
                    )

    def completion(self) -> ChatCompletion:
        """The answer, when every event is in."""
        return ChatCompletion(
            id=f"chatcmpl-{self._started.generation_id}",
            created=self._started.create_time.seconds,
            model=self._request.model,
            system_fingerprint=common.system_fingerprint(self._started),
            choices=[
                ChatChoice(
                    index=index,
                    message=answer.message(),
                    logprobs=ChoiceLogprobs(content=answer.logprobs) if self._request.logprobs else None,
                    finish_reason=answer.finish_reason,
                )
                for index, answer in enumerate(self._answers)
            ],
            usage=common.usage_from_proto([self._usage]),
        )
