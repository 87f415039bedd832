"""A model that turns texts into vectors, as sentence-transformers does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel

from services.inference.adapters import encoders
from services.inference.adapters.messages import Embed, Embedded, EmbedInput, Loaded, Rerank, Reranked
from services.inference.adapters.model_folder import read_json, read_json_list
from services.inference.adapters.row_tokenizer import Row, RowTokenizer
from services.kit.errors import InvalidArgument, UnsupportedFormat

_POOLINGS: Final = ("mean", "cls", "max", "lasttoken")
# Of sentence-transformers' modules, by the last part of their names.
_MODULES: Final = ("Transformer", "Pooling", "Normalize")


class Embedder:
    """A sentence-transformers folder: a transformer, a pooling, a normalization. Implements Encoder."""

    def __init__(self, folder: Path, device: str) -> None:
        _check_modules(folder)
        self._pooling = _pooling(folder)
        model = encoders.load_encoder(folder, device, AutoModel)
        self._model = model
        self._config = model.config
        stated = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        self._max_tokens = encoders.max_tokens(self._config, stated)
        self._tokenizer = RowTokenizer(folder, self._max_tokens)
        self.size = int(self._config.hidden_size)
        self.loaded = Loaded(str(model.device), "float32", self._max_tokens)

    def rows(self, request: Embed | Rerank) -> list[Row]:
        """A row for each input; of a Rerank, one for the query and one for each document."""
        match request:
            case Rerank(query, documents):
                inputs = [EmbedInput(query), *(EmbedInput(document) for document in documents)]
            case Embed():
                inputs = list(request.inputs)
                if request.dimensions > self.size:
                    why = f"must be at most {self.size}, the size of this model's vectors"
                    raise InvalidArgument.at("dimensions", why)
        fields = _fields(request)
        for field, item in zip(fields, inputs, strict=True):
            self._check(field, item)
        texts = iter(
            self._tokenizer.texts(
                [item.text for item in inputs if not item.token_ids], truncate=request.truncate
            )
        )
        rows = [self._given(item, request.truncate) if item.token_ids else next(texts) for item in inputs]
        for field, row in zip(fields, rows, strict=True):
            encoders.check_length(field, row, self._max_tokens)
        return rows

    def _check(self, field: str, item: EmbedInput) -> None:
        if not item.token_ids and not item.text.strip():
            raise InvalidArgument.at(field, "must not be empty")
        if max(item.token_ids, default=0) >= self._config.vocab_size:
            raise InvalidArgument.at(f"{field}.tokens", "holds a token that the model does not have")

    def _given(self, item: EmbedInput, truncate: bool) -> Row:
        return Row(item.token_ids[: self._max_tokens] if truncate else item.token_ids)

    @torch.inference_mode()
    def compute(self, rows: Sequence[Row]) -> Tensor:
        """Vectors of length 1. Returns (rows, size)."""
        inputs = encoders.padded(rows, self._tokenizer.pad_token_id, self._model.device)
        hidden = self._model(**inputs).last_hidden_state  # (rows, width, size)
        mask = inputs["attention_mask"][:, :, None]  # (rows, width, 1)
        lengths = mask.sum(dim=1)  # (rows, 1)
        match self._pooling:
            case "cls":
                vectors = hidden[:, 0]
            case "lasttoken":
                vectors = hidden[torch.arange(len(rows)), lengths[:, 0] - 1]
            case "max":
                vectors = hidden.masked_fill(mask == 0, -torch.inf).amax(dim=1)
            case _:
                vectors = (hidden * mask).sum(dim=1) / lengths
        return normalize(vectors, dim=-1).to("cpu", torch.float32)

    def answer(self, request: Embed | Rerank, computed: Tensor, num_tokens: int) -> Embedded | Reranked:
        """The vectors, or the cosines between the first and each other one."""
        encoders.check_finite(computed, _fields(request))
        match request:
            case Rerank():
                return Reranked(tuple((computed[1:] @ computed[0]).tolist()), num_tokens)
            case Embed():
                kept = normalize(computed[:, : request.dimensions or self.size], dim=-1).contiguous()
                return Embedded(kept.numpy().tobytes(), kept.shape[1], num_tokens)


def _fields(request: Embed | Rerank) -> list[str]:
    """What each row is called in the request."""
    if isinstance(request, Rerank):
        return ["query", *(f"documents[{index}]" for index in range(len(request.documents)))]
    return [f"inputs[{index}]" for index in range(len(request.inputs))]


def _check_modules(folder: Path) -> None:
    """Raises UnsupportedFormat for a model that goes on where ours ends: its vectors would be others."""
    modules = read_json_list(folder / "modules.json")
    names = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    if unknown := [name for name in names if name not in _MODULES]:
        raise UnsupportedFormat(f"the model has a module {', '.join(unknown)}, which is not supported")


def _pooling(folder: Path) -> str:
    """`mean`, `cls`, `max` or `lasttoken`, as the folder of sentence-transformers' pooling module says.

    Raises UnsupportedFormat.
    """
    config = read_json(folder / "1_Pooling" / "config.json")
    chosen = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    if isinstance(mode := config.get("pooling_mode"), str):  # As newer releases write it.
        chosen = mode.split("+")
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in _POOLINGS:
        raise UnsupportedFormat(f"the model pools by {', '.join(chosen)}, which is not supported")
    return chosen[0]
