"""Each deliberate mistake in an encoder is seen by the comparison with its reference."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from encoder_references import batch, distance, encoder, of_tokens, our_outputs, their_outputs
from mutations_encoders import MUTATIONS
from torch import Tensor

from groundup.formats.huggingface import load_model

Expected = Callable[[str], tuple[Path, Tensor]]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Folder of a variant with hot weights, and what the reference makes of it; once for all its mutations."""

    @functools.cache
    def make(variant: str) -> tuple[Path, Tensor]:
        folder, asked = tmp_path_factory.mktemp("reference"), batch(variant)
        encoder(variant, hot=True).save_pretrained(folder)
        return folder, of_tokens(their_outputs(variant, folder, asked.inputs()), asked.mask)

    return make


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_a_mistake_shows_by_far(mistake: str, expected: Expected):
    variant, mutate = MUTATIONS[mistake]
    (folder, logits), asked = expected(variant), batch(variant)
    right = load_model(folder).double()
    assert distance(of_tokens(our_outputs(right, asked.inputs()), asked.mask), logits) <= 1e-9
    wrong = mutate(right)
    assert distance(of_tokens(our_outputs(wrong, asked.inputs()), asked.mask), logits) > 1e-6
