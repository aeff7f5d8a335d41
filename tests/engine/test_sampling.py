"""Choosing tokens: frequencies against softmax, limits, refusals."""

from collections import Counter

import pytest
import torch
from torch import Tensor

from groundup.engine.sampling import Sampling, choose

DRAWS = 4000
LOGITS = torch.tensor([1.5, -0.5, 0.3, 2.0, -3.0, 0.0, 1.0, 0.9])
# Chi-square quantiles at 99.9 % for 1 to 7 degrees of freedom (NIST/SEMATECH e-Handbook, 1.3.6.7.4).
CHI_SQUARE_999 = (10.828, 13.816, 16.266, 18.467, 20.515, 22.458, 24.322)


def _frequencies(logits_v: Tensor, sampling: Sampling) -> Tensor:
    generator = torch.Generator().manual_seed(sampling.seed)
    counts = Counter(choose(logits_v, sampling, generator) for _ in range(DRAWS))
    return torch.tensor([counts[token] for token in range(len(logits_v))], dtype=torch.float64)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("top_k", [0, 2, 5, 8, 100])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_are_drawn_as_often_as_softmax_says(temperature: float, top_k: int, seed: int):
    kept = LOGITS.double().argsort(descending=True)[: top_k or None]
    weights = torch.zeros(len(LOGITS), dtype=torch.float64)
    weights[kept] = (LOGITS.double()[kept] / temperature).exp()
    expected = DRAWS * weights / weights.sum()
    counts = _frequencies(LOGITS, Sampling(temperature=temperature, top_k=top_k, seed=seed))
    assert counts[expected == 0].sum() == 0
    drawn = expected > 0
    statistic = ((counts - expected)[drawn].square() / expected[drawn]).sum()
    assert statistic < CHI_SQUARE_999[int(drawn.sum()) - 2]


def test_temperature_zero_and_top_1_take_the_likeliest():
    generator = torch.Generator().manual_seed(0)
    for sampling in (Sampling(), Sampling(temperature=5.0, top_k=1)):
        assert {choose(LOGITS, sampling, generator) for _ in range(50)} == {3}


def test_of_equal_logits_only_k_are_drawn_from():
    counts = _frequencies(torch.zeros(6), Sampling(temperature=1.0, top_k=2))
    assert int((counts > 0).sum()) == 2


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"max_tokens": 0}, "max_tokens"), ({"temperature": -0.1}, "temperature"), ({"top_k": -1}, "top_k")],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float], name: str):
    with pytest.raises(ValueError, match=f"`{name}`"):
        Sampling(**settings)  # type: ignore[arg-type]
