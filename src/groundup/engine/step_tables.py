"""Where the tokens of a step stand, one chunk behind the other, as arrays that kernels understand.

Shape suffixes: m tokens, s sequences.
"""

from collections.abc import Sequence as Items
from itertools import chain

import numpy as np
import numpy.typing as npt

from groundup.engine.kernels.program import StepTables
from groundup.engine.scheduler import Chunk


def step_ids(chunks: Items[Chunk], tokens: int) -> npt.NDArray[np.int64]:
    """The ids of the `tokens` tokens that these chunks have together."""
    ids = chain.from_iterable(chunk.sequence.tokens[chunk.start : chunk.start + chunk.length] for chunk in chunks)
    return np.fromiter(ids, dtype=np.int64, count=tokens)


def step_tables(chunks: Items[Chunk], block_size: int) -> StepTables:
    """The places of their tokens and of all that these see. Blocks that were given back count as block 0."""
    starts_s = np.array([chunk.start for chunk in chunks], dtype=np.int32)
    lengths_s = np.array([chunk.length for chunk in chunks], dtype=np.int32)
    ends = [chunk.sequence.table.dropped + len(chunk.sequence.table.blocks) for chunk in chunks]
    block_table = np.zeros((len(chunks), max(ends)), dtype=np.int32)
    for row, chunk, end in zip(block_table, chunks, ends, strict=True):
        row[chunk.sequence.table.dropped : end] = chunk.sequence.table.blocks
    query_starts = np.zeros(len(chunks) + 1, dtype=np.int32)
    np.cumsum(lengths_s, out=query_starts[1:])
    sequence_m = np.repeat(np.arange(len(chunks)), lengths_s)
    positions_m = np.arange(query_starts[-1], dtype=np.int32) + (starts_s - query_starts[:-1])[sequence_m]
    blocks_m = block_table[sequence_m, positions_m // block_size].astype(np.int64)
    slots_m = blocks_m * block_size + positions_m % block_size
    return StepTables(positions_m, slots_m, block_table, query_starts, starts_s + lengths_s)


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
