"""Quantized products: the integers exactly, the rest against float64, whatever the shape, the level and the batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.quantize.matrix import (
    W4,
    W8,
    WEIGHT_FORMATS,
    QuantizedMatrix,
    WeightFormat,
    dequantize,
    from_integers,
    quantize_activations,
    quantize_rows,
    quantized_linear,
)

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)
# Rows of a matrix, columns, tokens: around every multiple that the kernels count in.
SHAPES = [(1, 1, 1), (16, 32, 2), (17, 33, 3), (64, 128, 1), (65, 127, 5), (100, 300, 7), (130, 257, 13)]
SHAPES += [(33, 640, 251), (40, 2300, 9)]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _extreme_integers(rows: int, columns: int, format: WeightFormat, seed: int) -> QuantizedMatrix:
    """Integers over the whole range with scales of one: products are then whole numbers."""
    draw = torch.Generator().manual_seed(seed)
    padded = -(-columns // format.column_multiple) * format.column_multiple
    low, high = (-127, 128) if format.bits == 8 else (-8, 8)
    integers = torch.randint(low, high, (rows, padded), generator=draw)
    integers[:, columns:] = 0
    return from_integers(integers, _ones(rows, padded, format), columns, format)


def _ones(rows: int, padded: int, format: WeightFormat) -> torch.Tensor:
    if format.bits == 8:
        return torch.ones(rows, 1)
    return torch.ones(rows, padded // format.column_multiple, dtype=torch.float16)


@ALL_FORMATS
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_read_as_the_definition_reads_them(level: str, format: WeightFormat, shape: tuple[int, int, int]):
    matrix = quantize_rows(_random(*shape[:2]), format)
    ids = torch.arange(shape[0]).flip(0)
    assert torch.equal(kernels.gather(matrix, ids), dequantize(matrix)[ids])


@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (5, 128), (7, 1000)])
def test_activations_are_those_of_the_definition_to_the_bit(level: str, shape: tuple[int, int]):
    x = _random(*shape)
    x[0] = 0.0
    if len(x) > 3:
        x[1:4] *= torch.tensor([[1e-20], [1e-32], [1e-40]])
    expected, found = quantize_activations(x), kernels.quantize(x)
    assert torch.equal(found.values[:, : shape[1]], expected.values_mk)
    assert not found.values[:, shape[1] :].any()
    assert torch.equal(found.scales, expected.scales_m)
    sums = found.values.long().unflatten(1, (-1, 32)).sum(-1).cumsum(1)
    assert torch.equal(found.running_sums[:, 1:].long(), sums) and not found.running_sums[:, 0].any()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 39])
def test_a_token_that_is_not_finite_spoils_itself_alone(level: str, broken: float, column: int):
    x, matrix = _random(3, 40), quantize_rows(_random(5, 40), W4)
    expected = kernels.linear(kernels.quantize(x), matrix)
    x[1, column] = broken
    out = kernels.linear(kernels.quantize(x), matrix)
    assert out[1].isnan().all() and torch.equal(out[[0, 2]], expected[[0, 2]])


@ALL_FORMATS
@pytest.mark.parametrize("shape", SHAPES)
def test_the_integers_are_exact(level: str, format: WeightFormat, shape: tuple[int, int, int]):
    rows, columns, tokens = shape
    matrix = _extreme_integers(rows, columns, format, seed=columns)
    draw = torch.Generator().manual_seed(tokens)
    x = torch.randint(-127, 128, (tokens, columns), generator=draw).float()
    x[:, 0] = 127.0  # a scale of one
    expected = x.long() @ matrix.integers_nk()[:, :columns].long().T
    assert expected.abs().max() < 2**24
    assert torch.equal(kernels.linear(kernels.quantize(x), matrix).long(), expected)


@pytest.mark.parametrize("format", [W4, W8], ids=["w4", "w8"])
def test_the_largest_sums_that_there_can_be_do_not_overflow(level: str, format: WeightFormat):
    """All integers at the end of their range, in the widest matrix allowed; float32 then rounds the whole sum once."""
    columns, lowest = 65_536, -127 if format.bits == 8 else -8
    integers = torch.full((2, columns), lowest)
    matrix = from_integers(integers, _ones(2, columns, format), columns, format)
    x = torch.full((2, columns), 127.0) * torch.tensor([[1.0], [-1.0]])
    expected = torch.tensor([[1.0], [-1.0]]) * 127 * lowest * columns
    torch.testing.assert_close(kernels.linear(kernels.quantize(x), matrix), expected.expand(2, 2))


@ALL_FORMATS
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 140), st.integers(1, 2400), st.integers(1, 20), st.booleans())
def test_a_layer_is_what_float64_says(format: WeightFormat, rows: int, columns: int, tokens: int, biased: bool):
    """In every level at once: hypothesis does not go with fixtures."""
    weight, x = _random(rows, columns, seed=rows), _random(tokens, columns, seed=tokens)
    matrix, bias = quantize_rows(weight, format), _random(rows, seed=1) if biased else None
    expected = quantized_linear(x, matrix, bias)
    # One rounding for every group and three for conversion, scale and bias, each of at most 2⁻²⁴ of the summed sizes.
    sizes = x.abs().double() @ dequantize(matrix, torch.float64).abs().T
    groups = matrix.scales_ng.shape[1]
    allowed = 1.1 * (groups + 3) * 2**-24 * (sizes + (0 if bias is None else bias.abs())) + 1e-30
    before = library.level()
    for name in library.LEVELS[: library.LEVELS.index(before) + 1]:
        library.set_level(name)
        out = kernels.linear(kernels.quantize(x), matrix, bias)
        assert ((out - expected).abs() <= allowed).all(), name
    library.set_level(before)


@ALL_FORMATS
def test_a_token_does_not_depend_on_the_batch_around_it(level: str, format: WeightFormat):
    x, matrix = _random(64, 2300), quantize_rows(_random(100, 2300), format)
    together = kernels.linear(kernels.quantize(x), matrix)
    for count in (1, 2, 3, 4, 5, 7, 12, 13):
        for start in range(0, 64 - count, 9):
            alone = kernels.linear(kernels.quantize(x[start : start + count]), matrix)
            assert torch.equal(alone, together[start : start + count])


@ALL_FORMATS
def test_a_result_does_not_depend_on_the_number_of_threads(level: str, threads: None, format: WeightFormat):
    x, matrix = _random(250, 256), quantize_rows(_random(1000, 256), format)
    for tokens in (1, 9, 250):
        library.set_threads(1)
        alone = kernels.linear(kernels.quantize(x[:tokens]), matrix)
        for count in (2, 3, 5):
            library.set_threads(count)
            assert torch.equal(kernels.linear(kernels.quantize(x[:tokens]), matrix), alone)


def test_rows_may_lie_apart(level: str):
    wide, matrix = _random(6, 100), quantize_rows(_random(20, 40), W4)
    part = wide[:, 30:70]
    expected = kernels.linear(kernels.quantize(part.contiguous()), matrix)
    assert torch.equal(kernels.linear(kernels.quantize(part), matrix), expected)


def test_wrong_tensors_are_refused(compiled: None):
    matrix = quantize_rows(_random(20, 40), W4)
    x = kernels.quantize(_random(3, 41))
    with pytest.raises(ValueError, match="40 columns cannot be multiplied by rows of 41"):
        kernels.linear(x, matrix)
    with pytest.raises(ValueError, match=r"must be torch.float32 on the CPU, not torch.float64"):
        kernels.quantize(_random(3, 40).double())
    with pytest.raises(ValueError, match="every row of `x` must be contiguous"):
        kernels.quantize(_random(40, 3).T)
    with pytest.raises(ValueError, match=r"`bias` must have shape \(20,\), not \(19,\)"):
        kernels.linear(kernels.quantize(_random(3, 40)), matrix, torch.zeros(19))
    with pytest.raises(ValueError, match=r"`ids` must be in 0 … 19"):
        kernels.gather(matrix, torch.tensor([20]))
