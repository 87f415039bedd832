"""Matrices in fewer bits, in a neutral form: how they lie in files, whatever computes with them.

    int8    w = values * scale              a scale a row; the columns are rotated first
    int4    w = (values - 8) * scale + offset    a scale and an offset for GROUP_SIZE columns of a row
    nf4     w = the 16 levels of QLoRA (arXiv 2305.14314), a scale for 64 columns of a row: what cards multiply with

Int8 products round activations, too, and those of language models have a few components that are far larger than the
others, so that little is left of the rest. A rotation spreads them (QuaRot, arXiv 2404.00456): with a Hadamard matrix
R, x @ w.T = (x @ R) @ (w @ R).T. Its blocks are small, to cost little. On 2,048 tokens of gensim's lee_background.cor
the starter's perplexity rises by 3.7 % without it, by 0.2 % with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

Scheme = Literal["int8", "int4", "nf4"]

GROUP_SIZE: Final = 32
NF4_BLOCK_SIZE: Final = 64

_ROTATED: Final = (64, 16, 4, 1)

# For what is divided by: a group of equal numbers has no span.
_TINY: Final = 1e-30

# Rows at once: float32 copies of a large matrix would take more memory than the matrix.
_ROWS: Final = 4096

# Of a group's range, how much the sixteen levels span at least: what lies beyond is cut off where that errs less.
_SPANS: Final = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7)


@dataclass(frozen=True, slots=True)
class Int8Matrix:
    """values: (out, in) int8, of the rotated matrix. scales: (out,) float32. dtype: of activations."""

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.values.shape[0], self.values.shape[1]

    def dequantized(self) -> Tensor:
        """The matrix that it stands for, (out, in)."""
        return rotated(self.values.float() * self.scales[:, None]).to(self.dtype)


@dataclass(frozen=True, slots=True)
class Int4Matrix:
    """values: (out, in / 2) uint8, the even column in the low four bits.

    scales, offsets: (out, in / GROUP_SIZE) bfloat16. dtype: of activations.
    """

    values: Tensor
    scales: Tensor
    offsets: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.values.shape[0], self.values.shape[1] * 2

    def levels(self) -> Tensor:
        """(out, in) uint8, 0 to 15."""
        return torch.stack((self.values & 15, self.values >> 4), -1).view(self.shape)

    def dequantized(self) -> Tensor:
        """The matrix that it stands for, (out, in)."""
        num_rows, num_columns = self.shape
        grouped = self.levels().view(num_rows, -1, GROUP_SIZE).float() - 8
        found = grouped * self.scales.float()[..., None] + self.offsets.float()[..., None]
        return found.view(num_rows, num_columns).to(self.dtype)


@dataclass(frozen=True, slots=True)
class Nf4Matrix:
    """values: (out, in / 2) uint8 as bitsandbytes packs them. scales: (out, in / NF4_BLOCK_SIZE) float32.

    dtype: of activations.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.values.shape[0], self.values.shape[1] * 2

    def dequantized(self) -> Tensor:
        """The matrix that it stands for, (out, in)."""
        from bitsandbytes import functional  # Seconds of imports, for cards alone.

        return functional.dequantize_4bit(self.values.reshape(-1, 1), self.state())

    def state(self) -> "QuantState":
        """What bitsandbytes keeps beside the values."""
        from bitsandbytes.functional import QuantState

        return QuantState(  # type: ignore[no-untyped-call]  # bitsandbytes has no types.
            absmax=self.scales.flatten(),
            shape=torch.Size(self.shape),
            code=_nf4_levels(self.values.device),
            blocksize=NF4_BLOCK_SIZE,
            quant_type="nf4",
            dtype=self.dtype,
        )


QuantizedMatrix = Int8Matrix | Int4Matrix | Nf4Matrix
Matrix = Tensor | QuantizedMatrix


def quantize(weight: Tensor, scheme: Scheme) -> Matrix:
    """weight: (out, in) of floats. A matrix whose columns do not make whole groups stays as it is."""
    num_columns = weight.shape[1]
    match scheme:
        case "int8" if rotation_size(num_columns) > 1:
            return stack([_int8(rows) for rows in weight.split(_ROWS)])
        case "int4" if num_columns % GROUP_SIZE == 0:
            return stack([_int4(rows) for rows in weight.split(_ROWS)])
        case "nf4" if num_columns % NF4_BLOCK_SIZE == 0:
            return _nf4(weight)
    return weight


