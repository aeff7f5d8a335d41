"""What is left to draw a token from: logits by the temperature, after the filters of a request, in their order.

Shape suffixes: v vocabulary, n candidates.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from groundup.engine import filters
from groundup.engine.filters import Floats, Positions
from groundup.engine.mirostat import Mirostat
from groundup.engine.penalties import Integers
from groundup.engine.sampling import Sampling

# Below this, a temperature is no float32 any more; no two different logits are as near to each other.
_COLDEST = 1e-30


class Candidates:
    """The filters of one request.

    mirostat: what it has instead of filters, and moves with its text.
    """

    def __init__(self, sampling: Sampling, mirostat: Mirostat | None) -> None:
        self._sampling = sampling
        self._filters = _kept_of(sampling, mirostat)

    def of(self, logits_v: Floats) -> tuple[Integers | None, Floats]:
        """Ids in ascending order (None: all), and their logits by the temperature, the largest 0."""
        sampling = self._sampling
        ids_n: Integers | None = None
        if 0 < sampling.top_k < len(logits_v):
            # Before the division, which changes no order, so that it is one of k numbers.
            ids_n = filters.top_k(logits_v, sampling.top_k)
            logits_n = divided(logits_v[ids_n].astype(np.float64), sampling.temperature)
        else:
            logits_n = divided(logits_v, sampling.temperature)
        for kept_of in self._filters:
            kept = kept_of(logits_n)
            ids_n, logits_n = kept if ids_n is None else ids_n[kept], logits_n[kept]
        return ids_n, logits_n


def divided(logits_n: Floats, temperature: float) -> Floats:
    """The logits by the temperature, the largest moved to 0, so that the least temperature leads to no infinity."""
    divided_n = logits_n - logits_n.max()
    divided_n /= max(temperature, _COLDEST)
    return divided_n


def _kept_of(sampling: Sampling, mirostat: Mirostat | None) -> list[Callable[[Floats], Positions]]:
    """The filters that read probabilities, in their order."""
    chosen: list[Callable[[Floats], Positions]] = []
    if sampling.top_p < 1:
        chosen.append(partial(filters.top_p, p=sampling.top_p))
    if sampling.min_p > 0:
        chosen.append(partial(filters.min_p, p=sampling.min_p))
    if sampling.typical_p < 1:
        chosen.append(partial(filters.typical_p, p=sampling.typical_p))
    if mirostat is not None:
        chosen.append(lambda logits_n: mirostat.keep(filters.surprise_bits(logits_n)))
    return chosen
