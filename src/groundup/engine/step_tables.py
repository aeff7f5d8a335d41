"""Where the tokens of a step stand, one chunk behind the other, as arrays that kernels understand.

Shape suffixes: m tokens, s sequences.
"""

from collections.abc import Sequence as Items
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from groundup.engine.kernels.program import StepTables
from groundup.engine.sequence import Chunk


def step_ids(chunks: Items[Chunk]) -> npt.NDArray[np.int64]:
    """The ids of all their tokens."""
    return np.array([token for one in chunks for token in one.sequence.tokens[one.start : one.start + one.length]])


def step_tables(chunks: Items[Chunk], block_size: int) -> StepTables:
    """The places of their tokens and of all that these see. Blocks that were given back count as block 0.

    Token by token in Python: most steps have one of each text, for which arrays would take longer.
    """
    blocks = [chunk.sequence.table.numbers() for chunk in chunks]
    block_table = np.zeros((len(chunks), max(map(len, blocks))), dtype=np.int32)
    positions: list[int] = []
    slots: list[int] = []
    for row, numbers, (sequence, start, length) in zip(block_table, blocks, chunks, strict=True):
        row[: len(numbers)] = numbers
        for position in range(start, start + length):
            block = sequence.table.block_of(position // block_size)
            positions.append(position)
            slots.append(block * block_size + position % block_size)
    lengths = [chunk.length for chunk in chunks]
    return StepTables(
        np.array(positions, dtype=np.int32),
        np.array(slots, dtype=np.int64),
        block_table,
        np.array(list(accumulate(lengths, initial=0)), dtype=np.int32),
        np.array([chunk.start + chunk.length for chunk in chunks], dtype=np.int32),
    )


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
