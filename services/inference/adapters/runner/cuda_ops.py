"""The operations on a CUDA card: attention by torch's fused kernels over gathered pages. Not run on a card yet.

A group of query heads that share a key/value head takes the place of the queries of one head, or of the heads of one
sequence: no key is copied for each query head, and the kernels see four dimensions, as they want.

    decode      mask needed, so the memory-efficient kernel: (rows, K, H / K, D) over (rows, K, keys, D)
    prefill     flash: (K, H / K, rows, D) over (K, 1, keys, D), causal and aligned at the last key
    window      a mask where a row of the chunk does not see all before it
    soft cap    no kernel has it: the reference
"""

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from services.inference.adapters.runner.batch import DecodeGroup, PrefillPart
from services.inference.adapters.runner.ops import TorchOps, gathered


class CudaOps(TorchOps):
    """The reference but for attention. Matrices stay as torch keeps them: only a CPU packs them."""

    def _decode(
        self, queries: Tensor, pool: Tensor, group: DecodeGroup, scale: float, softcap: float | None
    ) -> Tensor:
        if softcap is not None or group.shared is not None:
            return super()._decode(queries, pool, group, scale, softcap)
        first, last = group.rows
        num_kv_heads, head_size = pool.shape[2], pool.shape[4]
        by_head = (last - first, num_kv_heads)
        keys, values = gathered(pool, group.gather).view(2, *by_head, -1, head_size)
        mixed = scaled_dot_product_attention(
            queries[first:last].reshape(*by_head, -1, head_size),
            keys,
            values,
            attn_mask=group.mask.view(*by_head, *group.mask.shape[1:]),
            scale=scale,
        )  # (rows, K, H / K, D)
        return mixed.reshape(last - first, -1)

    def _prefill(
        self,
        queries: Tensor,
        pool: Tensor,
        part: PrefillPart,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        if softcap is not None:
            return super()._prefill(queries, pool, part, window, scale, softcap)
        first, last = part.rows
        num_rows, num_kv_heads, head_size = last - first, pool.shape[2], pool.shape[4]
        grouped = queries[first:last].reshape(num_rows, num_kv_heads, -1, head_size).permute(1, 2, 0, 3)
        num_keys = part.start - part.first_key + num_rows  # The last is the last row's own.
        both = gathered(pool, part.gather).view(2, num_kv_heads, 1, -1, head_size)[:, :, :, :num_keys]
        keys, values = both.expand(-1, -1, grouped.shape[1], -1, -1)  # (K, H / K, keys, D) each
        mixed = scaled_dot_product_attention(
            grouped, keys, values, attn_mask=_visible(num_rows, num_keys, window, queries.device), scale=scale
        )
        return mixed.permute(2, 0, 1, 3).reshape(num_rows, -1)


def _visible(num_rows: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """What the last num_rows of num_keys tokens see: true where they do, or a causal bias that kernels know."""
    if window is None or num_keys <= window:
        # It is a Tensor to scaled_dot_product_attention, but its constructor is not typed so.
        bias: Tensor = causal_lower_right(num_rows, num_keys)
        return bias
    rows = torch.arange(num_keys - num_rows, num_keys, device=device)[:, None]
    keys = torch.arange(num_keys, device=device)
    return (keys <= rows) & (keys > rows - window)  # (rows, keys)
