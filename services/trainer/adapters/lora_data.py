"""Examples as tokens: the model's own chat template, and a mask of what is learned. Runs in the worker."""

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jinja2
import torch

from services.kit.errors import InvalidDataset, UnsupportedFormat
from services.trainer.adapters.train_messages import DataFile
from services.trainer.core.datasets import BOM, parse_line
from services.trainer.core.examples import BadExample, Conversation, Passage, parse_example

IGNORED: Final = -100
"""The label of a token that is not learned, as torch's cross entropy has it."""

_PROBED = 64


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example of at least one token to learn. labels: the token itself, or IGNORED; of the length of
    token_ids.
    """

    token_ids: list[int]
    labels: list[int]

    @property
    def num_targets(self) -> int:
        """Tokens to learn from; the first of all is predicted from nothing and does not count."""
        return sum(label != IGNORED for label in self.labels[1:])


class ExampleEncoder:
    """Turns examples into tokens, cut at max_tokens."""

    def __init__(self, tokenizer: Any, *, max_tokens: int) -> None:
        """tokenizer: a transformers tokenizer. Raises UnsupportedFormat if it cannot tell where its tokens
        lie.
        """
        if not tokenizer.is_fast:
            raise UnsupportedFormat(
                "the model's tokenizer cannot tell which text a token stands for; it cannot be taught"
            )
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def encode(self, example: Conversation | Passage) -> Encoded | None:
        """The example's tokens, or None if nothing to learn is left after the cut. Raises BadExample."""
        text, spans = self._render(example)
        found = self._tokenizer(
            text,
            add_special_tokens=self._tokenizer.chat_template is None or isinstance(example, Passage),
            return_offsets_mapping=True,
            truncation=True,
            max_length=self._max_tokens,
        )
        token_ids: list[int] = found["input_ids"]
        labels = [
            token if end > start and any(first <= start < last for first, last in spans) else IGNORED
            for token, (start, end) in zip(token_ids, found["offset_mapping"], strict=True)
        ]
        encoded = Encoded(token_ids, labels)
        return encoded if encoded.num_targets else None

    def _render(self, example: Conversation | Passage) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans of it that are learned."""
        end = self._tokenizer.eos_token or ""
        match example:
            case Passage(text):
                return text + end, [(0, len(text) + len(end))]
            case Conversation() if self._tokenizer.chat_template is not None:
                return self._render_chat(example)
            case Conversation((asked, answer)):
                question = f"{asked.content}\n"
                text = question + answer.content + end
                return text, [(len(question), len(text))]
            case _:
                raise BadExample("is a conversation, but the model has no chat template")

    def _render_chat(self, example: Conversation) -> tuple[str, list[tuple[int, int]]]:
        messages = [{"role": turn.role, "content": turn.content} for turn in example.turns]
        text = self._apply(messages)
        spans = []
        for index, turn in enumerate(example.turns):
            if not turn.is_target:
                continue
            before = self._apply(messages[:index], opens_answer=True)
            after = self._apply(messages[: index + 1])
            # A template that rewrites earlier turns (drops their thoughts, say) leaves only the last.
            if after.startswith(before) and text.startswith(after):
                spans.append((len(before), len(after.rstrip())))
        if not spans:
            raise BadExample("does not go through the model's chat template as it is")
        return text, spans

    def _apply(self, messages: list[dict[str, str]], *, opens_answer: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens_answer
            )
        except jinja2.TemplateError as error:
            raise BadExample(f"is refused by the model's chat template: {error}") from None
        return text


class Examples:
    """A dataset file by line, encoded when it is asked for: memory does not grow with the file."""

    def __init__(self, file: DataFile, encoder: ExampleEncoder) -> None:
        self._format = file.format
        self._encoder = encoder
        self._file = Path(file.path).open("rb")  # noqa: SIM115 - open as long as the worker lives
        self._starts = array("Q")
        start = 0
        for line in self._file:
            if line.removeprefix(BOM if start == 0 else b"").strip():
                self._starts.append(start)
            start += len(line)
        self.num_passed_over = 0

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int) -> Encoded | None:
        """One example, or None if there is nothing to learn from it."""
        self._file.seek(self._starts[index])
        line = self._file.readline()
        try:
            value = parse_line(line.removeprefix(BOM))
            encoded = self._encoder.encode(parse_example(self._format, value))
        except BadExample:
            encoded = None
        self.num_passed_over += encoded is None
        return encoded

    def probe(self) -> None:
        """Raises InvalidDataset if nothing can be learned from any of the first examples."""
        if all(self.read(index) is None for index in range(min(_PROBED, len(self)))):
            raise InvalidDataset.at(
                "job.dataset",
                "holds nothing to learn for this model within max_sequence_tokens: raise it, or check "
                "the examples",
            )
        self.num_passed_over = 0


def batch_indices(num_examples: int, batch_size: int, step: int, seed: int) -> list[int]:
    """The examples of a step, counted from 0. A function of the seed alone, so that a resumed job goes on
    with the same ones.

    The batches are cut from one epoch's order after another; each epoch has its own.
    """
    first = step * batch_size
    indices: list[int] = []
    for epoch in range(first // num_examples, (first + batch_size - 1) // num_examples + 1):
        order = _epoch_order(num_examples, seed, epoch)
        offset = epoch * num_examples
        indices += order[max(0, first - offset) : max(0, first + batch_size - offset)]
    return indices


@lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> list[int]:
    order = list(range(num_examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Examples that go through the model together. All (batch, length) int64, padded on the right."""

    token_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


def micro_batches(examples: Sequence[Encoded], max_tokens: int) -> Iterator[MicroBatch]:
    """Split a batch so that each part has at most max_tokens with its padding, or one example."""
    part: list[Encoded] = []
    for example in sorted(examples, key=lambda example: len(example.token_ids)):
        if part and len(example.token_ids) * (len(part) + 1) > max_tokens:
            yield _pad(part)
            part = []
        part.append(example)
    if part:
        yield _pad(part)


def _pad(part: Sequence[Encoded]) -> MicroBatch:
    length = max(len(example.token_ids) for example in part)

    def rows(values: Iterator[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (length - len(row)) for row in values])

    return MicroBatch(
        token_ids=rows((example.token_ids for example in part), 0),
        attention_mask=rows(([1] * len(example.token_ids) for example in part), 0),
        labels=rows((example.labels for example in part), IGNORED),
    )
