"""Programs: the same kernels called one by one, and refusals of what does not fit."""

import numpy as np
import pytest
import torch

from groundup.engine import kernels
from groundup.engine.kernels.matrices import FloatMatrix
from groundup.engine.kernels.program import Product, Program
from groundup.engine.kernels.tables import StepTables
from groundup.model.parts import Normalise
from groundup.model.specs import Norm
from groundup.quantize.matrix import W4_SMALL_GROUPS, W8, dequantize, quantize_rows

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
    program.linear(x_md, *(Product(*each) for each in pairs))
    program.norm(query, query, weight, None, 1e-6, pieces=heads)
    program.rope(query, heads, cosine, sine, interleaved=False)
    program.rope(key, kv_heads, cosine, sine, interleaved=True)
    program.store(blocks, key, value)
    program.attend(query, blocks, query, scale=0.3, window=5, softcap=2.0, sinks_h=sinks)
    program.activate(query, None, query, "gelu")
    program.linear(query, Product(out, None, x_md, x_md))
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
    block_table, starts, counts = map(torch.from_numpy, tables[2:5])
    options = {"scale": 0.3, "window": 5, "softcap": 2.0, "sinks_h": sinks}
    seen = kernels.attend(q, expected_blocks, block_table, starts, counts, **options).flatten(1)
    expected = 2 * (x + kernels.linear(kernels.quantize(kernels.activate(seen, None, "gelu")), out))
    assert torch.equal(x_md[:TOKENS], expected)
    assert torch.equal(blocks.keys, expected_blocks.keys) and torch.equal(blocks.values, expected_blocks.values)
    assert x_md[TOKENS:].isnan().all()


def _run(program: Program, tokens: int = TOKENS) -> None:
    program.run(_tables([tokens], [0]))


@pytest.mark.parametrize("width", [1, 3, 16, 31, 64, 1000])
@pytest.mark.parametrize("gated", [False, True])
def test_streams_are_mixed_by_the_weights_of_each_kind(level: str, width: int, gated: bool):
    program, weights = Program(ROOM), _random(4, 4, seed=2)
    x, streams, kinds = program.buffer("x", width), program.buffers(3, width), program.numbers(4)
    gates = _random(3, width, seed=3) if gated else None
    program.mix(x, streams, weights, kinds, gates)
    x.copy_(_random(ROOM, width, seed=0))
    streams.copy_(_random(3, ROOM, width, seed=1))
    kinds_m = torch.tensor([3, 0, 1, 3, 2, 1, 0])
    kinds.tell(kinds_m.tolist())
    wide, there = x[:TOKENS].double(), streams[:, :TOKENS].double()
    shares = weights[kinds_m, 1:].double() + (0 if gates is None else wide @ gates.double().T)
    expected = weights[kinds_m, :1] * wide + torch.einsum("mj,jmk->mk", shares, there)
    rest = x[TOKENS:].clone()
    _run(program)
    torch.testing.assert_close(x[:TOKENS].double(), expected, rtol=1e-5, atol=1e-5 * width**0.5)
    assert torch.equal(x[TOKENS:], rest)


@pytest.mark.parametrize(("heads", "head_dim", "channels"), [(1, 1, 1), (3, 7, 12), (2, 64, 32), (1, 100, 90)])
@pytest.mark.parametrize("based", [False, True])
def test_gates_open_by_what_the_token_says(level: str, heads: int, head_dim: int, channels: int, based: bool):
    program, weight = Program(ROOM), _random(heads, channels, seed=1)
    said, x, base = (
        program.buffer(name, width) for name, width in (("said", 95), ("x", heads * head_dim), ("b", heads * head_dim))
    )
    for seed, buffer in enumerate((said, x, base)):
        buffer.copy_(_random(*buffer.shape, seed=seed))
    program.gate(said, weight, x, base if based else None, base if based else x, factor=2.0)
    asked = said.double()[:, :channels] @ weight.double().T
    expected = (2 * asked.sigmoid()[..., None] * x.double().view(ROOM, heads, head_dim)).flatten(1)
    expected = expected + base.double() if based else expected
    _run(program, ROOM)
    torch.testing.assert_close((base if based else x).double(), expected, rtol=1e-5, atol=2e-6)


