"""Attention: who sees whom is said in `context.py`; here are the projections and the paths that compute it.

Shape suffixes: b batch, t query time, s key time, h heads, k head dimension, d model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from groundup.model.context import LayerCache, Shared, Visibility
from groundup.model.parts import Linear, Normalise, widen
from groundup.model.positions import RopeTables, alibi_slopes, rotate
from groundup.model.specs import HEAD_GATE_WIDTH, Attention, QueryKeyNorm

# Query rows per block on CPU. Measured at context 512: 128 and 256 beat 64 and 512, and all beat fused CPU attention in
# bfloat16 by more than twice (docs/log.md).
QUERY_BLOCK = 256
# Beyond this many keys the score blocks kept for the backward pass cost too much memory.
BLOCKED_KEYS = 2048


class SelfAttention(nn.Module):
    """Grouped-query self-attention, with every variation that `Attention` names.

    A gate lets a head add nothing where it has nothing to say, which softmax alone cannot. Sources: modded-nanogpt
    (2025), one for each head; Qiu et al. 2025, "Gated Attention for Large Language Models", one for each number.
    """

    def __init__(self, spec: Attention, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.query = Linear(width, spec.heads * spec.head_dim, "query" in spec.bias)
        self.key = Linear(width, spec.kv_heads * spec.head_dim, "key" in spec.bias)
        self.value = Linear(width, spec.kv_heads * spec.head_dim, "value" in spec.bias)
        self.output = Linear(spec.heads * spec.head_dim, width, "output" in spec.bias)
        gated = spec.output_gate
        self.output_gate = Linear(width, spec.heads * spec.head_dim, "query" in spec.bias) if gated else None
        norm = spec.query_key_norm
        self.query_norm = None if norm is None else _head_norm(norm, spec.heads, spec.head_dim)
        self.key_norm = None if norm is None else _head_norm(norm, spec.kv_heads, spec.head_dim)
        self.sinks = nn.Parameter(torch.empty(spec.heads)) if spec.sinks else None
        self.head_gate = nn.Parameter(torch.empty(spec.heads, HEAD_GATE_WIDTH)) if spec.head_gate else None

    def forward(
        self, x_btd: Tensor, shared: Shared, cache: LayerCache | None, extra_values_bthk: Tensor | None = None
    ) -> Tensor:
        """extra_values_bthk: added to the values of each kv head, or None."""
        batch, time, _ = x_btd.shape
        q_bthk = self._heads(self.query(x_btd), self.query_norm, shared.rope)
        k_bthk = self._heads(self.key(x_btd), self.key_norm, shared.rope)
        v_bthk = self._clip(self.value(x_btd)).view(k_bthk.shape)
        if extra_values_bthk is not None:
            v_bthk = v_bthk + extra_values_bthk
        q_bhtk, k_bhtk, v_bhtk = (each.transpose(1, 2) for each in (q_bthk, k_bthk, v_bthk))
        attend_all = attend if cache is None else cache.attend
        out_bhtk = attend_all(self.spec, q_bhtk, k_bhtk, v_bhtk, shared.visible, self.sinks, shared.bias_hts)
        out_bthk = out_bhtk.transpose(1, 2)
        if self.head_gate is not None:
            gate_bth = 2 * torch.sigmoid(F.linear(x_btd[..., :HEAD_GATE_WIDTH], self.head_gate.to(x_btd.dtype)))
            out_bthk = out_bthk * gate_bth[..., None]
        if self.output_gate is not None:
            out_bthk = out_bthk * torch.sigmoid(self.output_gate(x_btd)).view(out_bthk.shape)
        return self.output(out_bthk.reshape(batch, time, -1))

    def _heads(self, x_btd: Tensor, norm: Normalise | None, tables: RopeTables | None) -> Tensor:
        """Projected queries or keys as (batch, time, heads, head_dim): normed, clipped and rotated."""
        spec, wanted = self.spec, self.spec.query_key_norm
        if norm is not None and wanted is not None and wanted.over == "width":
            x_btd, norm = norm(x_btd), None
        x_btd = self._clip(x_btd)
        x_bthk = x_btd.view(*x_btd.shape[:2], -1, spec.head_dim)
        if norm is not None and wanted is not None and not wanted.after_rope:
            x_bthk, norm = norm(x_bthk), None
        if spec.rope is not None and tables is not None:
            x_bthk = rotate(x_bthk, spec.rope, tables)
        return x_bthk if norm is None else norm(x_bthk)

    def _clip(self, x_btd: Tensor) -> Tensor:
        return x_btd if self.spec.clip is None else x_btd.clamp(-self.spec.clip, self.spec.clip)


class CrossAttention(SelfAttention):
    """Queries of a decoder against keys and values of an encoder's output (Vaswani et al. 2017, section 3.2.3)."""

    def forward(  # type: ignore[override]
        self, x_btd: Tensor, shared: Shared, cache: LayerCache | None
    ) -> Tensor:
        batch, time, _ = x_btd.shape
        q_bhtk = self._heads(self.query(x_btd), self.query_norm, None).transpose(1, 2)

        def look() -> tuple[Tensor, Tensor]:
            assert shared.memory_bsd is not None
            return self.keys_values(shared.memory_bsd)

        keys_values = look() if cache is None else cache.memory(look)
        out_bhtk = attend(self.spec, q_bhtk, *keys_values, shared.memory_visible)
        return self.output(out_bhtk.transpose(1, 2).reshape(batch, time, -1))

    def keys_values(self, memory_bsd: Tensor) -> tuple[Tensor, Tensor]:
        """What every query is compared with, (batch, kv heads, source time, head_dim) each."""
        k_bshk = self._heads(self.key(memory_bsd), self.key_norm, None)
        v_bshk = self.value(memory_bsd).view(k_bshk.shape)
        return k_bshk.transpose(1, 2), v_bshk.transpose(1, 2)


