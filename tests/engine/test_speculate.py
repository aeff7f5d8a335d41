"""Speculation: guesses come from what was said, and what is kept has the distribution of text without it."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.engine.choose import make_chooser
from groundup.engine.sampling import Sampling
from groundup.engine.speculate import prompt_lookup, verify

VOCABULARY = 5


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


def test_a_guess_that_ends_the_answer_is_its_last_token():
    rows = torch.log(torch.tensor([[0.01, 0.99], [0.99, 0.01], [0.99, 0.01]]))
    sampling = Sampling(temperature=1e-3, stop_token_ids=(1,))
    assert [choice.token for choice in verify(make_chooser(sampling, []), rows, [1, 0])] == [1]


def test_no_token_is_chosen_before_it_is_asked_for():
    chooser = make_chooser(Sampling(), [])
    choices = verify(chooser, torch.eye(3), [0, 1])
    next(choices)
    choices.close()
    assert chooser.answer == [0]


def test_rows_that_do_not_belong_to_the_guesses_are_refused():
    with pytest.raises(ValueError, match="zip"):
        list(verify(make_chooser(Sampling(), []), torch.eye(3)[:2], [0, 1]))
