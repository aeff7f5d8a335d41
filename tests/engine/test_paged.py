"""What is copied between blocks, on the device and on the host, is what copying one by one would leave."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.engine.blocks import BLOCK_TOKENS
from groundup.engine.copies import Copy
from groundup.engine.paged import PagedStore

BLOCKS, HOST = 4, 3
PLACES = st.integers(0, BLOCKS + HOST - 1)


def _written(store: PagedStore, block: int, value: int) -> None:
    """Fill a block of the device, in every layer with other numbers."""
    slots_bt = torch.arange(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)[None]
    store.ids.write(slots_bt, torch.full((1, 1, BLOCK_TOKENS, 1), value))
    for layer, (keys, values) in enumerate(zip(store.keys, store.values, strict=True)):
        for slots, sign in ((keys, 1.0), (values, -1.0)):
            slots.write(
                slots_bt, sign * (value + 100.0 * layer) + torch.arange(6.0).view(1, 2, 1, 3).expand(1, 2, 16, 3)
            )


def _read(store: PagedStore, block: int) -> list[Tensor]:
    slots_bs = torch.arange(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)[None]
    return [slots.read(slots_bs) for slots in (store.ids, *store.keys, *store.values)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(PLACES, PLACES).filter(lambda one: min(one) < BLOCKS and one[0] != one[1]), max_size=12))
def test_any_list_of_copies_is_done_one_after_the_other(pairs: list[tuple[int, int]]):
    """Copies that depend on earlier ones, write twice to a block, or replace what an earlier one reads."""
    store = PagedStore(2, BLOCKS, HOST)
    content: dict[int, Any] = {block: 10 * block + 1 for block in range(BLOCKS)}
    for block, value in content.items():
        _written(store, block, value)
    copies = [Copy(*pair) for pair in pairs]
    for index, copy in enumerate(copies):
        if copy.source not in content:  # nothing stands on the host yet: bring something there first
            copies[index] = Copy(copy.target, copy.source) if copy.target < BLOCKS else Copy(0, copy.source)
        content[copies[index].target] = content[copies[index].source]
    store.copy(copies)
    for block in range(BLOCKS):
        expected = PagedStore(2, BLOCKS)
        _written(expected, block, content[block])
        for found, wanted in zip(_read(store, block), _read(expected, block), strict=True):
            assert torch.equal(found, wanted)
    for block in range(BLOCKS, BLOCKS + HOST):  # and back, to see what stands on the host
        if block in content:
            store.copy([Copy(block, 1)])
            expected = PagedStore(2, BLOCKS)
            _written(expected, 1, content[block])
            for found, wanted in zip(_read(store, 1), _read(expected, 1), strict=True):
                assert torch.equal(found, wanted)


def test_a_store_that_nothing_was_written_to_has_nothing_to_copy():
    PagedStore(2, BLOCKS, HOST).copy([Copy(0, 1), Copy(1, BLOCKS)])
