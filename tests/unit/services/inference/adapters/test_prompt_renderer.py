import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.inference.adapters.prompt_renderer import PromptRenderer
from services.inference.adapters.tokenizer import Tokenizer, load_tokenizer
from services.inference.core.prompts import ChatMessage, ChatPrompt, Prompt, Tool, ToolCall
from services.kit.errors import (
    ContextLengthExceeded,
    InvalidArgument,
    InvalidTemplate,
    LaresError,
    UnsupportedParameter,
    WrongModelKind,
)
from tests.unit.services.inference.adapters.templates import CHATML, ESCAPING, HOSTILE, WELL_KNOWN
from tests.unit.services.inference.adapters.tokenizer_folders import byte_level, write_folder

CONTEXT_LENGTH = 512

SYSTEM = ChatMessage("system", ' Be <b>brief</b> & "kind".\n')
USER = ChatMessage("user", "  Xin chào! 👩‍🚀 What's up?\n")
ASSISTANT = ChatMessage("assistant", "<think>\nhm\n</think>\n\nAll is well. ")
CALLING = ChatMessage(
    "assistant",
    "",
    tool_calls=(ToolCall("call_1", "weather", {"city": "Huế", "days": [1, 2.5, None, True]}),),
)
ANSWERED = ChatMessage("tool", '{"sky": "blue"}', name="weather", tool_call_id="call_1")
WEATHER = Tool(
    "weather", "The <weather> of a city", {"type": "object", "properties": {"city": {"type": "string"}}}
)

CHATS = {
    "one question": ChatPrompt((USER,)),
    "a system message": ChatPrompt((SYSTEM, USER, ASSISTANT, USER)),
    "no system message": ChatPrompt((USER, ASSISTANT, USER)),
    "the assistant goes on": ChatPrompt((USER, ASSISTANT)),
    "the assistant goes on after a system message": ChatPrompt(
        (SYSTEM, USER, ChatMessage("assistant", "Well,"))
    ),
    "no turn is opened": ChatPrompt((USER, ASSISTANT), add_generation_prompt=False),
    "a turn is opened behind the assistant": ChatPrompt((USER, ASSISTANT), add_generation_prompt=True),
    "tools": ChatPrompt((SYSTEM, USER), tools=(WEATHER, WEATHER)),
    "tools were called": ChatPrompt((USER, CALLING, ANSWERED, ANSWERED), tools=(WEATHER,)),
    "tools were called, none are given": ChatPrompt((USER, CALLING, ANSWERED)),
    "arguments": ChatPrompt((USER,), template_arguments={"enable_thinking": False, "bos_token": "<B>"}),
}


def renderer(folder: Path, template: Any) -> PromptRenderer:
    return PromptRenderer(
        load_tokenizer(write_folder(folder, byte_level(), chat_template=template)), CONTEXT_LENGTH
    )


def as_transformers_takes_it(message: ChatMessage) -> dict[str, Any]:
    found: dict[str, Any] = {
        "role": message.role,
        "content": message.content,
        "name": message.name or None,
        "tool_call_id": message.tool_call_id or None,
    }
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": one.call_id,
                "type": "function",
                "function": {"name": one.name, "arguments": one.arguments},
            }
            for one in message.tool_calls
        ]
    return found


def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def of_transformers(tokenizer: Any, chat: ChatPrompt) -> str | None:
    """What transformers writes; None where it refuses."""
    continues = chat.continues_last_message
    tools = [
        {
            "type": "function",
            "function": {"name": one.name, "description": one.description, "parameters": one.parameters},
        }
        for one in chat.tools
    ]
    try:
        rendered = tokenizer.apply_chat_template(
            [as_transformers_takes_it(message) for message in chat.messages],
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=not continues
            if chat.add_generation_prompt is None
            else chat.add_generation_prompt,
            continue_final_message=continues,
            **chat.template_arguments,
        )
    except Exception:  # Its templates raise anything.
        return None
    assert isinstance(rendered, str)
    return rendered


