"""Followers found one token at a time: those that the model finds in a whole text."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.engine.followers import EarlierPlaces
from groundup.model.induction import followers
from groundup.model.specs import Induction

SPECS = [Induction(lengths=(1, 2, 3, 5), places=2), Induction(lengths=(2, 4), places=1), Induction((1,), places=3)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    steps=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5), st.lists(st.integers(0, 3), max_size=5))),
    spec=st.sampled_from(SPECS),
)
def test_followers_are_those_of_the_whole_text(
    tokens: list[int], steps: list[tuple[int, int, list[int]]], spec: Induction
):
    """In chunks of any length, from a beginning that was found in the cache, with guesses that are taken back."""
    expected = followers(torch.tensor([tokens]), None, spec)[:, 0].T.tolist()
    places, start = EarlierPlaces(spec), min(4, len(tokens) - 1)
    for length, kept, guesses in steps:
        end = min(start + length, len(tokens))
        if end == start:
            break
        guessed = [*tokens[:end], *guesses]
        found = places.followers_of(guessed, start, len(guessed))
        whole = followers(torch.tensor([guessed]), None, spec)[:, 0].T.tolist()
        assert found == whole[start:]
        start = min(end, start + max(1, kept))
    assert places.followers_of(tokens, start, len(tokens)) == expected[start:]
