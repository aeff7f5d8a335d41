"""Where the tokens of a step stand, one chunk behind the other, as arrays that kernels understand.

Shape suffixes: m tokens, s sequences.
"""

from collections.abc import Sequence as Items
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from groundup.engine.kernels.tables import StepTables
from groundup.engine.sequence import Chunk

Number = TypeVar("Number", bound=np.generic)


def step_ids(chunks: Items[Chunk]) -> list[int]:
    """The ids of all their tokens."""
    return [token for one in chunks for token in one.sequence.tokens[one.start : one.start + one.length]]


class StepLists(NamedTuple):
    """Of a step, as lists: see `StepTables`. window_slots: empty where there are no blocks of windows."""

    positions: list[int]
    slots: list[int]
    query_starts: list[int]
    key_counts: list[int]
    window_slots: list[int]


def step_lists(chunks: Items[Chunk], block_size: int, windowed: bool) -> StepLists:
    """Where their tokens stand.

    Token by token in Python: most steps have one of each text, for which arrays would take longer.
    """
    positions: list[int] = []
    slots: list[int] = []
    for sequence, start, length in chunks:
        for position in range(start, start + length):
            block = sequence.table.block_of(position // block_size)
            positions.append(position)
            slots.append(block * block_size + position % block_size)
    query_starts = list(accumulate((chunk.length for chunk in chunks), initial=0))
    window_slots = _window_slots(chunks, block_size) if windowed else []
    return StepLists(positions, slots, query_starts, [chunk.start + chunk.length for chunk in chunks], window_slots)


def _window_slots(chunks: Items[Chunk], block_size: int) -> list[int]:
    return [
        sequence.table.window_block_of(position // block_size) * block_size + position % block_size
        for sequence, start, length in chunks
        for position in range(start, start + length)
    ]


def step_tables(chunks: Items[Chunk], block_size: int, windowed: bool = False) -> StepTables:
    """The places of their tokens and of all that these see. Blocks that were given back count as block 0.

    windowed: with those in blocks of windows.
    """
    positions, slots, query_starts, key_counts, window_slots = step_lists(chunks, block_size, windowed)
    return StepTables(
        positions_m=np.array(positions, dtype=np.int32),
        slots_m=np.array(slots, dtype=np.int64),
        block_table=_block_table([chunk.sequence.table.numbers() for chunk in chunks]),
        query_starts=np.array(query_starts, dtype=np.int32),
        key_counts_s=np.array(key_counts, dtype=np.int32),
        window_slots_m=np.array(window_slots, dtype=np.int64) if windowed else None,
        window_table=_block_table([chunk.sequence.table.window_numbers() for chunk in chunks]) if windowed else None,
    )


def _block_table(blocks: Items[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    block_table = np.zeros((len(blocks), max(map(len, blocks))), dtype=np.int32)
    for row, numbers in zip(block_table, blocks, strict=True):
        row[: len(numbers)] = numbers
    return block_table


class StepMemory:
    """The tables of step after step, as `StepTables` has them, in memory that kernels are told of once.

    After a model's weights have passed through the processor nothing else is left in its caches, and each array that is
    made or looked at anew costs a wait: for one text, these are most of what its tables take.
    """

    def __init__(self, tokens: int, blocks: int, block_size: int, windowed: bool = False) -> None:
        """tokens: of a step, at most. blocks: of a text, at most. windowed: with tables of the blocks of windows."""
        self._block_size, self._windowed = block_size, windowed
        self.positions_m = np.zeros(tokens, dtype=np.int32)
        self._slots_m = np.zeros(tokens, dtype=np.int64)
        self._table = KeptTable(tokens, blocks)
        self._query_starts, self._key_counts_s = (np.zeros(tokens + more, dtype=np.int32) for more in (1, 0))
        self._window_slots_m = np.zeros(tokens, dtype=np.int64)
        self._window_table = KeptTable(tokens, blocks) if windowed else self._table
        arrays = (self.positions_m, self._slots_m, self._table.rows, self._query_starts, self._key_counts_s)
        windows = (self._window_slots_m, self._window_table.rows)
        self.pointers = tuple(each.ctypes.data for each in (*arrays, *windows))
        self.tokens, self.sequences, self.table_stride = 0, 0, blocks
        self.end_position, self.end_slot, self.end_window_slot = 0, 0, 0

    def fill(self, chunks: Items[Chunk]) -> None:
        """The tables are those of this step from now on. What stands behind a text's own blocks is read by nobody."""
        self._table.keep([chunk.sequence.table.numbers() for chunk in chunks])
        positions, slots, query_starts, key_counts, window_slots = step_lists(chunks, self._block_size, self._windowed)
        self.tokens, self.sequences = len(positions), len(chunks)
        self.end_position, self.end_slot = max(positions) + 1, max(slots) + 1
        self.positions_m[: self.tokens] = positions
        self._slots_m[: self.tokens] = slots
        self._query_starts[: self.sequences + 1] = query_starts
        self._key_counts_s[: self.sequences] = key_counts
        if self._windowed:
            self._window_table.keep([chunk.sequence.table.window_numbers() for chunk in chunks])
            self._window_slots_m[: self.tokens] = window_slots
            self.end_window_slot = max(window_slots) + 1


class KeptTable:
    """A block table in one place, of which only those rows are written that have changed."""

    def __init__(self, rows: int, blocks: int) -> None:
        self.rows = np.zeros((rows, blocks), dtype=np.int32)
        self._standing: list[npt.NDArray[np.int32] | None] = [None] * rows

    def keep(self, blocks: Items[npt.NDArray[np.int32]]) -> None:
        """These numbers stand in the first rows; the same array never has others."""
        for row, numbers in enumerate(blocks):
            if self._standing[row] is not numbers:
                self.rows[row, : len(numbers)] = numbers
                self._standing[row] = numbers


def padded(
    tables: StepTables, sequences: int, padding_block: int, block_size: int, window_padding_block: int = 0
) -> StepTables:
    """The same with texts of one token that belongs to nobody, in a block of their own, up to so many texts.

    tables: of steps in which each text has one new token. window_padding_block: of those of windows.
    """
    more = sequences - len(tables.key_counts_s)
    slots_m, window_slots_m, window_table = tables.slots_m, tables.window_slots_m, tables.window_table
    return StepTables(
        positions_m=_grown(tables.positions_m, more, 0),
        slots_m=_grown(slots_m, more, padding_block * block_size),
        block_table=_grown(tables.block_table, more, padding_block),
        query_starts=np.arange(sequences + 1, dtype=np.int32),
        key_counts_s=_grown(tables.key_counts_s, more, 1),
        window_slots_m=None
        if window_slots_m is None
        else _grown(window_slots_m, more, window_padding_block * block_size),
        window_table=None if window_table is None else _grown(window_table, more, window_padding_block),
    )


def _grown(values: npt.NDArray[Number], more: int, value: int) -> npt.NDArray[Number]:
    return np.concatenate((values, np.full((more, *values.shape[1:]), value, dtype=values.dtype)))
