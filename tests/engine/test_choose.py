"""The next token: its distribution against the definitions, its draw, what is told of it, what is refused."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain_sampling import LOGIT, SETTINGS, TEXT, VOCABULARY, Undecided, next_distribution
from torch import Tensor

from groundup.engine.choose import Chooser, make_chooser
from groundup.engine.draws import uniform
from groundup.engine.sampling import Sampling

DRAWS = 4000
LOGITS = torch.tensor([1.5, -0.5, 0.3, 2.0, -3.0, 0.0, 1.0, 0.9])
# Chi-square quantiles at 99.9 % for 1 to 7 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.4).
CHI_SQUARE_999 = (10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322)


def _said(sampling: Sampling, prompt: list[int], answer: list[int]) -> Chooser:
    """A chooser whose answer so far is `answer`; logits under which the token is the likeliest lead there."""
    chooser = make_chooser(sampling, prompt)
    for token in answer:
        chooser.take(torch.zeros(VOCABULARY), token)
    return chooser


@settings(max_examples=400, deadline=None)
@given(st.lists(LOGIT, min_size=VOCABULARY, max_size=VOCABULARY), SETTINGS, TEXT, TEXT)
def test_the_distribution_is_that_of_the_definitions(
    logits: list[float], chosen: dict, prompt: list[int], answer: list[int]
):
    sampling = Sampling(**chosen)
    try:
        chooser = _said(sampling, prompt, answer)
        expected = next_distribution(logits, sampling, prompt, answer)
    except (Undecided, ValueError):
        assume(False)
    found = chooser.distribution(torch.tensor(logits, dtype=torch.float64))
    assert found.ids.tolist() == sorted(expected)
    np.testing.assert_allclose(found.probabilities, [expected[token] for token in sorted(expected)], rtol=1e-9)


@settings(max_examples=200, deadline=None)
@given(st.lists(LOGIT, min_size=VOCABULARY, max_size=VOCABULARY), SETTINGS, TEXT, st.integers(0, 2**40))
def test_the_draw_is_where_the_cumulated_probability_passes_the_number(
    logits: list[float], chosen: dict, prompt: list[int], seed: int
):
    sampling = Sampling(**{"temperature": 1.0} | chosen, seed=seed)
    logits_v = torch.tensor(logits, dtype=torch.float64)
    try:
        chooser = make_chooser(sampling, prompt)
        ids, probabilities = chooser.distribution(logits_v)
    except ValueError:
        assume(False)
    number = uniform(seed, len(prompt))
    until = [math.fsum(probabilities[: count + 1]) for count in range(len(ids))]
    assume(min(abs(number - one) for one in until) > 1e-9)
    expected = next((int(one) for one, mass in zip(ids, until, strict=True) if mass > number), int(ids[-1]))
    assert chooser.choose(logits_v).token == expected


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("top_k", [0, 2, 5, 8, 100])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_as_often_as_softmax_says(temperature: float, top_k: int, seed: int):
    kept = LOGITS.double().argsort(descending=True)[: top_k or None]
    weights = torch.zeros(len(LOGITS), dtype=torch.float64)
    weights[kept] = (LOGITS.double()[kept] / temperature).exp()
    expected = DRAWS * weights / weights.sum()
    chooser = make_chooser(Sampling(temperature=temperature, top_k=top_k, seed=seed), [1, 2, 3])
    drawn = Counter(chooser.choose(LOGITS).token for _ in range(DRAWS))
    counts = torch.tensor([drawn[token] for token in range(len(LOGITS))], dtype=torch.float64)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    statistic = ((counts - expected)[possible].square() / expected[possible]).sum()
    assert statistic < CHI_SQUARE_999[int(possible.sum()) - 2]


def test_without_temperature_the_likeliest_is_taken_and_of_equal_ones_the_lowest_id():
    for sampling in (Sampling(), Sampling(temperature=5.0, top_k=1), Sampling(temperature=1e-200)):
        chooser = make_chooser(sampling, [0])
        assert [chooser.choose(LOGITS).token for _ in range(20)] == [3] * 20
    assert make_chooser(Sampling(), [0]).choose(torch.tensor([1.0, 2.0, 2.0, 2.0])).token == 1
    tied = make_chooser(Sampling(temperature=1.0, top_k=2), [0]).distribution(torch.zeros(6))
    assert tied.ids.tolist() == [0, 1]
    likeliest = make_chooser(Sampling(temperature=1.0, min_p=1.0), [0]).distribution(torch.tensor([1.0, 2.0, 2.0]))
    assert likeliest.ids.tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 0),
        ("top_k", 50),
        ("top_k", 5000),
        ("top_p", 0.9),
        ("top_p", 0.999),
        ("typical_p", 0.6),
        ("typical_p", 0.99),
        ("min_p", 0.01),
    ],
)
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_a_large_vocabulary_has_the_same_distribution(dtype: torch.dtype, name: str, value: float, spread: float):
    """Where parts of the vocabulary are looked at first; of what rounding to float32 can decide a few may differ."""
    logits_v = (spread * torch.randn(30_011, generator=torch.Generator().manual_seed(0))).to(dtype)
    sampling = Sampling(temperature=0.8, **{name: value})
    expected_v = _full_distribution(logits_v.double().numpy(), sampling)
    found_v = make_chooser(sampling, [0]).distribution(logits_v).dense(len(logits_v))
    differing = np.flatnonzero((found_v > 0) != (expected_v > 0))
    assert len(differing) <= 3
    same = np.setdiff1d(np.arange(len(logits_v)), differing)
    np.testing.assert_allclose(found_v[same], expected_v[same], rtol=2e-4)


def _full_distribution(logits_v: np.ndarray, sampling: Sampling) -> np.ndarray:
    """One filter at most, by sorting the whole vocabulary in float64."""
    scaled_v = logits_v / sampling.temperature
    log_probs_v = scaled_v - scaled_v.max() - np.log(np.exp(scaled_v - scaled_v.max()).sum())
    probabilities_v = np.exp(log_probs_v)
    order = np.argsort(-scaled_v, kind="stable")
    count = len(order)
    if sampling.top_k:
        count = sampling.top_k
    elif sampling.top_p < 1:
        count = int((probabilities_v[order].cumsum() < sampling.top_p).sum()) + 1
    elif sampling.min_p > 0:
        count = int((probabilities_v >= sampling.min_p * probabilities_v.max()).sum())
    elif sampling.typical_p < 1:
        entropy = -(probabilities_v * log_probs_v).sum()
        order = np.argsort(np.abs(-log_probs_v - entropy), kind="stable")
        count = int((probabilities_v[order].cumsum() < sampling.typical_p).sum()) + 1
    kept_v = np.zeros_like(probabilities_v)
    kept_v[order[:count]] = probabilities_v[order[:count]]
    return kept_v / kept_v.sum()


def test_filters_come_in_the_order_of_transformers():
    from transformers.generation import logits_process

    processors = [
        logits_process.TemperatureLogitsWarper(0.7),
        logits_process.TopKLogitsWarper(40),
        logits_process.TopPLogitsWarper(0.95),
        logits_process.MinPLogitsWarper(0.02),
        logits_process.TypicalLogitsWarper(0.8),
    ]
    sampling = Sampling(temperature=0.7, top_k=40, top_p=0.95, min_p=0.02, typical_p=0.8)
    for seed in range(20):
        logits_v = 3 * torch.randn(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        expected_bv = logits_v[None]
        for processor in processors:
            expected_bv = processor(None, expected_bv)
        found_v = make_chooser(sampling, [0]).distribution(logits_v).dense(500)
        np.testing.assert_allclose(found_v, expected_bv.softmax(-1)[0].numpy(), rtol=1e-9)


def test_a_repetition_penalty_is_that_of_transformers():
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    prompt, answer = [3, 3, 7], [1, 3]
    logits_v = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chooser = _said(Sampling(temperature=1.0, repetition_penalty=1.7), prompt, answer)
    expected_bv = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt + answer]), logits_v[None].clone())
    found_v = chooser.distribution(logits_v).dense(VOCABULARY)
    np.testing.assert_allclose(found_v, expected_bv.softmax(-1)[0].numpy(), rtol=1e-9)


@pytest.mark.parametrize(
    "chosen", [{}, {"temperature": 0.5, "top_k": 3, "logit_bias": {2: 9.0}}, {"repetition_penalty": 1.5}]
)
def test_log_probabilities_are_those_of_the_model_before_any_filter(chosen: dict):
    log_probs_v = LOGITS.double().log_softmax(-1)
    chooser = make_chooser(Sampling(**chosen, logprobs=5), [1, 3])
    for _ in range(6):
        choice = chooser.choose(LOGITS)
        assert choice.logprob == pytest.approx(float(log_probs_v[choice.token]), abs=1e-6)
        assert [token for token, _ in choice.top] == log_probs_v.argsort(descending=True)[:5].tolist()
        assert [one for _, one in choice.top] == pytest.approx(log_probs_v.sort(descending=True).values[:5].tolist())
    assert make_chooser(Sampling(), []).choose(LOGITS).top == []
    assert len(make_chooser(Sampling(logprobs=99), []).choose(LOGITS).top) == len(LOGITS)


@pytest.mark.parametrize(
    ("logits_v", "chosen", "message"),
    [
        (torch.full((4,), math.nan), {}, "largest of the logits is nan"),
        (torch.tensor([0.0, math.inf]), {"temperature": 1.0}, "largest of the logits is inf"),
        (torch.full((4,), -math.inf), {"temperature": 1.0, "top_p": 0.5}, "largest of the logits is -inf"),
        (torch.zeros(1, 4), {}, r"shape \(vocab,\), not \(1, 4\)"),
        (torch.zeros(4), {"bad_words": [[0], [1], [2], [3]]}, "leave no token"),
        (torch.zeros(4), {"logit_bias": {4: 1.0}}, "`logit_bias` has the token id 4, but the vocabulary ends at 3"),
        (torch.zeros(4), {"stop_token_ids": [1, 9]}, "`stop_token_ids` has the token id 9"),
        (torch.zeros(4), {"bad_words": [[1, 2], [2, 7]]}, "`bad_words` has the token id 7"),
        (torch.zeros(4), {"presence_penalty": 1.0}, "the prompt has the token id 5, but the vocabulary ends at 3"),
    ],
)
def test_what_no_token_can_be_chosen_from_is_refused_and_nothing_is_chosen(
    logits_v: Tensor, chosen: dict, message: str
):
    chooser = make_chooser(Sampling(**chosen), [5])
    with pytest.raises(ValueError, match=message):
        chooser.choose(logits_v)
    with pytest.raises(ValueError, match=message):
        chooser.distribution(logits_v)
    assert chooser.answer == []


def test_other_misuse_is_refused():
    chooser = make_chooser(Sampling(), [])
    chooser.choose(LOGITS)
    with pytest.raises(ValueError, match="an answer of 1 tokens cannot take back 2"):
        chooser.undo(2)
    for token in (-1, 8):
        with pytest.raises(ValueError, match=f"token id {token} is outside the vocabulary of 8"):
            chooser.take(LOGITS, token)


def test_logits_are_left_as_they_are():
    logits_v = LOGITS.clone()
    sampling = Sampling(temperature=1.0, logit_bias={1: 2.0}, frequency_penalty=1.0, bad_words=((2,),), top_p=0.9)
    chooser = make_chooser(sampling, [1])
    for _ in range(3):
        chooser.choose(logits_v)
    assert torch.equal(logits_v, LOGITS)
