"""How sure a score is: intervals for one system, paired tests between two, the smallest difference a test could see.

Proportions (exact match) get Wilson's interval, which keeps its coverage near 0 and 1 and for small counts; means of
bounded scores (token F1) get the bias-corrected and accelerated bootstrap. Two systems that answered the same questions
are compared pairwise: McNemar's exact test for right and wrong, a sign-flip permutation test for scores.

All intervals treat the questions as independent draws; nothing here depends on the clock or on global random state.
Sources: Wilson 1927; Efron 1987; McNemar 1947; Fisher 1935; for evaluations of language models, Miller 2024
(arXiv:2411.00640), whose advice to pair by question and to state the detectable effect is followed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
RESAMPLES = 10_000

_NORMAL = NormalDist()
_CHUNK_CELLS = 4_000_000  # of one block of resamples: 32 MB


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval, in the unit of the score."""

    estimate: float
    low: float
    high: float


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval for a proportion.

    Raises ValueError without trials: there is no estimate to give.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials is no proportion")
    z = _NORMAL.inv_cdf(0.5 + confidence / 2)
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # At the ends the formula gives 0 and 1 only up to rounding.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return Interval(share, low, high)


def bootstrap_interval(values: Sequence[float], seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a mean.

    values: one score per question. Equal values give an interval of no width: the bootstrap knows of nothing else.
    Raises ValueError without values.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.size == 0:
        raise ValueError("an interval needs at least one value")
    mean = float(scores.mean())
    if np.ptp(scores) == 0:
        return Interval(mean, mean, mean)
    means = _resampled_means(scores, seed)
    # Half of the ties with the mean count as below it, or a coarse scale (0, 1) would look biased.
    below = (np.count_nonzero(means < mean) + 0.5 * np.count_nonzero(means == mean)) / len(means)
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / len(means)), 1 - 0.5 / len(means)))
    # Leaving out score x moves the mean by (mean - x) / (n - 1), so the jackknife's skew is that of the scores.
    deviations = scores - mean
    acceleration = float((deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5))

    def endpoint(probability: float) -> float:
        shifted = bias + _NORMAL.inv_cdf(probability)
        return float(np.quantile(means, _NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))))

    return Interval(mean, endpoint((1 - confidence) / 2), endpoint((1 + confidence) / 2))


def mcnemar_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Two-sided p-value of McNemar's exact test that both systems are right equally often.

    Only the questions on which exactly one of the two is right tell anything; under the hypothesis each of them
    is a fair coin.
    """
    _require_pairs(first, second)
    only_first = sum(bool(a) and not b for a, b in zip(first, second, strict=True))
    only_second = sum(bool(b) and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    tail = sum(math.comb(discordant, k) for k in range(min(only_first, only_second) + 1))
    # Integer division by a power of two stays exact for any number of questions.
    return min(1.0, 2 * tail / (1 << discordant))


def sign_flip_test(first: Sequence[float], second: Sequence[float], seed: int = 0) -> float:
    """Two-sided p-value that the mean difference of paired scores is zero: each difference may as well be reversed.

    Exact (all sign patterns) as long as there are no more patterns than RESAMPLES; beyond that RESAMPLES random
    patterns, counting the observed one among them so that p is never zero (Phipson and Smyth 2010).
    """
    _require_pairs(first, second)
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    differences = differences[differences != 0]
    n = len(differences)
    if n == 0:
        return 1.0
    # Sums that are equal in exact arithmetic may differ in the last bits; they must count as equal.
    observed = abs(float(differences.sum())) - 1e-9 * float(np.abs(differences).sum())
    if 2**n <= RESAMPLES:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * patterns) @ differences) >= observed))
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _chunks(RESAMPLES, n):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(rows, n), dtype=np.int8)
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed))
    return (extreme + 1) / (RESAMPLES + 1)


def minimum_detectable_effect(
    standard_deviation: float, questions: int, power: float = 0.8, confidence: float = CONFIDENCE
) -> float:
    """The smallest true difference of paired means that a two-sided test finds with the given power.

    standard_deviation: of the differences per question; for exact match it is at most the root of the share of
    questions on which the systems disagree. Normal approximation.
    """
    if questions <= 0:
        raise ValueError("no difference can be seen without questions")
    z = _NORMAL.inv_cdf(0.5 + confidence / 2) + _NORMAL.inv_cdf(power)
    return z * standard_deviation / math.sqrt(questions)


def _resampled_means(scores: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    blocks = [
        scores[rng.integers(0, len(scores), size=(rows, len(scores)))].mean(axis=1)
        for rows in _chunks(RESAMPLES, len(scores))
    ]
    return np.concatenate(blocks)


def _chunks(rows: int, width: int) -> list[int]:
    """`rows` cut into parts of which each, times `width`, stays within _CHUNK_CELLS."""
    size = max(1, _CHUNK_CELLS // width)
    return [min(size, rows - start) for start in range(0, rows, size)]


def _require_pairs(first: Sequence[object], second: Sequence[object]) -> None:
    if len(first) != len(second):
        raise ValueError(f"a paired test needs equally many answers, not {len(first)} and {len(second)}")
