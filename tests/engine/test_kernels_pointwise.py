"""Norms, rotary positions, activations and sums against float64, at every level and at odd sizes."""

import typing

import pytest
import torch

from groundup.engine import kernels
from groundup.engine.kernels import library
from groundup.model.feedforward import gated_activation
from groundup.model.parts import Normalise
from groundup.model.parts import activate as plain_activate
from groundup.model.positions import rope_tables, rotate
from groundup.model.rotary import Rope
from groundup.model.specs import Activation, FeedForward, Norm

WIDTHS = [1, 3, 16, 31, 64, 1000]
ACTIVATIONS = typing.get_args(Activation)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["rms", "rms_plus_one", "rms_without_weight", "layer", "layer_without_weight"])
def test_norms_are_those_of_the_model(level: str, kind: typing.Any, width: int):
    # Far from zero, where a mean has to be taken away exactly.
    x, offset = _random(5, width), 3.0 if kind.startswith("layer") else 0.0
    norm = Normalise(Norm(kind, eps=1e-5, bias=kind == "layer"), width).double()
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data = _random(width, seed=seed + 1).double()
    weight, bias = (None if each is None else each.data.float() for each in (norm.weight, norm.bias))
    x = x + offset
    if kind.startswith("rms"):
        out = kernels.rms_norm(x, weight, 1e-5, plus_one=kind == "rms_plus_one")
    else:
        out = kernels.layer_norm(x, weight, bias, 1e-5)
    torch.testing.assert_close(out.double(), norm(x.double()).detach(), rtol=2e-5, atol=2e-5)


def test_a_row_is_normed_by_itself(level: str, threads: None):
    wide = _random(200, 300)
    for count in (1, 2, 3):
        library.set_threads(count)
        together = kernels.rms_norm(wide[:, 7:207], None, 1e-6)
        for row in (0, 99, 199):
            alone = kernels.rms_norm(wide[row : row + 1, 7:207].clone(), None, 1e-6)
            assert torch.equal(alone, together[row : row + 1])


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "neighbours"])
@pytest.mark.parametrize(("head_dim", "dims"), [(64, 64), (80, 32), (6, 2), (50, 50), (128, 22)])
def test_rotary_positions_are_those_of_the_model(level: str, interleaved: bool, head_dim: int, dims: int):
    spec = Rope(dims=dims, interleaved=interleaved)
    positions = torch.tensor([0, 7, 99, 3, 7])
    x = _random(5, 3, head_dim)
    expected = rotate(x[None].double(), spec, rope_tables(spec, head_dim, positions[None], torch.float64))[0]
    every = rope_tables(spec, head_dim, torch.arange(100)[None], torch.float64)
    cosine, sine = (table[0, :, 0].float().contiguous() for table in every)
    kernels.rope(x, cosine, sine, positions.int(), interleaved=interleaved)
    torch.testing.assert_close(x.double(), expected, rtol=1e-6, atol=1e-6)


def test_rotary_positions_leave_what_lies_between_tokens(level: str):
    """Queries are turned where they lie in one row with keys and values."""
    rows = _random(4, 100)
    before = rows.clone()
    cosine, sine = torch.zeros(4, 8), torch.ones(4, 8)
    kernels.rope(rows[:, 20:52].unflatten(1, (2, 16)), cosine, sine, torch.arange(4).int(), interleaved=False)
    assert torch.equal(rows[:, :20], before[:, :20]) and torch.equal(rows[:, 52:], before[:, 52:])
    assert torch.equal(rows[:, 20:28], -before[:, 28:36])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [1, 37, 256])
def test_activations_are_those_of_the_model(level: str, activation: Activation, width: int):
    gate_up = 4 * _random(6, 2 * width)
    gate, up = gate_up[:, :width], gate_up[:, width:]
    expected = plain_activate(gate.double(), activation)
    torch.testing.assert_close(kernels.activate(gate, None, activation).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(kernels.activate(gate, up, activation).double(), expected * up, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_hold_far_out_and_pass_on_what_is_no_number(level: str, activation: Activation):
    far = torch.tensor([[-1e4, -200.0, -90.0, -87.3, -1e-30, 0.0, 1e-30, 88.3, 90.0, 200.0, 1e4]])
    out = kernels.activate(far, None, activation)
    torch.testing.assert_close(out.double(), plain_activate(far.double(), activation), rtol=1e-5, atol=1e-6)
    assert kernels.activate(torch.full((1, 1), torch.nan), None, activation).isnan().all()


@pytest.mark.parametrize("shape", [(1,), (33,), (7, 5001)])
def test_a_sum_is_a_sum(level: str, threads: None, shape: tuple[int, ...]):
    library.set_threads(2)
    x, y = _random(*shape), _random(*shape, seed=1)
    expected = x + y
    kernels.add(x, y)
    assert torch.equal(x, expected)


def test_wrong_tensors_are_refused(compiled: None):
    with pytest.raises(ValueError, match=r"`weight` must have shape \(4,\), not \(5,\)"):
        kernels.rms_norm(_random(2, 4), torch.ones(5), 1e-6)
    tables = torch.ones(3, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"`positions` must be in 0 … 2"):
        kernels.rope(_random(1, 2, 8), *tables, torch.tensor([3]).int(), interleaved=False)
    with pytest.raises(ValueError, match="tables for 8 dimensions cannot turn heads of 6"):
        kernels.rope(_random(1, 2, 6), *tables, torch.tensor([0]).int(), interleaved=False)


@pytest.mark.parametrize("spec", [(1.702, 7.0, 1.0), (1.0, 0.5, 0.0), (0.6, None, -0.3)])
def test_bounded_gates_are_those_of_the_model(level: str, spec: tuple[float, float | None, float]):
    sharpness, limit, offset = spec
    gate, up = 5 * _random(6, 37), 5 * _random(6, 37, seed=1)
    network = FeedForward(37, "silu", gated=True, sharpness=sharpness, limit=limit, up_offset=offset)
    out = kernels.activate(gate, up, "silu", sharpness=sharpness, limit=limit, up_offset=offset)
    torch.testing.assert_close(
        out.double(), gated_activation(network, up.double(), gate.double()), rtol=1e-5, atol=1e-5
    )
    gate[2, 5] = torch.nan
    assert kernels.activate(gate, up, "silu", limit=0.5).isnan().nonzero().tolist() == [[2, 5]]
