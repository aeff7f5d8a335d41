"""Mirostat steers the mean surprise of a text to what was asked for."""

import math

import numpy as np
import pytest
import torch

from groundup.engine.choose import make_chooser
from groundup.engine.mirostat import Mirostat
from groundup.engine.sampling import Sampling

STEPS = 1500
# Zipf's law, as of words: entropy 5.9 bits, least surprise 2.7.
LOGITS = -torch.log(torch.arange(1, 301, dtype=torch.float64))


@pytest.mark.parametrize(("tau", "temperature"), [(3.5, 1.0), (4.5, 1.0), (5.5, 1.0), (4.5, 1.5), (6.5, 1.5)])
def test_the_mean_surprise_comes_to_the_target(tau: float, temperature: float):
    bits_v = -(LOGITS / temperature).log_softmax(0) / math.log(2)
    sampling = Sampling(temperature=temperature, mirostat_tau=tau, mirostat_eta=0.1, seed=1)
    chooser = make_chooser(sampling, [1])
    surprises = [float(bits_v[chooser.choose(LOGITS).token]) for _ in range(STEPS)]
    entropy = float((2**-bits_v * bits_v).sum())
    assert bits_v.min() < tau < entropy
    # Σ (surprise - tau) = (first limit - last limit) / eta, and the limit stays within some bits of the target.
    assert np.mean(surprises) == pytest.approx(tau, abs=20 / 0.1 / STEPS)
    assert np.mean(surprises[STEPS // 2 :]) == pytest.approx(tau, abs=0.06)


def test_a_step_is_that_of_the_paper():
    """By hand: the limit begins at 2 tau, and moves by eta times the error."""
    mirostat = Mirostat(tau=2.0, eta=0.5)
    surprise_n = np.array([1.0, 3.9, 4.0, 4.1, 9.0])
    assert mirostat.keep(surprise_n).tolist() == [0, 1, 2]
    mirostat.observe(4.0)
    assert mirostat.keep(surprise_n).tolist() == [0]
    mirostat.observe(0.0)
    assert mirostat.keep(surprise_n).tolist() == [0, 1, 2]
    mirostat.undo(2)
    mirostat.observe(9.0)
    assert mirostat.keep(surprise_n).tolist() == [0]
    mirostat.observe(9.0)
    assert mirostat.keep(surprise_n + 5).tolist() == [0], "the least surprising token is always left"


def test_surprise_is_taken_under_the_whole_distribution_at_the_temperature():
    """Of four equal tokens each has two bits, however many of them are left out."""
    mirostat_tau = 1.93
    chooser = make_chooser(Sampling(temperature=3.0, mirostat_tau=mirostat_tau, mirostat_eta=1.0), [])
    logits_v = torch.tensor([2.0, 2.0, 2.0, 2.0])
    for step in range(1, 40):
        chooser.choose(logits_v)
        limit = 2 * mirostat_tau - step * (2.0 - mirostat_tau)
        expected = 4 if limit >= 2 else 1
        assert len(chooser.distribution(logits_v).ids) == expected
