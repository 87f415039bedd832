"""Weights out of safetensors files, by name, without reading more than is asked for.

The files are mapped, not read: a tensor's bytes come out of the page cache once, where it is copied. No mapping
outlives the load: it would count as memory a second time, and change with its file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.inference.adapters.runner.quantize import (
    GROUP_SIZE,
    NF4_BLOCK_SIZE,
    Int4Matrix,
    Int8Matrix,
    Matrix,
    Nf4Matrix,
    Scheme,
    quantize,
    stack,
)
from services.kit.errors import UnsupportedFormat

_INDEX: Final = "model.safetensors.index.json"


class Checkpoint:
    """All tensors of a folder. dtype, device: what they become. scheme: of matrices that are not quantized yet."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, scheme: Scheme | None = None
    ) -> None:
        self._scheme = scheme
        self._dtype = dtype
        self._device = device
        self._files: dict[str, Any] = {}
        for path in _files(folder):
            try:
                opened = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise UnsupportedFormat(f"{path.name} is not a safetensors file: {error}") from error
            # It is typed as a function without types.
            names: list[str] = opened.offset_keys()  # type: ignore[no-untyped-call]
            self._files.update(dict.fromkeys(names, opened))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> frozenset[str]:
        """Of all tensors."""
        return frozenset(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from its file's header. Raises UnsupportedFormat if it is missing."""
        return tuple(self._opened(name).get_slice(name).get_shape())

    def get(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """A copy of a tensor of this shape. Raises UnsupportedFormat if it is missing or has another."""
        tensor: Tensor = self._opened(name).get_tensor(name)
        if tensor.shape != torch.Size(shape):
            raise UnsupportedFormat(f"{name} is {list(tensor.shape)}; config.json says {list(shape)}")
        return tensor.to(self._device, dtype or self._dtype, copy=True)

    def find(self, name: str, shape: Sequence[int]) -> Tensor | None:
        """As `get`; None if it is missing."""
        return self.get(name, shape) if name in self else None

    def matrix(self, names: Sequence[str], num_rows: Sequence[int], num_columns: int) -> Matrix:
        """Matrices one above the other, in fewer bits where they are kept so or shall become so."""
        return stack(
            [self._matrix(name, (rows, num_columns)) for name, rows in zip(names, num_rows, strict=True)]
        )

    def _matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """By the tensors beside it, see artifact.py."""
        num_rows, num_columns = shape
        scale, offset, absmax = f"{name}_scale", f"{name}_offset", f"{name}_absmax"
        halves = (num_rows, num_columns // 2)
        if offset in self:
            groups = (num_rows, num_columns // GROUP_SIZE)
            return Int4Matrix(
                self.get(name, halves, torch.uint8),
                self.get(scale, groups, torch.bfloat16),
                self.get(offset, groups, torch.bfloat16),
                self._dtype,
            )
        if absmax in self:
            blocks = (num_rows, num_columns // NF4_BLOCK_SIZE)
            return Nf4Matrix(
                self.get(name, halves, torch.uint8), self.get(absmax, blocks, torch.float32), self._dtype
            )
        if scale in self:
            return Int8Matrix(
                self.get(name, shape, torch.int8), self.get(scale, (num_rows,), torch.float32), self._dtype
            )
        weight = self.get(name, shape)
        return weight if self._scheme is None else quantize(weight, self._scheme)

    def _opened(self, name: str) -> Any:
        opened = self._files.get(name)
        if opened is None:
            raise UnsupportedFormat(f"the weights lack {name}")
        return opened


def _files(folder: Path) -> list[Path]:
    """The files that an index names, or all there are."""
    try:
        names = set(json.loads((folder / _INDEX).read_text("utf-8"))["weight_map"].values())
    except FileNotFoundError:
        return sorted(folder.glob("*.safetensors"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnsupportedFormat(f"{_INDEX} cannot be read: {error}") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UnsupportedFormat(f"{_INDEX} names files outside the model's folder")
    return [folder / name for name in sorted(names)]
