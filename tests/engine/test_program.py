"""Programs: the same kernels called one by one, and refusals of what does not fit."""

import numpy as np
import pytest
import torch

from groundup.engine import kernels
from groundup.engine.kernels.program import Product, Program, StepTables
from groundup.quantize.matrix import W4_SMALL_GROUPS, W8, quantize_rows

TOKENS, ROOM = 7, 12


def _tables(lengths: list[int], starts: list[int], block_size: int = 16) -> StepTables:
    """Sequences of one block each, in blocks 2, 1, 0 …"""
    blocks = np.arange(len(lengths), dtype=np.int32)[::-1].copy()
    places = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)])
    slots = np.repeat(blocks, lengths).astype(np.int64) * block_size + places
    query_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    counts = np.array(lengths, dtype=np.int32) + np.array(starts, dtype=np.int32)
    return StepTables(places.astype(np.int32), slots, blocks[:, None].copy(), query_starts, counts)


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_program_does_what_its_kernels_do():
    tables = _tables([4, 1, 2], [0, 5, 3])
    heads, kv_heads, dim, width = 4, 2, 8, 70
    matrices = [
        quantize_rows(_random(rows, width, seed=rows), format)
        for rows, format in ((heads * dim, W8), (kv_heads * dim, W4_SMALL_GROUPS), (kv_heads * dim + 0, W8))
    ]
    out = quantize_rows(_random(width, heads * dim, seed=5), W8)
    bias, weight, sinks = _random(heads * dim, seed=6), _random(dim, seed=7), _random(heads, seed=8)
    cosine, sine = _random(16, 3, seed=9), _random(16, 3, seed=10)
    x = _random(TOKENS, width, seed=11)
    keys = [_random(3, kv_heads, dim, 16, seed=12), _random(3, kv_heads, 16, 16, seed=13)]

    program = Program(ROOM)
    blocks = kernels.KeyValueBlocks(dim, *(one.clone() for one in keys), *torch.empty(2, 0))
    x_md = program.buffer("x", width)
    query, key, value = (program.buffer(name, one.rows) for name, one in zip("qkv", matrices, strict=True))
    pairs = zip(matrices, (bias, None, None), (query, key, value), strict=True)
    program.linear(program.quantize(x_md), *(Product(*each) for each in pairs))
    program.norm(query, query, weight, None, 1e-6, pieces=heads)
    program.rope(query, heads, cosine, sine, interleaved=False)
    program.rope(key, kv_heads, cosine, sine, interleaved=True)
    program.store(blocks, key, value)
    program.attend(query, blocks, query, scale=0.3, window=5, softcap=2.0, sinks_h=sinks)
    program.activate(query, None, query, "gelu")
    program.linear(program.quantize(query), Product(out, None, x_md, x_md))
    program.add(x_md, x_md)
    x_md[:TOKENS] = x
    x_md[TOKENS:] = torch.nan
    program.run(tables)

    positions = torch.from_numpy(tables.positions_m)
    expected_blocks = kernels.KeyValueBlocks(dim, *(one.clone() for one in keys), *torch.empty(2, 0))
    quantized = kernels.quantize(x)
    q, k, v = (kernels.linear(quantized, one, b) for one, b in zip(matrices, (bias, None, None), strict=True))
    q = kernels.rms_norm(q.view(-1, dim), weight, 1e-6).view(TOKENS, heads, dim)
    k = k.view(TOKENS, kv_heads, dim)
    kernels.rope(q, cosine, sine, positions, interleaved=False)
    kernels.rope(k, cosine, sine, positions, interleaved=True)
    expected_blocks.store(k, v.view(TOKENS, kv_heads, dim), torch.from_numpy(tables.slots_m))
    block_table, starts, counts = map(torch.from_numpy, tables[2:])
    options = {"scale": 0.3, "window": 5, "softcap": 2.0, "sinks_h": sinks}
    seen = kernels.attend(q, expected_blocks, block_table, starts, counts, **options).flatten(1)
    expected = 2 * (x + kernels.linear(kernels.quantize(kernels.activate(seen, None, "gelu")), out))
    assert torch.equal(x_md[:TOKENS], expected)
    assert torch.equal(blocks.keys, expected_blocks.keys) and torch.equal(blocks.values, expected_blocks.values)
    assert x_md[TOKENS:].isnan().all()


def test_what_does_not_fit_is_refused():
    program, matrix = Program(ROOM), quantize_rows(_random(8, 70, seed=0), W8)
    x, other = program.buffer("x", 70), program.buffer("other", 9)
    blocks = kernels.KeyValueBlocks.empty(3, 2, 8, 16)
    quantized = program.quantize(x)
    with pytest.raises(ValueError, match="a matrix of 70 columns cannot be multiplied by 9"):
        program.linear(program.quantize(other), Product(matrix, None, program.buffer("out", 8)))
    with pytest.raises(ValueError, match=r"`out` must have shape \(12, 8\), not \(12, 9\)"):
        program.linear(quantized, Product(matrix, None, other))
    with pytest.raises(ValueError, match=r"`bias` must have shape \(8,\)"):
        program.linear(quantized, Product(matrix, torch.zeros(7), program.buffer("out", 8)))
    with pytest.raises(ValueError, match="1 to 8 products, not 9"):
        program.linear(quantized, *[Product(matrix, None, program.buffer("out", 8))] * 9)
    with pytest.raises(ValueError, match="9 channels have no 2 equal pieces"):
        program.norm(other, other, None, None, 1e-6, pieces=2)
    with pytest.raises(ValueError, match="tables for 10 dimensions cannot turn 9 heads"):
        program.rope(other, 9, torch.zeros(4, 5), torch.zeros(4, 5), interleaved=False)
    with pytest.raises(ValueError, match=r"`x` must have shape \(12, 70\), not \(3, 70\)"):
        program.norm(torch.zeros(3, 70), x, None, None, 1e-6)
    with pytest.raises(ValueError, match="9 channels are no heads for 2 key heads of 8"):
        program.attend(other, blocks, other, scale=1.0)
    with pytest.raises(ValueError, match=r"`keys` must have shape \(12, 16\)"):
        program.store(blocks, other, other)


def test_a_run_beyond_what_the_program_is_for_is_refused():
    program, blocks = Program(4), kernels.KeyValueBlocks.empty(1, 1, 8, 16)
    keys = program.buffer("keys", 8)
    program.rope(keys, 1, torch.ones(6, 2), torch.zeros(6, 2), interleaved=False)
    program.store(blocks, keys, keys)
    with pytest.raises(ValueError, match="5 tokens do not fit a program for 4"):
        program.run(_tables([5], [0]))
    with pytest.raises(ValueError, match="beyond the 6 positions"):
        program.run(_tables([2], [5]))
    with pytest.raises(ValueError, match="beyond the 16 slots"):
        program.run(_tables([1, 1], [0, 0]))
    program.run(_tables([2], [4]))
