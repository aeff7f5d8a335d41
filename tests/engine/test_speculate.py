"""Speculation: guesses come from what was said, and what is kept has the distribution of text without it."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.engine.choose import Chooser, make_chooser
from groundup.engine.sampling import Sampling
from groundup.engine.speculate import acceptance, draw_guess, prompt_lookup, residual, verify, verify_drawn

# Rows of probabilities over three tokens, in quarters.
QUARTERS = [row for row in itertools.product(range(5), repeat=3) if sum(row) == 4]
# The thresholds to which numbers are compared are then twelfths: a number from the middle of each stands for all of it.
GRID = [(2 * step + 1) / 24 for step in range(12)]
VOCABULARY = 5
TEXTS = 8000
# Quantile of chi-square at 99.9 % for 24 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.4).
CHI_SQUARE_999 = 51.179


def _brute_lookup(ids: Sequence[int], count: int, longest: int, shortest: int) -> list[int]:
    """The definition: the longest suffix with an earlier copy, its latest copy, copied on letter by letter."""
    for length in range(min(longest, len(ids) - 1), shortest - 1, -1):
        for start in range(len(ids) - length - 1, -1, -1):
            if ids[start : start + length] == ids[len(ids) - length :]:
                text = list(ids)
                for step in range(count):
                    text.append(text[start + length + step])
                return text[len(ids) :]
    return []


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=40), st.integers(0, 6), st.integers(1, 6), st.integers(1, 3))
def test_a_lookup_finds_what_followed_the_longest_copy_of_the_end(
    ids: list[int], count: int, longest: int, shortest: int
):
    found = prompt_lookup(np.array(ids, dtype=np.int64), count, longest, shortest)
    assert found == _brute_lookup(ids, count, longest, shortest)


def _rows(seed: int, sharpness: float = 1.0) -> Callable[[Sequence[int]], Tensor]:
    """Logits that depend on all tokens before them."""
    return lambda text: sharpness * torch.from_numpy(np.random.default_rng([seed, *text]).standard_normal(VOCABULARY))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_verified_text_is_that_without_speculation_whatever_was_guessed(seed: int, data: st.DataObject):
    model = _rows(seed)
    chosen: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {},
                {"temperature": 1.0, "top_p": 0.9},
                {"temperature": 1.0, "mirostat_tau": 1.5},
                {"presence_penalty": 1.0},
            ]
        )
    )
    sampling = Sampling(**chosen, seed=seed, stop_token_ids=(4,), logprobs=2)
    plain, prompt = make_chooser(sampling, [1, 2]), [1, 2]
    expected = []
    while not plain.has_ended and len(expected) < 20:
        expected.append(plain.choose(model([*prompt, *plain.answer])))
    chooser, found = make_chooser(sampling, prompt), []
    while not chooser.has_ended and len(found) < 20:
        guesses = data.draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=4))
        if data.draw(st.booleans()):
            guesses = [choice.token for choice in expected[len(found) : len(found) + 3]]
        text = [*prompt, *chooser.answer]
        rows = [model([*text, *guesses[:count]]) for count in range(len(guesses) + 1)]
        found += verify(chooser, torch.stack(rows), guesses)
    assert found[:20] == expected
    assert chooser.answer == [choice.token for choice in found]


@given(st.sampled_from(QUARTERS), st.sampled_from(QUARTERS))
def test_what_is_kept_and_what_is_put_in_its_place_make_up_the_target(target: tuple[int], draft: tuple[int]):
    """Leviathan et al. 2023, appendix A.1, summed over all guesses."""
    target_v, draft_v = np.array(target) / 4, np.array(draft) / 4
    found_v = np.zeros(3)
    for guess in np.flatnonzero(draft_v):
        kept = acceptance(target_v, draft_v, int(guess))
        weights_v = residual(target_v, draft_v)
        found_v += draft_v[guess] * (1 - kept) * weights_v / weights_v.sum()
        found_v[guess] += draft_v[guess] * kept
    np.testing.assert_allclose(found_v, target_v, atol=1e-15)


class _NextNumber(Exception):
    """More numbers are asked for than a script has."""


def _outcomes(run: Callable[[Callable[..., float]], tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Each result of `run` with its probability, over all numbers of the grid that it asks for."""
    scripts: list[tuple[float, ...]] = [()]
    while scripts:
        script = scripts.pop()
        numbers = iter(script)

        def number(*_: object, numbers: Iterator[float] = numbers) -> float:
            for one in numbers:
                return one
            raise _NextNumber

        try:
            yield run(number), len(GRID) ** -float(len(script))
        except _NextNumber:
            scripts += [(*script, one) for one in GRID]


