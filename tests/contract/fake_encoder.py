"""An encoder without weights: a row's numbers are functions of its tokens. It obeys the Encoder port to the letter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from services.inference.adapters.messages import Embed, Embedded, Loaded, Rerank, Reranked
from services.inference.adapters.row_tokenizer import Row
from services.kit.errors import InvalidArgument


class FakeEncoder:
    """A text's tokens are its characters. batches: how many rows each computed at once."""

    size = 2
    loaded = Loaded("cpu", "float32", 32)

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def rows(self, request: Embed | Rerank) -> list[Row]:
        """A row for each text."""
        texts = (
            [request.query, *request.documents]
            if isinstance(request, Rerank)
            else [item.text for item in request.inputs]
        )
        for index, text in enumerate(texts):
            if not text or (len(text) > self.loaded.context_length and not request.truncate):
                name = f"documents[{index - 1}]" if isinstance(request, Rerank) else f"inputs[{index}]"
                raise InvalidArgument.at("query" if name == "documents[-1]" else name, "must fit")
        return [Row([ord(char) for char in text[: self.loaded.context_length]]) for text in texts]

    def compute(self, rows: Sequence[Row]) -> Tensor:
        """Length and sum."""
        self.batches.append(["".join(map(chr, row.token_ids)) for row in rows])
        return torch.tensor([[len(row.token_ids), sum(row.token_ids)] for row in rows], dtype=torch.float32)

    def answer(self, request: Embed | Rerank, computed: Tensor, num_tokens: int) -> Embedded | Reranked:
        """Vectors of length 1, or how near the sums are."""
        if isinstance(request, Rerank):
            scores = 1 / (1 + (computed[1:, 1] - computed[0, 1]).abs())
            return Reranked(tuple(scores.tolist()), num_tokens)
        vectors = torch.nn.functional.normalize(computed, dim=-1)
        return Embedded(vectors.numpy().tobytes(), self.size, num_tokens)
