"""The gated delta rule: in chunks as by definition, by definition as in the paper's matrices, documents apart."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from groundup.model import delta
from groundup.model.context import Shared, Visibility
from groundup.model.delta import GatedDelta, chunked, recurrent
from groundup.model.delta_specs import CHUNK, GatedDeltaNet

LENGTHS = (1, 2, 7, CHUNK - 1, CHUNK, CHUNK + 1, 100, 2 * CHUNK, 2 * CHUNK + 3, 5 * CHUNK - 1)


def _inputs(time: int, dtype: torch.dtype = torch.float64, slow: bool = True) -> tuple[Tensor, ...]:
    """Two rows, three heads; queries, keys, values, ln α, β and a state. slow: most is kept from token to token."""
    generator = torch.Generator().manual_seed(time)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    q, k = (torch.nn.functional.normalize(noise(2, time, 3, 5), dim=-1) for _ in range(2))
    log_decay = -(0.05 if slow else 5.0) * noise(2, time, 3).square()
    return q, k, noise(2, time, 3, 4), log_decay, torch.sigmoid(noise(2, time, 3)), noise(2, 3, 5, 4)


def _with_starts(inputs: tuple[Tensor, ...], *starts: tuple[int, int]) -> tuple[Tensor, ...]:
    """The inputs with documents that start at these places, (row, token)."""
    log_decay = inputs[3].clone()
    for row, token in starts:
        log_decay[row, token] = float("-inf")
    return (*inputs[:3], log_decay, *inputs[4:])


def test_the_recurrent_form_is_the_papers_matrix_form():
    """Sᵀ ← Sᵀ α (I − β k kᵀ) + β v kᵀ; Yang et al. 2024, "Gated Delta Networks", eq. 10."""
    q, k, v, log_decay, strength, state = _with_starts(_inputs(9), (1, 4))
    outputs, last = recurrent(q, k, v, log_decay, strength, state)
    for b, h in itertools.product(range(2), range(3)):
        matrix = state[b, h].T
        for t in range(9):
            key, beta = k[b, t, h], strength[b, t, h]
            matrix = matrix @ (log_decay[b, t, h].exp() * (torch.eye(5) - beta * torch.outer(key, key)))
            matrix = matrix + beta * torch.outer(v[b, t, h], key)
            torch.testing.assert_close(outputs[b, t, h], matrix @ q[b, t, h], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(last[b, h], matrix.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slow", [True, False], ids=["slow decay", "fast decay"])
@pytest.mark.parametrize("time", LENGTHS)
def test_the_chunked_form_is_the_recurrent_one(time: int, slow: bool):
    for inputs in (_inputs(time, slow=slow), _with_starts(_inputs(time, slow=slow), (0, time // 2), (1, time // 3))):
        for one, other in zip(chunked(*inputs), recurrent(*inputs), strict=True):
            assert (one - other).norm() <= 1e-11 * other.norm()
        narrow = [tensor.float() for tensor in inputs]
        for one, other in zip(chunked(*narrow), recurrent(*inputs), strict=True):
            assert (one - other).norm() <= 3e-6 * other.norm()


@pytest.mark.parametrize("time", [1, 5, CHUNK + 9, 2 * CHUNK])
def test_both_forms_have_the_same_gradients(time: int):
    inputs = _with_starts(_inputs(time), (0, time // 2))
    gradients = []
    for form in (chunked, recurrent):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        outputs = form(*leaves)
        sum(output.sin().sum() for output in outputs).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for one, other in zip(*gradients, strict=True):
        assert torch.isfinite(one).all()
        assert (one - other).norm() <= 1e-10 * other.norm()


def test_the_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delta, "CHUNK", 3)
    q, k, v, log_decay, strength, state = (tensor[:1].requires_grad_() for tensor in _inputs(5))
    assert torch.autograd.gradcheck(chunked, (q, k, v, log_decay, strength, state))


@pytest.mark.parametrize("cuts", [(1,) * 20, (3, 1, 16), (19, 1), (1, 19)], ids=str)
def test_a_state_goes_on_from_any_token(cuts: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delta, "CHUNK", 8)
    *tokens, state = _with_starts(_inputs(20), (0, 4), (1, 19))
    expected, last = recurrent(*tokens, state)
    for form in (chunked, recurrent):
        held, parts = state, []
        for part in zip(*(tensor.split(cuts, dim=1) for tensor in tokens), strict=True):
            out, held = form(*part, held)
            parts.append(out)
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(held, last, rtol=1e-12, atol=1e-12)


def test_what_a_document_holds_moves_no_bit_of_the_next(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(delta, "CHUNK", 16)
    for dtype in (torch.float32, torch.float64):
        before = _with_starts(_inputs(40, dtype), (0, 5), (0, 21))
        after = tuple(tensor.clone() for tensor in before)
        for tensor in after[:5]:
            tensor[0, 6:21] *= 0.7
        changed = (chunked(*before)[0] != chunked(*after)[0])[0].flatten(1).any(1)
        assert not changed[:6].any()
        assert changed[6:21].all()
        assert not changed[21:].any()
        assert torch.equal(chunked(*before)[1], chunked(*after)[1])


def _layer(spec: GatedDeltaNet, width: int = 16) -> GatedDelta:
    layer = GatedDelta(spec, width)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
    return layer.double()


@torch.no_grad()
def test_a_zero_vector_has_no_length_to_divide_by():
    layer = _layer(GatedDeltaNet(1, 2, 4, 3))
    layer.convolution.weight.zero_()
    out_btd = layer(torch.randn(2, 7, 16, dtype=torch.float64), Shared(None, Visibility(None, None)), None)
    assert torch.equal(out_btd, torch.zeros_like(out_btd))


@torch.no_grad()
def test_wide_numbers_inside_narrow_ones_outside():
    torch.manual_seed(0)
    layer, x_btd = _layer(GatedDeltaNet(2, 4, 8, 8)), torch.randn(2, 70, 16, dtype=torch.float64)
    shared = Shared(None, Visibility(None, None))
    expected = layer(x_btd, shared, None)
    narrow = layer(x_btd.bfloat16(), shared, None)
    assert narrow.dtype == torch.bfloat16
    assert (narrow - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.parametrize("time", [48, 4 * CHUNK])
def test_flops_are_about_those_of_its_products(time: int):
    """PyTorch counts no triangular solves, and needs no gradient for the zeros that the first state is."""
    spec = GatedDeltaNet(2, 4, 16, 16)
    layer = _layer(spec, 32)
    solves = 0

    def solve(matrix: tuple[int, ...], sides: tuple[int, ...], *args: object, **kwargs: object) -> int:
        nonlocal solves
        solves += 1
        *batch, rows, columns = sides
        return rows * rows * columns * torch.Size(batch).numel()

    counted = {torch.ops.aten.linalg_solve_triangular: solve}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        x_btd = torch.randn(1, time, 32, dtype=torch.float64, requires_grad=True)
        layer(x_btd, Shared(None, Visibility(None, None)), None).sum().backward()
    assert solves == 2
    expected = 6 * spec.matmul_parameters(32) + spec.score_flops(time)
    assert counter.get_total_flops() / time == pytest.approx(expected, rel=0.1 if time == 48 else 0.03)


def test_head_counts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`value_heads` \\(3\\) must be a multiple of `key_heads` \\(2\\)"):
        GatedDeltaNet(2, 3, 4, 4)
    with pytest.raises(ValueError, match="`kernel`"):
        GatedDeltaNet(2, 4, 4, 4, kernel=0)
