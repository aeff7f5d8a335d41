"""Tokens that the kernels choose, against the definition in float64: sorted in full, in order, row by row."""

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from groundup.engine.draws import LIKELIEST, Draw, uniform
from groundup.engine.kernels import library
from groundup.engine.kernels.choices import Choices, peaks_of
from groundup.engine.kernels.program import Product, Program
from groundup.quantize.matrix import W4, quantize_rows

WIDTHS = (1, 2, 7, 16, 33, 511, 513, 4100)
# What rounding to float32 can move a cumulated probability by.
ROUNDING = 3e-6


def _draw(
    number: float = 0.0, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Draw:
    return Draw(temperature, top_k, top_p, min_p, number)


FILTERS = {
    "none": _draw(temperature=1.3),
    "hot": _draw(temperature=30.0),
    "top-k": _draw(temperature=0.8, top_k=9),
    "one": _draw(temperature=0.8, top_k=1),
    "top-p": _draw(top_p=0.85),
    "small top-p": _draw(temperature=2.0, top_p=0.04),
    "large top-p": _draw(top_p=0.9995),
    "min-p": _draw(temperature=0.7, min_p=0.06),
    "all": _draw(temperature=1.6, top_k=40, top_p=0.9, min_p=0.02),
}
# Spread of the logits, from all tokens alike to one that has everything.
SPREADS = (0.02, 1.0, 4.0, 40.0)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _probabilities(logits_v: Tensor, draw: Draw) -> np.ndarray:
    """(vocab,) float64: of equal logits the lower id is the likelier."""
    scaled_v = logits_v.double().numpy() / draw.temperature
    order = np.argsort(-scaled_v, kind="stable")
    probabilities_n = np.exp(scaled_v[order] - scaled_v.max())
    if draw.top_k:
        probabilities_n[draw.top_k :] = 0
    probabilities_n /= probabilities_n.sum()
    if draw.top_p < 1:
        probabilities_n[int((probabilities_n.cumsum() < draw.top_p).sum()) + 1 :] = 0
    probabilities_n[probabilities_n < draw.min_p * probabilities_n[0]] = 0
    probabilities_v = np.empty_like(probabilities_n)
    probabilities_v[order] = probabilities_n / probabilities_n.sum()
    return probabilities_v


@pytest.mark.parametrize("width", [*WIDTHS, 151_936])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_rows_are_summed_up_as_in_float64_and_the_likeliest_is_the_first_of_the_largest(
    level: str, width: int, spread: float
):
    wide = spread * _random(5, width + 3) - 7
    x = wide[:, 1 : width + 1]
    x[0, width // 2 :] = float("-inf") if width > 1 else -7
    tokens, logprobs, normalisers = torch.tensor(Choices().choose(x, [LIKELIEST] * 5), dtype=torch.float64).T
    torch.testing.assert_close(normalisers, x.double().logsumexp(1), rtol=1e-6, atol=1e-6)
    assert tokens.tolist() == [int(row.argmax()) for row in x.numpy()]
    torch.testing.assert_close(logprobs, x.double().log_softmax(1).amax(1), rtol=1e-6, atol=1e-5)


def test_of_equal_numbers_the_first_is_the_likeliest(level: str):
    x = torch.zeros(3, 70)
    x[1, [9, 25, 40]] = 2.0
    x[2, [69, 68]] = 2.0
    for draw in (LIKELIEST, _draw(0.999, top_k=1), _draw(0.999, top_p=1e-9), _draw(0.999, temperature=1e-200, top_k=1)):
        assert [token for token, _, _ in Choices().choose(x, [draw] * 3)] == [0, 9, 68]


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
@pytest.mark.parametrize("draw", [LIKELIEST, FILTERS["none"], FILTERS["all"]])
def test_a_row_that_is_no_numbers_has_no_sum(level: str, strange: float, draw: Draw):
    x = _random(4, 100)
    x[1, 57] = x[2, 99] = strange
    x[3] = -float("inf")
    found = Choices().choose(x, [draw] * 4)
    assert [math.isnan(normaliser) for _, _, normaliser in found] == [False, True, True, True]
    assert all(0 <= token < 100 for token, _, _ in found)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("spread", SPREADS)
def test_each_token_has_its_share_of_the_numbers(level: str, spread: float, name: str):
    """Numbers at equal distances: of `count` a token gets its probability, but for one at each end of its interval."""
    count, width = 2000, 150
    logits_v = spread * _random(width, seed=5)
    logits_v[[3, 40, 41]] = float(logits_v[70])
    logits_v[[20, 90]] = -torch.inf
    draws = [FILTERS[name]._replace(number=(place + 0.5) / count) for place in range(count)]
    found = Choices().choose(logits_v.expand(count, width), draws)
    drawn = Counter(token for token, _, _ in found)
    probabilities_v = _probabilities(logits_v, FILTERS[name])
    for token in range(width):
        assert abs(drawn[token] - count * probabilities_v[token]) <= 1.01, token
        assert probabilities_v[token] > 0 or not drawn[token]
    log_probs_v = logits_v.double().log_softmax(0)
    assert all(abs(logprob - log_probs_v[token]) < 1e-5 for token, logprob, _ in found)


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("width", [*WIDTHS, 32_000])
def test_a_token_is_drawn_where_the_cumulated_probability_passes_the_number(level: str, width: int, name: str):
    numbers = [0.0, *(uniform(7, place) for place in range(20)), 1 - 2**-53]
    for seed, spread in enumerate(SPREADS):
        logits_v = spread * _random(width, seed=seed)
        probabilities_v = _probabilities(logits_v, FILTERS[name])
        until_v = probabilities_v.cumsum()
        # By rounding one token more or less may be left.
        slack = ROUNDING + probabilities_v[probabilities_v > 0].min()
        found = Choices().choose(
            logits_v.expand(len(numbers), width), [FILTERS[name]._replace(number=n) for n in numbers]
        )
        for number, (token, _, _) in zip(numbers, found, strict=True):
            assert until_v[token] - probabilities_v[token] - slack <= number <= until_v[token] + slack
            assert probabilities_v[token] > 0 or slack > 2 * ROUNDING
        if width < 600 and probabilities_v[probabilities_v > 0].min() > ROUNDING:
            assert [found[0][0], found[-1][0]] == np.flatnonzero(probabilities_v)[[0, -1]].tolist()


@pytest.mark.parametrize("width", [5, 700, 32_000])
def test_of_equal_logits_a_filter_keeps_the_first(level: str, width: int):
    kept = max(1, width // 3)
    logits = torch.full((2, width), -1.5)
    for draw in (_draw(top_k=kept), _draw(top_p=(kept - 0.5) / width, temperature=5.0)):
        found = Choices().choose(logits, [draw, draw._replace(number=1 - 2**-53)])
        assert [token for token, _, _ in found] == [0, kept - 1]


@pytest.mark.parametrize("kept", [1, 37, 99])
def test_of_hardly_different_logits_no_more_are_kept_than_wanted(level: str, kept: int):
    """Their weights are neighbours among the floats, or equal."""
    logits_v = 1e-7 * _random(100)
    for draw in (_draw(top_k=kept), _draw(top_p=(kept - 0.5) / 100)):
        draws = [draw._replace(number=(place + 0.5) / kept) for place in range(kept)]
        found = Choices().choose(logits_v.expand(kept, 100), draws)
        assert len({token for token, _, _ in found}) == kept
        assert [token for token, _, _ in found] == sorted(token for token, _, _ in found)


# Columns of a head of one input, which has these logits, and what is added to the first of them.
HEADS = {
    "usual": (0.3, 0.0),
    "large": (9.0, 0.0),
    "small": (-1.0, -40.0),
    "infinite": (1.0, math.inf),
    "none": (1.0, math.nan),
}


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
@pytest.mark.parametrize("width", [1, 31, 33, 300])
@pytest.mark.parametrize("kind", HEADS)
def test_what_a_product_leaves_says_what_its_logits_say(level: str, rows: int, width: int, kind: str):
    """To the bit; the likeliest without a look at the others, which can be written over."""
    size, added = HEADS[kind]
    head, bias_v = quantize_rows(size * _random(width, 64, seed=width), W4), torch.zeros(width)
    bias_v[0 if added != -40.0 else slice(None)] = added
    program = Program(rows)
    x_md, logits, peaks = program.buffer("x", 64), program.buffer("logits", width), peaks_of(rows, width)
    program.linear(x_md, Product(head, bias_v, logits, peaks=peaks))
    x_md.copy_(_random(rows, 64, seed=rows))
    program.run_rows(rows)
    for draw in (LIKELIEST, FILTERS["all"]._replace(number=0.7)):
        expected = Choices().choose(logits.clone(), [draw] * rows)
        assert str(Choices().choose(logits, [draw] * rows, peaks)) == str(expected)  # not a number equals nothing
    if kind == "usual":
        before = Choices().choose(logits, [LIKELIEST] * rows, peaks)
        logits.masked_fill_(logits < logits.max(1, keepdim=True).values, -1000.0)
        assert Choices().choose(logits, [LIKELIEST] * rows, peaks) == before


def test_peaks_of_other_logits_are_refused(compiled: None):
    with pytest.raises(ValueError, match="`peaks` must have shape"):
        Choices().choose(_random(3, 100), [LIKELIEST] * 3, peaks_of(3, 50))


def _at_every_level(logits: Tensor, draws: list[Draw]) -> list[list[int]]:
    """The tokens that each set of instructions chooses."""
    before, found = library.level(), []
    try:
        for name in library.LEVELS[: library.LEVELS.index(before) + 1]:
            library.set_level(name)
            found.append([token for token, _, _ in Choices().choose(logits, draws)])
    finally:
        library.set_level(before)
    return found


@pytest.mark.parametrize("name", ["none", "hot", "top-p", "all"])
def test_no_instructions_change_a_token(compiled: None, name: str):
    """By numbers at the very border of two tokens, where the last bit of a sum decides."""
    logits_v = _random(3000, seed=2)
    borders = _probabilities(logits_v, FILTERS[name]).cumsum()[:-1].clip(max=1 - 2**-53)
    draws = [FILTERS[name]._replace(number=float(number)) for number in borders]
    first, *others = _at_every_level(logits_v.expand(len(draws), 3000), draws)
    assert all(other == first for other in others)


def test_neither_threads_nor_company_change_a_bit(threads: None):
    logits = torch.cat([spread * _random(len(FILTERS), 40_001, seed=1) for spread in SPREADS])
    draws = [draw._replace(number=uniform(1, place)) for place, draw in enumerate([*FILTERS.values()] * len(SPREADS))]
    alone = [Choices().choose(row[None], [draw])[0] for row, draw in zip(logits, draws, strict=True)]
    for count in (1, 3):
        library.set_threads(count)
        assert Choices().choose(logits, draws) == alone


def test_draws_that_do_not_fit_the_logits_are_refused(compiled: None):
    with pytest.raises(ValueError, match="2 tokens cannot be drawn from 3 rows of logits"):
        Choices().choose(torch.zeros(3, 5), [LIKELIEST] * 2)
    with pytest.raises(ValueError, match=r"no token can be drawn from logits of shape \(1, 0\)"):
        Choices().choose(torch.zeros(1, 0), [LIKELIEST])
    with pytest.raises(ValueError, match=r"`logits` must be torch.float32"):
        Choices().choose(torch.zeros(1, 5).double(), [LIKELIEST])


def test_what_was_asked_before_changes_nothing(compiled: None):
    """One memory for all steps: more rows, fewer, drawn ones in the place of others, the likeliest after a draw."""
    generator, choices = random.Random(0), Choices()
    asked = [LIKELIEST, *FILTERS.values()]
    for step in range(60):
        rows = generator.choice([1, 2, 5, 16, 17, 40, 90])
        logits = _random(rows, 33, seed=step)
        draws = [generator.choice(asked)._replace(number=generator.random()) for _ in range(rows)]
        draws = [LIKELIEST if draw.temperature == 0 else draw for draw in draws]
        expected = [Choices().choose(row[None], [draw])[0] for row, draw in zip(logits, draws, strict=True)]
        assert choices.choose(logits, draws) == expected
