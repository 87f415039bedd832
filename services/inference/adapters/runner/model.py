"""The decoder: from rows of tokens to hidden states and logits, over a paged KV pool.

One definition for Llama, SmolLM2, Mistral, Qwen 2, 2.5 and 3, Gemma 2 and 3, and Phi-3: what differs is in
`architecture.py`, what computes is in `ops.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from services.inference.adapters.runner.architecture import Architecture
from services.inference.adapters.runner.batch import Batch
from services.inference.adapters.runner.kv_pool import KvPool
from services.inference.adapters.runner.linear import Linear
from services.inference.adapters.runner.lora import ActiveAdapter, Slot
from services.inference.adapters.runner.ops import DenseLinear, Ops
from services.inference.adapters.runner.quantize import Matrix
from services.inference.adapters.runner.weights import Checkpoint

OnProgress = Callable[[float], None]

# Tokens a row whose logits are computed again: those among which the pick is close.
_NUM_SHARPENED: Final = 8


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. The norms after attention and MLP, and those of heads, are None where a family has none."""

    norm: Tensor
    qkv: Linear
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    post_norm: Tensor | None
    mlp_post_norm: Tensor | None


class Decoder:
    """A model in memory."""

    def __init__(
        self, architecture: Architecture, checkpoint: Checkpoint, ops: Ops, on_progress: OnProgress
    ) -> None:
        """Reads all weights. Raises UnsupportedFormat for a checkpoint that is not what its config says."""
        self.architecture = architecture
        self._ops = ops
        shape = (architecture.vocab_size, architecture.hidden_size)
        embedding, head = "model.embed_tokens.weight", "lm_head.weight"
        if architecture.ties_embeddings or head not in checkpoint:
            head = embedding
        weight = checkpoint.get(head, shape)
        self._head = ops.linear(weight, None)
        # Beside the prepared matrix single rows of it are read, by `_sharpen` and, if it is tied, as embedding.
        is_kept = isinstance(self._head, DenseLinear)
        self._head_rows, num_bytes = (weight, weight.nbytes) if is_kept else checkpoint.rows(head, shape)
        self._embedding, more = (
            (self._head_rows, 0) if head == embedding else checkpoint.rows(embedding, shape)
        )
        self._num_vocabulary_bytes = num_bytes + more + (0 if is_kept else self._head.num_bytes)
        self._final_norm = _norm(architecture, checkpoint, "model.norm.weight", architecture.hidden_size)
        self._layers: list[LayerWeights] = []
        for index in range(len(architecture.layers)):
            self._layers.append(_layer(architecture, checkpoint, ops, f"model.layers.{index}."))
            on_progress((index + 1) / len(architecture.layers))
        device = self._embedding.device
        self._frequencies = [
            torch.tensor(rope.inverse_frequencies, dtype=torch.float32, device=device)
            for rope in architecture.ropes
        ]

    @property
    def num_bytes(self) -> int:
        """What the weights take in memory."""
        matrices = [
            matrix
            for layer in self._layers
            for matrix in (layer.qkv, layer.output, layer.gate_up, layer.down)
        ]
        return self._num_vocabulary_bytes + sum(matrix.num_bytes for matrix in matrices)

    def hidden(self, batch: Batch, pool: KvPool, adapters: Sequence[ActiveAdapter] = ()) -> Tensor:
        """Run all layers; keys and values go into the pool. Returns (T, hidden_size) float32, not normalized yet."""
        architecture = self.architecture
        x = functional.embedding(batch.token_ids, self._embedding)  # (T, hidden)
        if architecture.scales_embedding:
            # The factor is rounded to the model's numbers, as it was when the model was trained.
            x = x * torch.tensor(architecture.hidden_size**0.5, dtype=x.dtype)
        step = _Step(batch, pool, self._turns(batch.positions, x.dtype), adapters)
        x = x.float()  # What layers add up is rounded once, where it is used, instead of after each of them.
        for index, layer in enumerate(self._layers):
            x = x + self._post(self._attention(step, index, self._norm(x, layer.norm)), layer.post_norm)
            x = x + self._post(self._mlp(step, index, self._norm(x, layer.mlp_norm)), layer.mlp_post_norm)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (rows, hidden_size) of `hidden`. Returns (rows, vocab) in float32."""
        normalized = self._norm(hidden, self._final_norm)
        logits = self._sharpen(self._head(normalized), normalized)
        softcap = self.architecture.final_softcap
        return logits if softcap is None else (logits / softcap).tanh_().mul_(softcap)

    def _sharpen(self, logits: Tensor, normalized: Tensor) -> Tensor:
        """Compute the highest logits of each row again, in float32. (rows, vocab) in, float32 out.

        A bfloat16 near 16 is a multiple of 1/8: rounded to that, the likeliest tokens often tie, and the order of the
        vocabulary would decide between them.
        """
        if logits.dtype == torch.float32:
            return logits
        token_ids = logits.topk(min(_NUM_SHARPENED, logits.shape[1])).indices  # (rows, sharpened)
        weights = functional.embedding(token_ids, self._head_rows).float()  # (rows, sharpened, hidden_size)
        exact = torch.bmm(weights, normalized.float()[:, :, None])[:, :, 0]
        return logits.float().scatter_(1, token_ids, exact)

    def _turns(self, positions: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Cosine and sine for each rope, (T, 1, rotated size) each; the first half of the sines is negative."""
        turns = []
        for frequencies, rope in zip(self._frequencies, self.architecture.ropes, strict=True):
            angles = positions[:, None].float() * frequencies  # (T, rotated size / 2)
            cos, sin = angles.cos() * rope.scale, angles.sin() * rope.scale
            turns.append(
                (torch.cat((cos, cos), -1)[:, None].to(dtype), torch.cat((-sin, sin), -1)[:, None].to(dtype))
            )
        return turns

    def _attention(self, step: "_Step", index: int, x: Tensor) -> Tensor:
        """x: (T, hidden_size), normalized. Returns (T, hidden_size)."""
        architecture, ops, layer = self.architecture, self._ops, self._layers[index]
        num_heads, num_kv_heads = architecture.num_heads, architecture.num_kv_heads
        qkv = step.through(layer.qkv, index, "qkv", x)
        heads = qkv.view(len(x), num_heads + 2 * num_kv_heads, architecture.head_size)
        queries, keys, values = heads.split((num_heads, num_kv_heads, num_kv_heads), 1)
        turns = step.turns[architecture.layers[index].rope]
        if layer.query_norm is not None and layer.key_norm is not None:
            queries = ops.rotate(self._norm(queries, layer.query_norm), *turns)
            keys = ops.rotate(self._norm(keys, layer.key_norm), *turns)
        else:  # Both at once: half the calls.
            queries, keys = ops.rotate(heads[:, :-num_kv_heads], *turns).split((num_heads, num_kv_heads), 1)
        pool = step.pool.layers[index]
        ops.write(pool, step.batch, keys, values)
        plan = step.batch.plans[architecture.layers[index].window]
        mixed = ops.attend(queries, pool, plan, architecture.attention_scale, architecture.attention_softcap)
        return step.through(layer.output, index, "output", mixed)

    def _mlp(self, step: "_Step", index: int, x: Tensor) -> Tensor:
        """x: (T, hidden_size), normalized. Returns (T, hidden_size)."""
        layer = self._layers[index]
        gated = self._ops.gate(step.through(layer.gate_up, index, "gate_up", x), self.architecture.activation)
        return step.through(layer.down, index, "down", gated)

    def _post(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else self._norm(x, weight)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """In the model's number type."""
        return self._ops.norm(x, weight, self.architecture.norm_epsilon, self._embedding.dtype)


@dataclass(frozen=True, slots=True)
class _Step:
    """What all layers of a step share. turns: cosines and sines by rope."""

    batch: Batch
    pool: KvPool
    turns: Sequence[tuple[Tensor, Tensor]]
    adapters: Sequence[ActiveAdapter]

    def through(self, linear: Linear, layer: int, slot: Slot, x: Tensor) -> Tensor:
        """Through a matrix, and what adapters add to it. x: (T, in). Returns (T, out)."""
        y = linear(x)
        for active in self.adapters:
            active.add(layer, slot, x, y)
        return y


def _layer(architecture: Architecture, checkpoint: Checkpoint, ops: Ops, prefix: str) -> LayerWeights:
    """One layer's weights, matrices with the same input stacked into one."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."

    def norm(name: str, size: int = hidden) -> Tensor:
        return _norm(architecture, checkpoint, f"{name}.weight", size)

    posts = architecture.has_post_norms
    heads = architecture.normalizes_heads
    # Gemma's names: what others call "post attention", before the MLP, is "pre feedforward" there.
    mlp_norm = "pre_feedforward_layernorm" if posts else "post_attention_layernorm"
    out_size = architecture.num_heads * architecture.head_size
    return LayerWeights(
        norm=norm(f"{prefix}input_layernorm"),
        qkv=ops.linear(*_qkv(architecture, checkpoint, attention)),
        output=ops.linear(
            checkpoint.matrix([f"{attention}o_proj.weight"], [hidden], out_size),
            checkpoint.find(f"{attention}o_proj.bias", (hidden,)),
        ),
        mlp_norm=norm(f"{prefix}{mlp_norm}"),
        gate_up=ops.linear(*_gate_up(architecture, checkpoint, mlp)),
        down=ops.linear(
            checkpoint.matrix([f"{mlp}down_proj.weight"], [hidden], inner),
            checkpoint.find(f"{mlp}down_proj.bias", (hidden,)),
        ),
        query_norm=norm(f"{attention}q_norm", architecture.head_size) if heads else None,
        key_norm=norm(f"{attention}k_norm", architecture.head_size) if heads else None,
        post_norm=norm(f"{prefix}post_attention_layernorm") if posts else None,
        mlp_post_norm=norm(f"{prefix}post_feedforward_layernorm") if posts else None,
    )


def _norm(architecture: Architecture, checkpoint: Checkpoint, name: str, size: int) -> Tensor:
    """A norm's weight, in float32, with the one added that some families add."""
    weight = checkpoint.get(name, (size,), torch.float32)
    return weight + 1.0 if architecture.adds_one_to_norm else weight


def _qkv(architecture: Architecture, checkpoint: Checkpoint, prefix: str) -> tuple[Matrix, Tensor | None]:
    """Queries, keys and values as one matrix, and its bias."""
    rows = [
        heads * architecture.head_size
        for heads in (architecture.num_heads, architecture.num_kv_heads, architecture.num_kv_heads)
    ]
    if f"{prefix}qkv_proj.weight" in checkpoint:
        return checkpoint.matrix([f"{prefix}qkv_proj.weight"], [sum(rows)], architecture.hidden_size), None
    names = [f"{prefix}{kind}_proj" for kind in "qkv"]
    weight = checkpoint.matrix([f"{name}.weight" for name in names], rows, architecture.hidden_size)
    biases = [checkpoint.find(f"{name}.bias", (size,)) for name, size in zip(names, rows, strict=True)]
    present = [bias for bias in biases if bias is not None]
    return weight, torch.cat(present) if len(present) == len(biases) else None


def _gate_up(architecture: Architecture, checkpoint: Checkpoint, prefix: str) -> tuple[Matrix, Tensor | None]:
    """Gate and up as one matrix, and its bias."""
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    if f"{prefix}gate_up_proj.weight" in checkpoint:
        return checkpoint.matrix([f"{prefix}gate_up_proj.weight"], [2 * inner], hidden), None
    names = [f"{prefix}gate_proj", f"{prefix}up_proj"]
    weight = checkpoint.matrix([f"{name}.weight" for name in names], [inner, inner], hidden)
    biases = [checkpoint.find(f"{name}.bias", (inner,)) for name in names]
    present = [bias for bias in biases if bias is not None]
    return weight, torch.cat(present) if len(present) == len(biases) else None
