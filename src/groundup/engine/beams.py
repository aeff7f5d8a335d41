"""Beam search: the likeliest answers that can be found by following the `beams` likeliest beginnings at once.

Source: Graves 2012; the score is log-probability / length^penalty, a simplification of Wu et al. 2016 (eq. 14) that
transformers and vLLM have too. Shape suffixes: b beams, v vocabulary, n tokens of it.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from groundup.engine.filters import Floats, largest

Tokens = tuple[int, ...]


class Beam(NamedTuple):
    """An answer: its score, its log-probability in nats, and its tokens, the one that ends it included."""

    score: float
    logprob: float
    tokens: Tokens


def _goes_on(tokens: Tokens) -> bool:
    return False


class BeamSearch:
    """A search for up to `beams` answers; they end with one of `end_ids`, by what they spell, or have `max_tokens`.

    Those that differ only in which of `end_ids` ends them are one answer, and end with the likeliest.
    Each beginning that is followed may end at each step, whatever its rank, and takes none of the `beams` places of
    those that go on. The search goes on until nothing that is left could enter the result: with as many beams as there
    are beginnings, the result is the best of all answers.

    live: the beginnings that are followed, of equal length, the likeliest first; none when the search is over.
    finished: the answers, the best first.
    """

    def __init__(self, beams: int, end_ids: Collection[int], max_tokens: int, length_penalty: float = 1.0) -> None:
        self.live = [Beam(0.0, 0.0, ())]
        self.finished: list[Beam] = []
        self._beams, self._end_ids = beams, sorted(set(end_ids))
        self._max_tokens, self._length_penalty = max_tokens, length_penalty

    def advance(self, logprobs_bv: Floats, ends: Callable[[Tokens], bool] = _goes_on) -> None:
        """Follow the beginnings by one token.

        logprobs_bv: of what follows each of `live`; -inf is a token that cannot follow.
        ends: whether tokens are an answer by what they spell. The likeliest are asked, until there are enough that go
            on.
        """
        totals_bv = np.array([beam.logprob for beam in self.live])[:, None] + np.asarray(logprobs_bv, np.float64)
        length, every = len(self.live[0].tokens) + 1, range(totals_bv.shape[1])
        stop_ids = [token for token in self._end_ids if token in every]
        if stop_ids:
            stops_bn = totals_bv[:, stop_ids]
            is_likeliest_bn = np.arange(len(stop_ids)) == stops_bn.argmax(1)[:, None]
            totals_bv[:, stop_ids] = np.where(is_likeliest_bn, stops_bn, -np.inf)
        end_ids = every if length == self._max_tokens else stop_ids
        ended = list(islice(_likeliest(self.live, totals_bv[:, end_ids], end_ids, self._beams), self._beams))
        totals_bv[:, end_ids] = -np.inf
        followed: list[Beam] = []
        for beam in _likeliest(self.live, totals_bv, every, self._beams):
            (ended if ends(beam.tokens) else followed).append(beam)
            if len(followed) == self._beams:
                break
        found = [beam._replace(score=beam.logprob / length**self._length_penalty) for beam in ended]
        self.finished = sorted(self.finished + found, key=lambda beam: beam.score, reverse=True)[: self._beams]
        self.live = [beam for beam in followed if self._could_enter(beam)]

    def _could_enter(self, beam: Beam) -> bool:
        """Whether an answer with this beginning can be among the best.

        No token makes it likelier; at best, its length helps.
        """
        if len(self.finished) < self._beams:
            return True
        length = self._max_tokens if self._length_penalty > 0 else len(beam.tokens) + 1
        return beam.logprob / length**self._length_penalty > self.finished[-1].score


def _likeliest(live: Sequence[Beam], totals_bn: Floats, tokens: Sequence[int], first: int) -> Iterator[Beam]:
    """The beginnings with one token more whose totals are above -inf, the likeliest first.

    totals_bn: with each of `tokens`.
    first: how many are looked for at once; when they are used up, twice as many, and so on.
    """
    totals = totals_bn.reshape(-1)
    given, count = 0, first
    while True:
        places = largest(totals, count)
        for place in places[given:]:
            row, column = divmod(int(place), len(tokens))
            total = float(totals[place])
            yield Beam(total, total, (*live[row].tokens, tokens[column]))
        if len(places) < count:
            return
        given, count = count, 2 * count
