"""Tokens that the library chooses from rows of logits.

Shape suffixes: m rows, v vocabulary.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from groundup.engine.draws import LIKELIEST, Draw
from groundup.engine.kernels import jobs, library
from groundup.engine.kernels.checks import address, require_shape, rows_address
from groundup.quantize.matrix import PANEL


class Chosen(NamedTuple):
    """A row's token, its log-probability, and log Σ exp of the row, in nats.

    The normaliser is not a number where the row's largest is infinite, or something in it is not a number.
    """

    token: int
    logprob: float
    normaliser: float


class Choices:
    """Chooses for row after row, in memory that the library is told of once. Not for several threads.

    What is asked for often stays what it was: a row that wants its likeliest token costs nothing to ask for.
    """

    def __init__(self) -> None:
        self._job, self._logits_mv = jobs.ChooseJob(), torch.empty(0, 0)
        self._peaks: Tensor | None = None
        self._told: list[Draw] = []

    def reads(self, logits_mv: Tensor) -> bool:
        """Whether the library reads such logits: those of the last step it does, without a look at them."""
        return logits_mv is self._logits_mv or logits_mv.dtype == torch.float32

    def choose(self, logits_mv: Tensor, draws: Sequence[Draw], peaks: Tensor | None = None) -> list[Chosen]:
        """For each row what its draw says; logits are float32. The same tensor again is not looked at again.

        peaks: what the product that made these logits has left of them, see `peaks_of`. Likeliest tokens and their
        log-probabilities are then found without reading the logits.
        """
        if logits_mv is not self._logits_mv or peaks is not self._peaks:
            self._read_from(logits_mv, peaks)
        rows = self._job.rows
        if len(draws) != rows:
            raise ValueError(f"{len(draws)} tokens cannot be drawn from {rows} rows of logits")
        for row, draw in enumerate(draws):
            if draw is not self._told[row]:
                self._draws[row], self._told[row] = jobs.DrawFields(*draw), draw
        library.call("choose", self._job)
        return [Chosen(one.token, one.logprob, one.normaliser) for one in self._chosen[:rows]]

    def _read_from(self, logits_mv: Tensor, peaks: Tensor | None) -> None:
        """Have the library read these, which stay where they are as long as this holds them."""
        pointer, (rows, width), job = rows_address("logits", logits_mv), logits_mv.shape, self._job
        if width == 0:
            raise ValueError(f"no token can be drawn from logits of shape {(rows, width)}")
        if rows > len(self._told):
            self._make_room(max(rows, 2 * len(self._told)))
        job.logits, job.rows, job.width, job.stride = pointer, rows, width, logits_mv.stride(0)
        job.peaks, job.peak_stride = peaks_fields(peaks, logits_mv)
        self._logits_mv, self._peaks = logits_mv, peaks

    def _make_room(self, rows: int) -> None:
        draws_type, chosen_type = _array_types(rows)
        # Zeros ask for the likeliest.
        self._told, self._draws, chosen = [LIKELIEST] * rows, draws_type(), chosen_type()
        self._job.draws, self._job.chosen = ctypes.addressof(self._draws), ctypes.addressof(chosen)
        # Views of the array's elements, made once.
        self._chosen = list(chosen)


def peaks_of(rows: int, width: int) -> Tensor:
    """Room for what a product leaves of rows of logits: (rows, sets of neighbours, 2), see Peak in jobs.h.

    How many neighbours are a set depends on the level, so there is room for the smallest sets.
    """
    return torch.zeros(rows, -(-width // PANEL), 2)


def peaks_fields(peaks: Tensor | None, logits_mv: Tensor) -> tuple[int | None, int]:
    """Pointer and stride for the library. Raises ValueError for a tensor without room for these logits."""
    if peaks is None:
        return None, 0
    rows, width = logits_mv.shape
    require_shape("peaks", peaks[:rows], tuple(peaks_of(rows, width).shape))
    return address("peaks", peaks), peaks.shape[1]


@functools.cache
def _array_types(rows: int) -> tuple[type[ctypes.Array[jobs.DrawFields]], type[ctypes.Array[jobs.ChosenFields]]]:
    """ctypes makes them anew each time that nobody holds them."""
    return jobs.DrawFields * rows, jobs.ChosenFields * rows
