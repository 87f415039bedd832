"""Products with matrices in fewer bits: each takes activations in the model's numbers and gives the same back.

on a CPU    int8   oneDNN's product of bytes, activations rounded to eight bits a row
            int4   torch's 4-bit product for few rows; for many, the matrix is made of it for a moment
on a card   int8   bitsandbytes' product of bytes
            nf4    bitsandbytes' 4-bit product
"""

from typing import Final

import torch
from torch import Tensor

from services.inference.adapters.runner.linear import Linear
from services.inference.adapters.runner.quantize import (
    GROUP_SIZE,
    Int4Matrix,
    Int8Matrix,
    Nf4Matrix,
    QuantizedMatrix,
    rotation,
)

# torch's 4-bit product unpacks the matrix for every four rows; making a matrix of it costs as much as so many rows.
_FEW_ROWS: Final = 64

# Activations are rounded to no more than this: a scale that was itself rounded down must not lead beyond a byte.
_LARGEST: Final = 126.5
_TINY: Final = 1e-30

_FEW_NUMBERS: Final = 10_000

# What oneDNN takes for zero in activations, which it wants as unsigned bytes.
_ZERO: Final = 128


def quantized_linear(matrix: QuantizedMatrix, bias: Tensor | None) -> Linear | None:
    """The product for this matrix, where it lies; None where there is none, and it must be computed in floats."""
    device = matrix.values.device.type
    match matrix:
        case Int8Matrix() if device == "cuda":
            return BnbInt8Linear(matrix, bias)
        case Int8Matrix() if device == "cpu" and torch.backends.mkldnn.is_available():
            return Int8Linear(matrix, bias)
        case Int4Matrix() if device == "cpu" and Int4Linear.is_possible(matrix):
            return Int4Linear(matrix, bias)
        case Nf4Matrix() if device in ("cpu", "cuda"):
            return Nf4Linear(matrix, bias)
    return None


class RowRounding:
    """Activations as signed bytes, a scale a row; rotated first, see quantize.py."""

    def __init__(self, num_columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self._turn = rotation(num_columns, dtype, device)
        self._wide_turn = self._turn.float()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (T, in). Returns int8 (T, in), and scales (T, 1) in x's numbers."""
        flat = x.reshape(-1, len(self._turn))
        # A product in bfloat16 costs more to begin, and less to do.
        is_short = x.numel() <= _FEW_NUMBERS
        wide = flat.float() @ self._wide_turn if is_short else (flat @ self._turn).float()
        turned = wide.view(x.shape)
        # abs and amax are vectorized, where aminmax and the infinity norm are not.
        scales = turned.abs().amax(-1, keepdim=True).div_(_LARGEST).clamp_min_(_TINY).to(x.dtype)
        return turned.div_(scales).round_().to(torch.int8), scales


class Int8Linear:
    """Bytes times bytes on a CPU, by oneDNN."""

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        self.num_bytes = matrix.values.nbytes + matrix.scales.nbytes
        self._weight = torch.ops.onednn.qlinear_prepack(matrix.values.contiguous(), None)
        self._scales = matrix.scales
        self._zeros = torch.zeros(len(matrix.scales), dtype=torch.int64)
        self._bias = bias
        self._dtype = matrix.dtype
        self._round = RowRounding(matrix.shape[1], matrix.dtype, matrix.values.device)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        values, scales = self._round(x)
        # As if a row's scale were 1: a factor of the whole row can as well be applied to what comes out.
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            values.view(torch.uint8).bitwise_xor_(
                _ZERO
            ),  # Adds 128: oneDNN has no kernel for signed ones here.
            1.0,
            _ZERO,
            self._weight,
            self._scales,
            self._zeros,
            None,
            1.0,
            0,
            self._dtype,
            "none",
            [],
            "",
        )
        y.mul_(scales)
        return y if self._bias is None else y.add_(self._bias)