def assert_equal(ours: PromptRenderer, tokenizer: Any, chat: ChatPrompt) -> bool:
    """Whether it was rendered, rather than refused by both."""
    expected = of_transformers(tokenizer, chat)
    if expected is None:
        with pytest.raises((InvalidArgument, InvalidTemplate)):
            ours.tokens(Prompt(chat=chat))
        return False
    found = ours.tokens(Prompt(chat=chat))
    assert tokenizer.decode(found) == expected
    assert list(found) == tokenizer.encode(expected, add_special_tokens=False)
    return True


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_templates_render_as_with_transformers(name: str, tmp_path: Path):
    ours, tokenizer = renderer(tmp_path, WELL_KNOWN[name]), theirs(tmp_path)
    num_compared = 0
    for chat in CHATS.values():
        if chat.tools and "tools" not in WELL_KNOWN[name]:
            with pytest.raises(UnsupportedParameter):
                ours.tokens(Prompt(chat=chat))
            continue
        num_compared += assert_equal(ours, tokenizer, chat)
    assert num_compared >= 4


def test_the_starters_template_renders_as_with_transformers(starter_tokenizer: Path):
    ours, tokenizer = (
        PromptRenderer(load_tokenizer(starter_tokenizer), CONTEXT_LENGTH),
        theirs(starter_tokenizer),
    )
    assert all(assert_equal(ours, tokenizer, chat) for chat in CHATS.values() if not chat.tools)


def test_a_template_for_tools_is_taken_when_there_are_tools(tmp_path: Path):
    templates = [
        {"name": "default", "template": CHATML},
        {"name": "tool_use", "template": "{{ tools|length }}"},
    ]
    ours = renderer(tmp_path, templates)
    for chat in (CHATS["one question"], CHATS["tools"]):
        assert assert_equal(ours, theirs(tmp_path), chat)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_ended_and_the_next_one_renders(name: str, tmp_path: Path):
    ours = renderer(
        tmp_path,
        [
            {"name": "default", "template": CHATML},
            {"name": "tool_use", "template": HOSTILE[name] + "{{ tools }}"},
        ],
    )
    with pytest.raises(InvalidTemplate):
        ours.tokens(Prompt(chat=CHATS["tools"]))
    assert ours.tokens(Prompt(chat=CHATS["one question"]))


@pytest.mark.parametrize("name", ESCAPING)
def test_a_template_stays_in_its_sandbox(name: str, tmp_path: Path):
    ours = renderer(tmp_path, ESCAPING[name])
    with pytest.raises((InvalidArgument, InvalidTemplate)):
        ours.tokens(Prompt(chat=CHATS["one question"]))


def test_a_process_of_templates_that_was_killed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LARES_SECRET", "not for templates")
    ours = renderer(tmp_path, CHATML)
    before = ours.tokens(Prompt(chat=CHATS["one question"]))
    process = ours._templates._process  # type: ignore[union-attr]  # It has a template.
    assert b"not for templates" not in Path(f"/proc/{process.pid}/environ").read_bytes()
    process.kill()
    process.wait()
    assert ours.tokens(Prompt(chat=CHATS["one question"])) == before


def test_a_process_of_templates_ends_with_its_renderer(tmp_path: Path):
    ours = renderer(tmp_path, CHATML)
    process = ours._templates._process  # type: ignore[union-attr]  # It has a template.
    del ours
    assert process.poll() is not None
    assert not os.path.exists(f"/proc/{process.pid}")  # noqa: PTH110, it reads like the sentence


def test_a_template_that_does_not_compile_is_named_as_such(tmp_path: Path):
    with pytest.raises(InvalidTemplate, match="does not compile"):
        renderer(tmp_path, "{% for %}").tokens(Prompt(chat=CHATS["one question"]))


