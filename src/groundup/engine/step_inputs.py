"""Ids and tables of a step as tensors, from which a model computes it.

Shape suffixes: m new tokens.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from groundup.engine.kernels.tables import StepTables
from groundup.engine.paged_attention import AttentionTables


class StepInputs(NamedTuple):
    """What a step is computed from. ids_m, positions_m: int64.

    windowed: as `attention`, for the layers that have blocks of windows; None without them.
    """

    ids_m: Tensor
    positions_m: Tensor
    attention: AttentionTables
    windowed: AttentionTables | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them; the last dimension of block tables is longer where texts are."""
        tables, windowed = self.attention, self.windowed
        counts = (tables.query_starts, tables.key_starts, tables.key_counts_s)
        own = () if windowed is None else (windowed.slots_m, windowed.block_table)
        return self.ids_m, self.positions_m, tables.slots_m, *counts, tables.block_table, *own


def step_inputs(ids_m: npt.NDArray[np.int64], tables: StepTables, block_size: int, device: torch.device) -> StepInputs:
    """Ids and tables of a step on a device."""

    def moved(values: npt.NDArray[np.int32] | npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(device)

    key_starts = np.zeros_like(tables.query_starts)
    np.cumsum(tables.key_counts_s, out=key_starts[1:])
    attention = AttentionTables(
        slots_m=moved(tables.slots_m),
        query_starts=moved(tables.query_starts),
        key_starts=moved(key_starts),
        key_counts_s=moved(tables.key_counts_s),
        block_table=moved(tables.block_table),
        most_queries=int(np.diff(tables.query_starts).max()),
        most_keys=tables.block_table.shape[1] * block_size,
    )
    windowed = None
    if tables.window_slots_m is not None and tables.window_table is not None:
        windowed = attention._replace(slots_m=moved(tables.window_slots_m), block_table=moved(tables.window_table))
    return StepInputs(moved(ids_m), moved(tables.positions_m.astype(np.int64)), attention, windowed)


def widened(inputs: StepInputs, blocks: int, block_size: int, device: torch.device) -> StepInputs:
    """The same in memory of its own on a device, with room for so many blocks of each text."""

    def own(tensor: Tensor) -> Tensor:
        return tensor.to(device, copy=True)

    def wide(table: Tensor) -> Tensor:
        wide = table.new_zeros(len(table), max(blocks, table.shape[1]))
        wide[:, : table.shape[1]] = table
        return own(wide)

    block_table = wide(inputs.attention.block_table)
    attention = AttentionTables(
        slots_m=own(inputs.attention.slots_m),
        query_starts=own(inputs.attention.query_starts),
        key_starts=own(inputs.attention.key_starts),
        key_counts_s=own(inputs.attention.key_counts_s),
        block_table=block_table,
        most_queries=inputs.attention.most_queries,
        most_keys=block_table.shape[1] * block_size,
    )
    windowed = inputs.windowed
    if windowed is not None:
        windowed = attention._replace(slots_m=own(windowed.slots_m), block_table=wide(windowed.block_table))
    return StepInputs(own(inputs.ids_m), own(inputs.positions_m), attention, windowed)


def fill(inputs: StepInputs, other: StepInputs) -> None:
    """Overwrite inputs with others of as many texts and tokens, and of texts that are no longer.

    What lies in the block table behind a text's own blocks is left as it is: nothing reads it.
    """
    for target, source in zip(inputs.tensors, other.tensors, strict=True):
        target[..., : source.shape[-1]].copy_(source)