def test_rows_of_a_table_and_zeros_for_none(level: str):
    program = Program(ROOM)
    for format in (W8, W4_SMALL_GROUPS):
        matrix = quantize_rows(_random(50, 70, seed=0), format)
        ids, out = program.numbers(50, 2, least=-1), program.buffers(2, 70)
        program.gather(matrix, ids, out)
        wanted = torch.tensor([[49, 0, -1, 7, 7, -1, 33], [1, 2, 3, -1, 5, 6, 7]])
        ids.tell(*wanted.tolist())
        out.fill_(torch.nan)
        _run(program)
        expected = dequantize(matrix)[wanted.clamp(min=0)].masked_fill(wanted[..., None] < 0, 0)
        assert torch.equal(out[:, :TOKENS], expected)
        assert out[:, TOKENS:].isnan().all()


def test_groups_of_rows_have_products_of_their_own(level: str):
    """Each of three groups against the products of its rows alone; what a token's rows add up to comes back to it."""
    program, width, outputs = Program(ROOM), 70, 24
    starts, places = torch.tensor([0, 5, 5, 2 * TOKENS]), torch.zeros(ROOM, 2, dtype=torch.int64)
    matrices = [quantize_rows(_random(outputs, width, seed=seed), W8) for seed in range(6)]
    biases = [_random(outputs, seed=seed) if seed < 3 else None for seed in range(6)]
    x, first, second, sum_md = (
        program.buffer(name, 2 * size)
        for name, size in (("x", width), ("f", outputs), ("s", outputs), ("sum", outputs // 2))
    )
    pairs = list(zip(matrices, biases, strict=True))
    lists = [Product(*pair, first) for pair in pairs[:3]], [Product(*pair, second) for pair in pairs[3:]]
    program.grouped(x, starts, *lists)
    weights = program.buffer("weights", 2)
    program.combine(first, weights, places, sum_md, sum_md)
    for seed, buffer in enumerate((x, weights, sum_md)):
        buffer.copy_(_random(*buffer.shape, seed=seed))
    places[:TOKENS] = torch.randperm(2 * TOKENS, generator=torch.Generator().manual_seed(4)).view(TOKENS, 2)
    base = sum_md.clone()
    _run(program)
    rows = x.view(2 * ROOM, width)
    for out, offset in ((first, 0), (second, 3)):
        for group in (0, 2):
            begin, end = int(starts[group]), int(starts[group + 1])
            quantized = kernels.quantize(rows[begin:end].clone())
            expected = kernels.linear(quantized, *pairs[offset + group])
            assert torch.equal(out.view(-1, outputs)[begin:end], expected)
    answers = first.view(-1, outputs)[places[:TOKENS]].double()
    expected = base[:TOKENS] + (weights[:TOKENS, :, None] * answers).sum(1)
    torch.testing.assert_close(sum_md[:TOKENS].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_norm_has_a_weight_for_each_piece(level: str):
    program, norm = Program(ROOM), Normalise(Norm("layer", bias=True), 3, 9)
    for seed, parameter in enumerate(norm.parameters()):
        parameter.data = _random(3, 9, seed=seed)
    x = program.buffer("x", 27)
    program.norm(x, x, *(one.data.flatten() for one in norm.parameters()), norm.eps, pieces=3, centred=True)
    x.copy_(_random(ROOM, 27, seed=5))
    expected = norm(x.view(ROOM, 3, 9)).detach().flatten(1)
    _run(program, ROOM)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_the_first_channels_can_be_normed_alone(level: str):
    program = Program(ROOM)
    x_md, out_mk = program.buffer("x", 40), program.buffer("out", 33)
    program.norm(x_md, out_mk, None, None, 1e-6)
    x_md.copy_(_random(ROOM, 40, seed=1))
    _run(program)
    expected = kernels.rms_norm(x_md[:TOKENS, :33], None, 1e-6)
    assert torch.equal(out_mk[:TOKENS], expected)


def test_what_is_written_behind_a_run_belongs_to_the_next(level: str):
    program, told = Program(ROOM), []
    x_md = program.buffer("x", 5).fill_(1)
    program.add(x_md, x_md)
    for write in (lambda: None, lambda: program.call(told.append), lambda: program.add(x_md, x_md)):
        write()
        _run(program)
    assert x_md[:TOKENS].unique().tolist() == [2 * 2 * 4] and told == [TOKENS, TOKENS]


def test_what_does_not_fit_is_refused():
    program, matrix = Program(ROOM), quantize_rows(_random(8, 70, seed=0), W8)
    x, other = program.buffer("x", 70), program.buffer("other", 9)
    blocks = kernels.KeyValueBlocks.empty(3, 2, 8, 16)
    floating = FloatMatrix(_random(8, 70, seed=1))
    with pytest.raises(ValueError, match="a matrix of 70 columns cannot be multiplied by rows of 9"):
        program.linear(other, Product(matrix, None, program.buffer("out", 8)))
    with pytest.raises(ValueError, match=r"`out` must have shape \(12, 8\), not \(12, 9\)"):
        program.linear(x, Product(matrix, None, other))
    with pytest.raises(ValueError, match=r"`bias` must have shape \(8,\)"):
        program.linear(x, Product(matrix, torch.zeros(7), program.buffer("out", 8)))
    with pytest.raises(ValueError, match="1 to 8 products, not 9"):
        program.linear(x, *[Product(matrix, None, program.buffer("out", 8))] * 9)
    with pytest.raises(ValueError, match="9 of 9 channels have no 2 equal pieces"):
        program.norm(other, other, None, None, 1e-6, pieces=2)
    with pytest.raises(ValueError, match="tables for 10 dimensions cannot turn 9 heads"):
        program.rope(other, 9, torch.zeros(4, 5), torch.zeros(4, 5), interleaved=False)
    with pytest.raises(ValueError, match=r"`x` must have shape \(12, 70\), not \(3, 70\)"):
        program.norm(torch.zeros(3, 70), x, None, None, 1e-6)
    with pytest.raises(ValueError, match="9 channels are no heads for 2 key heads of 8"):
        program.attend(other, blocks, other, scale=1.0)
    with pytest.raises(ValueError, match=r"`keys` must have shape \(12, 16\)"):
        program.store(blocks, other, other)
    with pytest.raises(ValueError, match="a product's `out` cannot be what is multiplied"):
        program.linear(x, Product(FloatMatrix(_random(70, 70, seed=1)), None, x))
    with pytest.raises(ValueError, match="9 channels have no 2 equal pieces"):
        narrow = quantize_rows(_random(8, 4, seed=0), W8)
        program.grouped(other, torch.zeros(2), [Product(narrow, None, program.buffer("out of two", 16))])
    with pytest.raises(ValueError, match="this matrix is multiplied by FloatActivations, not by IntegerActivations"):
        mixed = [Product(one, None, program.buffer("out", 8)) for one in (matrix, floating)]
        program.grouped(x, torch.zeros(3, dtype=torch.int64), mixed)
    kinds, streams = program.numbers(2), program.buffers(3, 70)
    with pytest.raises(ValueError, match=r"`streams` must have shape \(2, 12, 70\), not \(3, 12, 70\)"):
        program.mix(x, streams, torch.ones(2, 3), kinds)
    with pytest.raises(ValueError, match="weights of 1 kinds are not for 0 … 1"):
        program.mix(x, streams, torch.ones(1, 4), kinds)
    with pytest.raises(ValueError, match="at most 64 streams can be mixed, not 65"):
        program.mix(x, program.buffers(65, 70), torch.ones(2, 66), kinds)
    with pytest.raises(ValueError, match="80 of 70 input channels cannot gate 3 heads of 9 channels"):
        program.gate(x, torch.ones(3, 80), other, None, other, 1.0)
    with pytest.raises(ValueError, match="a matrix of 8 rows has none for every number below 9"):
        program.gather(matrix, program.numbers(9), program.buffers(1, 70))
    with pytest.raises(ValueError, match=r"`starts` must have shape \(2,\)"):
        program.grouped(x, torch.zeros(3), [Product(matrix, None, program.buffer("out", 8))])


def test_blocks_of_windows_are_found_by_tables_of_their_own():
    """Two programs that differ in nothing else, whose tables differ in where the blocks are."""
    queries = _random(TOKENS, 8, seed=1)
    stored = [_random(TOKENS, 8, seed=seed) for seed in (2, 3)]
    tables = _tables([4, 1, 2], [0, 0, 0])
    elsewhere = tables._replace(
        slots_m=np.zeros_like(tables.slots_m),
        block_table=np.zeros_like(tables.block_table),
        window_slots_m=tables.slots_m,
        window_table=tables.block_table,
    )
    found = []
    for about, are_windowed in ((tables, False), (elsewhere, True)):
        program = Program(ROOM)
        q, k, v = (program.buffer(name, 8) for name in "qkv")
        blocks = kernels.KeyValueBlocks.empty(3, 1, 8, 16, are_windowed=are_windowed)
        program.store(blocks, k, v)
        program.attend(q, blocks, q, scale=0.3, window=3)
        for buffer, content in zip((q, k, v), (queries, *stored), strict=True):
            buffer[:TOKENS] = content
        program.run(about)
        found.append(q[:TOKENS].clone())
    assert torch.equal(*found)


def test_tables_of_windows_are_to_be_there_and_within_what_there_is():
    program = Program(4)
    keys = program.buffer("keys", 8)
    program.store(kernels.KeyValueBlocks.empty(1, 1, 8, 16, are_windowed=True), keys, keys)
    tables = _tables([2], [0])
    with pytest.raises(ValueError, match="there are no tables of the blocks of windows"):
        program.run(tables)
    slots = np.array([0, 16])
    with pytest.raises(ValueError, match="beyond the 16 slots that there are of windows"):
        program.run(tables._replace(window_slots_m=slots, window_table=tables.block_table))
    with pytest.raises(ValueError, match="2 rows do not fit a program"):
        program.run_rows(2)


def test_a_run_beyond_what_the_program_is_for_is_refused():
    """Of several tables and stores of keys, the least counts."""
    program = Program(4)
    keys = program.buffer("keys", 8)
    for positions, blocks in ((9, 2), (6, 1), (9, 2)):
        program.rope(keys, 1, torch.ones(positions, 2), torch.zeros(positions, 2), interleaved=False)
        program.store(kernels.KeyValueBlocks.empty(blocks, 1, 8, 16), keys, keys)
    with pytest.raises(ValueError, match="5 tokens do not fit a program for 4"):
        program.run(_tables([5], [0]))
    with pytest.raises(ValueError, match="beyond the 6 positions"):
        program.run(_tables([2], [5]))
    with pytest.raises(ValueError, match="beyond the 16 slots"):
        program.run(_tables([1, 1], [0, 0]))
    with pytest.raises(ValueError, match="2 positions, 1 slots and 2 queries"):
        program.run(_tables([2], [4])._replace(slots_m=np.zeros(1, dtype=np.int64)))
    ids = program.numbers(5, least=-1)
    for wrong in (5, -2):
        with pytest.raises(ValueError, match=r"numbers of .* are not in -1 … 4"):
            ids.tell([0, wrong])
    ids.tell([4, -1])
    program.run(_tables([2], [4]))
