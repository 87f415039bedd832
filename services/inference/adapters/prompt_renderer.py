"""Prompts to tokens: the chat template, then the tokenizer."""

from collections.abc import Mapping
from typing import Any, Final

from services.inference.adapters.chat_templates import ChatTemplates
from services.inference.adapters.tokenizer import Tokenizer
from services.inference.core.prompts import ChatMessage, ChatPrompt, Prompt
from services.kit.errors import (
    ContextLengthExceeded,
    InvalidArgument,
    InvalidTemplate,
    UnsupportedParameter,
    WrongModelKind,
)

# Ordinary text has about four characters a token.
_PROBED_CHARS_PER_TOKEN: Final = 16

# What transformers writes behind a message that goes on, to find where it ends in what the template wrote.
_CONTINUES_HERE: Final = "CONTINUE_FINAL_MESSAGE_TAG "


class PromptRenderer:
    """Knows one model's tokenizer and template. context_length: of the model, in tokens."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._templates = ChatTemplates(tokenizer.chat_templates) if tokenizer.chat_templates else None

    @property
    def has_template(self) -> bool:
        """Whether the model can chat."""
        return self._templates is not None

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt in the model's tokens.

        Raises WrongModelKind for a chat without a template, InvalidTemplate, InvalidArgument;
        ContextLengthExceeded for what is far too long.
        """
        if prompt.token_ids is not None:
            return prompt.token_ids
        if prompt.chat is not None:
            # The template writes the special tokens itself.
            return self._encode(self._render(prompt.chat), add_special_tokens=False)
        return self._encode(prompt.text or "", add_special_tokens=True) or self._beginning()

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        # Everybody's next token waits for this, and megabytes take seconds: what is far too long is found out by
        # its beginning. Where that is cut a few tokens may differ, but not as many as a second context.
        num_chars = _PROBED_CHARS_PER_TOKEN * self._context_length
        while num_chars < len(text):
            num_tokens = len(self._tokenizer.encode(text[:num_chars], add_special_tokens=add_special_tokens))
            if num_tokens > 2 * self._context_length:
                raise ContextLengthExceeded.of(
                    num_prompt_tokens=num_tokens * len(text) // num_chars,
                    max_tokens=1,
                    context_length=self._context_length,
                )
            num_chars *= 2
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _beginning(self) -> tuple[int, ...]:
        """What an empty text continues: the token that begins a text."""
        for token_id in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if token_id is not None:
                return (token_id,)
        raise InvalidArgument.at("text", "must not be empty: this model has no token that begins a text")

    def _render(self, chat: ChatPrompt) -> str:
        if self._templates is None:
            raise WrongModelKind(
                "the model has no chat template: continue a text instead (completions), or chat with a model"
                " that has one"
            )
        name = self._template_name(chat)
        continues = chat.continues_last_message
        opens_turn = not continues if chat.add_generation_prompt is None else chat.add_generation_prompt
        messages = [_for_template(message) for message in chat.messages]
        if continues:
            messages[-1]["content"] += _CONTINUES_HERE
        rendered = self._templates.render(
            name,
            {
                **self._tokenizer.special_tokens,
                **chat.template_arguments,
                "messages": messages,
                "tools": [_tool(tool.name, tool.description, tool.parameters) for tool in chat.tools] or None,
                "documents": None,
                "add_generation_prompt": opens_turn,
            },
        )
        return _until_final_message(rendered, chat.messages[-1].content) if continues else rendered

    def _template_name(self, chat: ChatPrompt) -> str:
        """`tool_use`, if there is one and tools are given, else `default`."""
        templates: Mapping[str, str] = self._tokenizer.chat_templates
        name = "tool_use" if chat.tools and "tool_use" in templates else "default"
        if name not in templates:
            raise InvalidTemplate(
                f"the model's chat templates are {', '.join(templates)}: none is the default"
            )
        if chat.tools and "tools" not in templates[name]:
            raise UnsupportedParameter.at("chat.tools", "this model's chat template knows no tools")
        return name


def _until_final_message(rendered: str, content: str) -> str:
    """Cut what the template writes behind the last message. Raises InvalidTemplate if that is not there."""
    tag = _CONTINUES_HERE.strip()
    if tag not in rendered or content.strip() not in rendered:
        raise InvalidTemplate(
            "the chat template leaves out the assistant's last message: it cannot be continued"
        )
    end = rendered.rindex(tag)
    # A template that cut the tag's own space cuts that of messages, too.
    return rendered[:end] if rendered.startswith(_CONTINUES_HERE, end) else rendered[:end].rstrip()


def _for_template(message: ChatMessage) -> dict[str, Any]:
    """A message as templates expect it: absent keys where there is nothing."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        found["name"] = message.name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return found


def _tool(name: str, description: str, parameters: object) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }
