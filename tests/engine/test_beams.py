"""Beam search against all sequences, on vocabularies that are small enough to write them all down."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine.beams import Beam, BeamSearch, Tokens


class Model:
    """Log-probabilities that depend on all that was said, drawn once for each beginning."""

    def __init__(self, vocab_size: int, seed: int, sharpness: float = 2.0) -> None:
        self.vocab_size, self._seed, self._sharpness = vocab_size, seed, sharpness
        self.calls: list[int] = []

    def row(self, tokens: Tokens) -> np.ndarray:
        logits = self._sharpness * np.random.default_rng([self._seed, *tokens]).standard_normal(self.vocab_size)
        return logits - np.log(np.exp(logits).sum())

    def step(self, beginnings: Sequence[Tokens]) -> np.ndarray:
        assert len({len(one) for one in beginnings}) == 1
        assert len(set(beginnings)) == len(beginnings)
        self.calls.append(len(beginnings))
        return np.array([self.row(one) for one in beginnings])

    def logprob(self, tokens: Tokens) -> float:
        return sum(self.row(tokens[:place])[token] for place, token in enumerate(tokens))


def beam_search(
    step: Callable[[Sequence[Tokens]], np.ndarray],
    beams: int,
    end_ids: Sequence[int],
    max_tokens: int,
    length_penalty: float = 1.0,
) -> list[Beam]:
    """A search whose log-probabilities come from `step`."""
    search = BeamSearch(beams, end_ids, max_tokens, length_penalty)
    while search.live:
        search.advance(step([beam.tokens for beam in search.live]))
    return search.finished


def _all_answers(model: Model, end_ids: Sequence[int], max_tokens: int, penalty: float) -> list[Beam]:
    """The best first; of those that differ only in which of `end_ids` ends them, the best alone."""
    answers: dict[Tokens, Beam] = {}
    for length in range(1, max_tokens + 1):
        for tokens in itertools.product(range(model.vocab_size), repeat=length):
            has_ended = tokens[-1] in end_ids or length == max_tokens
            if has_ended and not set(tokens[:-1]) & set(end_ids):
                logprob = model.logprob(tokens)
                said = (*tokens[:-1], -1) if tokens[-1] in end_ids else tokens
                beam = Beam(logprob / length**penalty, logprob, tokens)
                answers[said] = max(answers.get(said, beam), beam)
    return sorted(answers.values(), reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 4),
    st.integers(1, 4),
    st.lists(st.integers(0, 3), max_size=2),
    st.sampled_from([-1.5, 0.0, 0.7, 1.0, 2.0]),
)
def test_with_enough_beams_the_best_of_all_answers_are_found(
    seed: int, vocab_size: int, max_tokens: int, end_ids: list[int], penalty: float
):
    model, beams = Model(vocab_size, seed), vocab_size**max_tokens
    expected = _all_answers(model, end_ids, max_tokens, penalty)
    found = beam_search(model.step, beams, end_ids, max_tokens, penalty)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], rtol=1e-12)
    np.testing.assert_allclose([one.logprob for one in found], [one.logprob for one in expected], rtol=1e-12)


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_what_is_not_followed_any_more_would_have_changed_nothing(beams: int, penalty: float):
    """Against the same search written without an early end: every live beginning goes on to the last step."""
    for seed in range(10):
        model = Model(5, seed, sharpness=3.0)
        live: list[tuple[float, Tokens]] = [(0.0, ())]
        finished: list[Beam] = []
        for length in range(1, 9):
            longer = [
                (total + row, (*said, token)) for total, said in live for token, row in enumerate(model.row(said))
            ]
            ended = [one for one in longer if one[1][-1] == 0 or length == 8]
            finished += [Beam(total / length**penalty, total, said) for total, said in ended]
            live = sorted((one for one in longer if one[1][-1] != 0), reverse=True)[:beams]
        expected = sorted(finished, reverse=True)[:beams]
        model.calls.clear()
        found = beam_search(model.step, beams, [0], 8, penalty)
        assert [one.tokens for one in found] == [one.tokens for one in expected]
        assert max(model.calls) <= beams


def test_a_search_ends_as_soon_as_nothing_better_can_come():
    """The end has nearly all the probability from the start on: one step is enough."""
    model = Model(3, 0)
    model.row = lambda tokens: np.log([0.98, 0.01, 0.01])  # type: ignore[method-assign]
    assert beam_search(model.step, 1, [0], 50, length_penalty=0.0)[0].tokens == (0,)
    assert model.calls == [1]


def test_one_beam_without_penalty_is_greedy_until_the_end():
    model = Model(6, 4)
    tokens: Tokens = ()
    while len(tokens) < 6:
        tokens = (*tokens, int(model.row(tokens).argmax()))
    assert beam_search(model.step, 1, [], 6)[0].tokens == tokens


def test_what_cannot_follow_is_in_no_answer():
    """As under a constraint that leaves one text: the beams that nothing is left for stay empty."""

    def step(beginnings: Sequence[Tokens]) -> np.ndarray:
        rows = np.full((len(beginnings), 4), -np.inf)
        for row, said in zip(rows, beginnings, strict=True):
            row[(2, 1, 3)[len(said)]] = np.log(0.5)
        return rows

    assert beam_search(step, 3, [3], 10) == [Beam(np.log(0.5), 3 * np.log(0.5), (2, 1, 3))]


@pytest.mark.parametrize("beams", [2, 20, 200])
def test_answers_that_end_by_what_they_spell_take_no_place(beams: int):
    """Against the same rule written plainly: candidates in the order of likelihood, until enough go on."""

    def ends(tokens: Tokens) -> bool:
        return tokens[-2:] == (1, 2) or tokens[-1] == 3

    spelled = 0
    for seed in range(10):
        model = Model(5, seed, sharpness=2.0)
        live: list[tuple[float, Tokens]] = [(0.0, ())]
        finished: list[Beam] = []
        for length in range(1, 6):
            longer = [
                (total + row, (*said, token)) for total, said in live for token, row in enumerate(model.row(said))
            ]
            finished += [Beam(total / length, total, said) for total, said in longer if said[-1] == 0 or length == 5]
            live = []
            for total, said in sorted((one for one in longer if one[1][-1] != 0 and length < 5), reverse=True):
                if len(live) == beams:
                    break
                if ends(said):
                    finished.append(Beam(total / length, total, said))
                else:
                    live.append((total, said))
        expected = sorted(finished, reverse=True)[:beams]
        search = BeamSearch(beams, [0], 5)
        while search.live:
            search.advance(model.step([beam.tokens for beam in search.live]), ends)
        assert [one.tokens for one in search.finished] == [one.tokens for one in expected]
        spelled += sum(ends(one.tokens) for one in expected)
    assert spelled > 0
