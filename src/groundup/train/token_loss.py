"""The loss of guessed tokens: cross-entropy through the output head, as a sum and the number of targets it sums.

Shape suffixes: n tokens (batch and time flattened), d model width, v vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from groundup.tokens.batches import IGNORE

# Tokens per pass through the head. Their logits are dropped as soon as their gradient is known: at a vocabulary of
# 4,096 this keeps 16 MB instead of 134 MB alive, which is also what makes it fast on CPU (docs/log.md).
HEAD_CHUNK = 1024


class TokenLoss(NamedTuple):
    """Sum of token losses in nats, and how many targets it sums.

    A sum, so that micro-batches and ranks can be added before one division by the global count: the result then does
    not depend on how the batch was split.
    """

    total: Tensor
    targets: Tensor


# Logits of a chunk, its targets, the softcap: the chunk's summed loss and its slope by the logits.
ChunkLoss = Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


def loss_and_slope(logits_cv: Tensor, targets_c: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Summed loss and its derivative by the raw logits: (softmax - one-hot), through the softcap.

    The loss has at least float32, the derivative the type of the logits. Apart from the matrix products all of the
    head's arithmetic is here, so that this alone is compiled, once for all chunks.
    """
    dtype = logits_cv.dtype
    logits_cv = logits_cv.to(torch.promote_types(dtype, torch.float32))
    squash_cv = torch.tanh(logits_cv / softcap) if softcap is not None else None
    if softcap is not None and squash_cv is not None:
        logits_cv = squash_cv * softcap
    valid_c1 = (targets_c != IGNORE)[:, None]
    targets_c1 = targets_c.clamp(min=0)[:, None]
    normaliser_c1 = torch.logsumexp(logits_cv, dim=-1, keepdim=True)
    loss = ((normaliser_c1 - logits_cv.gather(1, targets_c1)) * valid_c1).sum()
    is_target_cv = torch.arange(logits_cv.shape[1], device=logits_cv.device) == targets_c1
    slope_cv = (torch.exp(logits_cv - normaliser_c1) - is_target_cv.to(logits_cv.dtype)) * valid_c1
    if squash_cv is not None:
        slope_cv = slope_cv * (1 - squash_cv.square())
    return loss, slope_cv.to(dtype)


def token_loss(
    hidden_nd: Tensor,
    head_vd: Tensor,
    targets_n: Tensor,
    softcap: float | None = None,
    chunk_loss: ChunkLoss = loss_and_slope,
    head_bias_v: Tensor | None = None,
) -> TokenLoss:
    """Cross-entropy of tokens through the output head.

    hidden_nd: final activations; head_vd, head_bias_v: output matrix and bias, cast to their type; targets_n: int64,
    IGNORE carries no loss.
    The reduction runs in float32 (float64 for float64). Equal to `F.cross_entropy` of the full logits, with the
    gradients of both inputs computed along the way instead of from stored logits. chunk_loss: `loss_and_slope`, or
    that compiled.
    Source: Brown et al. 2020, eq. 1; softcap as in Gemma 2, section 2.
    """
    total: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_nd, head_vd, head_bias_v, targets_n, softcap, chunk_loss
    )
    return TokenLoss(total, (targets_n != IGNORE).sum())


class _HeadLoss(torch.autograd.Function):
    """Chunk by chunk: logits, loss, and at once the gradients for a loss weight of 1."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        head_vd: Tensor,
        head_bias_v: Tensor | None,
        targets_n: Tensor,
        softcap: float | None,
        chunk_loss: ChunkLoss,
    ) -> Tensor:
        narrow_head_vd = head_vd.to(hidden_nd.dtype)
        narrow_bias_v = None if head_bias_v is None else head_bias_v.to(hidden_nd.dtype)
        bias_gradient_v = None if head_bias_v is None else torch.zeros_like(head_bias_v)
        total = torch.zeros((), dtype=torch.promote_types(hidden_nd.dtype, torch.float32), device=hidden_nd.device)
        hidden_gradients, head_gradient_vd = [], torch.zeros_like(head_vd)
        for h_cd, targets_c in zip(hidden_nd.split(HEAD_CHUNK), targets_n.split(HEAD_CHUNK), strict=True):
            loss, slope_cv = chunk_loss(F.linear(h_cd, narrow_head_vd, narrow_bias_v), targets_c, softcap)
            total = total + loss
            hidden_gradients.append(slope_cv @ narrow_head_vd)
            head_gradient_vd += slope_cv.T @ h_cd
            if bias_gradient_v is not None:
                bias_gradient_v += slope_cv.sum(0, dtype=bias_gradient_v.dtype)
        ctx.save_for_backward(torch.cat(hidden_gradients), head_gradient_vd, bias_gradient_v)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient_nd, head_gradient_vd, bias_gradient_v = ctx.saved_tensors
        weight = grad_outputs[0]
        return (
            hidden_gradient_nd * weight.to(hidden_gradient_nd.dtype),
            head_gradient_vd * weight,
            None if bias_gradient_v is None else bias_gradient_v * weight,
            None,
            None,
            None,
        )
