"""Rows that are summed up together are chosen from as each is alone."""

from typing import Any

import pytest
import torch

from groundup.engine.choose import make_chooser
from groundup.engine.rows import Row, rows_of
from groundup.engine.sampling import Sampling

VOCABULARY = 3000
SETTINGS: list[dict[str, Any]] = [
    {},
    {"logprobs": 4},
    {"logit_bias": {5: 30.0}},
    {"repetition_penalty": 1.5, "bad_words": [(7,)]},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.0, "mirostat_tau": 3.0},
]


def _logits(dtype: torch.dtype) -> torch.Tensor:
    return 4 * torch.randn(7, VOCABULARY, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("asked", SETTINGS)
def test_what_is_chosen_does_not_depend_on_who_summed_up(compiled: None, asked: dict[str, Any]):
    logits_nv = _logits(torch.float32)
    together, alone = (make_chooser(Sampling(**asked), [1, 2]) for _ in range(2))
    for row, logits_v in zip(rows_of(logits_nv), logits_nv, strict=True):
        assert isinstance(row, Row)
        one, other = together.choose(row), alone.choose(logits_v)
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.logprob == pytest.approx(float(logits_v.double().log_softmax(0)[one.token]), abs=1e-5)
        assert one.top == [(token, pytest.approx(logprob, abs=1e-5)) for token, logprob in other.top]


def test_no_row_ends_a_text_before_its_least_length(compiled: None):
    logits_nv = _logits(torch.float32)
    likeliest = logits_nv.argmax(-1).tolist()
    chooser = make_chooser(Sampling(stop_token_ids=likeliest, min_tokens=4), [1, 2])
    tokens = []
    for row in rows_of(logits_nv):
        tokens.append(chooser.choose(row).token)
        assert chooser.has_ended == (len(tokens) > 4)
    expected_nv = logits_nv.clone()
    expected_nv[:4, likeliest] = -torch.inf
    assert tokens == expected_nv.argmax(-1).tolist()


def test_float64_is_left_as_it_is():
    logits_nv = _logits(torch.float64)
    assert all(torch.equal(row, logits_v) for row, logits_v in zip(rows_of(logits_nv), logits_nv, strict=True))


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_a_row_that_is_no_numbers_fails_alone(strange: float):
    logits_nv = _logits(torch.float32)
    logits_nv[1, 8] = strange
    for number, row in enumerate(rows_of(logits_nv)):
        chooser = make_chooser(Sampling(), [])
        if number == 1:
            with pytest.raises(ValueError, match=f"the largest of the logits is {strange}: no token can be chosen"):
                chooser.choose(row)
        else:
            chooser.choose(row)
