"""The parts of filters that look at a piece of a vocabulary first, against looking at all of it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from groundup.engine import filters

# Few different values, so that ties are at every border; some are banned.
VALUE = st.one_of(st.integers(-3, 3).map(float), st.just(-math.inf))


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUE, min_size=1, max_size=700), st.integers(1, 800), st.sampled_from([np.float32, np.float64]))
def test_the_largest_are_those_of_a_stable_sort_without_what_is_banned(values: list[float], k: int, dtype: type):
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    expected = [place for place in order if values[place] > -math.inf][:k]
    assert filters.largest(np.array(values, dtype=dtype), k).tolist() == expected


@pytest.mark.parametrize("k", [1, 5, 63, 64, 65, 400, 3000, 3005, 9999])
def test_the_largest_of_many_different_values(k: int):
    values = np.random.default_rng(k).permutation(3005).astype(np.float32)
    assert values[filters.largest(values, k)].tolist() == list(range(3004, -1, -1))[:k]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=1500).filter(any), st.integers(0, 2**53 - 1))
def test_the_draw_passes_the_cumulated_weights_in_order(weights: list[int], numerator: int):
    """Whole numbers, of which every sum is exact, and a target in whole numbers too."""
    target = numerator * sum(weights)
    expected = next(place for place, passed in enumerate(itertools.accumulate(weights)) if passed * 2**53 > target)
    drawn = filters.draw(np.array(weights, dtype=np.float64), numerator / 2**53)
    # The product is rounded: just below a border it may be the border.
    borders = np.cumsum(weights) / sum(weights)
    assert drawn == expected or np.abs(borders - numerator / 2**53).min() < 1e-15


@pytest.mark.parametrize("length", [1, 3, 511, 512, 513, 2000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_has_no_weight_is_never_drawn_not_even_by_the_first_and_the_last_number(length: int, dtype: type):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        weights = generator.random(length).astype(dtype) * (generator.random(length) < 0.1)
        weights[: length // 2] = 0
        weights[generator.integers(length)] = 1e-30
        possible = np.flatnonzero(weights)
        assert filters.draw(weights, 0.0) == possible[0]
        assert weights[filters.draw(weights, 1 - 2**-53)] > 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(VALUE, st.floats(-90, 3)), min_size=65, max_size=400).filter(lambda one: max(one) > -math.inf),
    st.sampled_from([0.31, 0.8, 0.97, 0.9999]),
)
def test_a_nucleus_of_many_is_that_of_sorting_all(values: list[float], share: float):
    """More than the first look takes in: whole steps of a hundredth of a nat are counted, one is sorted."""
    logits = np.array(values)
    order = sorted(range(len(values)), key=lambda place: (-values[place], place))
    weights = np.exp(logits - logits.max())
    until = np.cumsum(weights[order]) / weights.sum()
    assume(np.abs(until - share).min() > 1e-12)
    expected = order[: int((until < share).sum()) + 1]
    assert filters.top_p(logits, share).tolist() == sorted(expected)
