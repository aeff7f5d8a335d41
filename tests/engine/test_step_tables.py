"""The tables of steps: in memory that is used again, the same as made anew."""

import ctypes
import math
import random

import numpy as np
import numpy.typing as npt
import pytest

from groundup.engine.blocks import BLOCK_TOKENS, BlockPool, blocks_for
from groundup.engine.kernels.tables import StepTables
from groundup.engine.scheduler import Scheduler
from groundup.engine.sequence import Step
from groundup.engine.step_tables import StepMemory, step_tables
from groundup.engine.window_blocks import WindowBlocks

BLOCKS, BUDGET = 40, 24


@pytest.mark.parametrize("windowed", [False, True])
def test_tables_in_the_same_memory_are_those_that_are_made_anew(windowed: bool):
    """Texts come, grow, lose blocks that nothing sees any more, and go, so that rows change hands."""
    draw = random.Random(5)
    windows = WindowBlocks(30, BLOCKS, 20, BLOCK_TOKENS) if windowed else None
    scheduler = Scheduler(BlockPool(BLOCKS, windows=windows), BUDGET, 6, reach=None if windowed else 20)
    memory = StepMemory(BUDGET, BLOCKS, BLOCK_TOKENS, windowed)
    lengths = set()
    for number in range(300):
        if draw.random() < 0.2:
            scheduler.add([number % 7] * draw.randint(1, 60), 90)
        step = scheduler.schedule()
        if step.chunks:
            memory.fill(step.chunks)
            made = step_tables(step.chunks, BLOCK_TOKENS, windowed)
            _require_equal(memory, made)
            if made.window_table is not None and made.window_slots_m is not None:
                _require_windows(step, made.window_table, made.window_slots_m.tolist())
            lengths.add(len(step.chunks))
        scheduler.complete(step)
        for text in [*scheduler.running]:
            if not text.pending:
                text.tokens.append(3)
            if len(text.tokens) > 80 or draw.random() < 0.02:
                scheduler.remove(text)
    assert lengths >= {1, 2, 3, 4}


def _require_equal(memory: StepMemory, made: StepTables) -> None:
    """By what stands where the kernels are told to look. Behind a text's own blocks, which end with its keys, may stand
    anything."""
    for pointer, expected in zip(memory.pointers, made, strict=True):
        if expected is None:
            continue
        is_table = expected is made.block_table or expected is made.window_table
        shape = (made.sequences, memory.table_stride) if is_table else expected.shape
        kind = ctypes.c_int64 if expected.dtype == np.int64 else ctypes.c_int32
        found = np.array((kind * math.prod(shape)).from_address(pointer)).reshape(shape)
        if is_table:
            for found_row, row, keys in zip(found, expected, made.key_counts_s, strict=True):
                assert np.array_equal(found_row[: blocks_for(keys)], row[: blocks_for(keys)])
        else:
            assert np.array_equal(found, expected)
    for name in ("tokens", "sequences", "end_position", "end_slot", "end_window_slot"):
        assert getattr(memory, name) == getattr(made, name)


def _require_windows(step: Step, table: npt.NDArray[np.int32], slots: list[int]) -> None:
    """Of all blocks in sight those of windows stand in the table, and the new tokens in these."""
    expected = []
    for row, (sequence, start, length) in zip(table, step.chunks, strict=True):
        blocks, windows = sequence.table, sequence.table._pool.windows
        assert windows is not None and blocks.closed * BLOCK_TOKENS <= max(0, start - windows.window)
        seen = [windows._own[block] for block in blocks.blocks[blocks.closed : blocks.opened]]
        assert row[blocks.closed : blocks.opened].tolist() == seen
        for place in range(start, start + length):
            expected.append(seen[place // BLOCK_TOKENS - blocks.closed] * BLOCK_TOKENS + place % BLOCK_TOKENS)
    assert slots == expected
