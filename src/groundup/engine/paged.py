"""What layers remember of many sequences: keys and values in blocks, recurrent states beside them.

Blocks after those that sequences hold lie in the host's memory, wherever the model is: nothing is computed with them.

All layers lay out their tokens alike: token i of a sequence lies in slot i % BLOCK_TOKENS of its block
i // BLOCK_TOKENS, in each layer's own tensor. `StepCache` is the model's cache for one call, in which every sequence
computes equally many tokens; what they see is gathered from the blocks, with padding on the left where one has seen
less than another. No padding ever stands between what was there and what is new, so recurrent layers never meet any.

Shape suffixes: b sequences, t new tokens, s all tokens, h kv heads, k head dimension, n slots.
"""

from collections.abc import Callable, Collection
from collections.abc import Sequence as Items
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groundup.engine.block_table import BlockTable
from groundup.engine.blocks import BLOCK_TOKENS
from groundup.engine.cache_memory import memory_for
from groundup.engine.copies import Copy, at_once
from groundup.engine.sequence import Chunk
from groundup.model.attention import attend
from groundup.model.context import Visibility
from groundup.model.specs import Attention


class Remembered(NamedTuple):
    """What a layer remembers of one sequence beside keys and values, each with a batch of one; see `LayerCache`."""

    state: tuple[Tensor, ...] | None
    load: Tensor | None


class Slots:
    """A vector of each head for each token there is room for; made when the first is written and their shape is known.

    The last slot belongs to no block: it holds the zeros that padding is read from.
    """

    def __init__(self, blocks: int, host_blocks: int = 0) -> None:
        self._blocks, self._host_blocks = blocks, host_blocks
        self._count = blocks * BLOCK_TOKENS
        self._values_hnk: Tensor | None = None
        self._host_hnk: Tensor | None = None

    def write(self, slots_bt: Tensor, new_bhtk: Tensor) -> None:
        """Keep the vectors of new tokens, each sequence's at its own slots."""
        new_hnk = new_bhtk.transpose(0, 1).flatten(1, 2)
        if self._values_hnk is None or self._host_hnk is None:
            host_slots = self._host_blocks * BLOCK_TOKENS
            self._host_hnk = _slots_like(new_hnk, "`host_tokens`", host_slots, torch.device("cpu"))
            self._values_hnk = _slots_like(new_hnk, "`cache_tokens`", self._count + 1, new_hnk.device)
            self._values_hnk[:, -1] = 0
        self._values_hnk.index_copy_(1, slots_bt.flatten(), new_hnk)

    def read(self, slots_bs: Tensor) -> Tensor:
        """(b, h, s, k), laid out as the products of attention want it, which would copy it again otherwise."""
        assert self._values_hnk is not None
        heads = torch.arange(len(self._values_hnk), device=slots_bs.device)
        rows_bhs = heads[:, None] * (self._count + 1) + slots_bs[:, None]
        return self._values_hnk.flatten(0, 1).index_select(0, rows_bhs.flatten()).unflatten(0, rows_bhs.shape)

    def copy(self, sources: Items[int], targets: Items[int]) -> None:
        """Copy whole blocks that lie in one memory to others that do; all are read before any is written."""
        if self._values_hnk is not None:
            read, froms = self._memory_of(sources)
            written, tos = self._memory_of(targets)
            written[:, tos] = read[:, froms].to(written.device)

    def _memory_of(self, blocks: Items[int]) -> tuple[Tensor, list[int]]:
        """The memory in which blocks lie, (heads, blocks, tokens, head dimension), and their places there."""
        assert self._values_hnk is not None and self._host_hnk is not None
        on_host = blocks[0] >= self._blocks
        slots_hnk = self._host_hnk if on_host else self._values_hnk[:, :-1]
        return slots_hnk.unflatten(1, (-1, BLOCK_TOKENS)), [block - on_host * self._blocks for block in blocks]


def _slots_like(new_hnk: Tensor, setting: str, slots: int, device: torch.device) -> Tensor:
    """So many slots for such vectors. Raises ValueError, naming the setting, where there is no memory for them."""
    heads, size = new_hnk.shape[0], new_hnk.shape[2]
    with memory_for(setting, slots, heads * slots * size * new_hnk.itemsize, device):
        # Not filled: memory that nobody has written to yet is not taken from the machine.
        return new_hnk.new_empty(heads, slots, size, device=device)


