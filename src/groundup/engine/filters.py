"""Which tokens to draw from, and the draw.

Each filter reads logits (n,) that are already divided by the temperature and gives the positions that it keeps, in
ascending order; of equal logits the lower position comes first. A logit of -inf is a token that is banned. A vocabulary
of 150,000 is never sorted where a part of it decides: `largest` looks for the few that can matter first.

Shape suffixes: n candidates, b blocks of them, s steps, k kept.
"""

import math

import numpy as np
import numpy.typing as npt

from groundup.errors import UserError

Floats = npt.NDArray[np.floating]
Positions = npt.NDArray[np.int64]

# Parts of a vocabulary whose maximum is taken together, when only the largest logits are looked for, and whose sum is.
_MAXIMUM_BLOCK = 64
_SUM_BLOCK = 512
# How many of the likeliest a nucleus is looked for in first.
_FIRST_GUESS = 64
# Then scores are counted in steps of a hundredth of a nat; whatever is 40 nats below the highest is in the last one.
_STEPS_PER_NAT = 100
_STEPS = 4000
# A number that any float can hold.
_LARGE = 1e30


class NoToken(UserError, ValueError):
    """A model computed what is no number: its weights are none either, or too large for their type."""


def top_k(logits_n: Floats, k: int) -> Positions:
    """The k likeliest."""
    return np.sort(largest(logits_n, k))


def top_p(logits_n: Floats, p: float) -> Positions:
    """The fewest likeliest with probability `p` together (Holtzman et al. 2020, section 3.1)."""
    weights_n = weights(logits_n)
    return _fewest(logits_n, weights_n, p)


def min_p(logits_n: Floats, p: float) -> Positions:
    """Those with at least `p` times the probability of the likeliest (Nguyen et al. 2024)."""
    return np.flatnonzero(logits_n >= float(logits_n.max()) + math.log(p))


def typical_p(logits_n: Floats, p: float) -> Positions:
    """The fewest with probability `p` together whose surprise is nearest to the entropy (Meister et al. 2023, eq. 10).

    Of two that are as near, the lower position comes first.
    """
    weights_n = weights(logits_n)
    surprise_n = log_normaliser(logits_n) - logits_n
    # What is banned has no weight and an infinite surprise; their product must be nothing.
    entropy = float(weights_n @ np.minimum(surprise_n, _LARGE)) / float(weights_n.sum())
    return _fewest(-np.abs(surprise_n - entropy), weights_n, p)


def largest(values_n: Floats, k: int) -> Positions:
    """The positions of the k largest values, largest first; fewer where fewer are above -inf.

    k blocks whose maxima are the largest hold at least k values that are no smaller than the least of these maxima, so
    whatever is smaller can be left out before anything is sorted.
    """
    n = len(values_n)
    blocks = n // _MAXIMUM_BLOCK
    if k >= n:
        bound = -np.inf
    elif k <= blocks:
        # A block is a column: along the rows, a maximum is taken ten times as fast. What is left over has no block.
        maxima_b = values_n[: blocks * _MAXIMUM_BLOCK].reshape(_MAXIMUM_BLOCK, blocks).max(axis=0)
        bound = np.partition(maxima_b, blocks - k)[blocks - k]
    else:
        bound = np.partition(values_n, n - k)[n - k]
    candidates = np.flatnonzero(values_n >= bound if bound > -np.inf else values_n > bound)
    return candidates[np.argsort(-values_n[candidates], kind="stable")[:k]]


def draw(weights_n: Floats, number: float) -> int:
    """The position at which the cumulated weights pass `number`, a uniform one from [0, 1), times their total.

    In the order of positions, not of likelihood: rounding that makes two tokens change places there must not make
    another of them the drawn one. Blocks are summed first, ten times as fast as a cumulated sum over a vocabulary.
    """
    starts_b = np.arange(0, len(weights_n), _SUM_BLOCK)
    until_b = np.cumsum(np.add.reduceat(weights_n, starts_b), dtype=np.float64)
    # Below the whole, and not by a rounding equal to it: the largest number is 1 - 2^-53.
    target = number * until_b[-1]
    block = int(np.searchsorted(until_b, target, side="right"))
    inside = weights_n[starts_b[block] : starts_b[block] + _SUM_BLOCK]
    before = until_b[block - 1] if block else 0.0
    place = int(np.searchsorted(before + np.cumsum(inside, dtype=np.float64), target, side="right"))
    # Its own sum can fall short of the block's by a rounding; what has no probability is not drawn even so.
    return int(starts_b[block]) + min(place, int(np.flatnonzero(inside)[-1]))


def weights(logits_n: Floats) -> Floats:
    """Probabilities up to a factor, which makes that of the likeliest 1."""
    peak = logits_n.max()
    if peak == 0:  # the logits by the temperature come like that
        return np.exp(logits_n)
    shifted_n = logits_n - peak
    return np.exp(shifted_n, out=shifted_n)


def probabilities(logits_n: Floats) -> npt.NDArray[np.float64]:
    """softmax (n,), in float64."""
    weights_n = weights(logits_n.astype(np.float64))
    return weights_n / weights_n.sum()


def surprise_bits(logits_n: Floats) -> Floats:
    """-log2 of each probability, (n,)."""
    return (log_normaliser(logits_n) - logits_n) / math.log(2)


def log_normaliser(logits_n: Floats) -> float:
    """log Σ exp of the logits: what is taken off a logit to make it a log-probability.

    Raises NoToken where the largest is no finite number.
    """
    peak = float(logits_n.max())
    if not math.isfinite(peak):
        raise NoToken(f"the largest of the logits is {peak}: no token can be chosen from what the model computed")
    return peak + math.log(float(weights(logits_n).sum()))


def _fewest(scores_n: Floats, weights_n: Floats, share: float) -> Positions:
    """The fewest positions of the highest scores whose weights make up this share of the total.

    Looked for among a few of the highest scores first. Where they are not enough, scores are counted into steps, and
    only those of the step in which the share is reached are sorted.
    """
    wanted = share * float(weights_n.sum())
    best_k = largest(scores_n, _FIRST_GUESS)
    until_k = np.cumsum(weights_n[best_k], dtype=np.float64)
    if until_k[-1] >= wanted or len(best_k) < _FIRST_GUESS:
        return np.sort(best_k[: int(np.searchsorted(until_k, wanted)) + 1])
    steps_n = np.minimum((scores_n.max() - scores_n) * _STEPS_PER_NAT, _STEPS - 1).astype(np.int64)
    until_s = np.cumsum(np.bincount(steps_n, weights_n, _STEPS))
    # By a rounding the whole can fall short of what is wanted; the last step with any weight is the border then.
    border = int(np.searchsorted(until_s, min(wanted, until_s[-1])))
    members = np.flatnonzero(steps_n == border)
    members = members[largest(scores_n[members], len(members))]
    before = until_s[border - 1] if border else 0.0
    needed = int(np.searchsorted(before + np.cumsum(weights_n[members], dtype=np.float64), wanted)) + 1
    kept_n = steps_n < border
    kept_n[members[:needed]] = True
    return np.flatnonzero(kept_n)
