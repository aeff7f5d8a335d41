"""The distribution of the next token from the definitions alone: plain Python, float64, everything sorted in full."""

import itertools
import math
from collections.abc import Sequence

from hypothesis import strategies as st

from groundup.engine.sampling import Sampling

# Nearer than this to a filter's limit, rounding decides on which side of it a token is.
MARGIN = 1e-9

# What a request may ask for, and logits, of a vocabulary of so many tokens.
VOCABULARY = 12
# Halves, so that many are equal; some are not, and differ by more than rounding.
LOGIT = st.one_of(st.integers(-8, 8).map(lambda half: half / 2), st.floats(-6, 6).map(lambda one: round(one, 9)))
TOKEN = st.integers(0, VOCABULARY - 1)
TEXT = st.lists(TOKEN, max_size=8)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.9]),
        "top_k": st.integers(0, VOCABULARY + 2),
        "top_p": st.sampled_from([0.123, 0.5, 0.789, 0.97]),
        "min_p": st.sampled_from([0.01, 0.2, 0.7]),
        "typical_p": st.sampled_from([0.2, 0.51, 0.94]),
        "repetition_penalty": st.sampled_from([0.6, 1.3, 2.0]),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(TOKEN, st.floats(-5, 5), max_size=3),
        "bad_words": st.lists(st.lists(TOKEN, min_size=1, max_size=3), max_size=3),
        "stop_token_ids": st.lists(TOKEN, max_size=2),
        "min_tokens": st.integers(0, 9),
    },
)


class Undecided(Exception):
    """Rounding would decide."""


def next_distribution(
    logits: Sequence[float], sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]
) -> dict[int, float]:
    """Probability by token of all that can be drawn. `mirostat_tau` is not among the definitions here."""
    adjusted = adjust(logits, sampling, prompt, answer)
    if sampling.temperature == 0:
        return {max(adjusted, key=lambda token: (adjusted[token], -token)): 1.0}
    kept = {token: value / sampling.temperature for token, value in adjusted.items()}
    if sampling.top_k:
        kept = {token: kept[token] for token in _by_likelihood(kept)[: sampling.top_k]}
    if sampling.top_p < 1:
        kept = _fewest(kept, _by_likelihood(kept), sampling.top_p)
    if sampling.min_p > 0:
        shares = {token: math.exp(value - max(kept.values())) for token, value in kept.items()}
        _require_clear(shares.values(), sampling.min_p)
        kept = {token: kept[token] for token, share in shares.items() if share >= sampling.min_p}
    if sampling.typical_p < 1:
        kept = typical(kept, sampling.typical_p)
    return softmax(kept)


def adjust(
    logits: Sequence[float], sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]
) -> dict[int, float]:
    """Logits by token after bias, penalties and bans; banned tokens are left out."""
    adjusted = {}
    for token, value in enumerate(logits):
        value += sampling.logit_bias.get(token, 0.0)
        if token in prompt or token in answer:
            value = value / sampling.repetition_penalty if value > 0 else value * sampling.repetition_penalty
        value -= sampling.frequency_penalty * list(answer).count(token)
        value -= sampling.presence_penalty * (token in answer)
        is_banned = any(
            [*answer, token][-len(word) :] == list(word) for word in sampling.bad_words if len(word) <= len(answer) + 1
        )
        is_banned |= len(answer) < sampling.min_tokens and token in sampling.stop_token_ids
        if not is_banned:
            adjusted[token] = value
    return adjusted


def softmax(logits: dict[int, float]) -> dict[int, float]:
    peak = max(logits.values())
    weights = {token: math.exp(value - peak) for token, value in logits.items()}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def typical(logits: dict[int, float], share: float) -> dict[int, float]:
    probabilities = softmax(logits)
    entropy = -math.fsum(one * math.log(one) for one in probabilities.values())
    distance = {token: abs(-math.log(one) - entropy) for token, one in probabilities.items()}
    order = sorted(distance, key=lambda token: (distance[token], token))
    for one, other in itertools.pairwise(order):
        if logits[one] != logits[other]:
            _require_clear([distance[one]], distance[other])
    return _fewest(logits, order, share)


def _by_likelihood(logits: dict[int, float]) -> list[int]:
    return sorted(logits, key=lambda token: (-logits[token], token))


def _fewest(logits: dict[int, float], order: Sequence[int], share: float) -> dict[int, float]:
    probabilities = softmax(logits)
    kept: list[int] = []
    for token in order:
        kept.append(token)
        together = math.fsum(probabilities[one] for one in kept)
        _require_clear([together], share)
        if together >= share:
            break
    return {token: logits[token] for token in sorted(kept)}


def _require_clear(values: Sequence[float], limit: float) -> None:
    if any(abs(value - limit) < MARGIN for value in values):
        raise Undecided
