"""A model that reads a query and a document together and says how well they fit."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from services.inference.adapters import encoders
from services.inference.adapters.messages import Embed, Embedded, Loaded, Rerank, Reranked
from services.inference.adapters.model_folder import read_json
from services.inference.adapters.row_tokenizer import Row, RowTokenizer
from services.kit.errors import UnsupportedFormat, WrongModelKind


class CrossEncoder:
    """A sequence classifier with one label. Implements Encoder."""

    size = 1

    def __init__(self, folder: Path, device: str) -> None:
        model = encoders.load_encoder(folder, device, AutoModelForSequenceClassification)
        config = model.config
        if config.num_labels != 1:
            raise UnsupportedFormat(f"the model tells {config.num_labels} labels apart; a reranker has one")
        self._model = model
        stated = read_json(folder / "tokenizer_config.json").get("model_max_length")
        self._max_tokens = encoders.max_tokens(config, stated)
        self._tokenizer = RowTokenizer(folder, self._max_tokens)
        if config.pad_token_id is None:  # A decoder's head finds the end of each row by it.
            config.pad_token_id = self._tokenizer.pad_token_id
        self._has_types = getattr(config, "type_vocab_size", 0) > 1
        self.loaded = Loaded(str(model.device), "float32", self._max_tokens)

    def rows(self, request: Embed | Rerank) -> list[Row]:
        """A row for each document, after the query."""
        if isinstance(request, Embed):
            raise WrongModelKind("a reranker makes no vectors")
        rows = self._tokenizer.pairs(request.query, request.documents, truncate=request.truncate)
        for index, row in enumerate(rows):
            encoders.check_length(f"documents[{index}]", row, self._max_tokens)
        return rows

    @torch.inference_mode()
    def compute(self, rows: Sequence[Row]) -> Tensor:
        """Logits. Returns (rows, 1)."""
        inputs = encoders.padded(
            rows, self._tokenizer.pad_token_id, self._model.device, has_types=self._has_types
        )
        logits: Tensor = self._model(**inputs).logits
        return logits.to("cpu", torch.float32)

    def answer(self, request: Embed | Rerank, computed: Tensor, num_tokens: int) -> Embedded | Reranked:
        """Scores from 0 to 1: the logistic function of each logit."""
        encoders.check_finite(computed, [f"documents[{index}]" for index in range(len(computed))])
        # In float64, so that two good documents do not both become 1.
        return Reranked(tuple(torch.sigmoid(computed[:, 0].double()).tolist()), num_tokens)