class PagedStore:
    """Tokens of all blocks, and their keys and values in each layer; see `BlockPool` for those of the host.

    windowed: numbers of the layers that have `window_blocks` blocks of their own.
    """

    def __init__(
        self, layers: int, blocks: int, host_blocks: int = 0, windowed: Collection[int] = (), window_blocks: int = 0
    ) -> None:
        self.padding_slot, self.window_padding_slot = blocks * BLOCK_TOKENS, window_blocks * BLOCK_TOKENS
        self.windowed = windowed
        self._blocks, self._window_blocks = blocks, window_blocks
        counts = [window_blocks if layer in windowed else blocks for layer in range(layers)]
        self.ids = Slots(blocks, host_blocks)
        self.keys = [Slots(count, host_blocks) for count in counts]
        self.values = [Slots(count, host_blocks) for count in counts]
        kept = list(enumerate(zip(self.keys, self.values, strict=True)))
        self._seeing_all = [self.ids, *(each for layer, both in kept if layer not in windowed for each in both)]
        self._seeing_windows = [each for layer, both in kept if layer in windowed for each in both]

    def copy(self, copies: Items[Copy], window_copies: Items[Copy] = ()) -> None:
        """Copy blocks one after the other, before a step writes to them."""
        _copy(copies, self._blocks, self._seeing_all)
        _copy(window_copies, self._window_blocks, self._seeing_windows)


def _copy(copies: Items[Copy], blocks: int, memories: Items[Slots]) -> None:
    """blocks: of these memories, without the host's."""
    for group in at_once(copies, blocks):
        sources, targets = zip(*group, strict=True)
        for slots in memories:
            slots.copy(sources, targets)


class Layout(NamedTuple):
    """Where the tokens of one call lie.

    slots_bs: of all tokens, the padding slot where there is none. positions_bt: of the new ones.
    window_slots_bs: in the blocks of windows, padding also for what is out of sight; None where there are none.
    segments_bs: 0 for tokens, -1 for padding; None where there is no padding.
    """

    slots_bs: Tensor
    positions_bt: Tensor
    segments_bs: Tensor | None
    window_slots_bs: Tensor | None


def lay_out(chunks: Items[Chunk], store: PagedStore, device: torch.device) -> Layout:
    """The layout of chunks of equal length."""
    padding_slot = store.padding_slot
    ends = [chunk.start + chunk.length for chunk in chunks]
    lengths = [end - chunk.sequence.table.first_token for end, chunk in zip(ends, chunks, strict=True)]
    slots_bs = np.full((len(chunks), max(lengths)), padding_slot, dtype=np.int64)
    for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
        slots_bs[row, max(lengths) - length :] = slots_of(chunk.sequence.table, length)
    positions_bt = np.array([chunk.start for chunk in chunks])[:, None] + np.arange(chunks[0].length)
    window_slots_bs = None
    if store.windowed:
        window_slots_bs = np.full_like(slots_bs, store.window_padding_slot)
        for row, (chunk, length) in enumerate(zip(chunks, lengths, strict=True)):
            first, slots = window_slots_of(chunk.sequence.table, length)
            window_slots_bs[row, max(lengths) - length + first :] = slots
    padded = min(lengths) < max(lengths)
    segments_bs = -(slots_bs == padding_slot).astype(np.int32) if padded else None
    return Layout(
        torch.from_numpy(slots_bs).to(device),
        torch.from_numpy(positions_bt).to(device),
        None if segments_bs is None else torch.from_numpy(segments_bs).to(device),
        None if window_slots_bs is None else torch.from_numpy(window_slots_bs).to(device),
    )


def slots_of(table: BlockTable, tokens: int) -> npt.NDArray[np.int64]:
    """The slots of the first tokens that a table holds."""
    return _slots_in(np.array(table.blocks, dtype=np.int64))[:tokens]


def window_slots_of(table: BlockTable, tokens: int) -> tuple[int, npt.NDArray[np.int64]]:
    """The first of so many tokens that is in sight, and the slots from there on, in blocks of windows."""
    first = table.closed * BLOCK_TOKENS
    return first, _slots_in(table.window_numbers()[table.closed :].astype(np.int64))[: tokens - first]


