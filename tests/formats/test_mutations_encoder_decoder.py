"""The comparison with the reference notices mistakes in encoder-decoders: each of these, made on purpose, breaks it."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from encoder_decoders import assert_equal, inputs_of, reference_pair, their_logits
from mutations_encoder_decoder import MUTATIONS
from torch import Tensor

from groundup.formats.huggingface import load_model
from groundup.model.config import EncoderDecoderConfig
from groundup.model.encoder_decoder import EncoderDecoder

# The comparison of right models is to 1e-9; what is wrong has to be far beyond that.
FAR = 1e-6


@cache
def _right(variant: str, hot: bool) -> tuple[EncoderDecoderConfig, dict[str, Tensor], Tensor]:
    """A model's configuration and tensors, and the reference's logits."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        reference_pair(variant, hot).save_pretrained(folder)
        expected = their_logits(variant, folder, *inputs_of(variant))
        model = load_model(folder, torch.float64)
        assert isinstance(model, EncoderDecoder)
        return model.config, {name: tensor.detach().clone() for name, tensor in model.named_parameters()}, expected


@pytest.mark.parametrize("mistake", MUTATIONS)
@torch.no_grad()
def test_a_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch):
    variant, mutate = MUTATIONS[mistake]
    # An epsilon shows best where nothing is large, everything else where nothing is small.
    config, tensors, expected = _right(variant, hot="eps" not in mistake)
    model = EncoderDecoder(config).double().eval()
    model.load_state_dict(tensors)
    inputs = inputs_of(variant)
    assert_equal(model(*inputs), expected)
    wrong = mutate(model, monkeypatch)(*inputs)
    assert (wrong - expected).norm() > FAR * expected.norm()
