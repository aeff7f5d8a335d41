"""Attention to blocks is what each token's own keys give it, one by one in float64; a GPU's kernel says the same."""

import math
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest

from groundup.engine.paged_attention import AttentionTables, attend_to_blocks, defined, is_known_to_the_kernel, varlen
from groundup.model.specs import Attention

PLAIN = Attention(heads=4, kv_heads=2, head_dim=8)


class Case(NamedTuple):
    """What attention is given, and each text's own keys and values, (keys, kv heads, head_dim)."""

    q_mhk: Tensor
    keys_pbjk: Tensor
    values_pbjk: Tensor
    tables: AttentionTables
    keys: list[Tensor]
    values: list[Tensor]


def _case(spec: Attention, texts: list[tuple[int, int]], block_size: int, seed: int, wide: int = 1) -> Case:
    """texts: new tokens of each, and tokens before them. wide: columns of the block table that no text needs."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    counts = [new + before for new, before in texts]
    needed = [-(-count // block_size) for count in counts]
    order = torch.randperm(sum(needed) + 3, generator=generator)
    # What stands in blocks and slots of nobody is far from what anybody has.
    keys_pbjk, values_pbjk = (100 * random(len(order), block_size, spec.kv_heads, spec.head_dim) for _ in range(2))
    table = torch.zeros(len(texts), max(needed) + wide, dtype=torch.int32)
    keys, values = [], []
    for row, (count, blocks) in enumerate(zip(counts, needed, strict=True)):
        keys.append(random(count, spec.kv_heads, spec.head_dim))
        values.append(random(count, spec.kv_heads, spec.head_dim))
        table[row, :blocks], order = order[:blocks].int(), order[blocks:]
        for place in range(count):
            block = table[row, place // block_size]
            keys_pbjk[block, place % block_size] = keys[-1][place]
            values_pbjk[block, place % block_size] = values[-1][place]
    new = [0, *(new for new, _ in texts)]
    tables = AttentionTables(
        slots_m=torch.zeros(0, dtype=torch.int64),
        query_starts=torch.tensor(new).cumsum(0).int(),
        key_starts=torch.tensor([0, *counts]).cumsum(0).int(),
        key_counts_s=torch.tensor(counts, dtype=torch.int32),
        block_table=table,
        most_queries=max(new),
        most_keys=table.shape[1] * block_size,
    )
    return Case(random(sum(new), spec.heads, spec.head_dim), keys_pbjk, values_pbjk, tables, keys, values)


def _one_by_one(spec: Attention, case: Case, sinks_h: Tensor | None) -> Tensor:
    """Each number from the formula, in Python's own floats for the weights."""
    out_mhk = torch.zeros_like(case.q_mhk)
    token = 0
    for keys, values, stop in zip(case.keys, case.values, case.tables.query_starts[1:].tolist(), strict=True):
        while token < stop:
            own = len(keys) - (stop - token)
            first = 0 if spec.window is None else max(0, own - spec.window + 1)
            for head in range(spec.heads):
                group = head // (spec.heads // spec.kv_heads)
                dots = [float(case.q_mhk[token, head] @ keys[place, group]) for place in range(first, own + 1)]
                weights = [math.exp(dot * (spec.scale or spec.head_dim**-0.5)) for dot in dots]
                total = sum(weights) + (0.0 if sinks_h is None else math.exp(float(sinks_h[head])))
                for weight, value in zip(weights, values[first : own + 1, group], strict=True):
                    out_mhk[token, head] += weight / total * value
            token += 1
    return out_mhk


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 20)), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    window=st.sampled_from([None, 1, 3, 9]),
    scale=st.sampled_from([None, 0.7]),
    block_size=st.sampled_from([4, 16]),
    sinks=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_each_token_sees_the_keys_of_its_text_up_to_its_own(
    texts: list[tuple[int, int]],
    heads: tuple[int, int],
    window: int | None,
    scale: float | None,
    block_size: int,
    sinks: bool,
    seed: int,
):
    spec = Attention(*heads, head_dim=8, window=window, scale=scale, sinks=sinks)
    case = _case(spec, texts, block_size, seed)
    sinks_h = torch.linspace(-1, 2, spec.heads, dtype=torch.float64) if sinks else None
    found = attend_to_blocks(spec, *case[:4], sinks_h)
    torch.testing.assert_close(found, _one_by_one(spec, case, sinks_h), rtol=1e-10, atol=1e-12)


