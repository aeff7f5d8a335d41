"""The loss and both its gradients against PyTorch's cross-entropy of the full logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.tokens.batches import IGNORE
from groundup.train import token_loss as under_test
from groundup.train.token_loss import token_loss

WIDTH, VOCABULARY = 7, 11


def _inputs(tokens: int, ignored: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Activations and head large enough for logits of size 5 or so, and targets of which some carry no loss."""
    generator = torch.Generator().manual_seed(tokens)
    hidden_nd = torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64)
    head_vd = 2 * torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)
    targets_n = torch.randint(VOCABULARY, (tokens,), generator=generator)
    targets_n[torch.randperm(tokens, generator=generator)[:ignored]] = IGNORE
    return hidden_nd.to(dtype).requires_grad_(), head_vd.to(dtype).requires_grad_(), targets_n


def _reference(hidden_nd: Tensor, head_vd: Tensor, targets_n: Tensor, softcap: float | None) -> Tensor:
    logits_nv = hidden_nd @ head_vd.T
    if softcap is not None:
        logits_nv = softcap * torch.tanh(logits_nv / softcap)
    return F.cross_entropy(logits_nv, targets_n, ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 15.0, 2.0])
@pytest.mark.parametrize(("tokens", "ignored"), [(1, 0), (10, 0), (33, 12), (33, 33)])
@pytest.mark.parametrize("chunk", [1, 10, 1024])
@pytest.mark.parametrize("weight", [1.0, 1 / 37])
def test_loss_and_gradients_are_those_of_cross_entropy(
    tokens: int, ignored: int, softcap: float | None, chunk: int, weight: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(under_test, "HEAD_CHUNK", chunk)
    hidden_nd, head_vd, targets_n = _inputs(tokens, ignored)
    loss = token_loss(hidden_nd, head_vd, targets_n, softcap)
    expected = _reference(hidden_nd, head_vd, targets_n, softcap)
    assert int(loss.targets) == tokens - ignored
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(loss.total * weight, (hidden_nd, head_vd))
    for ours, theirs in zip(gradients, torch.autograd.grad(expected * weight, (hidden_nd, head_vd)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_more_tokens_than_one_chunk_of_the_real_size():
    hidden_nd, head_vd, targets_n = _inputs(under_test.HEAD_CHUNK * 2 + 5, ignored=100)
    ours = torch.autograd.grad(token_loss(hidden_nd, head_vd, targets_n, 15.0).total, (hidden_nd, head_vd))
    theirs = torch.autograd.grad(_reference(hidden_nd, head_vd, targets_n, 15.0), (hidden_nd, head_vd))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_bfloat16_activations_are_reduced_in_float32_and_the_head_keeps_its_type():
    hidden_nd, head_vd, targets_n = _inputs(500, dtype=torch.float32)
    narrow_nd = hidden_nd.detach().bfloat16().requires_grad_()
    loss = token_loss(narrow_nd, head_vd, targets_n).total
    loss.backward()
    assert (loss.dtype, narrow_nd.grad.dtype, head_vd.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    # The logits are rounded to bfloat16 once; summed in bfloat16 the loss would be off by whole units.
    logits_nv = (narrow_nd @ head_vd.bfloat16().T).double()
    expected = F.cross_entropy(logits_nv, targets_n, reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    hidden_nd = torch.tensor([[1e4]], requires_grad=True)
    head_vd = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss = token_loss(hidden_nd, head_vd, torch.tensor([1])).total
    loss.backward()
    assert loss.item() == 2e4
    assert hidden_nd.grad.item() == 2.0
