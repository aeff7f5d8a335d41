"""Tokens that the library chooses from rows of logits.

Shape suffixes: m rows, v vocabulary.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from groundup.engine.draws import LIKELIEST, Draw
from groundup.engine.kernels import jobs, library
from groundup.engine.kernels.checks import rows_address


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
        self._make_room(16)

    def choose(self, logits_mv: Tensor, draws: Sequence[Draw]) -> list[Chosen]:
        """For each row what its draw says; logits are float32."""
        pointer, (rows, width) = rows_address("logits", logits_mv), logits_mv.shape
        if len(draws) != rows or width == 0:
            raise ValueError(f"{len(draws)} tokens cannot be drawn from logits of shape {(rows, width)}")
        if rows > len(self._told):
            self._make_room(2 * rows)
        for row, draw in enumerate(draws):
            if draw is not self._told[row]:
                self._draws[row], self._told[row] = jobs.DrawFields(*draw), draw
        job = self._job
        job.logits, job.rows, job.width, job.stride = pointer, rows, width, logits_mv.stride(0)
        library.call("choose", job)
        return [Chosen(one.token, one.logprob, one.normaliser) for one in self._chosen[:rows]]

    def _make_room(self, rows: int) -> None:
        draws_type, chosen_type = _array_types(rows)
        # Zeros ask for the likeliest.
        self._told, self._draws, chosen = [LIKELIEST] * rows, draws_type(), chosen_type()
        self._job = jobs.ChooseJob(None, ctypes.addressof(self._draws), ctypes.addressof(chosen), 0, 0, 0)
        # Views of the array's elements, made once.
        self._chosen = list(chosen)


@functools.cache
def _array_types(rows: int) -> tuple[type[ctypes.Array[jobs.DrawFields]], type[ctypes.Array[jobs.ChosenFields]]]:
    """ctypes makes them anew each time that nobody holds them."""
    return jobs.DrawFields * rows, jobs.ChosenFields * rows
