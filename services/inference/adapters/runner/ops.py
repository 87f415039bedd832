"""The operations that a model is made of, behind one port, and their reference in torch.

A compiled library, or a device with kernels of its own, implements `Ops`; nothing else computes. Shapes: T rows
(tokens), H query heads over K key/value heads, D components a head. The signatures are as coarse as a fused kernel
wants them: the attention of all sequences of a step, short and long, decoding or not, is one call a layer.
"""

import functools
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from services.inference.adapters.runner.architecture import Activation
from services.inference.adapters.runner.batch import AttentionPlan, Batch, DecodeGroup, PrefillPart
from services.inference.adapters.runner.linear import Linear
from services.inference.adapters.runner.quantize import Matrix
from services.inference.adapters.runner.quantized import quantized_linear

# Rows of a chunk that attend at once: their scores then stay in the cache.
_TILE_ROWS = 128


class Ops(Protocol):
    """What a model computes with."""

    def linear(self, weight: Matrix, bias: Tensor | None) -> Linear:
        """Prepare a matrix. weight: (out, in), which may be freed afterwards; bias: (out,)."""
        ...

    def norm(self, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        """RMSNorm (arXiv 1910.07467) over the last dimension, computed in float32.

        weight: float32. dtype: of what is returned.
        """
        ...

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary positions. heads: (T, any, D). cos, sin: (T, 1, R), R of the D components rotate."""
        ...

    def write(self, pool: Tensor, batch: Batch, keys: Tensor, values: Tensor) -> None:
        """Put keys and values, (T, K, D) each, where the batch says. pool: one layer of a KvPool."""
        ...

    def attend(
        self, queries: Tensor, pool: Tensor, plan: AttentionPlan, scale: float, softcap: float | None
    ) -> Tensor:
        """Causal attention over pages. queries: (T, H, D). Returns (T, H * D)."""
        ...

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """gate_up: (T, 2 * I), gates first. Returns activation(gate) * up: (T, I)."""
        ...


class DenseLinear:
    """A matrix as torch keeps it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight.contiguous()
        self._bias = bias

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return self._weight.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        return functional.linear(x, self._weight, self._bias)


class PackedLinear:
    """A matrix in the layout that oneDNN computes with: no reordering a call, half the time at small batches."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.num_bytes = weight.nbytes
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    @staticmethod
    def is_possible(weight: Tensor) -> bool:
        """Whether oneDNN takes this matrix."""
        is_supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and is_supported

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y


class TorchOps:
    """The reference: plain torch, on any device."""

    def linear(self, weight: Matrix, bias: Tensor | None) -> Linear:
        """Packed where that can be; in fewer bits where there is a product for them."""
        if not isinstance(weight, Tensor):
            return quantized_linear(weight, bias) or self.linear(weight.dequantized(), bias)
        return PackedLinear(weight, bias) if PackedLinear.is_possible(weight) else DenseLinear(weight, bias)

    def norm(self, x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
        """Rounded once, at the end. By the length of each row: torch's own goes over all of it three times more."""
        x = x.float()
        lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scales = lengths.mul_(x.shape[-1] ** -0.5).square_().add_(epsilon).rsqrt_()
        return (x * scales).mul_(weight).to(dtype)

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The half-split form: component i turns with i + R / 2."""
        num_rotated = cos.shape[-1]
        turning = heads[..., :num_rotated]
        half = num_rotated // 2
        swapped = torch.cat((turning[..., half:], turning[..., :half]), -1)  # Signs are in sin.
        turned = torch.addcmul(turning * cos, swapped, sin)
        if num_rotated == heads.shape[-1]:
            return turned
        return torch.cat((turned, heads[..., num_rotated:]), -1)

    def write(self, pool: Tensor, batch: Batch, keys: Tensor, values: Tensor) -> None:
        """One scatter for both."""
        size = keys.shape[-1]
        pool.view(-1, size).index_copy_(0, batch.kv_rows, torch.cat((keys, values), 1).view(-1, size))

    def attend(
        self, queries: Tensor, pool: Tensor, plan: AttentionPlan, scale: float, softcap: float | None
    ) -> Tensor:
        """Groups of single tokens by batched products, chunks in tiles."""
        outputs = [self._decode(queries, pool, group, scale, softcap) for group in plan.groups]
        outputs += [self._prefill(queries, pool, part, plan.window, scale, softcap) for part in plan.parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """SwiGLU or GeGLU (arXiv 2002.05202)."""
        gate, up = gate_up.chunk(2, -1)
        match activation:
            case "silu":
                return functional.silu(gate).mul_(up)
            case "gelu_tanh":
                return functional.gelu(gate, approximate="tanh").mul_(up)
            case "gelu":
                return functional.gelu(gate).mul_(up)

    def _decode(
        self, queries: Tensor, pool: Tensor, group: DecodeGroup, scale: float, softcap: float | None
    ) -> Tensor:
        """One token a row over its gathered past. Returns (rows, H * D)."""
        first, last = group.rows
        num_rows, num_kv_heads = last - first, pool.shape[2]
        batch, num_shared, num_keys = group.mask.shape
        keys, values = gathered(pool, group.gather).view(2, batch, num_keys, -1)
        grouped = queries[first:last].reshape(batch, num_shared, -1)  # (rows * K, H / K, D)
        if softcap is None:
            scores = torch.baddbmm(group.mask, grouped, keys.transpose(1, 2), alpha=scale)
        else:
            scores = torch.bmm(grouped, keys.transpose(1, 2))
            scores = (scores * (scale / softcap)).tanh_().mul_(softcap).add_(group.mask)
        if group.shared is None:
            return torch.bmm(scores.softmax(-1), values).view(num_rows, -1)
        # What all rows look at: one product a head for all of them, beside one a row for what is its own.
        by_head = (num_rows, num_kv_heads, num_shared)
        keys, shared_values = gathered(pool, group.shared).view(2, num_kv_heads, -1, keys.shape[-1])
        flat = grouped.view(*by_head, -1).transpose(0, 1).reshape(num_kv_heads, num_rows * num_shared, -1)
        before = torch.bmm(flat, keys.transpose(1, 2)).mul_(scale)  # (K, rows * H / K, shared keys)
        if softcap is not None:
            before = (before / softcap).tanh_().mul_(softcap)
        before = (
            before.view(num_kv_heads, num_rows, num_shared, -1).transpose(0, 1).reshape(batch, num_shared, -1)
        )
        weights = torch.cat((before, scores), -1).softmax(-1)
        before, after = weights.split((before.shape[-1], num_keys), -1)
        flat = before.view(*by_head, -1).transpose(0, 1).reshape(num_kv_heads, num_rows * num_shared, -1)
        mixed = torch.bmm(flat, shared_values).view(num_kv_heads, num_rows, num_shared, -1).transpose(0, 1)
        return (mixed.reshape(batch, num_shared, -1) + torch.bmm(after, values)).view(num_rows, -1)

    def _prefill(
        self,
        queries: Tensor,
        pool: Tensor,
        part: PrefillPart,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """One chunk over its past and itself, a tile of rows at a time. Returns (rows, H * D)."""
        first, last = part.rows
        num_kv_heads, head_size = pool.shape[2], pool.shape[4]
        num_shared = queries.shape[1] // num_kv_heads
        keys, values = gathered(pool, part.gather).view(2, num_kv_heads, -1, head_size)
        output = queries.new_empty(last - first, num_kv_heads, num_shared, head_size)
        for begin in range(0, last - first, _TILE_ROWS):
            end = min(begin + _TILE_ROWS, last - first)
            # Keys before `low` are out of every row's window, those from `high` on are the future of all.
            offset = part.start - part.first_key
            low = 0 if window is None else max(0, offset + begin - window + 1)
            high = offset + end
            tile = queries[first + begin : first + end].view(end - begin, num_kv_heads, num_shared, head_size)
            # Scaled here, and not where there is a number for each key: (K, H / K * rows, D).
            flat = (tile * scale).permute(1, 2, 0, 3).reshape(num_kv_heads, -1, head_size)
            scores = torch.bmm(flat, keys[:, low:high].transpose(1, 2))
            if softcap is not None:
                scores = (scores / softcap).tanh_().mul_(softcap)
            _hide(scores.view(num_kv_heads, num_shared, end - begin, -1), window)
            mixed = torch.bmm(scores.softmax(-1), values[:, low:high])
            output[begin:end] = mixed.view(num_kv_heads, num_shared, end - begin, -1).permute(2, 0, 1, 3)
        return output.view(last - first, -1)


def gathered(pool: Tensor, rows: Tensor) -> Tensor:
    """Copies of the pool's rows of one head's block."""
    return pool.view(-1, pool.shape[3] * pool.shape[4]).index_select(0, rows)


def _hide(scores: Tensor, window: int | None) -> None:
    """In place. scores: (..., rows, keys), whose last rows keys are the rows themselves."""
    num_rows, num_keys = scores.shape[-2:]
    if window is None:
        # Only the last square has a future in it.
        scores[..., -num_rows:].add_(_future(scores.dtype, scores.device)[:num_rows, :num_rows])
        return
    rows = torch.arange(num_keys - num_rows, num_keys, device=scores.device)[:, None]
    keys = torch.arange(num_keys, device=scores.device)
    scores.masked_fill_((keys > rows) | (keys <= rows - window), -torch.inf)


@functools.cache
def _future(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(tile rows, tile rows): minus infinity where the key comes after the row, else 0."""
    return torch.full((_TILE_ROWS, _TILE_ROWS), -torch.inf, dtype=dtype, device=device).triu_(1)
