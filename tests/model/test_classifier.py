"""Classifiers of sequences before any training, and what they cannot be built from."""

from dataclasses import replace

import pytest
import torch
from tiny import random_ids
from tiny_encoder import classifier_config, encoder_config

from groundup.model.build import build
from groundup.model.initialise import initialise


def test_a_fresh_classifier_leans_to_no_class_and_every_weight_learns():
    model = build(classifier_config())
    initialise(model, seed=0)
    logits = model(random_ids(4, 9))
    assert logits.shape == (4, 3)
    assert (logits.softmax(-1) - 1 / 3).abs().max() < 0.1
    logits.square().sum().backward()
    never = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert never == set()


def test_the_same_seed_gives_the_same_weights():
    first, second = build(classifier_config()), build(classifier_config())
    initialise(first, seed=1)
    initialise(second, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_logits_are_at_least_float32(dtype: torch.dtype):
    model = build(classifier_config())
    initialise(model, seed=0)
    assert model.to(dtype)(random_ids(1, 5)).dtype == torch.promote_types(dtype, torch.float32)


def test_a_classifier_has_one_head_and_at_least_one_class():
    with pytest.raises(ValueError, match="no head of its own"):
        replace(classifier_config(), encoder=encoder_config())
    with pytest.raises(ValueError, match="at least one class"):
        replace(classifier_config(), labels=())
