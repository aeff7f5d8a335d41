"""A comparison that cannot fail is worth nothing: each mistake in `mutations_vision.py` must make it fail, by far."""

from pathlib import Path

import pytest
import torch
from mutations_vision import MUTATIONS
from test_vision_families import distance, our_outputs, their_outputs
from variants_vision import vision_reference

from groundup.formats.huggingface import load_model


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_the_comparison_sees_a_mistake(mistake: str, tmp_path: Path):
    variant, mutate = MUTATIONS[mistake]
    vision_reference(variant, hot=True).save_pretrained(tmp_path)
    theirs = their_outputs(variant, tmp_path)
    assert distance(our_outputs(load_model(tmp_path, torch.float64), variant), theirs) <= 1e-9
    assert distance(our_outputs(mutate(load_model(tmp_path, torch.float64)), variant), theirs) > 1e-6
