"""The checking of dataset files: pure, in milliseconds."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.kit.errors import InvalidDataset, PayloadTooLarge
from services.trainer.core.datasets import MAX_LINE_BYTES, DatasetChecker, Summary
from services.trainer.core.examples import Conversation, Turn, parse_example
from services.trainer.core.model import DatasetFormat


def check(content: bytes, *, chunk: int = 7, max_bytes: int = 10**9) -> Summary:
    checker = DatasetChecker(max_bytes=max_bytes)
    for start in range(0, len(content), chunk):
        checker.feed(content[start : start + chunk])
    return checker.finish()


def violations(content: bytes) -> dict[str, str]:
    with pytest.raises(InvalidDataset) as caught:
        check(content, chunk=4096)
    return {violation.field: violation.description for violation in caught.value.violations}


def chat(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"messages": messages}).encode()


USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ({"messages": [USER, ASSISTANT]}, DatasetFormat.CHAT),
        ({"prompt": "a", "completion": "b"}, DatasetFormat.PROMPT_COMPLETION),
        ({"instruction": "a", "input": "", "output": "b"}, DatasetFormat.INSTRUCTION),
        ({"instruction": "a", "output": "b"}, DatasetFormat.INSTRUCTION),
        ({"text": "a"}, DatasetFormat.TEXT),
    ],
)
def test_the_first_example_tells_the_form(line: dict[str, Any], form: DatasetFormat) -> None:
    summary = check(json.dumps(line).encode())
    assert (summary.format, summary.num_examples) == (form, 1)


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_are_passed_over() -> None:
    content = b"\xef\xbb\xbf\r\n\n" + chat(USER, ASSISTANT) + b"\r\n  \n" + chat(USER, ASSISTANT)
    assert check(content).num_examples == 2


@given(st.integers(1, 64))
def test_the_cut_of_the_pieces_does_not_matter(chunk: int) -> None:
    content = b"\n".join([chat(USER, {"role": "assistant", "content": "Chào 😀"})] * 3)
    assert check(content, chunk=chunk) == check(content)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b'{"messages": []}', "messages: must be an array"),
        (b'{"messages": "x"}', "messages: must be an array"),
        (chat(USER), "at least one message of the assistant"),
        (chat(USER, {"role": "assistant", "content": ""}), "messages[1].content: must not be empty"),
        (chat(USER, {"role": "assistant", "content": None}), "messages[1].content: must be text"),
        (chat({"role": "robot", "content": "x"}, ASSISTANT), "messages[0].role: must be one of"),
        (chat({"role": ["user"], "content": "x"}, ASSISTANT), "messages[0].role: must be one of"),
        (chat(USER, ASSISTANT | {"weight": 2}), "messages[1].weight: must be 0 or 1"),
        (chat(USER, ASSISTANT | {"weight": 0}), "at least one message of the assistant"),
        (chat(USER, ASSISTANT | {"tool_calls": [{}]}), "messages[1].tool_calls"),
        (b'{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ],
)
def test_each_fault_is_told_with_its_line_and_place(line: bytes, why: str) -> None:
    assert why in violations(chat(USER, ASSISTANT) + b"\n\n" + line)["line 3"]


def test_every_line_has_the_form_of_the_first() -> None:
    assert "messages" in violations(chat(USER, ASSISTANT) + b'\n{"text": "x"}')["line 2"]


def test_only_the_first_ten_faults_are_told() -> None:
    assert list(violations(b"x\n" * 50)) == [f"line {n}" for n in range(1, 11)]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_a_file_without_examples_is_refused(content: bytes) -> None:
    assert "holds no example" in violations(content)["file"]


def test_a_line_without_end_is_refused_before_it_fills_memory() -> None:
    checker = DatasetChecker(max_bytes=10**9)
    checker.feed(b"x" * MAX_LINE_BYTES)
    with pytest.raises(InvalidDataset, match="line 1"):
        checker.feed(b"x")


def test_a_file_past_the_limit_is_refused_as_it_passes_it() -> None:
    with pytest.raises(PayloadTooLarge):
        check(chat(USER, ASSISTANT), max_bytes=10)


def test_an_example_of_weight_zero_is_context_only() -> None:
    example = parse_example(
        DatasetFormat.CHAT, {"messages": [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT]}
    )
    assert isinstance(example, Conversation)
    assert [turn.is_target for turn in example.turns] == [False, False, False, True]


def test_an_instruction_with_input_becomes_a_question() -> None:
    example = parse_example(DatasetFormat.INSTRUCTION, {"instruction": "Add", "input": "1 2", "output": "3"})
    assert example == Conversation((Turn("user", "Add\n\n1 2"), Turn("assistant", "3", is_target=True)))
