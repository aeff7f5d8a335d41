"""Contrastive losses against plain loops and the reference, however the batch is split; and that they teach."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as multiprocessing
import transformers
from contrastive_ranks import hot_model, pairs, work
from safetensors.torch import load_file
from tiny_vision import NAMES, caption, draw, dual_encoder, pixels
from torch import Tensor, nn
from variants_vision import vision_inputs, vision_reference

from groundup.formats.huggingface import load_model
from groundup.model.dual_encoder import DualEncoder
from groundup.model.initialise import initialise
from groundup.train.contrastive import Pairs, contrastive_gradients, limit_scale, sigmoid_loss, softmax_loss

COUNT = 10
KINDS = pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])


def _by_loops(model: DualEncoder, batch: Pairs, sigmoid: bool) -> Tensor:
    """The mean loss per pair, term by term."""
    texts, images = model.embed_texts(batch.input_ids, batch.attention_mask), model.embed_images(batch.pixel_values)
    count = len(texts)
    logits = [[(texts[i] * images[j]).sum() * model.logit_scale.exp() for j in range(count)] for i in range(count)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(count):
        if sigmoid:
            for j in range(count):
                sign = 1 if i == j else -1
                total = total + torch.log1p(torch.exp(-sign * (logits[i][j] + model.logit_bias)))
        else:
            of_text = torch.stack([logits[i][j] for j in range(count)]).exp()
            of_image = torch.stack([logits[j][i] for j in range(count)]).exp()
            total = total - (of_text[i] / of_text.sum()).log() / 2 - (of_image[i] / of_image.sum()).log() / 2
    return total / count


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def _assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("micro_pairs", [1, 3, 4, COUNT, 100])
@KINDS
def test_loss_and_gradients_are_those_of_plain_loops_however_the_batch_is_split(sigmoid: bool, micro_pairs: int):
    model, reference, batch = hot_model(sigmoid), hot_model(sigmoid), pairs(COUNT)
    expected = _by_loops(reference, batch, sigmoid)
    expected.backward()
    loss = contrastive_gradients(model, batch, sigmoid_loss if sigmoid else softmax_loss, micro_pairs)
    assert int(loss.targets) == COUNT
    assert float(loss.total) / COUNT == pytest.approx(expected.item(), rel=1e-12)
    ours, theirs = _gradients(model), _gradients(reference)
    assert "logit_scale" in theirs and ("logit_bias" in theirs) == sigmoid
    _assert_equal(ours, theirs)


@KINDS
def test_two_ranks_have_the_gradients_of_one(sigmoid: bool, tmp_path: Path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(work, args=(port, tmp_path, sigmoid, COUNT), nprocs=2)
    model = hot_model(sigmoid)
    loss = contrastive_gradients(model, pairs(COUNT), sigmoid_loss if sigmoid else softmax_loss, 4)
    for rank in range(2):
        found = load_file(tmp_path / f"rank-{rank}.safetensors")
        assert found.pop("loss").item() == pytest.approx(float(loss.total), rel=1e-12)
        _assert_equal(found, _gradients(model))


@pytest.mark.parametrize("variant", ["clip", "siglip"])
def test_the_loss_is_that_of_the_reference(variant: str, tmp_path: Path):
    vision_reference(variant, hot=True).save_pretrained(tmp_path)
    inputs = {name: one[:3] for name, one in vision_inputs(variant).items()}
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float64)(**inputs, return_loss=True).loss
    model = load_model(tmp_path, torch.float64)
    ours = contrastive_gradients(model, Pairs(**inputs), softmax_loss if variant == "clip" else sigmoid_loss, 2)
    assert float(ours.total) / 3 == pytest.approx(theirs.item(), rel=1e-6)  # the reference takes softmax in float32


def test_masked_tokens_are_not_seen_in_any_micro_batch():
    model, batch = hot_model(sigmoid=False), pairs(COUNT)
    padding = batch._replace(attention_mask=(batch.input_ids != 0).long())
    first = batch._replace(attention_mask=(torch.arange(batch.input_ids.shape[1]) > 0).long().expand(COUNT, -1))
    plain, padded, shorter = (
        contrastive_gradients(model, one, softmax_loss, 3).total for one in (batch, padding, first)
    )
    assert padded.item() == pytest.approx(plain.item(), rel=1e-12)  # it comes after the token that stands for the text
    assert shorter.item() / COUNT == pytest.approx(_by_loops(model, first, sigmoid=False).item(), rel=1e-12)
    assert shorter.item() != pytest.approx(plain.item(), rel=1e-3)


def test_the_scale_stays_below_a_hundred():
    model = hot_model(sigmoid=False)
    before = model.logit_scale.detach().clone()
    limit_scale(model)
    assert torch.equal(model.logit_scale, before)
    nn.init.constant_(model.logit_scale, 9.0)
    limit_scale(model)
    assert model.logit_scale.exp().item() == pytest.approx(100)


@KINDS
def test_a_fresh_model_starts_where_the_papers_do_and_can_move(sigmoid: bool):
    model = DualEncoder(dual_encoder(sigmoid=sigmoid))
    initialise(model, seed=0)
    assert model.logit_scale.exp().item() == pytest.approx(10 if sigmoid else 1 / 0.07)
    batch = pairs(COUNT)
    contrastive_gradients(model, batch._replace(pixel_values=batch.pixel_values.float()), softmax_loss, COUNT)
    still = [name for name, gradient in _gradients(model).items() if not gradient.abs().max() > 0]
    # Moving all keys by one vector moves all scores of a query alike, and a bias on all logits alike likewise.
    assert all(name.endswith("key.bias") or name == "logit_bias" for name in still), still


# Pairs of colour and shape that no caption and no picture put together while training.
HELD_OUT = (("red", "cross"), ("blue", "square"), ("yellow", "stripe"), ("white", "frame"))
TEMPLATES = (("a",), ("the",), ("a", "picture", "of"), ("picture", "of", "the"))
STEPS = 250
LEARNING_RATE = 4e-3


@KINDS
def test_pictures_find_their_names_also_those_of_pairs_never_shown(sigmoid: bool):
    """Zero-shot, with the names of all 24 pairs to choose from: chance is 1/24."""
    random, model = np.random.default_rng(0), DualEncoder(dual_encoder(sigmoid=sigmoid))
    initialise(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98))
    shown = [name for name in NAMES if name not in HELD_OUT]
    for step in range(STEPS):
        captions = [caption(*name, TEMPLATES[random.integers(len(TEMPLATES))]) for name in shown]
        batch = Pairs(torch.tensor(captions), pixels([draw(*name, random) for name in shown]))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 10, 2 * (1 - step / STEPS))
        optimizer.zero_grad()
        contrastive_gradients(model, batch, sigmoid_loss if sigmoid else softmax_loss, len(shown))
        optimizer.step()
        limit_scale(model)
    found = _found(model, random)
    assert np.mean([found[name] for name in shown]) > 0.8, found
    assert np.mean([found[name] for name in HELD_OUT]) > 0.2, found


@torch.no_grad()
def _found(model: DualEncoder, random: np.random.Generator) -> dict[tuple[str, str], float]:
    """For each pair the part of twenty new pictures that are closest to its name, of all names."""
    names = model.embed_texts(torch.tensor([caption(*name) for name in NAMES]))
    found = {}
    for number, name in enumerate(NAMES):
        seen = model.embed_images(pixels([draw(*name, random) for _ in range(20)]))
        found[name] = float((model.compare(seen, names).argmax(1) == number).float().mean())
    return found
