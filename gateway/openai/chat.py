"""Chat completions: the request. The answer is in `chat_answer`, the streamed answer in `chat_stream`."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationInfo, field_validator, model_validator

from gateway.openai import common
from gateway.openai.common import GenerationRequest, Only, RequestModel, StreamOptions
from gateway.openai.content import ContentPart, part_to_proto
from lares.inference.v1 import inference_pb2 as pb
from services.kit.errors import InvalidArgument

_ROLES = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}
_TOOL_CHOICES = {
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}
_MAX_SCHEMA_BYTES = 64 * 1024

FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class FunctionCall(RequestModel):
    """A function and its arguments, as JSON in a text."""

    name: FunctionName
    arguments: str


class ToolCall(RequestModel):
    """A call the assistant made."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(RequestModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True, max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=128)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None

    @model_validator(mode="after")
    def _has_what_its_role_needs(self) -> "Message":
        if self.content is None and not self.tool_calls:
            raise ValueError("must have content")
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("must have tool_call_id, the call that it answers")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("has tool_calls, which only an assistant's message may have")
        return self


class Function(RequestModel):
    """A function the model may call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(RequestModel):
    """A tool the model may use."""

    type: Literal["function"]
    function: Function


class NamedFunction(RequestModel):
    """A function by its name."""

    name: FunctionName


class NamedToolChoice(RequestModel):
    """The one tool to call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchemaFormat(RequestModel):
    """A schema for the answer."""

    name: FunctionName
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(RequestModel):
    """What form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> "ResponseFormat":
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise ValueError("must have json_schema with a schema")
        return self


class ChatRequest(GenerationRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=2048)]
    max_tokens: Annotated[int, Field(ge=1, le=common.UINT32_MAX)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=common.UINT32_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: Annotated[Any, Only(True)] = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Lares extension: values for the chat template."
    )
    audio: Annotated[Any, Only()] = None
    function_call: Annotated[Any, Only()] = None
    functions: Annotated[Any, Only()] = None
    modalities: Annotated[Any, Only(["text"])] = None
    prediction: Annotated[Any, Only()] = None
    reasoning_effort: Annotated[Any, Only()] = None
    service_tier: Annotated[Any, Only("auto", "default")] = None
    store: Annotated[Any, Only(False)] = None
    verbosity: Annotated[Any, Only("medium")] = None
    web_search_options: Annotated[Any, Only()] = None

    @field_validator("top_logprobs")
    @classmethod
    def _needs_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return value

    @property
    def num_choices(self) -> int:
        """Answers asked for."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with what was used."""
        return bool(self.stream_options and self.stream_options.include_usage)


def request_to_proto(request: ChatRequest, cache_salt: str) -> pb.GenerateRequest:
    """Raises InvalidArgument for content that cannot be read."""
    prompt = pb.ChatPrompt(
        messages=[_message_to_proto(message, i) for i, message in enumerate(request.messages)],
        tools=[_tool_to_proto(tool, i) for i, tool in enumerate(request.tools or ())],
        tool_choice=_tool_choice_to_proto(request.tool_choice),
    )
    if request.chat_template_kwargs is not None:
        prompt.template_arguments_json = _json(request.chat_template_kwargs, "chat_template_kwargs")
    max_tokens = request.max_completion_tokens or request.max_tokens
    return pb.GenerateRequest(
        model=request.model,
        chat=prompt,
        sampling=request.sampling(),
        stop=request.stop_conditions(max_tokens),
        output=pb.OutputOptions(
            num_choices=request.n, logprobs=bool(request.logprobs), top_logprobs=request.top_logprobs
        ),
        response_format=_format_to_proto(request.response_format),
        keep_alive=common.keep_alive_to_proto(request.keep_alive),
        cache_salt=cache_salt,
    )


def _message_to_proto(message: Message, index: int) -> pb.ChatMessage:
    if isinstance(message.content, str):
        content = [pb.ContentPart(text=message.content)]
    else:
        content = [
            part_to_proto(part, field=f"messages[{index}].content[{i}]")
            for i, part in enumerate(message.content or ())
        ]
    return pb.ChatMessage(
        role=_ROLES[message.role],
        content=content,
        name=message.name or "",
        tool_call_id=message.tool_call_id or "",
        tool_calls=[
            pb.ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
            for call in message.tool_calls or ()
        ],
    )


def _tool_to_proto(tool: Tool, index: int) -> pb.Tool:
    function = tool.function
    schema = function.parameters if function.parameters is not None else {"type": "object", "properties": {}}
    return pb.Tool(
        name=function.name,
        description=function.description or "",
        parameters_json_schema=_json(schema, f"tools[{index}].function.parameters"),
        strict=bool(function.strict),
    )


def _tool_choice_to_proto(choice: str | NamedToolChoice | None) -> pb.ToolChoice | None:
    match choice:
        case None:
            return None
        case str():
            return pb.ToolChoice(mode=_TOOL_CHOICES[choice])
        case _:
            return pb.ToolChoice(mode=pb.TOOL_CHOICE_MODE_FUNCTION, function_name=choice.function.name)


def _format_to_proto(wanted: ResponseFormat | None) -> pb.ResponseFormat | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object" or wanted.json_schema is None:
        return pb.ResponseFormat(json_object=pb.JsonObject())
    schema = wanted.json_schema
    return pb.ResponseFormat(
        json_schema=pb.JsonSchema(
            name=schema.name,
            description=schema.description or "",
            schema_json=_json(schema.schema_, "response_format.json_schema.schema"),
            strict=bool(schema.strict),
        )
    )


def _json(value: object, field: str) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode()) > _MAX_SCHEMA_BYTES:
        raise InvalidArgument.at(field, f"must be at most {_MAX_SCHEMA_BYTES} bytes of JSON")
    return text