def test_blocks_that_a_window_left_behind_may_hold_anything():
    spec = replace(PLAIN, window=4)
    case = _case(spec, [(1, 30), (2, 9)], 4, seed=1)
    expected = attend_to_blocks(spec, *case[:4], None)
    case.tables.block_table[0, :6] = 0
    case.tables.block_table[1, 0] = case.tables.block_table[0, 7]
    torch.testing.assert_close(attend_to_blocks(spec, *case[:4], None), expected, rtol=0, atol=0)


def test_what_the_kernel_does_not_know_is_told():
    assert is_known_to_the_kernel(replace(PLAIN, window=3, sinks=True, scale=0.1))
    others = [{"softcap": 20.0}, {"alibi": 1.0}, {"causal": False}, {"head_dim": 12}, {"head_dim": 264}]
    for change in others:
        assert not is_known_to_the_kernel(replace(PLAIN, **change))


def _as_documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: AuxRequest,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> tuple[Tensor, Tensor]:
    """`varlen_attn` by its documentation, and what FlashAttention 2 requires of its arguments.

    The last query of a sequence stands at its last key. Log-sums are (heads, queries), as the operator has them.
    """
    assert {each.dtype for each in (cu_seq_q, cu_seq_k, seqused_k, block_table)} == {torch.int32}
    assert key.shape[1] % 256 == 0 and num_splits == 1 and return_aux.lse
    assert enable_gqa or query.shape[1] == key.shape[2]
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    assert max_q >= cu_seq_q.diff().max() and max_k >= seqused_k.max()
    left, right = (math.inf if each < 0 else each for each in window_size)
    out, log_sums = torch.zeros_like(query), query.new_zeros(query.shape[1], len(query))
    for row, used in enumerate(seqused_k.tolist()):
        first, stop = cu_seq_q[row : row + 2].tolist()
        keys, values = (each[block_table[row].long()].flatten(0, 1)[:used] for each in (key, value))
        for token in range(first, stop):
            own = used - (stop - token)
            seen = [place for place in range(used) if own - left <= place <= own + right]
            for head in range(query.shape[1]):
                group = head * key.shape[2] // query.shape[1]
                scores = keys[seen, group] @ query[token, head] * (scale or query.shape[2] ** -0.5)
                out[token, head] = scores.softmax(0) @ values[seen, group]
                log_sums[head, token] = scores.logsumexp(0)
    return out, log_sums


@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
def test_the_kernel_is_asked_for_what_is_defined(
    heads: tuple[int, int], scale: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
):
    spec = Attention(*heads, head_dim=8, window=window, scale=scale)
    case = _case(spec, [(3, 254), (1, 0), (2, 130)], 256, seed=3)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", _as_documented)
    for found, expected in zip(varlen(spec, *case[:4]), defined(spec, *case[:4]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 1, 100])
@pytest.mark.parametrize("texts", [[(1, 0)], [(1, 700), (1, 3), (1, 256)], [(300, 0), (7, 505), (1, 40)]])
def test_the_kernel_of_a_gpu_says_what_the_definition_does(
    texts: list[tuple[int, int]], window: int | None, dtype: torch.dtype
):
    """Weights are rounded to the type before they meet the values: by half a unit in the last place of 1 at most, as
    is the sum; both scale with the largest value."""
    spec = Attention(heads=8, kv_heads=2, head_dim=64, window=window)
    case = _case(spec, texts, 256, seed=2)
    q, keys, values = (each.to("cuda", dtype) for each in case[:3])
    tables = AttentionTables(*(each.cuda() if isinstance(each, Tensor) else each for each in case.tables))
    out, log_sums = varlen(spec, q, keys, values, tables)
    expected, expected_sums = defined(spec, q.double(), keys.double(), values.double(), tables)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * 5)
    torch.testing.assert_close(log_sums.double(), expected_sums, rtol=0, atol=1e-2)
