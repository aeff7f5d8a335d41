"""Classification: the loss against plain loops, and an image classifier that learns."""

import math

import numpy as np
import pytest
import torch
from tiny_vision import COLOURS, SHAPES, classifier, draw, pixels
from torch import Tensor

from groundup.model.initialise import initialise
from groundup.model.vision import ImageClassifier
from groundup.tokens.batches import IGNORE
from groundup.train.classification import classification_loss


def _loss(logits: list[list[float]], labels: list[int]) -> float:
    rows = [(row, label) for row, label in zip(logits, labels, strict=True) if label != IGNORE]
    return sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in rows)


@pytest.mark.parametrize("labels", [[0, 2, 1, 1], [IGNORE, 2, IGNORE, 0], [IGNORE] * 4], ids=str)
def test_the_loss_is_the_sum_over_the_rows_that_have_a_label(labels: list[int]):
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    loss = classification_loss(logits, torch.tensor(labels))
    assert loss.total.item() == pytest.approx(_loss(logits.tolist(), labels), rel=1e-12)
    assert int(loss.targets) == sum(label != IGNORE for label in labels)
    (slope,) = torch.autograd.grad(loss.total, logits)
    for row, label in enumerate(labels):
        expected = torch.zeros(3, dtype=torch.float64)
        if label != IGNORE:
            expected = torch.softmax(logits[row].detach(), -1)
            expected[label] -= 1
        torch.testing.assert_close(slope[row], expected)


def test_narrow_logits_are_summed_in_float32():
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(64) % 50
    loss = classification_loss(logits, labels).total
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(_loss(logits.tolist(), labels.tolist()), rel=1e-6)


def _pictures(random: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    labels, colours = random.integers(len(SHAPES), size=count), random.choice(list(COLOURS), count)
    images = [draw(colour, SHAPES[label], random) for colour, label in zip(colours, labels, strict=True)]
    return pixels(images), torch.from_numpy(labels)


def test_a_classifier_learns_shapes_whatever_their_colour():
    random, model = np.random.default_rng(0), ImageClassifier(classifier())
    initialise(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98))
    steps = 150
    for step in range(steps):
        images, labels = _pictures(random, 32)
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 10, 2 * (1 - step / steps))
        optimizer.zero_grad()
        loss = classification_loss(model(images), labels)
        if step == 0:
            assert loss.total.item() / 32 == pytest.approx(math.log(4), abs=0.1)
        (loss.total / loss.targets).backward()
        optimizer.step()
    images, labels = _pictures(random, 200)
    with torch.no_grad():
        assert (model(images).argmax(1) == labels).float().mean() > 0.8
