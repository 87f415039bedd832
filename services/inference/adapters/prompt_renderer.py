"""Prompts to tokens: the chat template in transformers' sandbox, then the tokenizer."""

from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from services.inference.core.prompts import ChatMessage, ChatPrompt, Prompt
from services.kit.errors import InvalidArgument, InvalidTemplate, UnsupportedParameter, WrongModelKind


class PromptRenderer:
    """Knows one model's tokenizer and template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def has_template(self) -> bool:
        """Whether the model can chat."""
        return bool(self._tokenizer.chat_template)

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt in the model's tokens.

        Raises WrongModelKind for a chat without a template, InvalidTemplate, InvalidArgument.
        """
        if prompt.token_ids is not None:
            return prompt.token_ids
        if prompt.chat is not None:
            # The template writes the special tokens itself.
            return self._encode(self._render(prompt.chat), add_special_tokens=False)
        return self._encode(prompt.text or "", add_special_tokens=True) or self._beginning()

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return tuple(encoded["input_ids"])

    def _beginning(self) -> tuple[int, ...]:
        """What an empty text continues: the token that begins a text."""
        for token_id in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id):
            if isinstance(token_id, int):
                return (token_id,)
        raise InvalidArgument.at("text", "must not be empty: this model has no token that begins a text")

    def _render(self, chat: ChatPrompt) -> str:
        template = self._tokenizer.chat_template
        if not template:
            raise WrongModelKind(
                "the model has no chat template: continue a text instead (completions), or chat with a model"
                " that has one"
            )
        if chat.tools and "tools" not in str(template):
            raise UnsupportedParameter.at("chat.tools", "this model's chat template knows no tools")
        continues = chat.continues_last_message
        opens_turn = not continues if chat.add_generation_prompt is None else chat.add_generation_prompt
        try:
            rendered = self._tokenizer.apply_chat_template(
                [_for_template(message) for message in chat.messages],
                tools=[_tool(tool.name, tool.description, tool.parameters) for tool in chat.tools] or None,
                tokenize=False,
                add_generation_prompt=opens_turn,
                continue_final_message=continues,
                **chat.template_arguments,
            )
        except jinja2.TemplateSyntaxError as error:
            raise InvalidTemplate(f"the model's chat template does not compile: {error.message}") from error
        except jinja2.TemplateError as error:
            # What a template raises by itself is about the messages: roles that must alternate, for example.
            raise InvalidArgument.at("chat.messages", f"the chat template refuses them: {error}") from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise InvalidTemplate(f"the chat template failed on these messages: {error}") from error
        assert isinstance(rendered, str)
        return rendered


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
