"""Logits of many texts at once: what every choice needs of its row, and mostly the choice itself.

Shape suffixes: n rows, v vocabulary.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from groundup.engine import kernels
from groundup.engine.draws import LIKELIEST, Draw
from groundup.engine.kernels import library


class Row(NamedTuple):
    """One row of logits (n, vocab), float32, that were read together.

    token: the one that `draw` chooses, and its log-probability in nats.
    normaliser: log Σ exp of the row, not a number where no token can be chosen.
    """

    logits_nv: Tensor
    number: int
    draw: Draw
    token: int
    logprob: float
    normaliser: float

    @property
    def logits_v(self) -> Tensor:
        """(vocab,). Made where it is wanted: most choices need no more than what is here."""
        return self.logits_nv[self.number]


# Logits (vocab,) by themselves, or with what is known of them.
Logits = Tensor | Row


def kept(logits: Logits) -> Logits:
    """The same in memory of their own: those of a step are valid until the next ones are computed."""
    if not isinstance(logits, Row):
        return logits.clone()
    return logits._replace(logits_nv=logits.logits_v.clone()[None], number=0)


def rows_of(logits_nv: Tensor, draws: Sequence[Draw | None]) -> list[Logits]:
    """The rows of float32 logits, read by the kernels; as they are where there are no kernels, or in float64.

    draws: of each row; the likeliest token is chosen where there is none.
    """
    if not _has_kernels() or logits_nv.dtype != torch.float32:
        return list(logits_nv)
    known = [draw or LIKELIEST for draw in draws]
    pairs = zip(known, kernels.choose(logits_nv, known), strict=True)
    return [Row(logits_nv, number, draw, *chosen) for number, (draw, chosen) in enumerate(pairs)]


@cache
def _has_kernels() -> bool:
    return library.path() is not None