def _slots_in(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return (blocks[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)).ravel()


class LayerStep:
    """One layer's part of a call: a `LayerCache`."""

    def __init__(
        self,
        keys: Slots,
        values: Slots,
        slots_bs: Tensor,
        new: int,
        before: Items[Remembered],
        source_slots_bs: Tensor | None,
    ) -> None:
        self._keys, self._values, self._source_slots_bs = keys, values, source_slots_bs
        self._slots_bs, self._new_slots_bt = slots_bs, slots_bs[:, slots_bs.shape[1] - new :]
        states = _rows_together([one.state for one in before])
        self.state: tuple[Tensor, ...] | None = states
        loads = _rows_together([None if one.load is None else (one.load,) for one in before])
        self.load: Tensor | None = None if loads is None else loads[0]

    def attend(
        self,
        spec: Attention,
        q_bhtk: Tensor,
        k_bhtk: Tensor,
        v_bhtk: Tensor,
        visible: Visibility,
        sinks_h: Tensor | None = None,
        bias_hts: Tensor | None = None,
    ) -> Tensor:
        """Write the new keys and values into their slots; the queries see all that is in those of their sequences."""
        self._keys.write(self._new_slots_bt, k_bhtk)
        self._values.write(self._new_slots_bt, v_bhtk)
        seen = self._keys.read(self._slots_bs), self._values.read(self._slots_bs)
        return attend(spec, q_bhtk, *seen, visible, sinks_h, bias_hts)

    def memory(self, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Those of the sequences' sources, gathered anew each time: never those of all layers at once."""
        if self._source_slots_bs is None:
            return compute()
        return self._keys.read(self._source_slots_bs), self._values.read(self._source_slots_bs)

    def remembered(self, row: int) -> Remembered:
        """What is to be kept of one sequence, in memory of its own."""

        def own(rows: Tensor) -> Tensor:
            return rows if len(rows) == 1 else rows[row : row + 1].clone()

        state = None if self.state is None else tuple(map(own, self.state))
        return Remembered(state, None if self.load is None else own(self.load))


class StepCache:
    """The model's `Cache` for one call.

    before: of each sequence, what each layer remembers; None at its start.
    source_slots_bs: where what the layers see of each one's source lies, see `encoding.py`; None without sources.
    """

    def __init__(
        self,
        store: PagedStore,
        layout: Layout,
        before: Items[Items[Remembered] | None],
        source_slots_bs: Tensor | None = None,
    ) -> None:
        self._store, self._slots_bs = store, layout.slots_bs
        new = layout.positions_bt.shape[1]
        nothing = [Remembered(None, None)] * len(store.keys)
        by_layer = zip(*(nothing if one is None else one for one in before), strict=True)
        slots = [self._slots_bs] * len(store.keys)
        if layout.window_slots_bs is not None:
            for layer in store.windowed:
                slots[layer] = layout.window_slots_bs
        parts = zip(store.keys, store.values, slots, by_layer, strict=True)
        self.layers = [
            LayerStep(keys, values, own_bs, new, rows, source_slots_bs) for keys, values, own_bs, rows in parts
        ]

    @property
    def length(self) -> int:
        """Tokens of the longest sequence, the new ones included."""
        return self._slots_bs.shape[1]

    def take_ids(self, input_ids: Tensor) -> Tensor:
        """Keep the new tokens; returns all that the sequences see, zeros for padding."""
        new_slots_bt = self._slots_bs[:, self.length - input_ids.shape[1] :]
        self._store.ids.write(new_slots_bt, input_ids[:, None, :, None])
        return self._store.ids.read(self._slots_bs)[:, 0, :, 0]

    def remembered(self, row: int) -> list[Remembered]:
        """What is to be kept of one sequence."""
        return [layer.remembered(row) for layer in self.layers]


def _rows_together(rows: Items[tuple[Tensor, ...] | None]) -> tuple[Tensor, ...] | None:
    """The states of several sequences as one; zeros for those at their start, None if all are."""
    some = next((row for row in rows if row is not None), None)
    if some is None:
        return None
    nothing = tuple(map(torch.zeros_like, some))
    filled = [nothing if row is None else row for row in rows]
    return some if len(rows) == 1 else tuple(torch.cat(parts) for parts in zip(*filled, strict=True))
