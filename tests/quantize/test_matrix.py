"""Weights and activations in few bits: what the definition promises, against arithmetic done one number at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.quantize.matrix import (
    ROWS_AT_A_TIME,
    SEARCHED_SCALES,
    W4,
    W4_SMALL_GROUPS,
    W8,
    WEIGHT_FORMATS,
    WeightFormat,
    dequantize,
    from_integers,
    quantize_activations,
    quantize_rows,
    quantized_linear,
)

ALL_FORMATS = pytest.mark.parametrize("format", WEIGHT_FORMATS.values(), ids=WEIGHT_FORMATS)
SHAPES = [(1, 1), (5, 32), (17, 33), (3, 128), (16, 300)]


def _matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@ALL_FORMATS
@pytest.mark.parametrize("shape", SHAPES)
def test_every_weight_is_rounded_to_the_nearest_step(format: WeightFormat, shape: tuple[int, int]):
    weight = _matrix(*shape)
    matrix = quantize_rows(weight, format)
    restored = dequantize(matrix, torch.float64)
    assert restored.shape == weight.shape
    integers = range(-127, 128) if format.bits == 8 else range(-8, 8)
    for n in range(shape[0]):
        for k in range(shape[1]):
            scale, exact = float(matrix.scales_ng[n, k // (format.group or 10**9)]), float(weight[n, k])
            closest = min(abs(integer * scale - exact) for integer in integers)
            assert abs(float(restored[n, k]) - exact) == pytest.approx(closest, abs=1e-6 * abs(scale))


@pytest.mark.parametrize("format", [W4, W4_SMALL_GROUPS], ids=lambda format: format.name)
def test_the_scale_of_a_group_is_the_best_of_those_that_are_searched(format: WeightFormat):
    """Tried in float64, group by group, without any of our code."""
    weight = _matrix(20, 256, seed=3)
    for number, group in enumerate(weight.double().numpy().reshape(-1, format.group or 1)):
        scales = np.float16(np.array(SEARCHED_SCALES) * group[np.abs(group).argmax()] / -8).astype(np.float64)
        rounded = np.clip(np.rint(group / scales[:, None]), -8, 7) * scales[:, None]
        errors = np.square(rounded - group).sum(1)
        row, column = divmod(number, 256 // (format.group or 1))
        found = float(quantize_rows(weight, format).scales_ng[row, column])
        assert errors[scales == found].min() <= errors.min() * (1 + 1e-6)


@ALL_FORMATS
def test_what_a_format_can_hold_is_held_exactly(format: WeightFormat):
    limit, groups = (127, 1) if format.bits == 8 else (7, 512 // (format.group or 512))
    integers = torch.randint(-limit, limit + 1, (6, 512), generator=torch.Generator().manual_seed(1)).float()
    integers.unflatten(1, (groups, -1))[..., 0] = limit if format.bits == 8 else -8
    scales = 2.0 ** torch.arange(-3, -3 + groups)
    weight = (integers.unflatten(1, (groups, -1)) * scales[:, None]).flatten(1)
    assert torch.equal(dequantize(quantize_rows(weight, format)), weight)


@ALL_FORMATS
@pytest.mark.parametrize("rows", [1, 16, 70])
def test_numbers_lie_as_the_docstring_says(format: WeightFormat, rows: int):
    """One number after the other, from the words of `QuantizedMatrix`."""
    columns, zero = 256, 8 if format.bits == 4 else 128
    draw = torch.Generator().manual_seed(rows)
    integers = torch.randint(1 - zero, zero, (rows, columns), generator=draw)
    scales = torch.randn(rows, columns // format.group if format.group else 1, generator=draw)
    scales = scales.half() if format.bits == 4 else scales
    matrix = from_integers(integers, scales, columns, format)
    for n in range(-(-rows // 64) * 64):
        panel, channel = n // 16, n % 16
        for k in range(columns):
            step, place = (k // 8, k % 8) if format.bits == 4 else (k // 4, k % 4)
            byte = int(matrix.values[panel, step, channel, place % 4])
            found = byte if format.bits == 8 else byte & 15 if place < 4 else byte >> 4
            assert found - zero == (int(integers[n, k]) if n < rows else 0)
        for group in range(scales.shape[1]):
            assert matrix.scales[panel, group, channel] == (scales[n, group] if n < rows else 0)
    assert torch.equal(matrix.integers_nk(), integers.to(torch.int8)) and torch.equal(matrix.scales_ng, scales)


@ALL_FORMATS
def test_tensors_of_other_shapes_or_types_are_no_matrix(format: WeightFormat):
    matrix = quantize_rows(_matrix(5, 40), format)
    with pytest.raises(ValueError, match=rf"values of a {format.name} matrix of 65 × 40 must be torch.uint8 of shape"):
        replace(matrix, rows=65)
    with pytest.raises(ValueError, match=r"the scales of a .* not torch.float64 of shape"):
        replace(matrix, scales=matrix.scales.double())


@ALL_FORMATS
def test_a_large_matrix_is_quantized_in_parts_as_it_is_as_a_whole(format: WeightFormat):
    weight = _matrix(ROWS_AT_A_TIME + 70, 40)
    whole = quantize_rows(weight, format)
    for rows in (slice(0, 64), slice(ROWS_AT_A_TIME, None)):
        part = quantize_rows(weight[rows], format)
        assert torch.equal(dequantize(whole)[rows], dequantize(part))


@ALL_FORMATS
def test_rows_of_zeros_stay_zeros(format: WeightFormat):
    weight = torch.zeros(4, 200)
    weight[1, 150] = 1.0
    assert torch.equal(dequantize(quantize_rows(weight, format)), weight)


@ALL_FORMATS
def test_the_size_is_what_the_format_says(format: WeightFormat):
    matrix = quantize_rows(_matrix(64, 256), format)
    scales = matrix.scales.nbytes if format.group else 0
    assert (matrix.values.nbytes + scales) * 8 == format.bits_per_weight * 64 * 256


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40))
def test_activations_are_the_nearest_of_255_steps(numbers: list[float]):
    activations = quantize_activations(torch.tensor([numbers]))
    scale = float(activations.scales_m[0])
    largest = max(abs(number) for number in numbers)
    assert math.isclose(scale, largest / 127, rel_tol=1e-6, abs_tol=1e-30)
    for value, number in zip(activations.values_mk[0].tolist(), numbers, strict=True):
        assert abs(value) <= 127 and abs(value * scale - number) <= max(0.5001 * scale, 1e-30)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_spoils_itself_alone(broken: float):
    x = _matrix(3, 40)
    expected = quantized_linear(x, quantize_rows(_matrix(5, 40), W4))
    x[1, 7] = broken
    out = quantized_linear(x, quantize_rows(_matrix(5, 40), W4))
    assert out[1].isnan().all() and torch.equal(out[[0, 2]], expected[[0, 2]])


@ALL_FORMATS
def test_a_layer_is_close_to_the_one_it_stands_for(format: WeightFormat):
    """An error of the weights of e and of the activations of a leaves the output sqrt(e² + a²) away."""
    weight, x, bias = _matrix(64, 512), _matrix(32, 512, seed=1), _matrix(1, 64, seed=2)[0]
    matrix = quantize_rows(weight, format)
    exact = x.double() @ weight.double().T
    apart = (quantized_linear(x, matrix, bias) - bias.double() - exact).norm() / exact.norm()
    activations = quantize_activations(x)
    errors = [
        (dequantize(matrix) - weight).norm() / weight.norm(),
        (activations.values_mk * activations.scales_m[:, None] - x).norm() / x.norm(),
    ]
    assert apart == pytest.approx(math.hypot(*errors), rel=0.1)


@ALL_FORMATS
@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.zeros(3), "only matrices"),
        (torch.zeros(0, 3), "only matrices"),
        (torch.zeros(1, 70_000), "65536 columns"),
        (torch.tensor([[1.0, math.nan]]), "infinite or undefined"),
    ],
)
def test_what_is_no_matrix_is_refused(format: WeightFormat, weight: torch.Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        quantize_rows(weight, format)


def test_numbers_too_large_for_half_precision_are_refused_with_4_bits_alone():
    weight = torch.full((2, 64), 1e6)
    with pytest.raises(ValueError, match="overflow"):
        quantize_rows(weight, W4)
    assert torch.allclose(dequantize(quantize_rows(weight, W8)), weight)