def test_what_a_template_raises_is_about_the_messages(tmp_path: Path):
    with pytest.raises(InvalidArgument, match="roles must alternate") as raised:
        renderer(tmp_path, WELL_KNOWN["Gemma"]).tokens(Prompt(chat=ChatPrompt((USER, USER))))
    assert "chat.messages" in str(raised.value)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages + 1 }}", "{{ messages[0].content.nothing() }}"]
)
def test_a_template_that_fails_is_an_error_of_the_request(template: str, tmp_path: Path):
    with pytest.raises((InvalidTemplate, InvalidArgument)):
        renderer(tmp_path, template).tokens(Prompt(chat=CHATS["one question"]))


def test_a_message_that_the_template_leaves_out_cannot_be_continued(tmp_path: Path):
    with pytest.raises(InvalidTemplate, match="cannot be continued"):
        renderer(tmp_path, "{{ messages[0].content }}").tokens(Prompt(chat=CHATS["the assistant goes on"]))


def test_a_model_without_template_cannot_chat(tmp_path: Path):
    ours = PromptRenderer(load_tokenizer(write_folder(tmp_path, byte_level())), CONTEXT_LENGTH)
    assert not ours.has_template
    with pytest.raises(WrongModelKind):
        ours.tokens(Prompt(chat=CHATS["one question"]))


def test_templates_without_a_default_are_named(tmp_path: Path):
    with pytest.raises(InvalidTemplate, match="rag"):
        renderer(tmp_path, {"rag": "x"}).tokens(Prompt(chat=CHATS["one question"]))


@pytest.mark.parametrize(
    ("config", "expected"),
    [({}, "<s>"), ({"bos_token": None}, "</s>"), ({"bos_token": None, "eos_token": None}, None)],
)
def test_an_empty_text_begins_with_the_token_that_begins_a_text(
    config: dict[str, None], expected: str | None, tmp_path: Path
):
    ours = PromptRenderer(load_tokenizer(write_folder(tmp_path, byte_level(), **config)), CONTEXT_LENGTH)
    if expected is None:
        with pytest.raises(LaresError, match="no token that begins"):
            ours.tokens(Prompt(text=""))
    else:
        assert ours.tokens(Prompt(text="")) == (byte_level().token_to_id(expected),)


def test_a_text_gets_its_special_tokens_and_a_chat_only_those_of_its_template(tmp_path: Path):
    folder = write_folder(tmp_path, byte_level(ends=True), chat_template="{{ messages[0].content }}")
    tokenizer = load_tokenizer(folder)
    ours = PromptRenderer(tokenizer, CONTEXT_LENGTH)
    chat = ChatPrompt((ChatMessage("user", "the fox"),))
    bos, *middle, eos = ours.tokens(Prompt(text="the fox"))
    assert (bos, eos) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ours.tokens(Prompt(chat=chat)) == tuple(middle)
    assert ours.tokens(Prompt(token_ids=(1, 2))) == (1, 2)


def test_a_text_far_too_long_is_found_out_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ours = PromptRenderer(load_tokenizer(write_folder(tmp_path, byte_level())), CONTEXT_LENGTH)
    num_chars: list[int] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str, **options: Any) -> tuple[int, ...]:
        num_chars.append(len(text))
        return encode(self, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    with pytest.raises(ContextLengthExceeded):
        ours.tokens(Prompt(text="0123456789" * 1_000_000))
    assert sum(num_chars) <= 16 * CONTEXT_LENGTH

    # One that is long in characters but not far too long in tokens is read as a whole.
    special = "<|im_start|>"
    folder = write_folder(tmp_path / "wide", byte_level(), extra_special_tokens=[special])
    wide = PromptRenderer(load_tokenizer(folder), CONTEXT_LENGTH)
    num_tokens = 16 * CONTEXT_LENGTH // len(special) + CONTEXT_LENGTH // 8
    assert len(wide.tokens(Prompt(text=special * num_tokens))) == num_tokens
