"""The worker of an embedding model: `main` runs in a child process of its own."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from services.inference.adapters import checkpoint
from services.inference.adapters.messages import (
    Embed,
    Embedded,
    EmbedderInit,
    EmbedInput,
    Loaded,
    LoadProgress,
)
from services.inference.adapters.model_folder import check_folder, read_json
from services.inference.adapters.placement import place, use_all_cores
from services.inference.adapters.tokenizer import load_tokenizer
from services.kit.errors import InvalidArgument, LaresError, UnsupportedFormat
from services.kit.worker_port import WorkerPort

_MAX_BATCH_TOKENS = 16_384


def main(init: EmbedderInit, port: WorkerPort[Embed, Embedded]) -> None:
    """Load, say so, and answer until told to stop."""
    checkpoint.quiet_libraries()
    use_all_cores()
    port.progress(LoadProgress(0.5))
    embedder = Embedder(Path(init.folder), init.device)
    port.ready(embedder.loaded)
    while not port.closed:
        for incoming in port.receive():
            if incoming.message is None:
                continue
            try:
                port.post(
                    events=[(incoming.call_id, embedder.embed(incoming.message))], finished=[incoming.call_id]
                )
            except LaresError as error:
                port.fail(incoming.call_id, error)


class Embedder:
    """A sentence-transformers folder: a transformer, a pooling, a normalization."""

    def __init__(self, folder: Path, device: str) -> None:
        check_folder(folder)
        placement = place(folder, device)
        # Vectors are compared across machines: they are computed in float32 wherever they are.
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModel.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (ValueError, OSError, KeyError) as error:
            raise UnsupportedFormat(f"the model cannot be loaded: {error}") from error
        self._model = model.to(placement.device).eval()
        self._tokenizer = load_tokenizer(folder)
        self._max_tokens = _max_tokens(folder, int(config.max_position_embeddings))
        self._vocab_size = int(config.vocab_size)
        self._pooling = _pooling(folder)
        self.loaded = Loaded(placement.device, "float32", self._max_tokens)

    @torch.inference_mode()
    def embed(self, request: Embed) -> Embedded:
        """Vectors in the order of the inputs.

        Raises InvalidArgument for an input that is empty or too long.
        """
        rows = [self._token_ids(index, item, request.truncate) for index, item in enumerate(request.inputs)]
        pooled: dict[int, Tensor] = {}
        # Of one length as far as can be: padding is computed too.
        for batch in _batches(sorted(range(len(rows)), key=lambda index: len(rows[index])), rows):
            for index, vector in zip(batch, self._pool([rows[index] for index in batch]), strict=True):
                pooled[index] = vector
        vectors = torch.stack([pooled[index] for index in range(len(rows))])  # (inputs, size)
        size = vectors.shape[1]
        if request.dimensions > size:
            raise InvalidArgument.at(
                "dimensions", f"must be at most {size}, the size of this model's vectors"
            )
        vectors = torch.nn.functional.normalize(vectors[:, : request.dimensions or size], dim=-1)
        vectors = vectors.to("cpu", torch.float32).contiguous()
        return Embedded(vectors.numpy().tobytes(), vectors.shape[1], sum(len(row) for row in rows))

    def _token_ids(self, index: int, item: EmbedInput, truncate: bool) -> list[int]:
        field = f"inputs[{index}]"
        if item.token_ids:
            token_ids = list(item.token_ids)
            if max(token_ids) >= self._vocab_size:
                raise InvalidArgument.at(f"{field}.tokens", "holds a token that the model does not have")
        else:
            if not item.text.strip():
                raise InvalidArgument.at(f"{field}.text", "must not be empty")
            token_ids = list(self._tokenizer.encode(item.text))
        if len(token_ids) <= self._max_tokens:
            return token_ids
        if not truncate:
            raise InvalidArgument.at(
                field,
                f"has {len(token_ids)} tokens; the model takes {self._max_tokens}. Set truncate to cut it",
            )
        if item.token_ids:
            return token_ids[: self._max_tokens]
        # The tokenizer cuts before it adds its special tokens, so that the last of them is kept.
        return list(self._tokenizer.encode(item.text, max_tokens=self._max_tokens))

    def _pool(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of rows of tokens. Returns (rows, size), length 1."""
        width = max(len(row) for row in rows)
        pad = self._tokenizer.pad_token_id or 0
        padded = [[*row, *[pad] * (width - len(row))] for row in rows]
        input_ids = torch.tensor(padded, device=self._model.device)  # (rows, width)
        lengths = torch.tensor([len(row) for row in rows], device=self._model.device)  # (rows,)
        mask = torch.arange(width, device=self._model.device) < lengths[:, None]  # (rows, width)
        hidden = self._model(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
        match self._pooling:
            case "cls":
                vectors = hidden[:, 0]  # (rows, size)
            case "lasttoken":
                vectors = hidden[torch.arange(len(rows)), lengths - 1]
            case "max":
                vectors = hidden.masked_fill(~mask[:, :, None], -torch.inf).amax(dim=1)
            case _:
                vectors = (hidden * mask[:, :, None]).sum(dim=1) / lengths[:, None]
        return torch.nn.functional.normalize(vectors, dim=-1)


def _batches(order: Sequence[int], rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Cut an order of rows, shortest first, into batches of a bounded number of tokens, padding counted."""
    batches: list[list[int]] = []
    for index in order:
        if batches and (len(batches[-1]) + 1) * len(rows[index]) <= _MAX_BATCH_TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _max_tokens(folder: Path, positions: int) -> int:
    """What sentence-transformers would cut at, or what the model has positions for."""
    found = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return min(found, positions) if isinstance(found, int) and found > 0 else positions


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
    match chosen:
        case []:
            return "mean"
        case ["mean" | "cls" | "max" | "lasttoken"]:
            return chosen[0]
        case _:
            raise UnsupportedFormat(f"the model pools by {', '.join(chosen)}, which is not supported")
