"""Attention to blocks of keys against the model's own in float64: every shape, window, softcap and sink."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine import kernels
from groundup.engine.kernels import KeyValueBlocks, library
from groundup.model.attention import attend_in_blocks
from groundup.model.context import Visibility
from groundup.model.specs import Attention
from groundup.quantize.matrix import quantize_activations

BLOCK = 16


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _kept(x_mhd: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The nearest numbers that can be kept, as float32."""
    if dtype != torch.int8:
        return x_mhd.to(dtype).float()
    scale_mh1 = x_mhd.abs().amax(-1, keepdim=True) / 127
    return (x_mhd / scale_mh1).round() * scale_mh1


class Text:
    """Sequences of given (keys, new tokens) in blocks that lie in no order, with rubbish in every other slot."""

    def __init__(self, spec: Attention, lengths: list[tuple[int, int]], block_size: int, dtype: torch.dtype) -> None:
        self.spec, self.lengths = spec, lengths
        counts = [-(-keys // block_size) for keys, _ in lengths]
        order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(0))
        self.table = torch.full((len(lengths), max(counts)), -1, dtype=torch.int32)
        self.blocks = KeyValueBlocks.empty(len(order), spec.kv_heads, spec.head_dim, block_size, dtype)
        for each in (self.blocks.keys, self.blocks.values, self.blocks.key_scales, self.blocks.value_scales):
            each.fill_(torch.nan if each.is_floating_point() else 99)
        self.keys_values = []
        for row, (keys, _) in enumerate(lengths):
            mine, order = order[: counts[row]], order[counts[row] :]
            self.table[row, : counts[row]] = mine.int()
            index = torch.arange(keys)
            pair = [_kept(_random(keys, spec.kv_heads, spec.head_dim, seed=2 * row + part), dtype) for part in (0, 1)]
            self.blocks.store(*pair, mine[index // block_size] * block_size + index % block_size)
            self.keys_values.append(pair)
        tokens = torch.tensor([new for _, new in lengths])
        self.starts = torch.cat((torch.zeros(1), tokens.cumsum(0))).int()
        self.counts = torch.tensor([keys for keys, _ in lengths]).int()
        self.queries = 2 * _random(int(tokens.sum()), spec.heads, spec.head_dim, seed=99)
        self.sinks = _random(spec.heads, seed=7) if spec.sinks else None

    def attend(self, sequences: slice = slice(None), skip: int = 0) -> torch.Tensor:
        """The kernel's answer, for some sequences, without the first `skip` tokens of the only one."""
        tokens = self.starts.diff()[sequences] - skip
        starts = torch.cat((torch.zeros(1), tokens.cumsum(0))).int()
        first = int(self.starts[sequences.start or 0]) + skip
        return kernels.attend(
            self.queries[first : first + int(starts[-1])],
            self.blocks,
            self.table[sequences],
            starts,
            self.counts[sequences],
            scale=self.spec.scale or self.spec.head_dim**-0.5,
            window=self.spec.window,
            softcap=self.spec.softcap,
            sinks_h=self.sinks,
        )

    def expected(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """dtype: to which scaled queries are rounded."""
        scale = self.spec.scale or self.spec.head_dim**-0.5
        queries = (self.queries * scale).to(dtype).double() / scale
        rows = []
        for row, (keys, values) in enumerate(self.keys_values):
            if self.lengths[row][1] == 0:
                continue
            q_bhtk = queries[self.starts[row] : self.starts[row + 1]].transpose(0, 1)[None]
            k_bhsk, v_bhsk = (each.double().transpose(0, 1)[None] for each in (keys, values))
            sinks = None if self.sinks is None else self.sinks.double()
            rows.append(attend_in_blocks(self.spec, q_bhtk, k_bhsk, v_bhsk, Visibility(None, None), sinks)[0])
        return torch.cat(rows, dim=1).transpose(0, 1)


SPECS = {
    "one head": Attention(heads=1, kv_heads=1, head_dim=16),
    "grouped": Attention(heads=6, kv_heads=2, head_dim=64),
    "many heads to one": Attention(heads=40, kv_heads=1, head_dim=32),
    "odd dimensions": Attention(heads=4, kv_heads=4, head_dim=37),
    "one dimension": Attention(heads=2, kv_heads=1, head_dim=1),
    "largest": Attention(heads=2, kv_heads=1, head_dim=512),
    "window": Attention(heads=4, kv_heads=2, head_dim=80, window=21),
    "window of one": Attention(heads=4, kv_heads=2, head_dim=16, window=1),
    "softcap": Attention(heads=4, kv_heads=2, head_dim=96, softcap=5.0, scale=0.3),
    "sinks": Attention(heads=4, kv_heads=2, head_dim=64, sinks=True),
    "all": Attention(heads=4, kv_heads=1, head_dim=40, window=33, softcap=3.0, sinks=True),
}
LENGTHS = [(1, 1), (17, 1), (40, 40), (100, 13), (64, 2), (5, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_attention_is_the_models(level: str, spec: Attention, dtype: torch.dtype):
    """Keys and values are numbers that can be kept on both sides, so nothing but float32 arithmetic lies between.

    With products of bfloat16 there are the roundings of queries, made on both sides, and of weights: each is off by
    2⁻⁸ of itself at most, so their mean of values is off by no more than that part of the largest value.
    """
    text = Text(spec, LENGTHS, BLOCK, dtype)
    if level in ("avx512_bf16", "amx") and dtype == torch.bfloat16:
        expected, largest = text.expected(torch.bfloat16), max(values.abs().max() for _, values in text.keys_values)
        error = (text.attend() - expected).abs()
        assert error.max() <= largest / 256 + 1e-5
        # As many are rounded up as down.
        assert error.mean() < 0.1 * largest / 256
        return
    torch.testing.assert_close(text.attend().double(), text.expected(), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 70),
    st.none() | st.integers(1, 60),
    st.sampled_from([16, 32, 64]),
)
def test_attention_is_the_models_for_random_texts(
    lengths: list[tuple[int, int]], kv_heads: int, group: int, head_dim: int, window: int | None, block_size: int
):
    spec = Attention(heads=kv_heads * group, kv_heads=kv_heads, head_dim=head_dim, window=window)
    text = Text(spec, [(keys, min(keys, new)) for keys, new in lengths], block_size, torch.float32)
    torch.testing.assert_close(text.attend().double(), text.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_token_does_not_depend_on_the_batch_nor_on_how_its_text_was_cut(
    level: str, threads: None, spec: Attention, dtype: torch.dtype
):
    text = Text(spec, LENGTHS, BLOCK, dtype)
    together = text.attend()
    library.set_threads(3)
    assert torch.equal(text.attend(), together)
    for row, (_, tokens) in enumerate(LENGTHS):
        mine = together[text.starts[row] : text.starts[row + 1]]
        for skip in range(0, tokens, 7):
            assert torch.equal(text.attend(slice(row, row + 1), skip), mine[skip:])


def test_blocks_before_the_window_are_not_read(level: str):
    """They may be given back: the table then says -1."""
    text = Text(SPECS["window"], [(100, 3), (40, 1)], BLOCK, torch.float32)
    expected = text.expected()
    text.table[0, : (100 - 3 - 20) // BLOCK] = -1
    text.table[1, : (40 - 1 - 20) // BLOCK] = -1
    torch.testing.assert_close(text.attend().double(), expected, rtol=1e-5, atol=1e-5)


def test_scores_far_apart_and_far_out_neither_overflow_nor_vanish(level: str):
    text = Text(SPECS["grouped"], [(60, 4)], BLOCK, torch.float32)
    text.queries *= 300
    out = text.attend()
    assert out.isfinite().all()
    torch.testing.assert_close(out.double(), text.expected(), rtol=2e-2, atol=2e-2)


def test_a_broken_query_spoils_itself_alone(level: str):
    text = Text(SPECS["grouped"], LENGTHS, BLOCK, torch.float32)
    expected = text.attend()
    text.queries[5, 2, 3] = torch.nan
    out = text.attend()
    assert out[5, 2].isnan().all()
    expected[5, 2] = out[5, 2] = 0
    assert torch.equal(out, expected)


def test_bfloat16_is_rounded_to_the_nearest(compiled: None):
    numbers = torch.cat(
        (_random(400), torch.tensor([torch.nan, torch.inf, -torch.inf, 1 + 2**-8, 1 + 3 * 2**-8, 0, 3e38]))
    )
    blocks = KeyValueBlocks.empty(1, 1, 1, 512, torch.bfloat16)
    blocks.store(numbers[:, None, None], -numbers[:, None, None], torch.arange(len(numbers)))
    keys, beside = blocks.keys[0, 0, 0, : len(numbers)].unbind(-1)
    torch.testing.assert_close(keys, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert not beside.any()
    values = blocks.values[0, 0, :, 0].flatten()[: len(numbers)]
    torch.testing.assert_close(values, -numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_int8_is_rounded_as_activations_are(compiled: None):
    numbers_mhd = _random(50, 2, 24)
    numbers_mhd[3, 1] = 0
    numbers_mhd[4, 0, 5], numbers_mhd[5, 1, 2] = torch.nan, torch.inf
    expected = quantize_activations(numbers_mhd.flatten(0, 1))
    blocks = KeyValueBlocks.empty(1, 2, 24, 64, torch.int8)
    blocks.store(numbers_mhd, -numbers_mhd, torch.arange(50))
    keys_mhd = blocks.keys[0, :, :, :50].permute(2, 0, 1)
    values_mhd = blocks.values[0, :, :50, :24].transpose(0, 1)
    assert torch.equal(keys_mhd.flatten(0, 1), expected.values_mk)
    assert torch.equal(values_mhd.flatten(0, 1), -expected.values_mk)
    for scales in (blocks.key_scales, blocks.value_scales):
        found_m = scales[0, :, :50].T.flatten()
        torch.testing.assert_close(found_m, expected.scales_m, rtol=0, atol=0, equal_nan=True)


def test_wrong_tables_are_refused(compiled: None):
    text = Text(SPECS["grouped"], [(40, 2), (10, 1)], BLOCK, torch.float32)
    text.table[0, 1] = 99
    with pytest.raises(ValueError, match="`block_table` must be in 0 … "):
        text.attend()
    text = Text(SPECS["grouped"], [(40, 2), (10, 1)], BLOCK, torch.float32)
    text.counts[0] = 49
    with pytest.raises(ValueError, match="a block for each of them"):
        text.attend()
    text.counts[0] = 1
    with pytest.raises(ValueError, match="as many keys as queries"):
        text.attend()
    text.starts[1] = 5
    with pytest.raises(ValueError, match="must rise from 0"):
        kernels.attend(text.queries, text.blocks, text.table, text.starts, text.counts, scale=1.0)
    with pytest.raises(ValueError, match="multiple of 16 tokens, not 24"):
        KeyValueBlocks.empty(1, 1, 8, 24)
    with pytest.raises(ValueError, match="`slots` must be in 0"):
        text.blocks.store(_random(1, 2, 64), _random(1, 2, 64), torch.tensor([-1]))
