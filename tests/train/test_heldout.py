"""Held-out loss against the log-probabilities of one token after the other, and of one text after the other."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from tiny import TYPICAL, VOCABULARY, ListStream, hot_decoder, hot_model, tiny_config
from tiny_training import UnevenRows, corruption_for

from groundup.model.language_model import LanguageModel
from groundup.tokens.batches import IGNORE, Rows, rows_at
from groundup.train.heldout import heldout_loss, mean_target_loss

BOS = 1
CONTEXT = 10
LENGTHS = (4, 1, 23, 9, 10)


def _stream() -> ListStream:
    generator = np.random.default_rng(0)
    return ListStream([generator.integers(2, VOCABULARY, length).tolist() for length in LENGTHS])


@torch.no_grad()
def _token_by_token(model: LanguageModel, stream: ListStream) -> list[float]:
    """-log p of each token given BOS and the tokens of its own document that its window holds."""
    nats = []
    for place in range(stream.total_tokens):
        document_start = max(offset for offset in stream.offsets if offset <= place)
        start = max(document_start, place // CONTEXT * CONTEXT)
        past = [BOS, *stream.tokens(start, place).tolist()]
        logits = model(torch.tensor([past]))[0, -1]
        nats.append(-logits.log_softmax(-1)[int(stream.tokens(place, place + 1)[0])].item())
    return nats


@pytest.mark.parametrize("preset", TYPICAL)
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_every_token_is_predicted_once_from_its_window(preset: str, rows: int):
    model, stream = hot_decoder(tiny_config(preset)), _stream()
    loss = heldout_loss(model, stream, CONTEXT, BOS, rows=rows)
    assert loss.tokens == sum(LENGTHS)
    assert loss.bytes == stream.total_bytes
    assert loss.nats == pytest.approx(sum(_token_by_token(model, stream)), rel=1e-10)
    assert loss.bits_per_byte == loss.nats / math.log(2) / stream.total_bytes


def test_a_few_windows_are_spread_over_the_whole_stream():
    model, stream = hot_decoder(tiny_config("llama")), _stream()
    loss = heldout_loss(model, stream, CONTEXT, BOS, windows=3)
    nats = _token_by_token(model, stream)
    chosen = [place for start in (0, 20, 40) for place in range(start, min(start + CONTEXT, len(nats)))]
    assert loss.tokens == len(chosen)
    assert loss.nats == pytest.approx(sum(nats[place] for place in chosen), rel=1e-10)
    assert loss.bytes == len(chosen)


def test_a_stream_shorter_than_a_window_is_one_window():
    model, stream = hot_decoder(tiny_config("nanochat")), ListStream([[5, 6, 7]])
    loss = heldout_loss(model, stream, CONTEXT, BOS)
    assert loss.tokens == 3
    assert loss.nats == pytest.approx(sum(_token_by_token(model, stream)), rel=1e-10)


def test_mean_target_loss_is_over_the_targets_that_carry_loss():
    model, source = hot_decoder(tiny_config("llama")), UnevenRows()
    rows = source.rows(np.arange(5))
    with torch.no_grad():
        logits = model.logits(
            model.hidden(*(torch.from_numpy(array) for array in (rows.input_ids, rows.positions, rows.segments)))
        )
    nats = [
        -logits[row, column].log_softmax(-1)[target].item()
        for (row, column), target in np.ndenumerate(rows.targets)
        if target != IGNORE
    ]
    assert mean_target_loss(model, source, rows=5) == pytest.approx(sum(nats) / len(nats), rel=1e-10)


def test_the_unigram_entropy_is_that_of_the_targets_by_their_own_frequencies():
    stream = _stream()
    loss = heldout_loss(hot_decoder(tiny_config("llama")), stream, CONTEXT, BOS)
    seen = Counter(stream.tokens(0, stream.total_tokens).tolist())
    expected = -sum(count / sum(LENGTHS) * math.log(count / sum(LENGTHS)) for count in seen.values())
    assert loss.unigram_entropy == pytest.approx(expected, rel=1e-12)
    assert loss.per_target == loss.nats / sum(LENGTHS)


def _windows(stream: ListStream, preset: str) -> list[Rows]:
    """Each window with its text hidden, by its number."""
    corruption, found = corruption_for(preset), []
    assert corruption is not None
    for number in range(-(-stream.total_tokens // CONTEXT)):
        start, stop = number * CONTEXT, min(number * CONTEXT + CONTEXT, stream.total_tokens)
        plain = rows_at(np.array([start]), stream.tokens(start, stop)[None], stream.offsets, BOS)
        found.append(corruption(plain, np.array([number])))
    return found


@torch.no_grad()
def _text_by_text(preset: str, rows: Rows) -> list[tuple[float, int]]:
    """-log p of each target of a window, and the target; each document's part of it alone."""
    model, found = hot_model(tiny_config(preset)), []
    for segment in np.unique(rows.segments[rows.segments >= 0]):
        own = rows.segments[0] == segment
        ids, targets = torch.from_numpy(rows.input_ids[0][own])[None], rows.targets[0][own]
        if rows.source is None:
            logits = model(ids)[0]
        else:
            source = torch.from_numpy(rows.source.input_ids[0][rows.source.segments[0] == segment])[None]
            logits = model(source, ids)[0]
        guesses = logits.log_softmax(-1)
        found += [(-guesses[place, target].item(), int(target)) for place, target in enumerate(targets) if target >= 0]
    return found


@pytest.mark.parametrize("preset", ["bert", "t5"])
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_what_is_hidden_of_each_window_is_guessed_from_it_alone(preset: str, rows: int):
    stream = _stream()
    loss = heldout_loss(
        hot_model(tiny_config(preset)), stream, CONTEXT, BOS, rows=rows, corruption=corruption_for(preset)
    )
    guessed = [one for window in _windows(stream, preset) for one in _text_by_text(preset, window)]
    assert loss.tokens == len(guessed) > 5
    assert loss.nats == pytest.approx(sum(nats for nats, _ in guessed), rel=1e-10)
    seen = Counter(target for _, target in guessed)
    expected = -sum(count / len(guessed) * math.log(count / len(guessed)) for count in seen.values())
    assert loss.unigram_entropy == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="has no bits per byte"):
        _ = loss.bits_per_byte


def test_a_few_windows_are_hidden_as_among_all():
    model, stream, corruption = hot_model(tiny_config("bert")), _stream(), corruption_for("bert")
    loss = heldout_loss(model, stream, CONTEXT, BOS, windows=3, corruption=corruption)
    windows = _windows(stream, "bert")
    chosen = [one for number in (0, 2, 4) for one in _text_by_text("bert", windows[number])]
    assert loss.nats == pytest.approx(sum(nats for nats, _ in chosen), rel=1e-10)
