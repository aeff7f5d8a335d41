"""Rows that the kernels read together are chosen from as each is alone, and as without kernels."""

from typing import Any

import pytest
import torch

from groundup.engine.choose import make_chooser
from groundup.engine.kernels import library
from groundup.engine.rows import Row, RowReader
from groundup.engine.sampling import Sampling
from groundup.engine.speculate import verify

VOCABULARY = 3000
SETTINGS: list[dict[str, Any]] = [
    {},
    {"logprobs": 4},
    {"logit_bias": {5: 30.0}},
    {"repetition_penalty": 1.5, "bad_words": [(7,)]},
    {"temperature": 0.7, "seed": 3},
    {"temperature": 1.0, "seed": 4, "logprobs": 2},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.8},
    {"temperature": 1.1, "min_p": 0.1, "seed": 8},
    {"temperature": 0.9, "top_p": 0.95, "presence_penalty": 0.4, "stop_token_ids": (9,), "min_tokens": 3},
    {"temperature": 1.0, "typical_p": 0.8},
    {"temperature": 1.0, "mirostat_tau": 3.0},
]


def _logits(dtype: torch.dtype, count: int = 7) -> torch.Tensor:
    return 4 * torch.randn(count, VOCABULARY, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("asked", SETTINGS)
def test_what_is_chosen_depends_neither_on_company_nor_on_kernels(
    compiled: None, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
):
    logits_nv = _logits(torch.float32, count=60)
    together, alone, plain = (make_chooser(Sampling(**asked), [1, 2]) for _ in range(3))
    read = RowReader().read(logits_nv, [together.draw(ahead) for ahead in range(len(logits_nv))])
    for row, logits_v in zip(read, logits_nv, strict=True):
        assert isinstance(row, Row)
        one, other = together.choose(row), alone.choose(logits_v)
        with monkeypatch.context() as patch:
            patch.setattr(library, "path", lambda: None)
            assert plain.choose(logits_v).token == one.token
        assert one.token == other.token
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert one.logprob == pytest.approx(float(logits_v.double().log_softmax(0)[one.token]), abs=1e-5)
        assert one.top == [(token, pytest.approx(logprob, abs=1e-5)) for token, logprob in other.top]


@pytest.mark.parametrize("asked", [asked for asked in SETTINGS if make_chooser(Sampling(**asked), [1, 2]).draw()])
def test_what_was_read_with_others_is_read_once(compiled: None, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]):
    """From the first token of a text on, and of each fork, of which a draft model makes one for every guess."""
    logits_nv = _logits(torch.float32)
    chooser = make_chooser(Sampling(**asked), [1, 2])
    read = RowReader().read(logits_nv, [chooser.draw(ahead) for ahead in range(len(logits_nv))])
    monkeypatch.setattr("groundup.engine.choose.RowReader", lambda: pytest.fail("a row is read again"))
    for row in read:
        assert isinstance(row, Row)
        for one in (chooser.fork(), chooser):
            assert one.choose(row)[:2] == (row.token, row.logprob)


def test_settings_for_another_vocabulary_are_refused_with_the_first_row(compiled: None):
    chooser = make_chooser(Sampling(stop_token_ids=(VOCABULARY,)), [1, 2])
    read = RowReader().read(_logits(torch.float32), [chooser.draw()] * 7)
    with pytest.raises(ValueError, match=f"`stop_token_ids` has the token id {VOCABULARY}"):
        chooser.choose(read[0])


@pytest.mark.parametrize("asked", SETTINGS)
def test_guesses_are_drawn_ahead(compiled: None, asked: dict[str, Any]):
    """The rows behind right guesses are read before it is known that they are right."""
    logits_nv = _logits(torch.float32)
    one_by_one, ahead = (make_chooser(Sampling(**asked), [1, 2]) for _ in range(2))
    tokens = [one_by_one.choose(row).token for row in logits_nv]
    wrong = tokens[4] + 1
    read = RowReader().read(logits_nv[:6], [ahead.draw(place) for place in range(6)])
    assert [choice.token for choice in verify(ahead, read, [*tokens[:4], wrong])] == tokens[:5]
    assert ahead.choose(RowReader().read(logits_nv[5:6], [ahead.draw()])[0]).token == tokens[5]


def test_a_token_that_was_drawn_for_another_is_not_taken(compiled: None):
    logits_nv = _logits(torch.float32)
    others = [Sampling(temperature=1.0), Sampling(temperature=2.0, seed=1), Sampling(), Sampling(typical_p=0.5)]
    for other in others:
        own, alone = (make_chooser(Sampling(temperature=2.0, top_p=0.9), [1, 2]) for _ in range(2))
        for row, logits_v in zip(
            RowReader().read(logits_nv, [make_chooser(other, [1]).draw()] * 7), logits_nv, strict=True
        ):
            assert own.choose(row).token == alone.choose(logits_v).token


def test_no_row_ends_a_text_before_its_least_length(compiled: None):
    logits_nv = _logits(torch.float32)
    likeliest = logits_nv.argmax(-1).tolist()
    chooser = make_chooser(Sampling(stop_token_ids=likeliest, min_tokens=4), [1, 2])
    tokens = []
    for row in RowReader().read(logits_nv, [chooser.draw(ahead) for ahead in range(len(logits_nv))]):
        tokens.append(chooser.choose(row).token)
        assert chooser.has_ended == (len(tokens) > 4)
    expected_nv = logits_nv.clone()
    expected_nv[:4, likeliest] = -torch.inf
    assert tokens == expected_nv.argmax(-1).tolist()


def test_float64_is_left_as_it_is():
    logits_nv = _logits(torch.float64)
    rows = RowReader().read(logits_nv, [None] * len(logits_nv))
    assert all(torch.equal(row, logits_v) for row, logits_v in zip(rows, logits_nv, strict=True))


@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9)])
def test_a_row_that_is_no_numbers_fails_alone(strange: float, sampling: Sampling):
    logits_nv = _logits(torch.float32)
    logits_nv[1, 8] = strange
    choosers = [make_chooser(sampling, []) for _ in logits_nv]
    read = RowReader().read(logits_nv, [chooser.draw() for chooser in choosers])
    for number, (chooser, row) in enumerate(zip(choosers, read, strict=True)):
        if number == 1:
            with pytest.raises(ValueError, match=f"the largest of the logits is {strange}: no token can be chosen"):
                chooser.choose(row)
        else:
            chooser.choose(row)
