"""Beam search: the likeliest answers that can be found by following the `beams` likeliest beginnings at once.

Source: Graves 2012; the score is log-probability / length^penalty, a simplification of Wu et al. 2016 (eq. 14) that
transformers and vLLM have too. Shape suffixes: b beams, v vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from groundup.engine.filters import Floats, largest

Tokens = tuple[int, ...]
# Beginnings of answers, at least one of them empty → the log-probabilities of what follows each, (b, v).
Step = Callable[[Sequence[Tokens]], Floats]


class Beam(NamedTuple):
    """An answer: its score, its log-probability in nats, and its tokens, the one that ends it included."""

    score: float
    logprob: float
    tokens: Tokens


def beam_search(
    step: Step, beams: int, end_ids: Sequence[int], max_tokens: int, length_penalty: float = 1.0
) -> list[Beam]:
    """Up to `beams` answers, the best first; they end with one of `end_ids` or have `max_tokens`.

    Each beginning that is followed may end at each step, whatever its rank, and takes none of the `beams` places of
    those that go on. The search goes on until nothing that is left could enter the result: with as many beams as there
    are beginnings, the result is the best of all answers.

    step: called with up to `beams` beginnings of equal length, first with one that is empty; each later one is a former
        beginning with one token more. -inf is a token that cannot follow.
    """
    live = [Beam(0.0, 0.0, ())]
    finished: list[Beam] = []
    for length in range(1, max_tokens + 1):
        logprobs_bv = np.asarray(step([beam.tokens for beam in live]), dtype=np.float64)
        totals_bv = np.array([beam.logprob for beam in live])[:, None] + logprobs_bv
        ends_v = np.isin(np.arange(totals_bv.shape[1]), end_ids) | (length == max_tokens)
        finished += _best(live, np.where(ends_v, totals_bv, -np.inf), beams, length**length_penalty)
        finished = sorted(finished, key=lambda beam: beam.score, reverse=True)[:beams]
        live = _best(live, np.where(ends_v, -np.inf, totals_bv), beams, 1.0)
        if len(finished) == beams:
            live = [beam for beam in live if _bound(beam, max_tokens, length_penalty) > finished[-1].score]
        if not live:
            break
    return finished


def _best(live: Sequence[Beam], totals_bv: Floats, count: int, divisor: float) -> list[Beam]:
    """The beginnings `live`, each with one token more, of the highest totals that are above -inf."""
    vocab_size = totals_bv.shape[1]
    totals_n = totals_bv.reshape(-1)
    places = [divmod(int(place), vocab_size) for place in largest(totals_n, count)]
    return [
        Beam(float(totals_bv[row, token]) / divisor, float(totals_bv[row, token]), (*live[row].tokens, token))
        for row, token in places
    ]


def _bound(beam: Beam, max_tokens: int, length_penalty: float) -> float:
    """A score that no answer with this beginning exceeds: no token makes it likelier, at best its length helps."""
    length = max_tokens if length_penalty > 0 else len(beam.tokens) + 1
    return beam.logprob / length**length_penalty
