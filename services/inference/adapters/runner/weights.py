"""Weights out of safetensors files, by name, without reading more than is asked for.

The files are mapped, not read: a tensor's bytes come out of the page cache once, where it is copied. What is copied is
not mapped on after the load: it would count as memory a second time. Only a table of which single rows are read stays
mapped instead of copied (`rows`): the store never changes a file, and keeps those of a model that is loaded.
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
_STORED_AS: Final = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class Checkpoint:
    """All tensors of a folder. dtype, device: what they become. scheme: of matrices that are not quantized yet."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, scheme: Scheme | None = None
    ) -> None:
        self._scheme = scheme
        self._dtype = dtype
        self._device = device
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        for path in _files(folder):
            opened = _open(path)
            names: list[str] = opened.offset_keys()
            self._files.update(dict.fromkeys(names, opened))
            self._paths.update(dict.fromkeys(names, path))

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

    def rows(self, name: str, shape: Sequence[int]) -> tuple[Tensor, int]:
        """A tensor of which single rows are read, and the memory that it takes.

        None, where it can be used as it lies in its file: what was read of it is the system's page cache. Raises as
        `get`.
        """
        opened = self._opened(name)
        is_as_stored = opened.get_slice(name).get_dtype() == _STORED_AS.get(self._dtype)
        if self._device.type == "cpu" and is_as_stored and self.shape(name) == tuple(shape):
            # Mapped anew: the pages of the first mapping, read through, count as this process's memory until it ends.
            return _open(self._paths[name]).get_tensor(name), 0
        tensor = self.get(name, shape)
        return tensor, tensor.nbytes

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


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UnsupportedFormat(f"{path.name} is not a safetensors file: {error}") from error


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
