"""Logits of many texts at once: what every choice needs of its row, whatever it is going to choose by.

Shape suffixes: n rows, v vocabulary.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from groundup.engine import kernels
from groundup.engine.kernels import library


class Row(NamedTuple):
    """One row of logits (n, vocab), float32, that were summed up together.

    normaliser: log Σ exp of it, not a number where no token can be chosen. largest: the first place of its largest
    logit, which is `highest`.
    """

    logits_nv: Tensor
    number: int
    normaliser: float
    largest: int
    highest: float

    @property
    def logits_v(self) -> Tensor:
        """(vocab,). Made where it is wanted: taking the likeliest token needs no more than the numbers here."""
        return self.logits_nv[self.number]


# Logits (vocab,) by themselves, or with what is known of them.
Logits = Tensor | Row


def rows_of(logits_nv: Tensor) -> list[Logits]:
    """The rows of float32 logits, summed up by the kernels; as they are where there are no kernels, or in float64.

    These take a third of NumPy's time for one row after the other; PyTorch takes longer than NumPy, so without kernels
    it is left to whoever chooses.
    """
    if not _has_kernels() or logits_nv.dtype != torch.float32:
        return list(logits_nv)
    normalisers_n, largest_n = kernels.summarise(logits_nv)
    highest_n = logits_nv.gather(1, largest_n[:, None])[:, 0]
    summaries = zip(normalisers_n.tolist(), largest_n.tolist(), highest_n.tolist(), strict=True)
    return [Row(logits_nv, number, *one) for number, one in enumerate(summaries)]


@cache
def _has_kernels() -> bool:
    return library.path() is not None
