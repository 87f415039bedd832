"""A matrix in memory, whatever form it has there."""

from typing import Protocol

from torch import Tensor


class Linear(Protocol):
    """A matrix, prepared once."""

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """x: (T, in) in the model's number type. Returns (T, out) in the same."""
        ...
