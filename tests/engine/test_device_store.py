"""Blocks of the device and of the host: what is copied between them, and what layers write."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import hot_decoder, tiny_config

from groundup.engine.copies import Copy
from groundup.engine.device_store import DeviceStore
from groundup.engine.paged_attention import AttentionTables

BLOCKS, HOST, SIZE = 4, 3, 4
PLACES = st.integers(0, BLOCKS + HOST - 1)
MODEL = hot_decoder(tiny_config("llama", kv_heads=1))


def _nowhere(slots: list[int]) -> AttentionTables:
    """Each new token a text of its own, in these slots."""
    counts = torch.ones(len(slots), dtype=torch.int32)
    starts = torch.arange(len(slots) + 1, dtype=torch.int32)
    table = torch.tensor(slots, dtype=torch.int32)[:, None] // SIZE
    return AttentionTables(torch.tensor(slots), starts, starts, counts, table, most_queries=1, most_keys=SIZE)


def _content(store: DeviceStore, block: int) -> list[torch.Tensor]:
    """Keys and values of a block of the device in each layer."""
    layers = store.cache(_nowhere([0])).layers
    return [memory[block].clone() for layer in layers for memory in (layer.keys_pbjk, layer.values_pbjk)]


def _write(store: DeviceStore, block: int, seed: int) -> None:
    """Fill a block through the layers, each with numbers of its own."""
    spec = MODEL.config.layers[0].attention
    generator = torch.Generator().manual_seed(seed)
    for layer in store.cache(_nowhere([block * SIZE + place for place in range(SIZE)])).layers:
        q, k, v = (
            torch.randn(1, heads, SIZE, spec.head_dim, generator=generator, dtype=torch.float64)
            for heads in (spec.heads, spec.kv_heads, spec.kv_heads)
        )
        layer.attend(spec, q, k, v, None)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(PLACES, PLACES).filter(lambda one: min(one) < BLOCKS and one[0] != one[1]), max_size=12))
def test_any_list_of_copies_is_done_one_after_the_other(pairs: list[tuple[int, int]]):
    """Copies that depend on earlier ones, write twice to a block, or replace what an earlier one reads."""
    store = DeviceStore(MODEL, BLOCKS, HOST, SIZE)
    nothing = _content(store, 0)
    expected = dict.fromkeys(range(BLOCKS, BLOCKS + HOST), nothing)
    for block in range(BLOCKS):
        _write(store, block, seed=block)
        expected[block] = _content(store, block)
    assert not any(torch.equal(one, other) for one, other in zip(expected[0], expected[1], strict=True))
    store.copy([Copy(*pair) for pair in pairs])
    for source, target in pairs:
        expected[target] = expected[source]
    for block in range(BLOCKS):
        assert all(map(torch.equal, _content(store, block), expected[block]))
    for block in range(BLOCKS, BLOCKS + HOST):  # brought back, to see what stands on the host
        store.copy([Copy(block, 1)])
        assert all(map(torch.equal, _content(store, 1), expected[block]))


def test_a_token_is_written_to_its_slot_and_nowhere_else():
    store, spec = DeviceStore(MODEL, BLOCKS, 0, SIZE), MODEL.config.layers[0].attention
    layer = store.cache(_nowhere([6, BLOCKS * SIZE])).layers[1]
    q, k, v = (torch.ones(1, heads, 2, spec.head_dim, dtype=torch.float64) for heads in (spec.heads, 1, 1))
    layer.attend(spec, q, 5 * k, 7 * v, None)
    for memory, value in ((layer.keys_pbjk, 5), (layer.values_pbjk, 7)):
        written = memory.flatten(0, 1).abs().sum((1, 2)).nonzero().flatten()
        assert written.tolist() == [6, BLOCKS * SIZE] and float(memory.max()) == value
    others = store.cache(_nowhere([0])).layers[0]
    assert not others.keys_pbjk.any() and not others.values_pbjk.any()


def test_scores_that_something_is_added_to_are_refused():
    spec = MODEL.config.layers[0].attention
    layer = DeviceStore(MODEL, BLOCKS, 0, SIZE).cache(_nowhere([0])).layers[0]
    q, k, v = (torch.ones(1, heads, 1, spec.head_dim, dtype=torch.float64) for heads in (spec.heads, 1, 1))
    with pytest.raises(ValueError, match="nothing can be added to the scores"):
        layer.attend(spec, q, k, v, None, bias_hts=torch.zeros(spec.heads, 1, 1))