@pytest.mark.parametrize("seed", range(3))
def test_over_all_numbers_the_texts_have_exactly_the_distribution_of_the_target(seed: int):
    """Two guesses and the token after them; distributions depend on what was said, some tokens are impossible.

    Where a text ends early it goes on by the target itself.
    """
    generator = np.random.default_rng(seed)
    texts = [text for length in range(3) for text in itertools.product(range(3), repeat=length)]
    target, draft = (
        {text: np.array(QUARTERS[generator.integers(len(QUARTERS))]) / 4 for text in texts} for _ in range(2)
    )
    expected, found = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for text in itertools.product(range(3), repeat=3):
        expected[text] = float(np.prod([target[text[:place]][token] for place, token in enumerate(text)]))
    for guesses in itertools.product(range(3), repeat=2):
        weight = draft[()][guesses[0]] * draft[guesses[:1]][guesses[1]]
        if weight == 0:
            continue
        with np.errstate(divide="ignore"):
            logits_tv = torch.tensor(np.log([target[guesses[:place]] for place in range(3)]))
        drafts = [draft[guesses[:place]] for place in range(2)]

        def run(
            number: Callable[..., float],
            guesses: tuple[int, ...] = guesses,
            logits_tv: Tensor = logits_tv,
            drafts: list[np.ndarray] = drafts,
        ) -> tuple[int, ...]:
            chooser = make_chooser(Sampling(temperature=1.0), [0])
            chooser.number = number  # type: ignore[method-assign]
            return tuple(choice.token for choice in verify_drawn(chooser, logits_tv, guesses, drafts))

        for begun, probability in _outcomes(run):
            for rest in itertools.product(range(3), repeat=3 - len(begun)):
                text = (*begun, *rest)
                later = [target[text[:place]][text[place]] for place in range(len(begun), 3)]
                found[text] += weight * probability * float(np.prod(later))
    for text, probability in expected.items():
        assert found[text] == pytest.approx(probability, abs=1e-9)
    assert sum(found.values()) == pytest.approx(1)


def _chi_square_of_pairs(misread: float) -> float:
    """Of the first two tokens of many texts, speculated with the numbers of real seeds, against the target's own.

    misread: the share of another distribution that the drafts are wrongly said to have.
    """
    model, drafting = _rows(1), _rows(2, sharpness=0.7)
    cached: dict[tuple[int, ...], tuple[np.ndarray, Tensor]] = {}

    def distributions(text: tuple[int, ...]) -> tuple[np.ndarray, Tensor]:
        if text not in cached:
            cached[text] = drafting(text).softmax(0).numpy(), model(text)
        return cached[text]

    def speculate(chooser: Chooser) -> None:
        said, guesses, drafts = tuple(chooser.answer), [], []
        for ahead in range(2):
            draft_v = distributions((*said, *guesses))[0]
            guesses.append(draw_guess(chooser, draft_v, ahead))
            drafts.append((1 - misread) * draft_v + misread * draft_v[::-1])
        rows = torch.stack([distributions((*said, *guesses[:count]))[1] for count in range(3)])
        verify_drawn(chooser, rows, guesses, drafts)

    pairs = Counter[tuple[int, ...]]()
    for seed in range(TEXTS):
        chooser = make_chooser(Sampling(temperature=1.0, seed=seed), [0])
        while len(chooser.answer) < 2:
            speculate(chooser)
        pairs[tuple(chooser.answer[:2])] += 1
    statistic = 0.0
    for first, second in itertools.product(range(VOCABULARY), repeat=2):
        expected = TEXTS * float(model(()).softmax(0)[first] * model((first,)).softmax(0)[second])
        statistic += (pairs[first, second] - expected) ** 2 / expected
    return statistic


def test_drawn_texts_are_distributed_as_without_speculation():
    """The power: a rule that misreads a tenth of the drafts, as in the next test, has a noncentrality of about 100.

    The statistic is then 124 with a deviation of 21, which passes the limit in more than 999 of 1,000 runs.
    """
    assert _chi_square_of_pairs(0.0) < CHI_SQUARE_999


def test_drafts_that_are_a_little_other_than_said_would_be_found_out():
    assert _chi_square_of_pairs(0.1) > CHI_SQUARE_999


def test_as_many_guesses_are_kept_as_the_distributions_have_in_common():
    """Leviathan et al. 2023, theorem 3.5: the mean acceptance is the sum of the lesser probabilities."""
    generator = np.random.default_rng(0)
    target_v, draft_v = generator.dirichlet(np.ones(6)), generator.dirichlet(np.ones(6))
    mean = sum(draft_v[guess] * acceptance(target_v, draft_v, guess) for guess in range(6))
    assert mean == pytest.approx(np.minimum(target_v, draft_v).sum())


def test_a_guess_that_ends_the_answer_is_its_last_token():
    rows = torch.log(torch.tensor([[0.01, 0.99], [0.99, 0.01], [0.99, 0.01]]))
    sampling = Sampling(temperature=1e-3, stop_token_ids=(1,))
    certain = np.array([0.0, 1.0])
    for choices in (
        verify(make_chooser(sampling, []), rows, [1, 0]),
        verify_drawn(make_chooser(sampling, []), rows, [1, 0], [certain, 1 - certain]),
    ):
        assert [choice.token for choice in choices] == [1]


def test_a_guess_that_was_not_drawn_from_its_draft_is_refused():
    chooser = make_chooser(Sampling(temperature=1.0), [])
    with pytest.raises(ValueError, match="token 1 has no probability in the draft's distribution"):
        verify_drawn(chooser, torch.zeros(2, 2), [1], [np.array([1.0, 0.0])])
    with pytest.raises(ValueError, match="2 rows of logits for 2 guesses"):
        verify(chooser, torch.zeros(2, 2), [1, 1])
