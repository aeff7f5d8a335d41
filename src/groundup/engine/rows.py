"""Logits of many texts at once: what every choice needs of its row, and mostly the choice itself.

Shape suffixes: n rows, v vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from groundup.engine.draws import LIKELIEST, Draw
from groundup.engine.kernels import library
from groundup.engine.kernels.choices import Choices


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


class RowReader:
    """Reads rows of logits in the kernels, step after step. Not for several threads."""

    def __init__(self) -> None:
        self._choices = Choices() if library.path() is not None else None

    def read(self, logits_nv: Tensor, draws: Sequence[Draw | None], peaks: Tensor | None = None) -> list[Logits]:
        """The rows, each with what is known of it; as they are where there are no kernels, or not in float32.

        draws: of each row; the likeliest token is chosen where there is none. peaks: see `Choices.choose`.
        """
        if self._choices is None or not self._choices.reads(logits_nv):
            return list(logits_nv)
        known = [draw or LIKELIEST for draw in draws]
        pairs = zip(known, self._choices.choose(logits_nv, known, peaks), strict=True)
        return [Row(logits_nv, number, draw, *chosen) for number, (draw, chosen) in enumerate(pairs)]
