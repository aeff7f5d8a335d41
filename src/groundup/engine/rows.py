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
    """Logits (vocab,) float32, log Σ exp of them, and the first place of the largest.

    normaliser: not a number where no token can be chosen.
    """

    logits_v: Tensor
    normaliser: float
    largest: int


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
    return [Row(*one) for one in zip(logits_nv, normalisers_n.tolist(), largest_n.tolist(), strict=True)]


@cache
def _has_kernels() -> bool:
    return library.path() is not None
