"""Attention of all tokens of a step, one text behind the other, to keys and values that lie in blocks.

On a GPU `torch.nn.attention.varlen` computes it, by the FlashAttention 2 that PyTorch has inside; elsewhere its
definition does, from the same arguments. The kernel has its conditions: blocks of a multiple of 256 tokens, heads of a
multiple of 8 numbers and at most 256, in bfloat16 or float16, nothing but a scale and a window done to the scores.
Sinks need no kernel of their own: what is seen weighs exp(Σ) of exp(Σ) + exp(sink), Σ being the log of the sum that the
kernel divides by, which it tells.

Sources: Dao 2023, "FlashAttention-2"; sinks as in gpt-oss. Shape suffixes: m new tokens of all texts, s texts, h heads,
g heads that share keys, j kv heads, k head dimension, p blocks, b tokens of a block, t tokens that lie in a row of the
block table.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from groundup.model.specs import Attention

# What the kernel asks for.
KERNEL_BLOCK_TOKENS = 256
KERNEL_MOST_HEAD_DIM = 256
KERNEL_HEAD_DIM_STEP = 8
KERNEL_DTYPES = (torch.bfloat16, torch.float16)


class AttentionTables(NamedTuple):
    """Where new tokens and all that they see lie.

    slots_m: int64, in which the keys and values of the new tokens are to be kept.
    query_starts: int32 (s + 1), the first new token of each text and, last, their number.
    key_starts: int32 (s + 1), the same for keys; FlashAttention 2 asks for it.
    key_counts_s: int32, keys of each text; the last ones are those of its new tokens.
    block_table: int32 (s, most blocks), in which block the keys of each text lie.
    most_queries, most_keys: of one text, at least.
    """

    slots_m: Tensor
    query_starts: Tensor
    key_starts: Tensor
    key_counts_s: Tensor
    block_table: Tensor
    most_queries: int
    most_keys: int


def is_known_to_the_kernel(spec: Attention) -> bool:
    """Whether the kernel, or what is done with its answer, expresses this attention."""
    fits = spec.head_dim <= KERNEL_MOST_HEAD_DIM and spec.head_dim % KERNEL_HEAD_DIM_STEP == 0
    return fits and spec.causal and spec.softcap is None and spec.alibi is None


def attend_to_blocks(
    spec: Attention,
    q_mhk: Tensor,
    keys_pbjk: Tensor,
    values_pbjk: Tensor,
    tables: AttentionTables,
    sinks_h: Tensor | None,
) -> Tensor:
    """softmax(scale · q kᵀ) v over what each token sees of its own text: (m, h, k)."""
    compute = varlen if q_mhk.is_cuda else defined
    out_mhk, log_sums_mh = compute(spec, q_mhk, keys_pbjk, values_pbjk, tables)
    if sinks_h is None:
        return out_mhk
    shares_mh = torch.sigmoid(log_sums_mh - sinks_h.to(log_sums_mh.dtype))
    return (out_mhk * shares_mh[..., None]).to(out_mhk.dtype)


def varlen(
    spec: Attention, q_mhk: Tensor, keys_pbjk: Tensor, values_pbjk: Tensor, tables: AttentionTables
) -> tuple[Tensor, Tensor]:
    """The attention, and log Σ exp of each token's scores, (m, h) float32; by PyTorch's kernel.

    num_splits: 1, since shares of one text's keys that are computed side by side are put together wrongly for blocks
    (pytorch/pytorch#194167); a token's numbers then do not depend on other texts either.
    """
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    out_mhk, log_sums_hm = varlen_attn(
        q_mhk,
        keys_pbjk,
        values_pbjk,
        tables.query_starts,
        tables.key_starts,
        tables.most_queries,
        tables.most_keys,
        return_aux=AuxRequest(lse=True),
        scale=spec.scale,
        window_size=(-1 if spec.window is None else spec.window - 1, 0),
        enable_gqa=spec.heads != spec.kv_heads,
        seqused_k=tables.key_counts_s,
        block_table=tables.block_table,
        num_splits=1,
    )
    return out_mhk, log_sums_hm.T


def defined(
    spec: Attention, q_mhk: Tensor, keys_pbjk: Tensor, values_pbjk: Tensor, tables: AttentionTables
) -> tuple[Tensor, Tensor]:
    """The same as its definition has it, in at least float32: each token against all keys of its text's blocks."""
    wide = torch.promote_types(q_mhk.dtype, torch.float32)
    token_m = torch.arange(len(q_mhk), device=q_mhk.device, dtype=tables.query_starts.dtype)
    text_m = torch.searchsorted(tables.query_starts[1:], token_m, right=True)
    own_key_m = tables.key_counts_s[text_m] - (tables.query_starts[1:][text_m] - token_m)
    blocks_mp = tables.block_table[text_m].long()
    key_t = torch.arange(blocks_mp.shape[1] * keys_pbjk.shape[1], device=q_mhk.device)
    seen_mt = key_t <= own_key_m[:, None]
    if spec.window is not None:
        seen_mt &= key_t > own_key_m[:, None] - spec.window
    q_mjgk = q_mhk.to(wide).unflatten(1, (spec.kv_heads, -1)) * (spec.scale or spec.head_dim**-0.5)
    keys_mtjk, values_mtjk = (each[blocks_mp].flatten(1, 2).to(wide) for each in (keys_pbjk, values_pbjk))
    scores_mjgt = torch.einsum("mjgk,mtjk->mjgt", q_mjgk, keys_mtjk).masked_fill(~seen_mt[:, None, None], -torch.inf)
    out_mjgk = torch.einsum("mjgt,mtjk->mjgk", scores_mjgt.softmax(-1), values_mtjk)
    return out_mjgk.flatten(1, 2).to(q_mhk.dtype), scores_mjgt.logsumexp(-1).flatten(1, 2)
