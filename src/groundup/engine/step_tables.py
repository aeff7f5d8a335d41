"""Where the tokens of a step stand, one chunk behind the other, as arrays that kernels understand.

Shape suffixes: m tokens, s sequences.
"""

from collections.abc import Sequence as Items
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from groundup.engine.kernels.tables import StepTables
from groundup.engine.sequence import Chunk


def step_ids(chunks: Items[Chunk]) -> list[int]:
    """The ids of all their tokens."""
    return [token for one in chunks for token in one.sequence.tokens[one.start : one.start + one.length]]


class StepLists(NamedTuple):
    """Of a step, as lists: see `StepTables`."""

    positions: list[int]
    slots: list[int]
    query_starts: list[int]
    key_counts: list[int]


def step_lists(chunks: Items[Chunk], block_size: int) -> StepLists:
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
    return StepLists(positions, slots, query_starts, [chunk.start + chunk.length for chunk in chunks])


def step_tables(chunks: Items[Chunk], block_size: int) -> StepTables:
    """The places of their tokens and of all that these see. Blocks that were given back count as block 0."""
    blocks = [chunk.sequence.table.numbers() for chunk in chunks]
    block_table = np.zeros((len(chunks), max(map(len, blocks))), dtype=np.int32)
    for row, numbers in zip(block_table, blocks, strict=True):
        row[: len(numbers)] = numbers
    positions, slots, query_starts, key_counts = step_lists(chunks, block_size)
    starts_and_counts = (np.array(each, dtype=np.int32) for each in (query_starts, key_counts))
    return StepTables(
        np.array(positions, dtype=np.int32), np.array(slots, dtype=np.int64), block_table, *starts_and_counts
    )


class StepMemory:
    """The tables of step after step, as `StepTables` has them, in memory that kernels are told of once.

    After a model's weights have passed through the processor nothing else is left in its caches, and each array that is
    made or looked at anew costs a wait: for one text, these are most of what its tables take.
    """

    def __init__(self, tokens: int, blocks: int, block_size: int) -> None:
        """tokens: of a step, at most. blocks: of a text, at most."""
        self._block_size = block_size
        self.positions_m = np.zeros(tokens, dtype=np.int32)
        self._slots_m = np.zeros(tokens, dtype=np.int64)
        self._block_table = np.zeros((tokens, blocks), dtype=np.int32)
        self._query_starts, self._key_counts_s = (np.zeros(tokens + more, dtype=np.int32) for more in (1, 0))
        # What stands in each row of the block table.
        self._rows: list[npt.NDArray[np.int32] | None] = [None] * tokens
        arrays = (self.positions_m, self._slots_m, self._block_table, self._query_starts, self._key_counts_s)
        self.pointers = tuple(each.ctypes.data for each in arrays)
        self.tokens, self.sequences, self.table_stride = 0, 0, blocks
        self.end_position, self.end_slot = 0, 0

    def fill(self, chunks: Items[Chunk]) -> None:
        """The tables are those of this step from now on. What stands behind a text's own blocks is read by nobody."""
        for row, chunk in enumerate(chunks):
            numbers = chunk.sequence.table.numbers()
            if self._rows[row] is not numbers:
                self._block_table[row, : len(numbers)] = numbers
                self._rows[row] = numbers
        positions, slots, query_starts, key_counts = step_lists(chunks, self._block_size)
        self.tokens, self.sequences = len(positions), len(chunks)
        self.end_position, self.end_slot = max(positions) + 1, max(slots) + 1
        self.positions_m[: self.tokens] = positions
        self._slots_m[: self.tokens] = slots
        self._query_starts[: self.sequences + 1] = query_starts
        self._key_counts_s[: self.sequences] = key_counts


def padded(tables: StepTables, sequences: int, padding_block: int, block_size: int) -> StepTables:
    """The same with texts of one token that belongs to nobody, in a block of their own, up to so many texts.

    tables: of steps in which each text has one new token.
    """
    more = sequences - len(tables.key_counts_s)

    def grown(values: npt.NDArray[np.int32], value: int) -> npt.NDArray[np.int32]:
        return np.concatenate((values, np.full((more, *values.shape[1:]), value, dtype=values.dtype)))

    return StepTables(
        positions_m=grown(tables.positions_m, 0),
        slots_m=np.concatenate((tables.slots_m, np.full(more, padding_block * block_size, dtype=np.int64))),
        block_table=grown(tables.block_table, padding_block),
        query_starts=np.arange(sequences + 1, dtype=np.int32),
        key_counts_s=grown(tables.key_counts_s, 1),
    )