def _head_norm(wanted: QueryKeyNorm, heads: int, head_dim: int) -> Normalise:
    shapes = {"head": (head_dim,), "each_head": (heads, head_dim), "width": (heads * head_dim,)}
    return Normalise(wanted.norm, *shapes[wanted.over])


def attend(
    spec: Attention,
    q_bhtk: Tensor,
    k_bhsk: Tensor,
    v_bhsk: Tensor,
    visible: Visibility,
    sinks_h: Tensor | None = None,
    bias_hts: Tensor | None = None,
) -> Tensor:
    """softmax(scale · q kᵀ + bias) v under `visible`; keys and values may have fewer heads than queries.

    Scores are exponentiated in at least float32. Source: Vaswani et al. 2017, eq. 1.
    """
    plain = spec.softcap is None and not spec.sinks and spec.alibi is None and bias_hts is None
    if plain and (q_bhtk.device.type != "cpu" or k_bhsk.shape[2] > BLOCKED_KEYS or _is_cheaper_fused(q_bhtk)):
        return attend_fused(spec, q_bhtk, k_bhsk, v_bhsk, visible)
    return attend_in_blocks(spec, q_bhtk, k_bhsk, v_bhsk, visible, sinks_h, bias_hts)


def _is_cheaper_fused(q_bhtk: Tensor) -> bool:
    """On CPU, without gradients: half the time in float32, somewhat less for many queries in bfloat16.

    One query in bfloat16 takes it several times longer; compiled, blocks are as fast.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return q_bhtk.dtype == torch.float32 or q_bhtk.shape[2] > 1


def attend_in_blocks(
    spec: Attention,
    q_bhtk: Tensor,
    k_bhsk: Tensor,
    v_bhsk: Tensor,
    visible: Visibility,
    sinks_h: Tensor | None = None,
    bias_hts: Tensor | None = None,
) -> Tensor:
    """One block of queries at a time against the keys it can see: skips most of what is masked.

    Written for `torch.compile` on CPU: batched matrix products around one fused masked softmax.
    """
    heads, time, head_dim = q_bhtk.shape[1:]
    keys = k_bhsk.shape[2]
    groups = heads // k_bhsk.shape[1]
    if groups > 1:
        k_bhsk, v_bhsk = k_bhsk.repeat_interleave(groups, 1), v_bhsk.repeat_interleave(groups, 1)
    q_bhtk = q_bhtk * (spec.scale or head_dim**-0.5)
    first = keys - time
    blocks = []
    for start in range(0, time, QUERY_BLOCK):
        queries = range(start, min(start + QUERY_BLOCK, time))
        seen = _seen_keys(spec, queries, keys, first)
        scores = q_bhtk[:, :, queries.start : queries.stop] @ k_bhsk[:, :, seen.start : seen.stop].transpose(-1, -2)
        wide = widen(scores)
        if spec.softcap is not None:
            wide = spec.softcap * torch.tanh(wide / spec.softcap)
        if spec.alibi is not None:
            wide = wide + _alibi_bias(spec.alibi, heads, seen, wide)
        if bias_hts is not None:
            wide = wide + bias_hts[:, queries.start : queries.stop, seen.start : seen.stop].to(wide.dtype)
        rule = visible.block(spec, queries, seen, first, q_bhtk.device)
        if rule is not None:
            wide = wide.masked_fill(~rule, float("-inf"))
        weights = _softmax(wide, sinks_h).to(v_bhsk.dtype)
        blocks.append(weights @ v_bhsk[:, :, seen.start : seen.stop])
    return torch.cat(blocks, dim=2)


def _seen_keys(spec: Attention, queries: range, keys: int, first: int) -> range:
    """The keys that some of these queries may see, by order and window alone."""
    begin, end = 0, first + queries.stop if spec.causal else keys
    if spec.window is not None:
        reach = spec.window - 1 if spec.causal else spec.window
        begin = max(0, first + queries.start - reach)
        end = end if spec.causal else min(end, first + queries.stop + spec.window)
    return range(begin, end)


def _softmax(scores_bhts: Tensor, sinks_h: Tensor | None) -> Tensor:
    """Softmax over the keys, and over a score that leads nowhere if the heads have sinks."""
    if sinks_h is None:
        return torch.softmax(scores_bhts, dim=-1)
    sinks_bht1 = sinks_h.to(scores_bhts.dtype)[:, None, None].expand(*scores_bhts.shape[:3], 1)
    return torch.softmax(torch.cat((scores_bhts, sinks_bht1), dim=-1), dim=-1)[..., :-1]


def _alibi_bias(factor: float, heads: int, keys: range, like: Tensor) -> Tensor:
    """(1, heads, 1, keys): grows with the key's index; what is equal for all keys of a query cancels in the softmax."""
    slopes_h = (factor * alibi_slopes(heads)).to(like)
    return (slopes_h[:, None, None] * torch.arange(keys.start, keys.stop, device=like.device).to(like))[None]


def attend_fused(spec: Attention, q_bhtk: Tensor, k_bhsk: Tensor, v_bhsk: Tensor, visible: Visibility) -> Tensor:
    """The same through PyTorch's fused kernels: memory stays linear in the number of keys."""
    time, keys = q_bhtk.shape[2], k_bhsk.shape[2]
    grouped = q_bhtk.shape[1] != k_bhsk.shape[1]
    if spec.causal and spec.window is None and visible.segments_bs is None and time == keys:
        return F.scaled_dot_product_attention(
            q_bhtk, k_bhsk, v_bhsk, is_causal=True, scale=spec.scale, enable_gqa=grouped
        )
    mask = visible.block(spec, range(time), range(keys), keys - time, q_bhtk.device)
    return F.scaled_dot_product_attention(q_bhtk, k_bhsk, v_bhsk, attn_mask=mask, scale=spec.scale, enable_gqa=grouped)
