"""Mirostat: tokens whose surprise is above a limit are left out, and the limit follows what the text was like.

Source: Basu et al. 2021, "Mirostat: a neural text decoding algorithm that directly controls perplexity", algorithm 1
with the limit on the surprise itself instead of on a rank derived from it, which llama.cpp calls version 2. As in the
paper, a token's surprise is that under the whole distribution; llama.cpp takes it after the others were left out, which
reads a text as less surprising than it is.
"""

import numpy as np

from groundup.engine.filters import Floats, Positions


class Mirostat:
    """The limit of one text.

    Since each step moves the limit by eta times the error, the errors of T steps sum to the way that the limit has
    gone, divided by eta: as long as it stays in bounds, their mean goes to zero as 1/T.
    """

    def __init__(self, tau: float, eta: float) -> None:
        self._tau, self._eta = tau, eta
        self._limits = [2 * tau]

    def keep(self, surprise_n: Floats) -> Positions:
        """The positions at or below the limit; the least surprising one where there are none.

        surprise_n: in bits.
        """
        kept = np.flatnonzero(surprise_n <= self._limits[-1])
        return kept if len(kept) else np.array([surprise_n.argmin()])

    def observe(self, surprise: float) -> None:
        """A token of this surprise, in bits, was chosen."""
        self._limits.append(self._limits[-1] - self._eta * (surprise - self._tau))

    def undo(self, count: int) -> None:
        """Forget the last `count` tokens."""
        del self._limits[len(self._limits) - count :]

    def copy(self) -> "Mirostat":
        """Another one with the same history."""
        copied = Mirostat(self._tau, self._eta)
        copied._limits = list(self._limits)
        return copied