class Int4Linear:
    """Groups of four bits on a CPU; activations as they are."""

    def __init__(self, matrix: Int4Matrix, bias: Tensor | None) -> None:
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(matrix.levels().int(), 1)
        # (in / GROUP_SIZE, out, 2)
        self._scales = torch.stack((matrix.scales.T, matrix.offsets.T), -1).to(matrix.dtype).contiguous()
        self.num_bytes = self._weight.nbytes + self._scales.nbytes
        self._block_rows = _packed_rows() if matrix.shape[0] % _packed_rows() == 0 else 0
        self._bias = bias

    @staticmethod
    def is_possible(matrix: Int4Matrix) -> bool:
        """Whether torch has the product for this matrix."""
        return matrix.shape[0] % 16 == 0

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        if len(x) <= _FEW_ROWS or not self._block_rows:
            y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
                x.contiguous(), self._weight, GROUP_SIZE, self._scales
            )
        else:
            y = x @ self._unpacked()
        return y if self._bias is None else y.add_(self._bias)

    def _unpacked(self) -> Tensor:
        """The matrix turned over, (in, out), from torch's layout: (blocks of rows, in, rows / 2), two rows a byte."""
        num_rows, num_columns = len(self._weight), self._weight.shape[1] * 2
        num_blocks, half = num_rows // self._block_rows, self._block_rows // 2
        packed = self._weight.view(num_blocks, num_columns, half)
        levels = self._scales.new_empty(num_blocks, num_columns, self._block_rows)
        levels[:, :, :half] = packed & 15
        levels[:, :, half:] = packed >> 4
        grouped = levels.sub_(8).view(num_blocks, -1, GROUP_SIZE, self._block_rows)
        # (blocks, groups, 1, block rows) each
        scales, offsets = (
            self._scales.view(-1, num_blocks, self._block_rows, 2)
            .permute(3, 1, 0, 2)
            .contiguous()[:, :, :, None]
        )
        blocks = torch.addcmul(offsets, grouped, scales).view(num_blocks, num_columns, self._block_rows)
        return blocks.transpose(0, 1).reshape(num_columns, num_rows)


class BnbInt8Linear:
    """Bytes times bytes by bitsandbytes.

    The columns with large activations that LLM.int8 (arXiv 2208.07339) computes apart are spread by the rotation: how
    many they are would be known only by looking, which no CUDA graph can.
    """

    def __init__(self, matrix: Int8Matrix, bias: Tensor | None) -> None:
        self.num_bytes = matrix.values.nbytes + matrix.scales.nbytes
        self._weight = matrix.values.contiguous()
        self._scales = matrix.scales
        self._bias = bias
        self._dtype = matrix.dtype
        self._round = RowRounding(matrix.shape[1], matrix.dtype, matrix.values.device)

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        from bitsandbytes.functional import int8_linear_matmul

        values, scales = self._round(x)
        y: Tensor = int8_linear_matmul(values, self._weight).float().mul_(self._scales).mul_(scales)
        return (y if self._bias is None else y.add_(self._bias)).to(self._dtype)


class Nf4Linear:
    """Four bits of the normal distribution by bitsandbytes; activations as they are."""

    def __init__(self, matrix: Nf4Matrix, bias: Tensor | None) -> None:
        self.num_bytes = matrix.values.nbytes + matrix.scales.nbytes
        self._weight = matrix.values.reshape(-1, 1).contiguous()
        self._state = matrix.state()
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """(T, in) to (T, out)."""
        from bitsandbytes.autograd._functions import matmul_4bit

        y: Tensor = matmul_4bit(x, self._weight.t(), quant_state=self._state, bias=self._bias)
        return y


def _packed_rows() -> int:
    """Rows in a block of torch's 4-bit layout on this processor; where none is known, more than any matrix has."""
    return {"AVX512": 64, "AVX2": 32}.get(torch.backends.cpu.get_cpu_capability(), 2**30)
