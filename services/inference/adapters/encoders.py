"""What the worker of an encoder needs of one: rows of a request, a tensor for rows, an answer out of tensors."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from services.inference.adapters.checkpoint import load_model
from services.inference.adapters.messages import Embed, Embedded, Loaded, Rerank, Reranked
from services.inference.adapters.placement import place
from services.inference.adapters.row_tokenizer import Row
from services.kit.errors import DataLoss, FieldViolation, InvalidArgument

# Their positions begin after the padding token's id: of 514, 512 can be used.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "roberta-prelayernorm")


class Encoder(Protocol):
    """A model that reads whole rows. size: numbers that it gives for each."""

    loaded: Loaded
    size: int

    def rows(self, request: Embed | Rerank) -> list[Row]:
        """What is to be computed for a request. Raises InvalidArgument, which names the input."""
        ...

    def compute(self, rows: Sequence[Row]) -> Tensor:
        """Returns (rows, size) float32 on the CPU, each row the same whatever the others are."""
        ...

    def answer(self, request: Embed | Rerank, computed: Tensor, num_tokens: int) -> Embedded | Reranked:
        """What to answer with. computed: (rows, size), in the order of `rows`."""
        ...


def load_encoder(folder: Path, device: str, auto_class: Any) -> PreTrainedModel:
    """A transformers model in float32: what it gives is compared across machines. Raises UnsupportedFormat."""
    placement = replace(place(folder, device), dtype=torch.float32)
    return load_model(auto_class, folder, placement)


def max_tokens(config: PreTrainedConfig, *stated: object) -> int:
    """The longest row: what the model has positions for, or less where its files say so."""
    positions = int(config.max_position_embeddings)
    if config.model_type in _OFFSET_POSITIONS:
        positions -= int(config.pad_token_id or 0) + 1
    return min([positions, *(length for length in stated if type(length) is int and length > 0)])


def padded(
    rows: Sequence[Row], pad_token_id: int, device: torch.device, *, has_types: bool = False
) -> dict[str, Tensor]:
    """What a model is called with: (rows, width) int64 each, padded on the right."""
    width = max(len(row.token_ids) for row in rows)
    inputs = {
        "input_ids": [[*row.token_ids, *[pad_token_id] * (width - len(row.token_ids))] for row in rows],
        "attention_mask": [[1] * len(row.token_ids) + [0] * (width - len(row.token_ids)) for row in rows],
    }
    if has_types:
        inputs["token_type_ids"] = [
            [*(row.type_ids or ()), *[0] * (width - len(row.type_ids or ()))] for row in rows
        ]
    return {name: torch.tensor(values, device=device) for name, values in inputs.items()}


def check_length(field: str, row: Row, most: int) -> None:
    """Raises InvalidArgument for a row that the model has no room for."""
    if len(row.token_ids) > most:
        why = f"has {len(row.token_ids)} tokens; the model takes {most}. Set truncate to cut it"
        raise InvalidArgument.at(field, why)


def check_finite(computed: Tensor, fields: Sequence[str]) -> None:
    """Raises DataLoss, naming the input, where broken weights give what is no number. computed: (fields, size)."""
    finite = torch.isfinite(computed).all(dim=1)
    if not bool(finite.all()):
        field = fields[int(finite.logical_not().nonzero()[0])]
        why = "the model's answer holds what is no number: its weights may be broken, pull it again"
        raise DataLoss(f"{field}: {why}", violations=[FieldViolation(field, why)])
