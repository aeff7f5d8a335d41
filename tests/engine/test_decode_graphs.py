"""Recorded steps are recorded once for each size, and say of new inputs what computing with these says."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from groundup.engine.decode_graphs import CudaRecorder, DecodeGraphs, recorded_sizes
from groundup.engine.kernels.tables import StepTables
from groundup.engine.step_inputs import StepInputs, step_inputs
from groundup.engine.step_tables import padded

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def _inputs(texts: int, blocks: int, seed: int, windowed: bool = False) -> StepInputs:
    """Texts of one new token, of up to so many blocks."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, blocks * BLOCK_SIZE + 1, texts).astype(np.int32)
    table = random.integers(0, 50, (texts, blocks)).astype(np.int32)
    slots = random.integers(0, 200, texts)
    window_table = random.integers(0, 50, (texts, blocks)).astype(np.int32)
    windows = (random.integers(0, 200, texts), window_table) if windowed else ()
    tables = StepTables(counts - 1, slots, table, np.arange(texts + 1, dtype=np.int32), counts, *windows)
    return step_inputs(random.integers(0, 64, texts), tables, BLOCK_SIZE, CPU)


def _summary(inputs: StepInputs) -> Tensor:
    """(texts, 4), or 8 with windows: each number that a step may look at; of block tables, what belongs to a text."""
    if inputs.windowed is not None:
        plain, windows = (
            inputs._replace(attention=each, windowed=None) for each in (inputs.attention, inputs.windowed)
        )
        return torch.cat((_summary(plain), _summary(windows)), dim=1)
    tables, texts = inputs.attention, len(inputs.ids_m)
    assert tables.most_queries == 1 and tables.most_keys >= int(tables.key_counts_s.max())
    columns = torch.arange(tables.block_table.shape[1])
    own = columns * BLOCK_SIZE < tables.key_counts_s[:, None]
    in_table = (tables.block_table * own * (columns + 1)).sum(1)
    starts = tables.query_starts[:texts] * 1000 + tables.key_starts[:texts]
    return torch.stack((inputs.ids_m, inputs.positions_m * 300 + tables.slots_m, starts.long(), in_table), dim=1)


@pytest.mark.parametrize("windowed", [False, True])
def test_replayed_steps_are_those_of_their_own_inputs(windowed: bool):
    computed: list[int] = []

    def compute(inputs: StepInputs) -> Tensor:
        computed.append(len(inputs.ids_m))
        return _summary(inputs)

    recorded: list[Callable[[], Tensor]] = []

    def record(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded.append(work)
        return work

    graphs = DecodeGraphs(compute, record, CPU, most=20, blocks=7, block_size=BLOCK_SIZE)
    shapes = [(1, 2), (8, 7), (8, 1), (1, 7), (8, 3), (24, 2), (1, 1)]
    for seed, (texts, blocks) in enumerate(shapes):
        inputs = _inputs(texts, blocks, seed, windowed)
        assert torch.equal(graphs.run(inputs), _summary(inputs))
    assert computed == [texts for texts, _ in shapes] and len(recorded) == 3


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (3, [1, 2, 4]), (4, [1, 2, 4]), (5, [1, 2, 4, 8]), (33, [1, 2, 4, 8, 16, 24, 32, 40])],
)
def test_sizes_lead_up_to_the_most_texts_of_a_step(most: int, sizes: list[int]):
    assert recorded_sizes(most) == sizes


def test_each_step_takes_the_least_size_that_holds_it():
    graphs = DecodeGraphs(_summary, lambda work: work, CPU, most=300, blocks=1, block_size=BLOCK_SIZE)
    for texts in range(1, 300):
        size = graphs.size_for(texts)
        if texts > 256:
            assert size is None
        else:
            assert size == min(one for one in recorded_sizes(300) if one >= texts)


def test_texts_that_fill_up_a_step_have_one_token_in_the_block_of_nobody():
    counts = np.array([9, 2], dtype=np.int32)
    table = np.array([[3, 1, 5], [2, 0, 0]], dtype=np.int32)
    slots = np.array([20, 9])
    windows = np.array([4, 5]), table + 1
    tables = StepTables(counts - 1, slots, table, np.arange(3, dtype=np.int32), counts, *windows)
    more = padded(tables, 4, padding_block=7, block_size=BLOCK_SIZE, window_padding_block=6)
    assert more.positions_m.tolist() == [8, 1, 0, 0]
    assert more.slots_m.tolist() == [20, 9, 28, 28]
    assert more.block_table.tolist() == [[3, 1, 5], [2, 0, 0], [7, 7, 7], [7, 7, 7]]
    assert more.query_starts.tolist() == [0, 1, 2, 3, 4]
    assert more.key_counts_s.tolist() == [9, 2, 1, 1]
    assert more.window_slots_m is not None and more.window_slots_m.tolist() == [4, 5, 24, 24]
    assert more.window_table is not None
    assert more.window_table.tolist() == [[4, 2, 6], [3, 1, 1], [6, 6, 6], [6, 6, 6]]
    without = padded(tables._replace(window_slots_m=None, window_table=None), 4, 7, BLOCK_SIZE)
    assert without.window_slots_m is None and without.window_table is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_cuda_graph_reads_its_inputs_anew():
    numbers = torch.arange(5.0, device="cuda")
    replay = CudaRecorder(numbers.device)(lambda: numbers.sin() @ numbers)
    for start in (1.0, 2.0):
        numbers.copy_(torch.arange(start, start + 5))
        torch.testing.assert_close(replay(), numbers.sin() @ numbers)