def stack(parts: Sequence[Matrix]) -> Matrix:
    """Matrices with the same columns, and of the same kind, one above the other."""
    match parts[0]:
        case Tensor():
            return torch.cat([part for part in parts if isinstance(part, Tensor)])
        case Int8Matrix(dtype=dtype):
            bytes_ = [part for part in parts if isinstance(part, Int8Matrix)]
            return Int8Matrix(
                torch.cat([part.values for part in bytes_]),
                torch.cat([part.scales for part in bytes_]),
                dtype,
            )
        case Int4Matrix(dtype=dtype):
            groups = [part for part in parts if isinstance(part, Int4Matrix)]
            return Int4Matrix(
                torch.cat([part.values for part in groups]),
                torch.cat([part.scales for part in groups]),
                torch.cat([part.offsets for part in groups]),
                dtype,
            )
        case Nf4Matrix(dtype=dtype):
            blocks = [part for part in parts if isinstance(part, Nf4Matrix)]
            return Nf4Matrix(
                torch.cat([part.values for part in blocks]),
                torch.cat([part.scales for part in blocks]),
                dtype,
            )


def rotation_size(num_columns: int) -> int:
    """Columns that are rotated together: 64, 16, 4 or 1, the most that divides their number.

    The matrix then holds plus and minus 1/8, 1/4 or 1/2, which bfloat16 has exactly.
    """
    return next(size for size in _ROTATED if num_columns % size == 0)


def rotation(num_columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A Hadamard matrix scaled to be orthogonal, its own inverse: (rotation_size, rotation_size)."""
    size = rotation_size(num_columns)
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < size:
        found = torch.cat((torch.cat((found, found), 1), torch.cat((found, -found), 1)))
    scaled: Tensor = found / size**0.5
    return scaled.to(device, dtype)


def rotated(x: Tensor) -> Tensor:
    """Rotate the last dimension, block by block. Twice is nothing."""
    turn = rotation(x.shape[-1], x.dtype, x.device)
    found: Tensor = (x.reshape(-1, len(turn)) @ turn).view(x.shape)
    return found


def _int8(weight: Tensor) -> Int8Matrix:
    turned = rotated(weight.float())
    scales = (turned.abs().amax(1) / 127).clamp_min(_TINY)
    return Int8Matrix((turned / scales[:, None]).round_().to(torch.int8), scales, weight.dtype)


def _int4(weight: Tensor) -> Int4Matrix:
    """By the span of levels with the least squared error in each group."""
    groups = weight.float().view(len(weight), -1, GROUP_SIZE)  # (out, groups, GROUP_SIZE)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    least = torch.full_like(low, torch.inf)
    scales, offsets, levels = torch.ones_like(low), torch.zeros_like(low), torch.zeros_like(groups)
    for span in _SPANS:
        # Rounded as they are kept, so that levels are chosen for what they will stand for.
        scale = ((high - low) * (span / 15)).bfloat16().float()
        offset = ((low + high + scale) / 2).bfloat16().float()
        level = ((groups - offset) / scale.clamp_min(_TINY) + 8).round_().clamp_(0, 15)
        error = ((level - 8) * scale + offset - groups).square_().sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scales, offsets = torch.where(better, scale, scales), torch.where(better, offset, offsets)
        levels = torch.where(better, level, levels)
    flat = levels.view(weight.shape).to(torch.uint8)
    return Int4Matrix(
        flat[:, 0::2] | (flat[:, 1::2] << 4),
        scales.squeeze(-1).bfloat16(),
        offsets.squeeze(-1).bfloat16(),
        weight.dtype,
    )


def _nf4(weight: Tensor) -> Nf4Matrix:
    from bitsandbytes import functional  # Seconds of imports, for cards alone.

    values, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK_SIZE, quant_type="nf4", compress_statistics=False
    )
    num_rows, num_columns = weight.shape
    return Nf4Matrix(
        values.view(num_rows, num_columns // 2),
        state.absmax.view(num_rows, num_columns // NF4_BLOCK_SIZE),
        weight.dtype,
    )


def _nf4_levels(device: torch.device) -> Tensor:
    from bitsandbytes.functional import get_4bit_type

    found: Tensor = get_4bit_type("nf4", device=device, blocksize=NF4_BLOCK_SIZE)  # type: ignore[no-untyped-call]  # As above.
    return found
