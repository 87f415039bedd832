"""One example of a dataset: which form it has, what is wrong with it, and what it teaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.trainer.core.model import DatasetFormat

ROLES: Final = ("system", "developer", "user", "assistant", "tool")

_FORM_OF_KEYS: Final = (
    ({"messages"}, DatasetFormat.CHAT),
    ({"prompt", "completion"}, DatasetFormat.PROMPT_COMPLETION),
    ({"instruction", "output"}, DatasetFormat.INSTRUCTION),
    ({"text"}, DatasetFormat.TEXT),
)

_EXPECTED: Final = (
    'must be {"messages": [...]}, {"prompt", "completion"}, {"instruction", "input", "output"} or {"text"}'
)


class BadExample(ValueError):
    """Something is wrong with an example; the text says where and what."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. is_target: the model learns to say it."""

    role: str
    content: str
    is_target: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """An example in chat form."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """An example of plain text; all of it is learned."""

    text: str


Example = Conversation | Passage


def detect_format(value: Any) -> DatasetFormat:
    """The form of an example, by its keys. Raises BadExample."""
    if isinstance(value, dict):
        for keys, form in _FORM_OF_KEYS:
            if keys <= value.keys():
                return form
    raise BadExample(_EXPECTED)


def parse_example(form: DatasetFormat, value: Any) -> Example:
    """Check one example and tell what it teaches. value: parsed JSON. Raises BadExample."""
    if not isinstance(value, dict):
        raise BadExample("must be a JSON object")
    match form:
        case DatasetFormat.CHAT:
            return _parse_chat(value)
        case DatasetFormat.PROMPT_COMPLETION:
            return _ask(_text(value, "prompt"), _text(value, "completion"))
        case DatasetFormat.INSTRUCTION:
            instruction, output = _text(value, "instruction"), _text(value, "output")
            context = _text(value, "input", may_be_empty=True) if value.get("input") is not None else ""
            return _ask(f"{instruction}\n\n{context}" if context else instruction, output)
        case DatasetFormat.TEXT:
            return Passage(_text(value, "text"))


def _ask(question: str, answer: str) -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer, is_target=True)))


def _parse_chat(value: Mapping[str, Any]) -> Conversation:
    messages = value.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadExample("messages: must be an array of at least one message")
    turns = tuple(_parse_message(message, f"messages[{i}]") for i, message in enumerate(messages))
    if not any(turn.is_target for turn in turns):
        raise BadExample("messages: must hold at least one message of the assistant to learn from")
    return Conversation(turns)


def _parse_message(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise BadExample(f"{where}: must be an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        raise BadExample(f"{where}.role: must be one of {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise BadExample(f"{where}.tool_calls: calls of tools cannot be learned yet; leave them out")
    is_assistant = role == "assistant"
    # OpenAI's fine-tuning format: an assistant's message of weight 0 is context only.
    weight = message.get("weight", 1)
    if weight not in (0, 1) or isinstance(weight, bool):
        raise BadExample(f"{where}.weight: must be 0 or 1")
    content = _text(message, "content", f"{where}.content", may_be_empty=not is_assistant)
    return Turn(role, content, is_target=is_assistant and weight == 1)


def _text(value: Mapping[str, Any], key: str, where: str = "", *, may_be_empty: bool = False) -> str:
    where = where or key
    text = value.get(key)
    if not isinstance(text, str):
        raise BadExample(f"{where}: must be text")
    if not text.strip() and not may_be_empty:
        raise BadExample(f"{where}: must not be empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadExample(f"{where}: holds half of a surrogate pair, which is no character") from None
    return text
