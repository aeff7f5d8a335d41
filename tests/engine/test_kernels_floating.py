"""Products with floating matrices: against float64, whatever the shape, the level, the batch and the threads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.engine.kernels.matrices import FLOATING, FloatMatrix
from groundup.engine.kernels.program import Product, Program

KINDS = {str(dtype): (dtype, False) for dtype in FLOATING} | {"wide bfloat16": (torch.bfloat16, True)}
ALL_KINDS = pytest.mark.parametrize("kind", list(KINDS))
ROOM = 40


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _matrix(rows: int, columns: int, kind: str, seed: int = 0) -> FloatMatrix:
    dtype, is_wide = KINDS[kind]
    return FloatMatrix(_random(rows, columns, seed=seed).to(dtype), is_wide)


def _require_right(x_mk: Tensor, matrix: FloatMatrix, bias_n: Tensor | None) -> None:
    """Every product and every sum rounds by 2⁻²⁴ of what is summed at most, and many do not all round to one side."""
    weight_nk, bias = matrix.weight_nk, torch.zeros(matrix.rows) if bias_n is None else bias_n
    x = (x_mk.bfloat16() if weight_nk.dtype == torch.bfloat16 and not matrix.is_wide else x_mk).double()
    expected_mn = x @ weight_nk.double().T + bias
    sizes_mn = x.abs() @ weight_nk.double().abs().T + bias.abs()
    off_mn = (kernels.product(x_mk, matrix, bias_n) - expected_mn).abs()
    roundings = min(matrix.columns + 2, 8 * matrix.columns**0.5 + 8)
    assert (off_mn <= roundings * 2**-24 * sizes_mn).all()


@ALL_KINDS
@settings(deadline=None, max_examples=25)
@given(st.integers(1, 140), st.integers(1, 2400), st.integers(1, 40), st.booleans())
def test_products_are_what_float64_says(kind: str, rows: int, columns: int, tokens: int, biased: bool):
    """In every level at once: hypothesis does not go with fixtures."""
    x, bias = _random(tokens, columns, seed=tokens), _random(rows, seed=1) if biased else None
    before = library.level()
    for name in library.LEVELS[: library.LEVELS.index(before) + 1]:
        library.set_level(name)
        _require_right(x, _matrix(rows, columns, kind, seed=rows), bias)
    library.set_level(before)


@ALL_KINDS
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 33, 257, 530])
def test_many_tokens_and_wide_matrices(level: str, kind: str, tokens: int):
    """Of more columns than are summed at a time, which are no multiple of anything."""
    _require_right(_random(tokens, 1337, seed=1), _matrix(70, 1337, kind), None)


@ALL_KINDS
def test_a_token_does_not_depend_on_the_batch_around_it(level: str, threads: None, kind: str):
    """Nor on the threads."""
    x, matrix = _random(300, 1300), _matrix(100, 1300, kind)
    together = kernels.product(x, matrix)
    for count, start in ((1, 0), (1, 299), (2, 7), (6, 1), (7, 50), (16, 16), (17, 3), (33, 200), (260, 39)):
        library.set_threads(1 + count % 3)
        assert torch.equal(kernels.product(x[start : start + count], matrix), together[start : start + count])


@ALL_KINDS
@pytest.mark.parametrize("columns", [1, 31, 70])
def test_rows_are_read_as_they_are(level: str, kind: str, columns: int):
    matrix, ids = _matrix(30, columns, kind), torch.tensor([29, 0, 7, 7])
    matrix.weight_nk[7] *= 2.0**-20  # in half precision below its normal numbers
    assert torch.equal(kernels.gather(matrix, ids), matrix.weight_nk[ids].float())


def test_activations_are_rounded_to_the_nearest_and_halves_to_even(level: str):
    """By a matrix of one, products are the activations themselves."""
    bits = torch.randint(-(2**31), 2**31, (2000,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
    halves = torch.tensor([0x3F808000, 0x3F818000, 0x7F7F8000, 0x3F7FFFFF], dtype=torch.int64)
    numbers = torch.cat([bits, halves]).to(torch.int32).view(torch.float32)
    numbers = numbers[numbers.abs() > 2.0**-100]  # others, which a product takes for zero, and what is no number
    x = numbers[:, None].contiguous()
    one = FloatMatrix(torch.ones(1, 1, dtype=torch.bfloat16))
    assert torch.equal(kernels.product(x, one), x.bfloat16().float())


@ALL_KINDS
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_token_that_is_not_finite_spoils_itself_alone(level: str, kind: str, broken: float):
    x, matrix = _random(20, 40), _matrix(50, 40, kind)
    expected = kernels.product(x, matrix)
    x[7, 39] = broken
    out, others = kernels.product(x, matrix), torch.arange(20) != 7
    assert not out[7].isfinite().any() and torch.equal(out[others], expected[others])


@ALL_KINDS
def test_rows_may_lie_apart(level: str, kind: str):
    part, matrix = _random(6, 100)[:, 30:70], _matrix(20, 40, kind)
    assert torch.equal(kernels.product(part, matrix), kernels.product(part.contiguous(), matrix))


@ALL_KINDS
def test_groups_of_rows_have_products_of_their_own(level: str, kind: str):
    """Wherever a group begins among the tokens that are multiplied together; one has no rows."""
    program, width, outputs = Program(ROOM), 70, 50
    starts = torch.tensor([0, 5, 5, 23, 80])
    matrices = [_matrix(outputs, width, kind, seed=seed) for seed in range(4)]
    x, out = program.buffer("x", 2 * width), program.buffer("out", 2 * outputs)
    program.grouped(x, starts, [Product(one, None, out) for one in matrices])
    x.copy_(_random(*x.shape))
    out.fill_(math.nan)
    program.run_rows(ROOM)
    rows, found = x.view(-1, width), out.view(-1, outputs)
    for matrix, begin, end in zip(matrices, starts, starts[1:], strict=False):
        if begin < end:
            assert torch.equal(found[begin:end], kernels.product(rows[begin:end].clone(), matrix))


def test_one_input_can_have_products_of_all_kinds(level: str):
    program, x = Program(ROOM), _random(ROOM, 70)
    matrices = [_matrix(30, 70, kind) for kind in (*KINDS, *KINDS)]
    buffer = program.buffer("x", 70)
    outs = [program.buffer(f"out {number}", 30) for number in range(8)]
    program.linear(buffer, *(Product(one, None, out) for one, out in zip(matrices, outs, strict=True)))
    buffer.copy_(x)
    program.run_rows(ROOM)
    for matrix, out in zip(matrices, outs, strict=True):
        assert torch.equal(out, kernels.product(x, matrix))


def test_what_cannot_be_multiplied_is_refused(compiled: None):
    x = _random(3, 40)
    with pytest.raises(ValueError, match=r"no matrix of torch.float64 and shape \(5, 40\)"):
        kernels.product(x, FloatMatrix(_random(5, 40).double()))
    with pytest.raises(ValueError, match="`weight` must be contiguous"):
        kernels.product(x, FloatMatrix(_random(40, 5).T))
    with pytest.raises(ValueError, match="40 columns cannot be multiplied by rows of 39"):
        kernels.product(x[:, 1:], _matrix(5, 40, "torch.bfloat16"))
    with pytest.raises(ValueError, match="multiplied by RoundedActivations, not by FloatActivations"):
        kernels.linear(kernels.activations_of(x, _matrix(5, 40, "torch.float32")), _matrix(5, 40, "torch.bfloat16"))
