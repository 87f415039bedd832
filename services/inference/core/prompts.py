"""What a generation continues: a conversation, a text or tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.kit.errors import InvalidArgument

MAX_MESSAGES: Final = 2048
MAX_TEMPLATE_ARGUMENTS_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant made. arguments: the JSON, parsed."""

    call_id: str
    name: str
    arguments: Any


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. role: `system`, `user`, `assistant` or `tool`."""

    role: str
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: its JSON Schema, parsed."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation.

    add_generation_prompt: None for true, unless the assistant spoke last, whose turn is then continued.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    add_generation_prompt: bool | None = None
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def continues_last_message(self) -> bool:
        """Whether the answer goes on where the assistant's last message ends."""
        return self.add_generation_prompt is None and self.messages[-1].role == "assistant"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Exactly one of the three."""

    chat: ChatPrompt | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None

    def check(self) -> None:
        """Raise InvalidArgument for a prompt that says nothing."""
        if self.chat is not None:
            if not 1 <= len(self.chat.messages) <= MAX_MESSAGES:
                raise InvalidArgument.at("chat.messages", f"must hold 1 to {MAX_MESSAGES} messages")
        elif self.token_ids is not None:
            if not self.token_ids:
                raise InvalidArgument.at("tokens.token_ids", "must hold at least one token")
        elif self.text is None:
            raise InvalidArgument.at("prompt", "is required: chat, text or tokens")
