"""What a run of a program is about: where the tokens of a step stand, what they see, and numbers that each has.

Shape suffixes: m tokens, s sequences.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch


class Tables(Protocol):
    """What a run is about: tables of so many tokens of so many sequences, and where they lie.

    table_stride: blocks in a row of a block table. end_position, end_slot, end_window_slot: behind the highest of each.
    pointers: to what `StepTables` has, in this order.
    """

    @property
    def tokens(self) -> int: ...
    @property
    def sequences(self) -> int: ...
    @property
    def table_stride(self) -> int: ...
    @property
    def end_position(self) -> int: ...
    @property
    def end_slot(self) -> int: ...
    @property
    def end_window_slot(self) -> int: ...
    @property
    def pointers(self) -> tuple[int | None, ...]: ...


class StepTables(NamedTuple):
    """`Tables` as arrays.

    positions_m: int32, the place of each token in its text. slots_m: int64, where its keys and values go.
    block_table: int32 (s, most blocks). query_starts: int32 (s + 1). key_counts_s: int32. See `kernels.attend`.
    window_slots_m, window_table: slots and block table for layers that have blocks of windows; None without them.
    """

    positions_m: npt.NDArray[np.int32]
    slots_m: npt.NDArray[np.int64]
    block_table: npt.NDArray[np.int32]
    query_starts: npt.NDArray[np.int32]
    key_counts_s: npt.NDArray[np.int32]
    window_slots_m: npt.NDArray[np.int64] | None = None
    window_table: npt.NDArray[np.int32] | None = None

    @property
    def tokens(self) -> int:
        """Raises ValueError where the arrays are of different numbers of them."""
        tokens = len(self.positions_m)
        if not len(self.slots_m) == tokens == self.query_starts[-1]:
            raise ValueError(f"{tokens} positions, {len(self.slots_m)} slots and {self.query_starts[-1]} queries")
        return tokens

    @property
    def sequences(self) -> int:
        return len(self.key_counts_s)

    @property
    def table_stride(self) -> int:
        return self.block_table.shape[1]

    @property
    def end_position(self) -> int:
        return int(self.positions_m.max()) + 1

    @property
    def end_slot(self) -> int:
        return int(self.slots_m.max()) + 1

    @property
    def end_window_slot(self) -> int:
        return 0 if self.window_slots_m is None else int(self.window_slots_m.max()) + 1

    @property
    def pointers(self) -> tuple[int | None, ...]:
        return tuple(None if each is None else each.ctypes.data for each in self)


class Numbers:
    """int64 (count, tokens), told before a run: each is at least `least` and less than `below`."""

    def __init__(self, count: int, tokens: int, least: int, below: int) -> None:
        self.values_nm = torch.zeros(count, tokens, dtype=torch.int64)
        self.least, self.below = least, below
        self._rows: list[npt.NDArray[np.int64]] = list(self.values_nm.numpy())

    def tell(self, *rows: Sequence[int]) -> None:
        """The numbers of the first tokens. Raises ValueError for those out of range."""
        for row, told in zip(self._rows, rows, strict=True):
            if min(told) < self.least or max(told) >= self.below:
                raise ValueError(f"numbers of {min(told)} … {max(told)} are not in {self.least} … {self.below - 1}")
            row[: len(told)] = told
