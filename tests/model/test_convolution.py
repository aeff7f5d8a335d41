"""The causal convolution against its definition, one token and one tap at a time."""

import pytest
import torch
from tiny import random_ids
from torch import Tensor, nn

from groundup.model.convolution import CausalConvolution

BATCH, TIME, CHANNELS = 3, 17, 5


def _convolution(kernel: int, bias: bool) -> CausalConvolution:
    convolution = CausalConvolution(CHANNELS, kernel, bias).double()
    generator = torch.Generator().manual_seed(kernel)
    for parameter in convolution.parameters():
        parameter.data.normal_(generator=generator)
    return convolution


def _inputs() -> Tensor:
    return torch.randn(BATCH, TIME, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def _starts(often: int) -> Tensor:
    return random_ids(BATCH, TIME, seed=often, vocabulary=12) < often


def _defined(convolution: CausalConvolution, x_btc: Tensor, starts_bt: Tensor) -> Tensor:
    weight, kernel = convolution.weight, convolution.weight.shape[-1]
    y_btc = torch.zeros_like(x_btc)
    for row in range(BATCH):
        for now in range(TIME):
            for distance in range(kernel):
                then = now - distance
                if then >= 0 and not starts_bt[row, then + 1 : now + 1].any():
                    y_btc[row, now] += weight[:, 0, kernel - 1 - distance] * x_btc[row, then]
    return y_btc if convolution.bias is None else y_btc + convolution.bias


@pytest.mark.parametrize("often", [0, 2, 6, 12])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 4, 20])
@torch.no_grad()
def test_in_chunks_of_any_size_it_is_what_it_is_defined_to_be(kernel: int, bias: bool, often: int):
    convolution, x_btc, starts_bt = _convolution(kernel, bias), _inputs(), _starts(often)
    expected = _defined(convolution, x_btc, starts_bt)
    for chunks in ([TIME], [1] * TIME, [1, 2, 9, 5], [3, 13, 1]):
        state, parts, before = None, [], 0
        for size in chunks:
            part = slice(before, before + size)
            y_btc, state = convolution(x_btc[:, part], starts_bt[:, part], state)
            assert state.shape == (BATCH, kernel - 1, CHANNELS)
            parts.append(y_btc)
            before += size
        torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_without_segments_it_is_the_convolution_of_pytorch():
    convolution, x_btc = _convolution(4, bias=True), _inputs()
    theirs = nn.Conv1d(CHANNELS, CHANNELS, 4, groups=CHANNELS, padding=3).double()
    theirs.load_state_dict(convolution.state_dict())
    expected = theirs(x_btc.transpose(1, 2))[..., :TIME].transpose(1, 2)
    torch.testing.assert_close(convolution(x_btc, None, None)[0], expected, rtol=1e-12, atol=1e-12)


def test_nothing_passes_a_start_forwards_or_backwards():
    convolution, x_btc, starts_bt = _convolution(4, bias=True), _inputs(), torch.zeros(BATCH, TIME, dtype=torch.bool)
    starts_bt[:, 8] = True
    x_btc[:, :8] = float("nan")
    x_btc.requires_grad_()
    y_btc, state = convolution(x_btc, starts_bt, None)
    assert y_btc[:, 8:].isfinite().all()
    (gradient,) = torch.autograd.grad(y_btc[:, 8:].sum() + state.sum(), x_btc)
    assert (gradient[:, :8] == 0).all()
    assert (gradient[:, 8:] != 0).all()
    _, state = convolution(x_btc[:, :9], starts_bt[:, :9], None)
    assert (state[:, :-1] == 0).all()
    assert torch.equal(state[:, -1], x_btc[:, 8])
