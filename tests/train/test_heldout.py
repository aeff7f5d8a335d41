"""Held-out loss against the log-probabilities of one token after the other."""

import math

import numpy as np
import pytest
import torch
from tiny import TYPICAL, VOCABULARY, ListStream, hot_decoder, tiny_config
from tiny_training import UnevenRows

from groundup.model.language_model import LanguageModel
from groundup.tokens.batches import IGNORE
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
