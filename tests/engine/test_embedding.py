"""Vectors of texts: those of each text alone, in batches that keep nobody waiting for long."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import ENCODERS, hot_decoder, hot_model, random_ids, tiny_config

import groundup as gu
from groundup.engine.embedding import batches_of
from groundup.model.language_model import LanguageModel

PROMPTS = [random_ids(length, seed=length).tolist() for length in (7, 1, 40, 3, 33)]


@pytest.mark.parametrize("preset", ["llama", "mamba", "groundup", *ENCODERS])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_vectors_are_those_of_each_text_alone(preset: str, pooling: str):
    model = hot_model(tiny_config(preset))
    assert isinstance(model, LanguageModel)
    vectors_bd = gu.Engine(model, stop_ids=[]).embed(PROMPTS, pooling)
    for prompt, vector_d in zip(PROMPTS, vectors_bd, strict=True):
        with torch.no_grad():
            hidden_td = model.encode(torch.tensor([prompt]))[0]
        expected_d = hidden_td.mean(0) if pooling == "mean" else hidden_td[-1]
        torch.testing.assert_close(vector_d, expected_d, rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 6), st.integers(1, 100))
def test_batches_keep_to_their_limits_and_none_could_take_the_next_text(
    lengths: list[int], most_texts: int, most_tokens: int
):
    batches = batches_of([[0] * length for length in lengths], most_texts, most_tokens)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))

    def fits(batch: list[int]) -> bool:
        return len(batch) <= most_texts and len(batch) * max(lengths[place] for place in batch) <= most_tokens

    assert all(fits(batch) or len(batch) == 1 for batch in batches)
    assert not any(fits([*batch, after[0]]) for batch, after in pairwise(batches))


def test_no_call_has_more_tokens_than_a_step_so_that_running_texts_go_on():
    """Twenty texts of 30 tokens in steps of 64: two at a time, and the long one alone."""
    model = hot_decoder(tiny_config("llama", context=100))
    calls: list[tuple[int, int]] = []
    handle = model.layers[0].register_forward_pre_hook(lambda _, given: calls.append(tuple(given[0].shape[:2])))
    gu.Engine(model, stop_ids=[], step_tokens=64).embed([[1] * 30] * 20 + [[1] * 90])
    handle.remove()
    assert calls == [(2, 30)] * 10 + [(1, 90)]


def test_an_encoder_only_embeds():
    model = hot_model(tiny_config("bert"))
    assert isinstance(model, LanguageModel)
    engine = gu.Engine(model, stop_ids=[])
    for ask in (engine.generate, engine.score):
        with pytest.raises(ValueError, match="a bert model cannot go on from a text"):
            ask([[1]])
