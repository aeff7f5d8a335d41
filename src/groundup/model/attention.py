"""Attention: one rule of who may see whom, and the paths that compute it.

Shape suffixes: b batch, t query time, s key time, h heads, k head dimension, d model width.

Every token belongs to a *segment* (a packed document; -1 for padding) and has an index in the row. A query sees a key
if both are in the same segment and the key is not later. Training packs, left padding and the cache all say what they
mean with segments alone; padding rows see themselves, so no softmax is ever empty.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.config import HEAD_GATE_WIDTH, Attention
from groundup.model.parts import Linear, RMSNorm, rotate

# Query rows per block on CPU. Measured at context 512: 128 and 256 beat 64 and 512, and all beat fused CPU attention in
# bfloat16 by more than twice (docs/log.md).
QUERY_BLOCK = 256
# Beyond this many keys the score blocks kept for the backward pass cost too much memory.
BLOCKED_KEYS = 2048


class Visibility(NamedTuple):
    """Segments of the queries and of the keys; queries are the last t of the s keys.

    segments_bt, segments_bs: int32, or None where every token of the row is one segment.
    """

    segments_bt: Tensor | None
    segments_bs: Tensor | None

    def block(self, start: int, stop: int, first: int, keys: int, device: torch.device) -> Tensor:
        """The rule for queries start..stop against keys 0..keys: bool (batch or 1, 1, queries, keys).

        first: index of query 0 among the keys.
        """
        rows = torch.arange(first + start, first + stop, device=device)
        columns = torch.arange(keys, device=device)
        causal = (rows[:, None] >= columns[None, :])[None, None]
        if self.segments_bt is None or self.segments_bs is None:
            return causal
        same = self.segments_bt[:, None, start:stop, None] == self.segments_bs[:, None, None, :keys]
        return causal & same


class LayerCache(Protocol):
    """What a layer needs of a key-value cache: keep the new keys and values, give back all of them."""

    def update(self, k_bhtk: Tensor, v_bhtk: Tensor) -> tuple[Tensor, Tensor]: ...


class SelfAttention(nn.Module):
    """Grouped-query self-attention with rotary positions, optional query/key norm and optional head gates.

    A gate lets a head add nothing where it has nothing to say, which softmax alone cannot. Source: modded-nanogpt
    (2025); Qiu et al. 2025, "Gated Attention for Large Language Models".
    """

    def __init__(self, spec: Attention, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.query = Linear(width, spec.heads * spec.head_dim)
        self.key = Linear(width, spec.kv_heads * spec.head_dim)
        self.value = Linear(width, spec.kv_heads * spec.head_dim)
        self.output = Linear(spec.heads * spec.head_dim, width)
        self.query_key_norm = RMSNorm(spec.query_key_norm, spec.head_dim) if spec.query_key_norm else None
        self.head_gate = nn.Parameter(torch.empty(spec.heads, HEAD_GATE_WIDTH)) if spec.head_gate else None

    def forward(
        self,
        x_btd: Tensor,
        rope: tuple[Tensor, Tensor],
        visible: Visibility,
        cache: LayerCache | None,
        extra_values_bthk: Tensor | None = None,
    ) -> Tensor:
        """extra_values_bthk: added to the values of each kv head, or None."""
        batch, time, _ = x_btd.shape
        q_bthk = rotate(self.query(x_btd).view(batch, time, self.spec.heads, -1), rope)
        k_bthk = rotate(self.key(x_btd).view(batch, time, self.spec.kv_heads, -1), rope)
        if self.query_key_norm is not None:
            q_bthk, k_bthk = self.query_key_norm(q_bthk), self.query_key_norm(k_bthk)
        v_bthk = self.value(x_btd).view(k_bthk.shape)
        if extra_values_bthk is not None:
            v_bthk = v_bthk + extra_values_bthk
        k_bhsk, v_bhsk = k_bthk.transpose(1, 2), v_bthk.transpose(1, 2)
        if cache is not None:
            k_bhsk, v_bhsk = cache.update(k_bhsk, v_bhsk)
        out_bthk = attend(q_bthk.transpose(1, 2), k_bhsk, v_bhsk, visible).transpose(1, 2)
        if self.head_gate is not None:
            gate_bth = 2 * torch.sigmoid(F.linear(x_btd[..., :HEAD_GATE_WIDTH], self.head_gate.to(x_btd.dtype)))
            out_bthk = out_bthk * gate_bth[..., None]
        return self.output(out_bthk.reshape(batch, time, -1))


def attend(q_bhtk: Tensor, k_bhsk: Tensor, v_bhsk: Tensor, visible: Visibility) -> Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v under `visible`; keys and values may have fewer heads than queries.

    Scores are exponentiated in at least float32. Source: Vaswani et al. 2017, eq. 1.
    """
    path: Callable[..., Tensor] = attend_fused
    if q_bhtk.device.type == "cpu" and k_bhsk.shape[2] <= BLOCKED_KEYS:
        path = attend_in_blocks
    return path(q_bhtk, k_bhsk, v_bhsk, visible)


def attend_in_blocks(q_bhtk: Tensor, k_bhsk: Tensor, v_bhsk: Tensor, visible: Visibility) -> Tensor:
    """One block of queries at a time against the keys up to its end: skips most of the masked half.

    Written for `torch.compile` on CPU: batched matrix products around one fused masked softmax.
    """
    heads, time, head_dim = q_bhtk.shape[1:]
    keys = k_bhsk.shape[2]
    groups = heads // k_bhsk.shape[1]
    if groups > 1:
        k_bhsk, v_bhsk = k_bhsk.repeat_interleave(groups, 1), v_bhsk.repeat_interleave(groups, 1)
    q_bhtk = q_bhtk * head_dim**-0.5
    first = keys - time
    blocks = []
    for start in range(0, time, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, time)
        end = first + stop
        scores = q_bhtk[:, :, start:stop] @ k_bhsk[:, :, :end].transpose(-1, -2)
        wide = scores if scores.dtype == torch.float64 else scores.float()
        wide = wide.masked_fill(~visible.block(start, stop, first, end, q_bhtk.device), float("-inf"))
        blocks.append(torch.softmax(wide, dim=-1).to(v_bhsk.dtype) @ v_bhsk[:, :, :end])
    return torch.cat(blocks, dim=2)


def attend_fused(q_bhtk: Tensor, k_bhsk: Tensor, v_bhsk: Tensor, visible: Visibility) -> Tensor:
    """The same through PyTorch's fused kernels: memory stays linear in the number of keys."""
    time, keys = q_bhtk.shape[2], k_bhsk.shape[2]
    grouped = q_bhtk.shape[1] != k_bhsk.shape[1]
    if visible.segments_bs is None and time == keys:
        return F.scaled_dot_product_attention(q_bhtk, k_bhsk, v_bhsk, is_causal=True, enable_gqa=grouped)
    mask = visible.block(0, time, keys - time, keys, q_bhtk.device)
    return F.scaled_dot_product_attention(q_bhtk, k_bhsk, v_bhsk, attn_mask=mask, enable_gqa=grouped)
