"""Matrices in fewer bits stay near what they were, and products with them near the product in floats."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from services.inference.adapters.runner.quantize import (
    Int4Matrix,
    Int8Matrix,
    Matrix,
    Nf4Matrix,
    Scheme,
    quantize,
    rotated,
    rotation_size,
    stack,
)
from services.inference.adapters.runner.quantized import (
    BnbInt8Linear,
    Int4Linear,
    Int8Linear,
    Nf4Linear,
    quantized_linear,
)

SCHEMES: tuple[Scheme, ...] = ("int8", "int4", "nf4")

# Norm of the error over norm of the result that random weights and activations may have at most.
BOUNDS = {"int8": 0.012, "int4": 0.08, "nf4": 0.1}


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(weight: Tensor, scheme: Scheme) -> Any:
    matrix = quantize(weight, scheme)
    assert not isinstance(matrix, Tensor)
    return matrix


def error(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_matrix_comes_back_nearly_as_it_was(scheme: Scheme):
    weight = randn(96, 192) * 0.05
    matrix = quantized(weight, scheme)
    assert matrix.shape == (96, 192)
    assert error(matrix.dequantized(), weight) < BOUNDS[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_of_zeros_stay_zeros(scheme: Scheme):
    weight = randn(32, 64)
    weight[3] = 0
    found = quantized(weight, scheme).dequantized()
    assert not found[3].any()
    assert found.isfinite().all()


def test_weights_that_were_of_four_bits_come_back_exactly():
    scales = (2.0 ** torch.randint(-8, -3, (16, 4, 1), generator=torch.Generator().manual_seed(1))).float()
    levels = torch.arange(16.0).repeat(16, 4, 2)
    weight = ((levels - 8) * scales).view(16, 128)
    assert quantized(weight, "int4").dequantized().equal(weight)


def test_a_group_with_one_far_value_errs_less_when_it_is_cut():
    weight = randn(8, 32)
    weight[:, 5] = 9.0
    plain_step = (weight.amax(1) - weight.amin(1)) / 15
    kept = quantized(weight, "int4").dequantized()
    plain = ((weight / plain_step[:, None]).round() * plain_step[:, None]) - weight
    assert (kept - weight).square().sum() <= plain.square().sum()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_quantized_alone_stack_to_the_whole(scheme: Scheme):
    weight = randn(96, 128)
    parts: list[Matrix] = [quantize(part, scheme) for part in weight.split((64, 16, 16))]
    whole = stack(parts)
    assert not isinstance(whole, Tensor)
    assert whole.dequantized().equal(quantized(weight, scheme).dequantized())


@pytest.mark.parametrize(("scheme", "num_columns"), [("int8", 63), ("int4", 48), ("nf4", 96)])
def test_columns_that_make_no_whole_groups_stay_floats(scheme: Scheme, num_columns: int):
    weight = randn(16, num_columns)
    assert quantize(weight, scheme) is weight


def test_rotating_twice_is_nothing():
    x = randn(5, 576)
    torch.testing.assert_close(rotated(rotated(x)), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rotated(x).norm(dim=1), x.norm(dim=1), atol=1e-3, rtol=1e-5)
    assert [rotation_size(size) for size in (576, 1536, 96, 48, 7)] == [64, 64, 16, 16, 1]


LINEARS: dict[str, tuple[Scheme, Callable[[Any, Tensor | None], Any]]] = {
    "int8 by oneDNN": ("int8", Int8Linear),
    "int8 by bitsandbytes": ("int8", BnbInt8Linear),
    "int4 by torch": ("int4", Int4Linear),
    "nf4 by bitsandbytes": ("nf4", Nf4Linear),
}


@pytest.mark.parametrize("num_rows", [1, 5, 64, 65, 130])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("kind", LINEARS)
def test_a_product_is_near_the_one_in_floats(kind: str, has_bias: bool, num_rows: int):
    scheme, make = LINEARS[kind]
    weight = (randn(192, 256) * 0.05).bfloat16()
    bias = randn(192, seed=2).bfloat16() if has_bias else None
    x = randn(num_rows, 256, seed=3)
    x[:, 7] *= 40  # As language models have it: one component beside which the others are small.
    wanted = x.bfloat16().double() @ weight.double().T + (0 if bias is None else bias.double())
    linear = make(quantized(weight, scheme), bias)
    found = linear(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert error(found, wanted) < BOUNDS[scheme]
    assert linear.num_bytes < weight.nbytes * (0.55 if scheme == "int8" else 0.35)


@pytest.mark.parametrize("kind", LINEARS)
def test_rows_do_not_touch_each_other(kind: str):
    scheme, make = LINEARS[kind]
    linear = make(quantized((randn(64, 128) * 0.05).bfloat16(), scheme), None)
    x = randn(8, 128, seed=3).bfloat16()
    alone = linear(x[:1])
    x[1:] = 1e4
    torch.testing.assert_close(linear(x)[:1], alone, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", ["int8 by oneDNN", "int8 by bitsandbytes"])
def test_rows_of_zeros_give_zeros_and_a_broken_row_stays_broken(kind: str):
    linear = LINEARS[kind][1](quantized(randn(64, 128).bfloat16(), "int8"), None)
    x = randn(3, 128).bfloat16()
    x[0], x[1, 5] = 0, torch.nan
    found = linear(x)
    assert not found[0].any()
    assert found[1].isnan().all()
    assert found[2].isfinite().all()


def test_many_rows_and_few_give_the_same_with_four_bits():
    matrix = quantized((randn(192, 256) * 0.05).bfloat16(), "int4")
    linear = Int4Linear(matrix, None)
    x = randn(130, 256, seed=3).bfloat16()
    few = torch.cat([linear(part) for part in x.split(10)])
    torch.testing.assert_close(linear(x), few, atol=0.06, rtol=0.02)


def test_what_has_no_product_here_says_so():
    assert quantized_linear(quantized(randn(20, 64).bfloat16(), "int4"), None) is None
    assert isinstance(quantize(randn(16, 64), "int8"), Int8Matrix)
    assert isinstance(quantize(randn(16, 64), "int4"), Int4Matrix)
    assert isinstance(quantize(randn(16, 64), "nf4"), Nf4Matrix)
