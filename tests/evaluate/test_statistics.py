"""Intervals and tests against closed forms, published values, brute force over all outcomes, and simulated coverage."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from groundup.evaluate import statistics
from groundup.evaluate.statistics import (
    Interval,
    bootstrap_interval,
    mcnemar_test,
    minimum_detectable_effect,
    sign_flip_test,
    wilson_interval,
)


def test_wilson_equals_newcombes_published_examples() -> None:
    """Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, trials), (low, high) in published.items():
        interval = wilson_interval(successes, trials)
        assert (round(interval.low, 4), round(interval.high, 4)) == (low, high)
        assert interval.estimate == successes / trials


def test_wilson_ends_are_where_the_score_test_rejects() -> None:
    """The interval's definition: |share - p| = z sqrt(p (1 - p) / n) at both ends."""
    interval = wilson_interval(7, 25)
    for p in (interval.low, interval.high):
        assert abs(7 / 25 - p) == pytest.approx(1.959963984540054 * math.sqrt(p * (1 - p) / 25), rel=1e-12)


@pytest.mark.parametrize("probability", [0.02, 0.1, 0.5, 0.93])
def test_wilson_covers_the_truth_about_as_often_as_it_says(probability: float) -> None:
    """Exact coverage: every possible count weighted by its binomial probability."""
    trials = 200
    coverage = 0.0
    for successes in range(trials + 1):
        interval = wilson_interval(successes, trials)
        if interval.low <= probability <= interval.high:
            weight = math.comb(trials, successes) * probability**successes * (1 - probability) ** (trials - successes)
            coverage += weight
    assert 0.92 < coverage < 0.98


def test_no_trials_have_no_interval() -> None:
    with pytest.raises(ValueError, match="0 trials"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_bootstrap_of_many_values_nears_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(0.4, 0.1, size=2000)
    interval = bootstrap_interval(values.tolist())
    half = 1.959963984540054 * values.std() / math.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_bootstrap_follows_the_skew_of_the_values() -> None:
    """Efron 1987: for a mean, BCa moves both ends by a (2 z^2 + 1) standard errors, a = skew / (6 sqrt n)."""
    values = np.random.default_rng(2).exponential(size=100)
    error = values.std() / math.sqrt(100)
    acceleration = ((values - values.mean()) ** 3).mean() / values.std() ** 3 / 60
    interval = bootstrap_interval(values.tolist())
    moved = ((interval.high + interval.low) / 2 - interval.estimate) / error
    # The plain percentile interval moves by less than half of this.
    assert moved == pytest.approx(acceleration * (2 * 1.959963984540054**2 + 1), abs=0.04)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 samples of scores shaped like token F1: many zeros, many ones, some between."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(2)
    truth = 0.5 * 0.3 + 0.2
    hits = 0
    for sample in range(400):
        kind = rng.random(80)
        scores = np.where(kind < 0.5, 0.3 * 2 * rng.random(80), np.where(kind < 0.7, 1.0, 0.0))
        interval = bootstrap_interval(scores.tolist(), seed=sample)
        hits += interval.low <= truth <= interval.high
    # A binomial(400, 0.95) lies in this band with probability above 0.999.
    assert 0.91 <= hits / 400 <= 0.985


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


def test_intervals_and_tests_repeat_exactly() -> None:
    values = np.random.default_rng(3).random(50).tolist()
    others = np.random.default_rng(4).random(50).tolist()
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    assert bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
    assert sign_flip_test(values, others, seed=5) == sign_flip_test(values, others, seed=5)


def test_mcnemar_equals_the_sum_over_all_coin_tosses() -> None:
    for only_first, only_second in itertools.product(range(6), repeat=2):
        first = [True] * only_first + [False] * only_second + [True, False]
        second = [False] * only_first + [True] * only_second + [True, False]
        n = only_first + only_second
        outcomes = [abs(sum(toss) - n / 2) >= abs(only_first - n / 2) for toss in itertools.product((0, 1), repeat=n)]
        assert mcnemar_test(first, second) == pytest.approx(float(Fraction(sum(outcomes), len(outcomes))))


def test_mcnemar_stays_exact_for_thousands_of_questions() -> None:
    assert mcnemar_test([True] * 2000 + [False] * 2000, [False] * 2000 + [True] * 2000) == 1.0
    assert 0 <= mcnemar_test([True] * 3000, [False] * 3000) < 1e-300


def test_sign_flips_equal_brute_force_over_all_patterns() -> None:
    first, second = [1.0, 0.6, 0.0, 0.9, 0.3, 0.7, 0.2], [0.5, 0.6, 0.1, 0.2, 0.3, 0.1, 0.4]
    differences = [Fraction(str(a)) - Fraction(str(b)) for a, b in zip(first, second, strict=True)]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=7)
    ]
    exact = Fraction(sum(abs(total) >= abs(sum(differences)) for total in sums), len(sums))
    assert sign_flip_test(first, second) == pytest.approx(float(exact))


def test_random_sign_flips_near_the_exact_p_value(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    first = (rng.random(12) + 0.15).tolist()
    second = rng.random(12).tolist()
    exact = sign_flip_test(first, second)
    monkeypatch.setattr(statistics, "RESAMPLES", 4000)  # fewer than the 4,096 patterns
    assert sign_flip_test(first, second) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def test_sign_flips_on_right_and_wrong_equal_mcnemar() -> None:
    first = [True] * 7 + [False] * 2 + [True] * 3
    second = [False] * 7 + [True] * 2 + [True] * 3
    scores = [float(x) for x in first], [float(x) for x in second]
    assert sign_flip_test(*scores) == pytest.approx(mcnemar_test(first, second))


def test_paired_tests_refuse_unpaired_answers() -> None:
    with pytest.raises(ValueError, match="equally many"):
        mcnemar_test([True], [True, False])
    with pytest.raises(ValueError, match="equally many"):
        sign_flip_test([1.0], [])


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    """Simulated: at the stated effect, a z-test on 100 paired differences rejects in about 80 % of trials."""
    effect = minimum_detectable_effect(standard_deviation=0.4, questions=100)
    assert effect == pytest.approx(2.801585 * 0.4 / 10, rel=1e-5)
    differences = np.random.default_rng(6).normal(effect, 0.4, size=(20_000, 100))
    found = np.abs(differences.mean(axis=1)) > 1.959964 * 0.4 / 10
    assert found.mean() == pytest.approx(0.8, abs=0.015)
