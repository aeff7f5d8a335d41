"""Pseudo-likelihood against masking one token after the other, by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import VOCABULARY, ListStream, hot_decoder, random_ids, tiny_config
from tiny_encoder import encoder_config

from groundup.errors import UserError
from groundup.model.language_model import LanguageModel
from groundup.train.pseudo_likelihood import heldout_pseudo_loss, mask_token, pseudo_figures, pseudo_log_likelihood

BOS, MASK = 1, 2
CONTEXT = 10
# Of documents, each with a token that ends it; one is empty.
LENGTHS = (4, 1, 23, 9, 11)
TEXT_TOKENS = sum(LENGTHS) - len(LENGTHS)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return hot_decoder(encoder_config(CONTEXT))


def _stream() -> ListStream:
    generator = np.random.default_rng(0)
    return ListStream([generator.integers(3, VOCABULARY, length).tolist() for length in LENGTHS])


@torch.no_grad()
def _guess(model: LanguageModel, text: list[int], place: int, types: list[int] | None = None) -> float:
    """log p of the token at `place` given all others of the text."""
    masked = [MASK if index == place else token for index, token in enumerate(text)]
    kinds = None if types is None else torch.tensor([types])
    return model(torch.tensor([masked]), token_type_ids=kinds)[0, place].log_softmax(-1)[text[place]].item()


def _by_hand(model: LanguageModel, stream: ListStream) -> list[float]:
    """-log p of each token of the stream, from the rest of its piece of its document."""
    nats = []
    for begin, end in zip(stream.offsets[:-1], stream.offsets[1:] - 1, strict=True):
        for start in range(begin, end, CONTEXT - 1):
            text = [BOS, *stream.tokens(start, min(start + CONTEXT - 1, end)).tolist()]
            nats += [-_guess(model, text, place) for place in range(1, len(text))]
    return nats


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_each_token_is_guessed_from_all_others_of_its_row(model: LanguageModel, rows: int):
    ids, types = random_ids(3, 8, seed=4), random_ids(3, 8, seed=5) % 2
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [0] * 6 + [1] * 2])
    found = pseudo_log_likelihood(model, ids, MASK, mask, types, rows=rows)
    for row in range(3):
        real = mask[row].nonzero()[:, 0].tolist()
        text, kinds = ids[row, real].tolist(), types[row, real].tolist()
        expected = [_guess(model, text, place, kinds) for place in range(len(text))]
        assert found[row, real].tolist() == pytest.approx(expected, rel=1e-10)
        assert found[row].count_nonzero() == len(real)


def test_only_what_is_to_be_scored_is_masked(model: LanguageModel):
    ids = random_ids(2, 8, seed=6)
    scored = torch.zeros(2, 8, dtype=torch.bool)
    scored[0, 3] = scored[1, 7] = True
    found = pseudo_log_likelihood(model, ids, MASK, scored=scored)
    assert found[0, 3].item() == pytest.approx(_guess(model, ids[0].tolist(), 3), rel=1e-10)
    assert found[1, 7].item() == pytest.approx(_guess(model, ids[1].tolist(), 7), rel=1e-10)
    assert found.count_nonzero() == 2
    assert ids.eq(random_ids(2, 8, seed=6)).all(), "the text itself is left as it is"


def test_a_model_that_looks_back_alone_has_no_pseudo_likelihood():
    with pytest.raises(ValueError, match="read both ways"):
        pseudo_log_likelihood(hot_decoder(tiny_config("llama")), random_ids(1, 4), MASK)


@pytest.mark.parametrize("rows", [1, 2, 16])
def test_every_held_out_token_is_masked_once(model: LanguageModel, rows: int):
    stream = _stream()
    loss = heldout_pseudo_loss(model, stream, CONTEXT, BOS, MASK, rows=rows)
    nats = _by_hand(model, stream)
    assert loss.tokens == loss.total_tokens == len(nats) == TEXT_TOKENS
    assert loss.nats == pytest.approx(sum(nats), rel=1e-10)
    assert loss.pseudo_bits_per_byte == pytest.approx(sum(nats) / math.log(2) / stream.total_bytes, rel=1e-10)
    assert loss.standard_error == 0


def test_a_sample_is_spread_evenly_and_stands_for_the_whole(model: LanguageModel):
    stream = _stream()
    loss = heldout_pseudo_loss(model, stream, CONTEXT, BOS, MASK, sample=5)
    nats = _by_hand(model, stream)
    chosen = [nats[place] for place in (0, 10, 21, 31, 42)]
    assert loss.tokens == 5
    assert loss.nats == pytest.approx(sum(chosen), rel=1e-10)
    per_byte = TEXT_TOKENS / stream.total_bytes / math.log(2)
    assert loss.pseudo_bits_per_byte == pytest.approx(np.mean(chosen) * per_byte, rel=1e-10)
    error = np.std(chosen) / 5**0.5 * (1 - 5 / TEXT_TOKENS) ** 0.5
    assert loss.standard_error == pytest.approx(error * per_byte, rel=1e-10)


def test_a_sample_larger_than_the_text_is_all_of_it(model: LanguageModel):
    assert heldout_pseudo_loss(model, _stream(), CONTEXT, BOS, MASK, sample=1000).tokens == TEXT_TOKENS


def test_where_there_is_nothing_to_guess_or_to_guess_from_one_says_so(model: LanguageModel):
    with pytest.raises(ValueError, match="`context` must be at least 2"):
        heldout_pseudo_loss(model, _stream(), 1, BOS, MASK)
    with pytest.raises(ValueError, match="at least one token"):
        heldout_pseudo_loss(model, ListStream([[5], [6]]), CONTEXT, BOS, MASK)


def test_a_summary_holds_the_figure_of_models_that_read_both_ways_alone(model: LanguageModel):
    words = SimpleNamespace(bos_id=BOS, mask_id=MASK)
    loss = heldout_pseudo_loss(model, _stream(), CONTEXT, BOS, MASK)
    assert pseudo_figures(model, _stream(), CONTEXT, words) == {  # type: ignore[arg-type]
        "heldout_sampled_pseudo_bits_per_byte": loss.pseudo_bits_per_byte,
        "heldout_sampled_tokens": TEXT_TOKENS,
    }
    assert pseudo_figures(hot_decoder(tiny_config("llama")), _stream(), CONTEXT, words) == {}  # type: ignore[arg-type]


def test_a_tokenizer_without_a_mask_token_is_refused():
    assert mask_token(SimpleNamespace(mask_id=7)) == 7  # type: ignore[arg-type]
    with pytest.raises(UserError, match="mask token"):
        mask_token(SimpleNamespace(mask_id=None))  # type: ignore[arg-type]
