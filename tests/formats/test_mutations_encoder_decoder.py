"""A comparison that cannot fail is worth nothing: every mistake of a list must show in it."""

from pathlib import Path

import pytest
import torch
from encoder_decoders import inputs_of, reference_pair, their_logits
from mutations_encoder_decoder import MUTATIONS

from groundup.formats.huggingface import load_model
from groundup.model.encoder_decoder import EncoderDecoder


@pytest.mark.parametrize("mistake", MUTATIONS)
@torch.no_grad()
def test_a_mistake_shows(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    variant, mutate = MUTATIONS[mistake]
    source, target = inputs_of(variant)
    # An epsilon shows best where nothing is large, everything else where nothing is small.
    reference_pair(variant, hot="eps" not in mistake).save_pretrained(tmp_path)
    expected = their_logits(variant, tmp_path, source, target)
    model = load_model(tmp_path, torch.float64)
    assert isinstance(model, EncoderDecoder)
    assert (model(source, target) - expected).norm() <= 1e-9 * expected.norm()
    wrong = mutate(model, monkeypatch)(source, target)
    assert (wrong - expected).norm() > 1e-6 * expected.norm()
